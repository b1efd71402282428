//! What is asked for is there.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use super::place::Links;
use super::*;

/// The mounts that `runc spec` writes.
fn usual() -> Value {
    json!([
        mount("/proc", "proc", "proc", ""),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid,strictatime,mode=755,size=65536k"
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            "nosuid,noexec,nodev,mode=1777,size=65536k"
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            "nosuid,noexec,nodev,relatime,ro"
        ),
    ])
}

#[test]
fn the_usual_configuration_is_mounted_as_it_says() {
    if !is_root("the_usual_configuration_is_mounted_as_it_says") {
        return;
    }
    let bundle = Bundle::new();
    let plan = bundle
        .plan(|config| {
            config["root"]["readonly"] = json!(true);
            config["mounts"] = usual();
            config["linux"]["maskedPaths"] =
                json!(["/proc/interrupts", "/sys/firmware", "/proc/none"]);
            config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/none"]);
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({"type": "cgroup"}));
        })
        .unwrap();
    assert!(!plan.needs_parent());
    inside(&plan, |proc| {
        let table = table(proc);
        let kinds = [
            ("/proc", "proc"),
            ("/dev", "tmpfs"),
            ("/dev/pts", "devpts"),
            ("/dev/shm", "tmpfs"),
            ("/dev/mqueue", "mqueue"),
            ("/sys", "sysfs"),
            ("/sys/fs/cgroup", "cgroup2"),
        ];
        for (point, kind) in kinds {
            assert_eq!(table[point].kind, kind, "{point}");
        }
        assert!(
            table["/"].has("ro") && table["/sys"].has("ro") && table["/sys/fs/cgroup"].has("ro")
        );
        assert!(table["/dev"].has("rw") && !table["/dev"].has("noexec"));
        assert!(table["/dev/shm"].has("noexec") && table["/dev/shm"].has("nodev"));
        assert!(table["/dev"].own.iter().any(|o| o == "size=65536k"));
        // Neither the host's tree nor anything made on the way.
        assert!(table.keys().all(|point| {
            point == "/"
                || ["/proc", "/dev", "/sys"]
                    .iter()
                    .any(|top| point.starts_with(top))
        }));
        covered(&table);
        furnished();
    });
    bundle.assert_outside_is_empty();
}

fn covered(table: &BTreeMap<String, Line>) {
    assert!(
        fs::metadata("/proc/interrupts")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    assert_eq!(table["/sys/firmware"].kind, "tmpfs");
    assert!(table["/sys/firmware"].has("ro"));
    assert!(table["/proc/sys"].has("ro") && table["/proc"].has("rw"));
    let refused = fs::write("/proc/sys/kernel/domainname", "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(
        fs::write("/new", "x").unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
}

fn furnished() {
    for (name, number) in [
        ("null", (1, 3)),
        ("full", (1, 7)),
        ("tty", (5, 0)),
        ("urandom", (1, 9)),
    ] {
        let meta = fs::symlink_metadata(Path::new("/dev").join(name)).unwrap();
        assert!(meta.file_type().is_char_device(), "{name}");
        assert_eq!(meta.rdev(), nix::sys::stat::makedev(number.0, number.1));
        assert_eq!(meta.permissions().mode() & 0o777, 0o666);
    }
    assert_eq!(fs::read_link("/dev/ptmx").unwrap(), Path::new("pts/ptmx"));
    assert_eq!(
        fs::read_link("/dev/stderr").unwrap(),
        Path::new("/proc/self/fd/2")
    );
    assert_eq!(
        fs::metadata("/dev/shm").unwrap().permissions().mode() & 0o7777,
        0o1777
    );
}

#[test]
fn a_bind_mount_has_the_options_it_asks_for_and_no_others() {
    if !is_root("a_bind_mount_has_the_options_it_asks_for_and_no_others") {
        return;
    }
    let bundle = Bundle::new();
    let source = bundle.dir.path().join("source");
    fs::create_dir_all(source.join("beneath")).unwrap();
    fs::write(source.join("file"), "hello").unwrap();
    let bind = |at: &str, options: &str| mount(at, "bind", "source", options);
    let plan = bundle
        .plan(|config| {
            config["mounts"] = json!([
                bind("/flat", "bind,ro,nosuid"),
                bind("/deep", "rbind,ro"),
                bind("/all", "rbind,rro,rnodev,noatime,rprivate"),
                bind("/shared", "rbind,rshared"),
                bind("/unbindable", "rbind,runbindable"),
                mount("/etc/one/file", "bind", "source/file", "bind,ro"),
                mount("/proc", "proc", "proc", ""),
            ]);
        })
        .unwrap();
    apart(|proc| {
        let kind = Some("tmpfs");
        let none = None::<&str>;
        nix::mount::mount(kind, &source.join("beneath"), kind, MsFlags::empty(), none).unwrap();
        build(&plan).unwrap().enter().unwrap();
        let table = table(proc);
        assert!(table["/flat"].has("ro") && table["/flat"].has("nosuid"));
        assert!(!table.contains_key("/flat/beneath"));
        assert!(table["/deep"].has("ro") && table["/deep/beneath"].has("rw"));
        for point in ["/all", "/all/beneath"] {
            assert!(
                table[point].has("ro") && table[point].has("nodev"),
                "{point}"
            );
        }
        assert!(table["/all"].has("noatime") && !table["/all/beneath"].has("noatime"));
        assert_eq!(table["/all"].propagation, "");
        assert!(table["/shared"].propagation.contains("shared:"));
        assert!(table["/shared/beneath"].propagation.contains("shared:"));
        assert!(table["/unbindable"].propagation.contains("unbindable"));
        assert!(table["/etc/one/file"].has("ro"));
        assert_eq!(fs::read_to_string("/etc/one/file").unwrap(), "hello");
        assert!(fs::write("/flat/file", "x").is_err());
        fs::write("/shared/file", "changed").unwrap();
    });
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "changed");
}

#[test]
fn a_tmpfs_can_begin_with_what_it_covers() {
    if !is_root("a_tmpfs_can_begin_with_what_it_covers") {
        return;
    }
    let bundle = Bundle::new();
    let etc = bundle.root().join("etc");
    fs::create_dir_all(etc.join("deep")).unwrap();
    fs::write(etc.join("deep/file"), "from the image").unwrap();
    symlink("deep/file", etc.join("link")).unwrap();
    fs::set_permissions(&etc, fs::Permissions::from_mode(0o1751)).unwrap();
    fs::create_dir(bundle.root().join("run")).unwrap();
    let plan = bundle
        .plan(|config| {
            config["mounts"] = json!([
                mount("/proc", "proc", "proc", ""),
                mount("/etc", "tmpfs", "tmpfs", "tmpcopyup,ro,size=1m"),
                mount("/etc/inner", "tmpfs", "tmpfs", "mode=700"),
                mount("/run", "tmpfs", "tmpfs", "nosuid"),
            ]);
        })
        .unwrap();
    inside(&plan, |proc| {
        let table = table(proc);
        assert_eq!(
            (&*table["/etc"].kind, table["/etc"].has("ro")),
            ("tmpfs", true)
        );
        let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        // As what it covers, or as it is told, or as nobody has said anything.
        assert_eq!(
            (mode("/etc"), mode("/etc/inner"), mode("/run")),
            (0o1751, 0o700, 0o755)
        );
        assert_eq!(fs::read_to_string("/etc/link").unwrap(), "from the image");
    });
    assert_eq!(
        fs::read_dir(etc).unwrap().count(),
        2,
        "the image has been written to"
    );
}

#[test]
fn other_file_systems_are_mounted_with_options_of_any_length() {
    if !is_root("other_file_systems_are_mounted_with_options_of_any_length") {
        return;
    }
    let bundle = Bundle::new();
    let base = bundle.dir.path();
    let mut lower = Vec::new();
    for number in 0..20 {
        let layer = base.join(format!("a-layer-with-a-long-name-{number}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("file-{number}")), "x").unwrap();
        lower.push(layer.display().to_string());
    }
    let lower = format!("lowerdir={}", lower.join(":"));
    assert!(lower.len() > 256);
    let plan = bundle
        .plan(|config| {
            config["mounts"] = json!([
                mount(
                    "/merged",
                    "overlay",
                    "overlay",
                    &format!("{lower},ro,nodev")
                ),
                mount("/proc", "proc", "proc", ""),
                mount("/ram", "ramfs", "ramfs", "noexec"),
            ]);
        })
        .unwrap();
    inside(&plan, |proc| {
        let table = table(proc);
        assert_eq!(table["/merged"].kind, "overlay");
        assert!(table["/merged"].has("ro") && table["/merged"].has("nodev"));
        assert!(table["/ram"].has("noexec"));
        assert_eq!(fs::read_dir("/merged").unwrap().count(), 20);
        assert_eq!(table.len(), 4, "{:?}", table.keys());
    });
}

#[test]
fn kernel_settings_are_the_namespace_s() {
    if !is_root("kernel_settings_are_the_namespace_s") {
        return;
    }
    let bundle = Bundle::new();
    // What an image, or a volume, has there is not the kernel.
    let fake = bundle.root().join("proc/sys/net/ipv4");
    fs::create_dir_all(&fake).unwrap();
    fs::write(fake.join("ip_default_ttl"), "untouched").unwrap();
    let plan = bundle
        .plan(|config| {
            config["linux"]["sysctl"] = json!({
                "net.ipv4.ip_default_ttl": "77",
                "kernel.msgmax": "4242",
                "net/ipv4/conf/lo/forwarding": "1",
            });
        })
        .unwrap();
    apart(|proc| {
        build(&plan).unwrap();
        let read = |path: &str| {
            let path = Path::new("sys").join(path);
            let fd =
                nix::fcntl::openat(proc, &path, OFlag::O_RDONLY, nix::sys::stat::Mode::empty());
            io::read_to_string(File::from(fd.unwrap())).unwrap()
        };
        assert_eq!(read("net/ipv4/ip_default_ttl").trim(), "77");
        assert_eq!(read("kernel/msgmax").trim(), "4242");
        assert_eq!(read("net/ipv4/conf/lo/forwarding").trim(), "1");
    });
    assert_ne!(
        fs::read_to_string("/proc/sys/kernel/msgmax")
            .unwrap()
            .trim(),
        "4242"
    );
    assert_eq!(
        fs::read_to_string(fake.join("ip_default_ttl")).unwrap(),
        "untouched"
    );
}

#[test]
fn a_terminal_is_the_container_s_own() {
    if !is_root("a_terminal_is_the_container_s_own") {
        return;
    }
    let bundle = Bundle::new();
    let plan = bundle.plan(|config| config["mounts"] = usual()).unwrap();
    apart(|proc| {
        let root = build(&plan).unwrap();
        let Console { master, slave } = root.console(Some((33, 99))).unwrap();
        root.enter().unwrap();
        assert_eq!(table(proc)["/dev/console"].kind, "devpts");
        use std::io::{Read, Write};
        let mut console = File::options().write(true).open("/dev/console").unwrap();
        console.write_all(b"hello\n").unwrap();
        let mut text = [0; 7];
        let mut master = File::from(master);
        master.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello\r\n");
        assert_eq!(
            fs::metadata("/dev/pts/0").unwrap().ino(),
            File::from(slave).metadata().unwrap().ino()
        );
    });
}

#[test]
fn a_shared_root_shares_volumes_and_not_the_container_s_own_mounts() {
    if !is_root("a_shared_root_shares_volumes_and_not_the_container_s_own_mounts") {
        return;
    }
    let bundle = Bundle::new();
    let volume = bundle.dir.path().join("volume");
    fs::create_dir_all(volume.join("at")).unwrap();
    let plan = bundle
        .plan(|config| {
            config["linux"]["rootfsPropagation"] = json!("rshared");
            config["mounts"] = json!([
                mount("/proc", "proc", "proc", ""),
                mount("/volume", "bind", "volume", "rbind,rshared"),
            ]);
        })
        .unwrap();
    // The first namespace plays the host; it has the bundle in a shared mount.
    apart(|host| {
        let dir = bundle.dir.path();
        let none = None::<&str>;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        nix::mount::mount(none, "/", none, private, none).unwrap();
        nix::mount::mount(Some(dir), dir, none, MsFlags::MS_BIND, none).unwrap();
        nix::mount::mount(none, dir, none, MsFlags::MS_SHARED, none).unwrap();
        let before = table(host).len();
        let propagation = std::thread::scope(|scope| {
            let inner = scope.spawn(|| {
                namespace::leave(MOUNT).unwrap();
                build(&plan).unwrap().enter().unwrap();
                let kind = Some("tmpfs");
                nix::mount::mount(kind, "/volume/at", kind, MsFlags::empty(), none).unwrap();
                table(host)["/"].propagation.clone()
            });
            inner.join().unwrap()
        });
        assert!(propagation.contains("shared:"), "{propagation}");
        let after = table(host);
        let volume = volume.join("at").display().to_string();
        assert_eq!(after[&volume].kind, "tmpfs");
        assert_eq!(after.len(), before + 1, "{:?}", after.keys());
    });
}

#[test]
fn without_pivot_root_the_host_s_processes_cannot_be_seen_either() {
    if !is_root("without_pivot_root_the_host_s_processes_cannot_be_seen_either") {
        return;
    }
    let bundle = Bundle::new();
    let options = Options { no_pivot: true };
    let plan = bundle
        .plan_with(options, |config| {
            config["mounts"] = json!([mount("/proc", "proc", "proc", "")]);
        })
        .unwrap();
    apart(|_| {
        // As a process has it that got out of the chroot.
        let old = place::hold(Path::new("/")).unwrap();
        build(&plan).unwrap().enter().unwrap();
        let names = fs::read_dir("/")
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.collect();
        assert!(
            names.iter().all(|name| name == "proc" || name == "dev"),
            "{names:?}"
        );
        assert!(place::find(old.as_fd(), Path::new("etc"), Links::Inside).is_ok());
        for view in ["proc/self", "proc/1", "sys/kernel"] {
            assert!(
                place::find(old.as_fd(), Path::new(view), Links::Inside).is_err(),
                "{view}"
            );
        }
    });
}
