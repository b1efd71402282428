//! The OCI command line on the real kernel: real bundles, real processes, looked at by way of /proc; and nothing is
//! left behind. They need root and a static busybox.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

#[path = "oci/checkpoint.rs"]
mod checkpoint;

const WAIT: Duration = Duration::from_secs(20);

/// A directory with a root for states and a root file system; everything is checked to be gone in the end.
struct World {
    dir: tempfile::TempDir,
    name: &'static str,
}

impl World {
    /// None, visibly, where it cannot be.
    fn new(name: &'static str) -> Option<Self> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let (true, Some(busybox)) = (nix::unistd::geteuid().is_root(), busybox) else {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
            assert!(!required, "{name} needs root and a static busybox");
            println!("SKIP {name}: needs root and a static busybox");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for made in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(rootfs.join(made)).unwrap();
        }
        fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
        for tool in [
            "sh", "sleep", "id", "cat", "hostname", "true", "readlink", "tty",
        ] {
            symlink("busybox", rootfs.join("bin").join(tool)).unwrap();
        }
        Some(Self { dir, name })
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("states")
    }

    fn id(&self, what: &str) -> String {
        format!("test-{}-{}-{what}", std::process::id(), self.name)
    }

    /// A bundle with this command, and its configuration changed.
    fn bundle(&self, what: &str, command: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.dir.path().join(what);
        fs::create_dir(&bundle).unwrap();
        assert!(
            self.godwit(&["spec", "--bundle", bundle.to_str().unwrap()])
                .status
                .success()
        );
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(command);
        config["root"]["path"] = json!(self.dir.path().join("rootfs"));
        change(&mut config);
        fs::write(&path, config.to_string()).unwrap();
        bundle
    }

    fn godwit(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_godwit"))
            .arg("--root")
            .arg(self.root())
            .args(words)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    }

    /// It must succeed; what it printed.
    fn done(&self, words: &[&str]) -> String {
        let output = self.godwit(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// It must fail; what its log says as JSON.
    fn refused(&self, words: &[&str]) -> String {
        let log = self.dir.path().join("log.json");
        let _ = fs::remove_file(&log);
        let before = ["--log", log.to_str().unwrap(), "--log-format", "json"];
        let output = self.godwit(&[&before[..], words].concat());
        assert!(!output.status.success(), "{words:?} was done");
        let text = fs::read_to_string(&log).unwrap();
        let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(line["level"], "error");
        line["msg"].as_str().unwrap().to_owned()
    }

    /// Creates in the background: the container's process has no pipe of ours.
    fn run(&self, bundle: &Path, id: &str) -> i32 {
        let status = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .arg("--root")
            .arg(self.root())
            .args(["run", "--detach", "--bundle", bundle.to_str().unwrap(), id])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
        self.pid(id)
    }

    fn create(&self, bundle: &Path, id: &str) {
        let status = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .arg("--root")
            .arg(self.root())
            .args(["create", "--bundle", bundle.to_str().unwrap(), id])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.done(&["state", id])).unwrap()
    }

    fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    fn pid(&self, id: &str) -> i32 {
        i32::try_from(self.state(id)["pid"].as_i64().unwrap()).unwrap()
    }

    fn wait_for(&self, id: &str, status: &str) {
        let since = Instant::now();
        while self.status(id) != status {
            assert!(
                since.elapsed() < WAIT,
                "{id} is {} and not {status}",
                self.status(id)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// No state, no cgroup.
    fn check_empty(&self) {
        assert_eq!(fs::read_dir(self.root()).map_or(0, Iterator::count), 0);
        let start = format!("test-{}-{}-", std::process::id(), self.name);
        let found = Command::new("find")
            .args(["/sys/fs/cgroup", "-name", &format!("{start}*")])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
}

fn namespace(pid: i32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// The descriptor that the next one to connect sends.
fn descriptor_of(listener: &UnixListener) -> OwnedFd {
    let (connection, _) = listener.accept().unwrap();
    let mut bytes = [0; 64];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let flags = MsgFlags::empty();
    let message =
        recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let Some(ControlMessageOwned::ScmRights(numbers)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor came");
    };
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    #[allow(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(numbers[0])
    }
}

#[test]
fn a_container_lives_as_it_is_told() {
    let Some(world) = World::new("life") else {
        return;
    };
    let bundle = world.bundle("life", &["sleep", "1000"], |_| {});
    let id = &world.id("a");
    world.create(&bundle, id);
    assert_eq!(world.status(id), "created");
    let pid = world.pid(id);
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        assert_ne!(
            namespace(pid, kind),
            fs::read_link(format!("/proc/self/ns/{kind}")).unwrap()
        );
    }
    world.done(&["start", id]);
    assert_eq!(world.status(id), "running");
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(command, b"sleep\x001000\0");
    let inside = world.done(&["exec", id, "sh", "-c", "echo $$ $(hostname)"]);
    assert!(
        inside.ends_with(" godwit\n") && !inside.starts_with("1 "),
        "{inside}"
    );
    assert_eq!(
        world
            .godwit(&["exec", id, "sh", "-c", "exit 7"])
            .status
            .code(),
        Some(7)
    );
    world.done(&["pause", id]);
    assert_eq!(world.status(id), "paused");
    assert!(
        world
            .refused(&["exec", id, "true"])
            .contains("--ignore-paused")
    );
    world.done(&["resume", id]);
    let listed: Value = serde_json::from_str(&world.done(&["list", "--format", "json"])).unwrap();
    assert_eq!(listed[0]["id"], json!(id));
    let processes = world.done(&["ps", "--format", "json", id]);
    assert_eq!(processes.trim(), format!("[{pid}]"));
    let usage: Value = serde_json::from_str(&world.done(&["events", "--stats", id])).unwrap();
    assert!(usage["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert!(world.refused(&["delete", id]).contains("--force"));
    world.done(&["kill", id, "KILL"]);
    world.wait_for(id, "stopped");
    assert!(
        world
            .refused(&["kill", id, "TERM"])
            .contains("container not running")
    );
    world.done(&["delete", id]);
    assert!(
        world
            .refused(&["state", id])
            .contains("container does not exist")
    );
    world.check_empty();
}

#[test]
fn what_fails_says_why_and_leaves_nothing() {
    let Some(world) = World::new("failures") else {
        return;
    };
    let wrong = world.bundle("wrong", &["nowhere"], |_| {});
    let id = &world.id("a");
    let create = |bundle: &Path, id: &str| {
        world.refused(&["create", "--bundle", bundle.to_str().unwrap(), id])
    };
    assert!(create(&wrong, id).contains("executable file not found in $PATH"));
    let unmapped = world.bundle("unmapped", &["true"], |config| {
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
    });
    assert!(create(&unmapped, id).contains("linux.uidMappings"));
    let hooked = world.bundle("hooked", &["true"], |config| {
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    });
    assert!(create(&hooked, id).contains("createRuntime"));
    world.check_empty();
    let good = world.bundle("good", &["sleep", "1000"], |_| {});
    world.run(&good, id);
    assert!(create(&good, id).contains("container with given ID already exists"));
    world.done(&["delete", "--force", id]);
    world.done(&["delete", "--force", id]);
    assert!(world.refused(&["delete", id]).contains("does not exist"));
    world.check_empty();
}

#[test]
fn users_are_mapped_and_limits_are_set() {
    let Some(world) = World::new("users") else {
        return;
    };
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let bundle = world.bundle("users", &["sleep", "1000"], |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.extend([json!({"type": "user"}), json!({"type": "time"})]);
        config["linux"]["uidMappings"] = maps.clone();
        config["linux"]["gidMappings"] = maps.clone();
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000}});
        config["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
        config["process"]["oomScoreAdj"] = json!(321);
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
    });
    let id = &world.id("a");
    let pid = world.run(&bundle, id);
    let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(
        text("uid_map").split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "65536"]
    );
    let field = |name: &str| {
        let status = text("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:")[0], "100007");
    assert_eq!(field("Gid:")[0], "100008");
    assert_eq!(field("Groups:"), ["100009"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(text("oom_score_adj").trim(), "321");
    assert!(text("limits").lines().any(|line| {
        line.starts_with("Max open files") && line.contains(" 77 ") && line.contains(" 88 ")
    }));
    let uptime: f64 = {
        let inside = world.done(&["exec", id, "cat", "/proc/uptime"]);
        inside.split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(uptime > 1_000_000.0);
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn containers_of_a_pod_share_namespaces() {
    let Some(world) = World::new("pod") else {
        return;
    };
    let pause = world.bundle("pause", &["sleep", "1000"], |_| {});
    let sandbox = &world.id("pause");
    let first = world.run(&pause, sandbox);
    let mut members = Vec::new();
    for what in ["one", "two"] {
        let bundle = world.bundle(what, &["sleep", "1000"], |config| {
            config.as_object_mut().unwrap().remove("hostname");
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                let file = match namespace["type"].as_str().unwrap() {
                    "network" => "net",
                    other @ ("ipc" | "uts" | "pid") => other,
                    _ => continue,
                };
                namespace["path"] = json!(format!("/proc/{first}/ns/{file}"));
            }
        });
        let id = world.id(what);
        let pid = world.run(&bundle, &id);
        for kind in ["net", "ipc", "uts", "pid"] {
            assert_eq!(namespace(pid, kind), namespace(first, kind));
        }
        assert_ne!(namespace(pid, "mnt"), namespace(first, "mnt"));
        members.push(id);
    }
    let alone = world.done(&["exec", &members[0], "hostname"]);
    assert_eq!(alone, "godwit\n");
    for id in members.iter().chain([sandbox]) {
        world.done(&["delete", "--force", id]);
    }
    world.check_empty();
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    let Some(world) = World::new("terminal") else {
        return;
    };
    let bundle = world.bundle(
        "terminal",
        &["sh", "-c", "tty; exec sleep 1000"],
        |config| {
            config["process"]["terminal"] = json!(true);
        },
    );
    let socket = world.dir.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let id = &world.id("a");
    let without = world.refused(&["create", "--bundle", bundle.to_str().unwrap(), id]);
    assert!(without.contains("console socket"), "{without}");
    let (bundle, socket) = (bundle.to_str().unwrap(), socket.to_str().unwrap());
    world.done(&["create", "--bundle", bundle, "--console-socket", socket, id]);
    let mut master = File::from(descriptor_of(&listener));
    world.done(&["start", id]);
    let mut text = [0; 64];
    let length = master.read(&mut text).unwrap();
    assert!(text[..length].starts_with(b"/dev/pts/"));
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn hooks_are_run_in_their_places() {
    let Some(world) = World::new("hooks") else {
        return;
    };
    let told = world.dir.path().join("told");
    let hook = |kind: &str| {
        let line = format!(
            "read -r state; echo \"{kind} $state\" >> {}",
            told.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}])
    };
    let bundle = world.bundle("hooks", &["sh", "-c", "test -e /tmp/started"], |config| {
        config["root"]["readonly"] = json!(false);
        let mut hooks = json!({
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo > /tmp/started"]}],
        });
        for kind in [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop",
        ] {
            hooks[kind] = hook(kind);
        }
        config["hooks"] = hooks;
    });
    let id = &world.id("a");
    world.done(&["run", "--bundle", bundle.to_str().unwrap(), id]);
    let told = fs::read_to_string(&told).unwrap();
    let seen: Vec<(String, Value)> = told
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(kind, state)| (kind.to_owned(), serde_json::from_str(state).unwrap()))
        .collect();
    let order: Vec<&str> = seen.iter().map(|(kind, _)| kind.as_str()).collect();
    let wanted = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    assert_eq!(order, wanted);
    assert_eq!(seen[0].1["status"], "creating");
    assert_eq!(seen[4].1["status"], "stopped");
    assert_eq!(seen[3].1["id"], json!(id));
    world.check_empty();
}

#[test]
fn the_program_that_goes_inside_cannot_be_written_to() {
    let Some(world) = World::new("seal") else {
        return;
    };
    let bundle = world.bundle("seal", &["sleep", "1000"], |_| {});
    let id = &world.id("a");
    world.create(&bundle, id);
    // It waits for its start, in the container's namespaces, and is still our program.
    let pid = world.pid(id);
    let program = File::open(format!("/proc/{pid}/exe")).unwrap();
    let inode = program.metadata().unwrap().ino();
    assert_eq!(
        inode,
        fs::metadata(env!("CARGO_BIN_EXE_godwit")).unwrap().ino()
    );
    let mut files = vec![program];
    for mapping in fs::read_dir(format!("/proc/{pid}/map_files")).unwrap() {
        let file = File::open(mapping.unwrap().path()).unwrap();
        if file.metadata().unwrap().ino() == inode {
            files.push(file);
        }
    }
    assert!(files.len() > 2, "its code and its constants are mapped");
    for file in &files {
        let mount = nix::sys::statvfs::fstatvfs(file).unwrap().flags();
        assert!(mount.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    }
    world.done(&["delete", "--force", id]);
    drop(files);
    world.check_empty();
}
