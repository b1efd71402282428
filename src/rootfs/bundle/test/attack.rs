//! Trees and volumes that try to have something mounted, written or read where it must not be.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{RenameFlags, renameat2};

use super::place::{Links, Make};
use super::*;

/// What is said of a bundle that is not mounted.
fn refusal(bundle: &Bundle, change: impl FnOnce(&mut Value) + Send) -> String {
    let plan = bundle.plan(change).unwrap();
    let error = apart(|_| build(&plan).map(drop).unwrap_err());
    let source = std::error::Error::source(&error).unwrap().to_string();
    format!("{error}: {source}")
}

/// CVE-2019-19921, CVE-2023-27561: an image in which `/proc` is a link, so that the real one would be elsewhere.
#[test]
fn proc_and_sys_are_plain_directories() {
    if !is_root("proc_and_sys_are_plain_directories") {
        return;
    }
    for name in ["proc", "sys"] {
        let bundle = Bundle::new();
        let elsewhere = bundle.root().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink("/elsewhere", bundle.root().join(name)).unwrap();
        let kind = if name == "proc" { "proc" } else { "sysfs" };
        let said = refusal(&bundle, |config| {
            config["mounts"] = json!([mount(&format!("/{name}"), kind, kind, "")]);
        });
        assert!(
            said.contains("mounts[0]") && said.contains("symbolic links"),
            "{said}"
        );
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}

/// CVE-2019-19921, CVE-2025-52881: something in `/proc` that is not the kernel's, so that writes to it are lost.
#[test]
fn nothing_is_mounted_in_proc() {
    if !is_root("nothing_is_mounted_in_proc") {
        return;
    }
    let proc = || mount("/proc", "proc", "proc", "");
    let mounts = [
        json!([proc(), mount("/proc/sys", "tmpfs", "tmpfs", "")]),
        json!([proc(), mount("/proc/self/attr", "bind", "outside", "bind")]),
        json!([proc(), mount("/proc", "tmpfs", "tmpfs", "")]),
        json!([mount("/proc", "bind", "outside", "rbind")]),
        // By a detour: a link in the image.
        json!([proc(), mount("/detour", "tmpfs", "tmpfs", "")]),
    ];
    for mounts in mounts {
        let bundle = Bundle::new();
        symlink("/proc/sys", bundle.root().join("detour")).unwrap();
        let said = refusal(&bundle, |config| config["mounts"] = mounts.clone());
        assert!(
            said.contains("must stay the kernel's own"),
            "{mounts}: {said}"
        );
    }
    // What is commonly replaced can be; and a real proc may be mounted at its place.
    let bundle = Bundle::new();
    fs::write(bundle.dir.path().join("cpuinfo"), "one").unwrap();
    let plan = bundle.plan(|config| {
        config["mounts"] = json!([
            mount("/proc", "bind", "/proc", "rbind"),
            mount("/proc/cpuinfo", "bind", "cpuinfo", "bind,ro"),
        ]);
    });
    let text = inside(&plan.unwrap(), |_| {
        fs::read_to_string("/proc/cpuinfo").unwrap()
    });
    assert_eq!(text, "one");
}

#[test]
fn links_lead_nowhere_outside_of_the_root() {
    if !is_root("links_lead_nowhere_outside_of_the_root") {
        return;
    }
    let bundle = Bundle::new();
    let (root, outside) = (bundle.root(), bundle.outside());
    symlink(&outside, root.join("absolute")).unwrap();
    symlink("../outside", root.join("relative")).unwrap();
    symlink("../../../../../../../..", root.join("far")).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    // As in images of Debian and Ubuntu: it leads nowhere, and is to be mounted on.
    symlink("../run/resolve/stub.conf", root.join("etc/resolv.conf")).unwrap();
    fs::write(bundle.dir.path().join("resolv.conf"), "nameserver").unwrap();
    let far = format!("/far{}/three", outside.display());
    let plan = bundle
        .plan(|config| {
            config["mounts"] = json!([
                mount("/absolute/one", "tmpfs", "tmpfs", ""),
                mount("/relative/two", "tmpfs", "tmpfs", ""),
                mount(&far, "tmpfs", "tmpfs", ""),
                mount("/../../etc/hosts", "bind", "resolv.conf", "bind"),
                mount("/etc/resolv.conf", "bind", "resolv.conf", "bind"),
                mount("/proc", "proc", "proc", ""),
            ]);
        })
        .unwrap();
    inside(&plan, |proc| {
        let table = table(proc);
        let inner = outside.display();
        for point in [
            format!("{inner}/one"),
            "/outside/two".to_owned(),
            format!("{inner}/three"),
        ] {
            assert!(table.contains_key(&point), "{point}: {:?}", table.keys());
        }
        assert_eq!(
            fs::read_to_string("/etc/resolv.conf").unwrap(),
            "nameserver"
        );
        assert!(table.contains_key("/run/resolve/stub.conf"));
    });
    bundle.assert_outside_is_empty();
    // A circle is an end, too.
    symlink("circle", root.join("circle")).unwrap();
    let said = refusal(&bundle, |config| {
        config["mounts"] = json!([mount("/circle/x", "tmpfs", "tmpfs", "")]);
    });
    assert!(said.contains("symbolic links"), "{said}");
}

/// CVE-2021-30465: a volume in which a directory is exchanged for a link while it is being mounted on.
#[test]
fn a_race_with_a_link_wins_nothing() {
    if !is_root("a_race_with_a_link_wins_nothing") {
        return;
    }
    let bundle = Bundle::new();
    let volume = bundle.dir.path().join("volume");
    fs::create_dir_all(volume.join("swapped")).unwrap();
    symlink(bundle.outside(), volume.join("link")).unwrap();
    let plan = bundle
        .plan(|config| {
            config["mounts"] = json!([
                mount("/volume", "bind", "volume", "rbind"),
                mount("/volume/swapped/a", "tmpfs", "tmpfs", ""),
                mount("/volume/swapped/../swapped/b/c", "tmpfs", "tmpfs", ""),
                mount("/volume/swapped/file", "bind", "outside", "bind"),
            ]);
        })
        .unwrap();
    let over = AtomicBool::new(false);
    let (mut inside, mut links) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let at = File::open(&volume).unwrap();
            while !over.load(Ordering::Relaxed) {
                let exchange = RenameFlags::RENAME_EXCHANGE;
                renameat2(&at, "swapped", &at, "link", exchange).unwrap();
            }
        });
        for _ in 0..200 {
            let found: Vec<PathBuf> = apart(|_| {
                let built = build(&plan);
                // It may fail, because what was found has moved; it may not get outside.
                let root: Option<OwnedFd> = built.ok().map(|root| root.fd);
                let own = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                drop(root);
                let points = own
                    .lines()
                    .map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
                points
                    .filter(|point| point.starts_with(bundle.dir.path()))
                    .collect()
            });
            for point in found {
                assert!(point.starts_with(bundle.root()), "{}", point.display());
                inside += u32::from(point.starts_with(bundle.root().join("volume/swapped")));
                links += u32::from(!point.starts_with(bundle.root().join("volume")));
            }
            bundle.assert_outside_is_empty();
        }
        over.store(true, Ordering::Relaxed);
    });
    // Otherwise it was no race.
    assert!(inside > 0 && links > 0, "{inside} {links}");
}

/// The same, without mounts: what is made where nothing is.
#[test]
fn a_race_makes_nothing_outside() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.root().join("swapped")).unwrap();
    symlink(bundle.outside(), bundle.root().join("link")).unwrap();
    let root = place::hold(&bundle.root()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let exchange = RenameFlags::RENAME_EXCHANGE;
                renameat2(&root, "swapped", &root, "link", exchange).unwrap();
            }
        });
        for number in 0..2000 {
            let path = PathBuf::from(format!("swapped/{number}/../x/{number}"));
            let make = if number % 2 == 0 {
                Make::Directory
            } else {
                Make::File
            };
            let _ = place::ensure(root.as_fd(), &path, make, Links::Inside);
        }
        over.store(true, Ordering::Relaxed);
    });
    bundle.assert_outside_is_empty();
    let made = fs::read_dir(bundle.root().join("swapped")).is_ok_and(|list| list.count() > 0);
    assert!(made || fs::read_dir(bundle.root().join("link")).unwrap().count() > 0);
}

/// CVE-2025-31133: an image's `/dev/null` that is something else, to be shown where a path is covered.
#[test]
fn what_covers_a_path_is_the_kernel_s_own_null() {
    if !is_root("what_covers_a_path_is_the_kernel_s_own_null") {
        return;
    }
    let bundle = Bundle::new();
    fs::create_dir(bundle.root().join("dev")).unwrap();
    fs::write(bundle.root().join("secret"), "secret").unwrap();
    symlink("/proc/sysrq-trigger", bundle.root().join("dev/null")).unwrap();
    let masked = |config: &mut Value| {
        config["mounts"] = json!([mount("/proc", "proc", "proc", "")]);
        config["linux"]["maskedPaths"] = json!(["/secret", "/proc/interrupts"]);
    };
    // A container whose /dev is the image's gets none of its devices.
    let said = refusal(&bundle, masked);
    assert!(
        said.contains("dev/null") && said.contains("something else"),
        "{said}"
    );
    // And where devices are not its own, it still is the real one that covers.
    let plan = bundle.plan(|config| {
        masked(config);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(mount("/dev", "bind", "rootfs/dev", "rbind"));
    });
    inside(&plan.unwrap(), |_| {
        assert_eq!(
            fs::read_link("/dev/null").unwrap(),
            Path::new("/proc/sysrq-trigger")
        );
        for path in ["/secret", "/proc/interrupts"] {
            let meta = fs::symlink_metadata(path).unwrap();
            assert!(meta.file_type().is_char_device(), "{path}");
            assert_eq!(
                std::os::unix::fs::MetadataExt::rdev(&meta),
                nix::sys::stat::makedev(1, 3)
            );
            assert_eq!(fs::read(path).unwrap(), b"");
        }
    });
}

/// CVE-2025-52565: a link in the place of the terminal, or of the file from which terminals come.
#[test]
fn a_terminal_is_put_on_no_link_and_comes_from_devpts() {
    if !is_root("a_terminal_is_put_on_no_link_and_comes_from_devpts") {
        return;
    }
    let bundle = Bundle::new();
    let dev = bundle.root().join("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/victim", dev.join("console")).unwrap();
    fs::write(bundle.root().join("victim"), "untouched").unwrap();
    let console = |with_pts: bool| {
        let plan = bundle.plan(|config| {
            if with_pts {
                config["mounts"] = json!([mount("/dev/pts", "devpts", "devpts", "newinstance")]);
            }
        });
        apart(|_| {
            let plan = plan.unwrap();
            let root = build(&plan).unwrap();
            let error = root.console(None).map(drop).unwrap_err();
            let said = std::error::Error::source(&error).unwrap().to_string();
            assert!(place::find(root.fd.as_fd(), Path::new("victim"), Links::None).is_ok());
            let victim = io::read_to_string(File::from(
                place::open(
                    root.fd.as_fd(),
                    Path::new("victim"),
                    OFlag::O_RDONLY,
                    Links::None,
                )
                .unwrap(),
            ));
            assert_eq!(victim.unwrap(), "untouched");
            format!("{error}: {said}")
        })
    };
    let said = console(true);
    assert!(
        said.contains("dev/console") && said.contains("symbolic links"),
        "{said}"
    );
    // A file of the image's, and a terminal of the host's, are none.
    fs::create_dir_all(dev.join("pts")).unwrap();
    fs::write(dev.join("pts/ptmx"), "").unwrap();
    assert!(console(false).contains("does not belong to a devpts"));
    fs::remove_file(dev.join("pts/ptmx")).unwrap();
    let all = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let number = nix::sys::stat::makedev(5, 2);
    nix::sys::stat::mknod(
        &dev.join("pts/ptmx"),
        nix::sys::stat::SFlag::S_IFCHR,
        all,
        number,
    )
    .unwrap();
    assert!(console(false).contains("does not belong to a devpts"));
}

#[test]
fn nothing_of_the_host_s_tree_can_be_named_afterwards() {
    if !is_root("nothing_of_the_host_s_tree_can_be_named_afterwards") {
        return;
    }
    let bundle = Bundle::new();
    symlink("/", bundle.root().join("root")).unwrap();
    let plan = bundle
        .plan(|config| config["mounts"] = json!([mount("/proc", "proc", "proc", "")]))
        .unwrap();
    let names = inside(&plan, |proc| {
        assert_eq!(table(proc).len(), 2);
        let up = fs::read_dir("/../root/../..").unwrap();
        up.map(|entry| entry.unwrap().file_name())
            .collect::<std::collections::BTreeSet<_>>()
    });
    let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
    assert_eq!(names, ["dev", "proc", "root"]);
}
