//! Trees of containers with a user namespace, and id-mapped mounts.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::sys::fdpass;

/// Gives the user namespace of a process its maps, once it is in it.
fn map(pid: u32) {
    let of = Path::new("/proc").join(pid.to_string());
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    while fs::read_link(of.join("ns/user")).unwrap() == own {
        std::thread::yield_now();
    }
    fs::write(of.join("uid_map"), "0 100000 65536").unwrap();
    fs::write(of.join("gid_map"), "0 100000 65536").unwrap();
}

fn piped(mut command: Command) -> Child {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// A process in a user namespace whose root is the host's number 100000, and in the namespaces given.
struct Inhabitant(Child);

impl Inhabitant {
    fn new(options: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.arg("--user").args(options).args(["sleep", "60"]);
        let inhabitant = Self(command.stdout(Stdio::null()).spawn().unwrap());
        map(inhabitant.0.id());
        inhabitant
    }

    fn directory(&self) -> PathBuf {
        Path::new("/proc").join(self.0.id().to_string())
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn owners_go_through_the_maps_of_a_mount() {
    if !is_root("owners_go_through_the_maps_of_a_mount") {
        return;
    }
    let bundle = Bundle::new();
    let source = bundle.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    chown(source.join("file"), Some(7), Some(8)).unwrap();
    let inhabitant = Inhabitant::new(&[]);
    let mut plan = bundle
        .plan(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            let path = inhabitant.directory().join("ns/user");
            namespaces.push(json!({"type": "user", "path": path}));
            config["mounts"] = json!([
                mount("/mapped", "bind", "source", "rbind,ridmap"),
                mount("/plain", "bind", "source", "rbind"),
            ]);
        })
        .unwrap();
    assert!(plan.needs_parent());
    // The test stays the host's root, who can make devices.
    plan.user_namespace = false;
    let mounts = std::sync::mpsc::channel();
    let (ours, theirs) = fdpass::pair().unwrap();
    let owners = std::thread::scope(|scope| {
        let plan = &plan;
        let child = scope.spawn(move || {
            namespace::leave(MOUNT | NET | IPC | UTS).unwrap();
            plan.separate().unwrap();
            mounts
                .0
                .send(File::open("/proc/thread-self/ns/mnt").unwrap())
                .unwrap();
            let sources = plan.receive_sources(theirs.as_fd()).unwrap();
            plan.build(sources).unwrap().enter().unwrap();
            let owner = |path: &str| {
                let meta = fs::metadata(path).unwrap();
                (meta.uid(), meta.gid())
            };
            (owner("/mapped/file"), owner("/plain/file"))
        });
        // As a parent of one thread: of this one alone are its working directory and its mounts.
        let parent = scope.spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            let before = fs::read_link("/proc/thread-self/ns/mnt").unwrap();
            let child = mounts.1.recv().unwrap();
            let sources = plan.sources_in(child.as_fd()).unwrap();
            assert_eq!(fs::read_link("/proc/thread-self/ns/mnt").unwrap(), before);
            sources.send(ours.as_fd()).unwrap();
        });
        parent.join().unwrap();
        child.join().unwrap()
    });
    assert_eq!(owners, ((100_007, 100_008), (7, 8)));
}

/// The variable by which the test below knows that it is inside, and of which bundle.
const INSIDE: &str = "GODWIT_TEST_BUNDLE";

/// The plan of the container of the test below.
fn plan_of(dir: &Path) -> Plan {
    let config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            mount("/proc", "proc", "proc", ""),
            mount("/dev", "tmpfs", "tmpfs", "nosuid,mode=755"),
            mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid"),
            mount("/sys", "sysfs", "sysfs", "ro"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro"),
            mount("/volume", "bind", "volume", "rbind,ro"),
        ],
        "linux": {
            "namespaces": [
                {"type": "mount"}, {"type": "user"}, {"type": "network"}, {"type": "ipc"},
                {"type": "cgroup"}, {"type": "pid"}, {"type": "uts"},
            ],
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "maskedPaths": ["/proc/interrupts", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys"],
        },
    });
    let spec: Spec = serde_json::from_value(config).unwrap();
    Plan::of(&spec, dir, Options::default()).unwrap()
}

#[test]
fn a_user_namespace_gets_all_of_it_too() {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return inside_of(Path::new(&dir));
    }
    if !is_root("a_user_namespace_gets_all_of_it_too") {
        return;
    }
    let bundle = Bundle::new();
    // As an engine leaves it: passable for the container's root, who is nobody here.
    fs::set_permissions(bundle.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    fs::create_dir(bundle.dir.path().join("volume")).unwrap();
    chown(bundle.root(), Some(100_000), Some(100_000)).unwrap();
    let name = "rootfs::bundle::test::user::a_user_namespace_gets_all_of_it_too";
    let mut command = Command::new("unshare");
    // It waits for its maps, and becomes root by them.
    let enter = "read go && exec setpriv --reuid=0 --regid=0 --clear-groups \"$0\" \"$@\"";
    command
        .args([
            "--user",
            "--keep-caps",
            "--mount",
            "--pid",
            "--fork",
            "--ipc",
            "--net",
        ])
        .args(["--cgroup", "--uts", "--propagation=unchanged", "--wd=/"])
        .args(["sh", "-c", enter])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, bundle.dir.path());
    let mut child = piped(command);
    map(child.id());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("everything was there"),
        "{said}"
    );
}

fn inside_of(dir: &Path) {
    let plan = plan_of(dir);
    let proc = File::open("/proc").unwrap();
    // Only to have the working directory for itself: the mounts are the process's own already.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
    build(&plan).unwrap().enter().unwrap();
    let table = table(&proc);
    for (point, kind) in [
        ("/proc", "proc"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ] {
        assert_eq!(table[point].kind, kind);
    }
    assert_eq!(table["/sys/fs/cgroup"].kind, "cgroup2");
    assert!(table["/volume"].has("ro") && table["/"].has("ro"));
    let null = fs::metadata("/dev/null").unwrap();
    assert!(null.file_type().is_char_device());
    fs::write("/dev/null", "x").unwrap();
    assert_eq!(fs::read("/proc/interrupts").unwrap(), b"");
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
        "1\n"
    );
    println!("everything was there");
}
