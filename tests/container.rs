//! Life of containers on the real kernel: made, started, looked into, ended, and nothing left behind.
//!
//! Each test runs in network, mount and process namespaces of its own (it starts itself anew under `unshare`), so
//! that whatever goes wrong ends with it. They need root and a static busybox.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit::cgroup::CgroupRoot;
use godwit::container::{self, ContainerError, ExecRequest, Host};
use godwit::model::{
    Bytes, ContainerSpec, ContainerState, Digest, Lease, Limits, Mac, Name, Restart, User, Userns,
};
use godwit::net::{Network, NetworkConfig};
use godwit::rootfs::ImageStore;

/// Set in the process that is inside.
const INSIDE: &str = "GODWIT_TEST_INSIDE";
const WAIT: Duration = Duration::from_secs(20);

/// Runs the body of the test of this name in namespaces of its own.
fn isolated(test: &str, body: impl FnOnce(&World)) {
    if std::env::var_os(INSIDE).is_some() {
        let world = World::new(test);
        body(&world);
        world.check_empty();
        return;
    }
    let root = nix::unistd::geteuid().is_root();
    let busybox = busybox();
    if !root || busybox.is_none() {
        let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
        assert!(!required, "{test} needs root and a static busybox");
        println!("SKIP {test}: needs root and a static busybox");
        return;
    }
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    // A test that failed has left its cgroup.
    if let Ok(root) = CgroupRoot::find(&parent(test)) {
        for entry in fs::read_dir(root.path()).unwrap().flatten() {
            if entry.path().is_dir() {
                let _ = fs::write(entry.path().join("cgroup.kill"), "1");
                std::thread::sleep(Duration::from_millis(50));
                let _ = fs::remove_dir(entry.path());
            }
        }
        let _ = fs::remove_dir(root.path());
    }
    assert!(status.success(), "{test} failed inside");
}

fn parent(test: &str) -> String {
    format!("godwit-test-{test}")
}

fn busybox() -> Option<&'static str> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
}

/// A host with one image and no container.
struct World {
    host: Host,
    image: Digest,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(test: &str) -> Self {
        // CRIU, for one, wants a loopback on its host.
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("image")).unwrap();
        fill_image(&at("image"));
        let images = ImageStore::open(&at("state")).unwrap();
        let image = images.import_tree(&at("image")).unwrap();
        let config = NetworkConfig {
            bridge: "gwtest0".to_owned(),
            uplink: None,
            subnet: Ipv4Addr::new(10, 77, 0, 0),
            prefix: 24,
            bridge_address: Some(Ipv4Addr::new(10, 77, 0, 1)),
            gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
            pool: (Ipv4Addr::new(10, 77, 0, 10), Ipv4Addr::new(10, 77, 0, 99)),
        };
        let host = Host {
            run_dir: at("run"),
            state_dir: at("state"),
            cgroups: CgroupRoot::find(&parent(test)).unwrap(),
            network: Arc::new(Network::open(config).unwrap()),
            images: Arc::new(images),
            exe: PathBuf::from(env!("CARGO_BIN_EXE_godwit")),
        };
        Self {
            host,
            image,
            _dir: dir,
        }
    }

    fn spec(&self, name: &str, script: &str) -> ContainerSpec {
        let address = Ipv4Addr::new(10, 77, 0, 10);
        ContainerSpec {
            name: name.parse().unwrap(),
            template: "test".to_owned(),
            image: self.image,
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned(), "COLOUR=green".to_owned()],
            cwd: "/".into(),
            user: User {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            },
            ports: Vec::new(),
            limits: Limits::default(),
            restart: Restart::No,
            userns: Userns::Auto,
            lease: Lease {
                address,
                prefix: 24,
                gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
                mac: Mac::of(address),
            },
            bundle: None,
        }
    }

    fn run(&self, spec: &ContainerSpec) -> i32 {
        container::create(&self.host, spec).unwrap();
        container::start(&self.host, &spec.name).unwrap()
    }

    /// What a command in the container prints, and how it ends.
    fn exec(&self, name: &Name, script: &str, user: Option<User>) -> (String, Option<i32>) {
        let request = ExecRequest {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["SHAPE=round".to_owned()],
            cwd: None,
            user,
            stdin: Stdio::null(),
            stdout: Stdio::piped(),
            stderr: Stdio::inherit(),
        };
        let child = container::exec(&self.host, name, request).unwrap();
        let output = child.wait_with_output().unwrap();
        (
            String::from_utf8(output.stdout).unwrap(),
            output.status.code(),
        )
    }

    fn state(&self, name: &Name) -> ContainerState {
        container::status(&self.host, name).unwrap().state
    }

    fn exit_code(&self, name: &Name) -> Option<i32> {
        container::wait(&self.host, name, WAIT)
            .unwrap()
            .expect("it ends")
            .code
    }

    /// The log without its times.
    fn log(&self, name: &Name) -> String {
        let text = fs::read_to_string(self.host.log(name)).unwrap();
        let lines = text.lines().map(|line| line.split_once(' ').unwrap().1);
        lines.map(|line| format!("{line}\n")).collect()
    }

    fn wait_for_log(&self, name: &Name, what: &str) {
        let deadline = Instant::now() + WAIT;
        while !self.log(name).contains(what) {
            assert!(
                Instant::now() < deadline,
                "no {what:?} in {}",
                self.log(name)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nothing of the place of a container is there: by the kernel's word, not by ours.
    #[track_caller]
    fn check_no_place(&self, name: &Name) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.host.run_dir.to_str().unwrap();
        assert!(!mounts.contains(dir), "{mounts}");
        assert!(!self.host.netns(name).exists());
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
        let links = String::from_utf8(links.stdout).unwrap();
        assert!(!links.contains(&Network::port_name(name)), "{links}");
        assert!(!self.host.cgroup(name).exists());
        assert!(!self.host.run(name).exists());
    }

    /// No container, no process, no mount, no interface.
    #[track_caller]
    fn check_empty(&self) {
        let name: Name = "web".parse().unwrap();
        self.check_no_place(&name);
        assert!(!self.host.state(&name).exists());
        assert!(container::list(&self.host).unwrap().is_empty());
        let deadline = Instant::now() + WAIT;
        loop {
            let left = processes();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let shims = self.host.cgroups.shims();
        shims.remove().unwrap();
        fs::remove_dir(self.host.cgroups.path()).unwrap();
    }
}

/// The living processes in this pid namespace, but for this one.
fn processes() -> Vec<String> {
    let me = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.parse::<u32>().is_ok() && *name != me)
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .filter(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
        .collect()
}

fn fill_image(root: &Path) {
    for directory in ["bin", "etc", "tmp", "data"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    fs::copy(busybox().unwrap(), root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "env", "grep", "head", "hostname", "id", "ip", "kill", "ls", "mkdir",
        "mount", "nc", "ps", "sleep", "touch", "trap", "unshare", "chroot", "mknod", "readlink",
        "pwd", "wc",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    // Hostile: what a host writes into a container must not follow it.
    symlink(
        "/proc/self/../../../etc/hostname-outside",
        root.join("etc/hostname"),
    )
    .unwrap();
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A command that prints, and ends in an orderly way when it is asked to.
const POLITE: &str =
    "trap 'echo bye; exit 7' TERM; echo up; echo oops >&2; while :; do sleep 0.1; done";

#[test]
fn a_container_lives_and_leaves_nothing_behind() {
    isolated("a_container_lives_and_leaves_nothing_behind", |world| {
        let (host, web) = (&world.host, name("web"));
        let record = container::create(host, &world.spec("web", POLITE)).unwrap();
        assert_eq!(record.state, ContainerState::Created);
        assert_eq!(world.state(&web), ContainerState::Created);
        assert!(container::status(host, &web).unwrap().pid.is_some());
        // Not a word before the start, and no frame passes.
        assert_eq!(world.log(&web), "");
        assert!(!host.network.is_attached(&web).unwrap());

        let pid = container::start(host, &web).unwrap();
        let status = container::status(host, &web).unwrap();
        assert_eq!(
            (status.state, status.pid),
            (ContainerState::Running, Some(pid))
        );
        assert!(host.network.is_attached(&web).unwrap());
        world.wait_for_log(&web, "stdout F up");
        world.wait_for_log(&web, "stderr F oops");
        let all = container::ps(host, &web).unwrap();
        assert_eq!((all[0].pid, all[0].inner_pid, all[0].uid), (pid, 1, 0));
        assert!(all[0].command.starts_with("sh -c trap"));

        assert!(matches!(
            container::create(host, &world.spec("web", "true")),
            Err(ContainerError::Exists { .. })
        ));
        let refused = container::delete(host, &web, false).unwrap_err();
        assert!(refused.to_string().contains("kill it first"), "{refused}");
        assert_eq!(
            container::wait(host, &web, Duration::from_millis(50)).unwrap(),
            None
        );

        container::kill(host, &web, libc::SIGTERM, false).unwrap();
        assert_eq!(world.exit_code(&web), Some(7));
        let status = container::status(host, &web).unwrap();
        assert_eq!(
            (status.state, status.exit_code),
            (ContainerState::Stopped, Some(7))
        );
        assert!(world.log(&web).ends_with("stdout F bye\n"));

        let settled = container::settle(host, &web).unwrap();
        assert_eq!(
            (settled.state, settled.exit_code),
            (ContainerState::Stopped, Some(7))
        );
        world.check_no_place(&web);
        container::delete(host, &web, false).unwrap();
        assert!(matches!(
            container::delete(host, &web, false),
            Err(ContainerError::NotFound { .. })
        ));
    });
}

#[test]
fn a_container_sees_itself_and_nothing_else() {
    isolated("a_container_sees_itself_and_nothing_else", |world| {
        let web = name("web");
        let script = "hostname; cat /etc/hostname; echo $COLOUR; pwd; \
            readlink /proc/self/fd/0; ps | grep -c -v grep; \
            mount -t tmpfs x /tmp; unshare -n true; touch /sys/x /proc/sys/x /sys/fs/cgroup/x; mknod /tmp/d c 1 1; \
            cat /proc/kcore /proc/timer_list | wc -c; ls /sys/firmware | wc -l; \
            grep -E 'CapBnd|CapEff|NoNewPrivs|Seccomp:' /proc/self/status; ls /sys/class/net; \
            ls -a / | wc -l; cat /proc/1/cgroup | grep ^0; echo end; sleep 1000";
        world.run(&world.spec("web", script));
        world.wait_for_log(&web, "stdout F end");
        let log = world.log(&web);
        let out: Vec<&str> = log
            .lines()
            .filter_map(|line| line.strip_prefix("stdout F "))
            .collect();
        let err: Vec<&str> = log
            .lines()
            .filter_map(|line| line.strip_prefix("stderr F "))
            .collect();
        assert_eq!(out[..5], ["web", "web", "green", "/", "/dev/null"]);
        let rest = out[6..].join("\n");
        for expected in [
            "CapEff:\t00000000200405fb",
            "CapBnd:\t00000000200405fb",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "eth0",
            "0::/",
        ] {
            assert!(rest.contains(expected), "no {expected} in {rest}");
        }
        assert_eq!(out[6..8], ["0", "0"], "{rest}");
        let errors = err.join("\n");
        for expected in [
            "mount: permission denied",
            "unshare: unshare(0x40000000): Operation not permitted",
            "/sys/x: Read-only file system",
            "/proc/sys/x: ",
            "/sys/fs/cgroup/x: Read-only file system",
            "/tmp/d: Operation not permitted",
        ] {
            assert!(errors.contains(expected), "no {expected} in {errors}");
        }
        container::delete(&world.host, &web, true).unwrap();
    });
}

#[test]
fn a_command_can_be_run_in_it_as_confined_as_its_own() {
    isolated(
        "a_command_can_be_run_in_it_as_confined_as_its_own",
        |world| {
            let web = name("web");
            let pid = world.run(&world.spec("web", "sleep 1000"));
            let own: Vec<PathBuf> = namespaces(&pid.to_string());
            let script =
                "for n in mnt pid net uts ipc cgroup time; do readlink /proc/self/ns/$n; done";
            let (text, code) = world.exec(&web, script, None);
            let seen: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
            assert_eq!((seen, code), (own, Some(0)));

            let script = "id -u; echo $COLOUR $SHAPE; grep -E 'CapEff|NoNew|Seccomp:' /proc/self/status; \
            cat /proc/self/cgroup | grep ^0; exit 42";
            let other = User {
                uid: 1000,
                gid: 1000,
                groups: vec![5],
            };
            let (text, code) = world.exec(&web, script, Some(other));
            let expected =
                "1000\ngreen round\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n0::/\n";
            assert_eq!((text.as_str(), code), (expected, Some(42)));
            // Of those commands nothing is left.
            assert_eq!(container::ps(&world.host, &web).unwrap().len(), 1);

            let missing = ExecRequest {
                command: vec!["no-such-program".to_owned()],
                env: Vec::new(),
                cwd: None,
                user: None,
                stdin: Stdio::null(),
                stdout: Stdio::null(),
                stderr: Stdio::piped(),
            };
            let output = container::exec(&world.host, &web, missing)
                .unwrap()
                .wait_with_output()
                .unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(127));
            assert!(
                said.contains("no-such-program: not found in /bin"),
                "{said}"
            );
            killed_with_its_caller(world, &web);
            container::delete(&world.host, &web, true).unwrap();
        },
    );
}

fn killed_with_its_caller(world: &World, web: &Name) {
    let request = ExecRequest {
        command: vec!["cat".to_owned()],
        env: Vec::new(),
        cwd: None,
        user: None,
        stdin: Stdio::piped(),
        stdout: Stdio::piped(),
        stderr: Stdio::inherit(),
    };
    let mut child = container::exec(&world.host, web, request).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(container::ps(&world.host, web).unwrap().len(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + WAIT;
    while container::ps(&world.host, web).unwrap().len() > 1 {
        assert!(Instant::now() < deadline, "the command outlives its caller");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn namespaces(pid: &str) -> Vec<PathBuf> {
    ["mnt", "pid", "net", "uts", "ipc", "cgroup", "time"]
        .iter()
        .map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap())
        .collect()
}

#[test]
fn a_container_of_an_ordinary_user_can_do_what_users_do() {
    isolated(
        "a_container_of_an_ordinary_user_can_do_what_users_do",
        |world| {
            let web = name("web");
            let script = "id -u; id -G; echo again > /dev/stdout; echo x > /dev/shm/x && cat /dev/shm/x; \
            touch /etc/x; nc -l -p 80 -e true & sleep 0.2; echo listening; kill %1; exit 3";
            let mut spec = world.spec("web", script);
            spec.user = User {
                uid: 1000,
                gid: 1001,
                groups: vec![7, 8],
            };
            world.run(&spec);
            assert_eq!(world.exit_code(&web), Some(3));
            let log = world.log(&web);
            for expected in [
                "F 1000\n",
                "F 1001 7 8\n",
                "F again\n",
                "F x\n",
                "/etc/x: Permission denied",
            ] {
                assert!(log.contains(expected), "no {expected} in {log}");
            }
            assert!(!log.contains("bind"), "{log}");
            container::delete(&world.host, &web, false).unwrap();
        },
    );
}

#[test]
fn a_failure_leaves_nothing_behind() {
    isolated("a_failure_leaves_nothing_behind", |world| {
        let (host, web) = (&world.host, name("web"));
        let mut spec = world.spec("web", "true");
        spec.cwd = "/no/such/directory".into();
        let error = full(&container::create(host, &spec).unwrap_err());
        assert!(
            error.contains("enter the working directory: /no/such/directory"),
            "{error}"
        );
        world.check_no_place(&web);
        assert!(!host.state(&web).exists());

        let mut spec = world.spec("web", "true");
        spec.image = Digest([9; 32]);
        assert!(matches!(
            container::create(host, &spec),
            Err(ContainerError::NoImage { .. })
        ));
        world.check_no_place(&web);

        let mut spec = world.spec("web", "true");
        spec.limits.memory = Some(Bytes(64 << 20));
        if let Err(error) = container::create(host, &spec) {
            assert!(
                full(&error).contains("controller `memory`"),
                "{}",
                full(&error)
            );
            world.check_no_place(&web);
        } else {
            container::delete(host, &web, false).unwrap();
        }

        // The address of somebody else's port: what is there already is not touched.
        fs::create_dir_all(host.netns(&web).parent().unwrap()).unwrap();
        fs::write(host.netns(&web), "somebody else's").unwrap();
        assert!(container::create(host, &world.spec("web", "true")).is_err());
        assert_eq!(
            fs::read_to_string(host.netns(&web)).unwrap(),
            "somebody else's"
        );
        fs::remove_file(host.netns(&web)).unwrap();
        world.check_no_place(&web);
    });
}

fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[test]
fn a_command_that_cannot_run_is_told_by_its_start() {
    isolated("a_command_that_cannot_run_is_told_by_its_start", |world| {
        let (host, web) = (&world.host, name("web"));
        let mut spec = world.spec("web", "true");
        spec.command = vec!["no-such-program".to_owned()];
        container::create(host, &spec).unwrap();
        let error = full(&container::start(host, &web).unwrap_err());
        assert!(
            error.contains("no-such-program: not found in /bin"),
            "{error}"
        );
        assert_eq!(world.state(&web), ContainerState::Stopped);
        world.check_no_place(&web);
        container::delete(host, &web, false).unwrap();
    });
}

#[test]
fn a_stopped_container_starts_again_with_its_files() {
    isolated("a_stopped_container_starts_again_with_its_files", |world| {
        let (host, web) = (&world.host, name("web"));
        world.run(&world.spec("web", "test -e /data/x && exit 5; touch /data/x; exit 4"));
        assert_eq!(world.exit_code(&web), Some(4));
        // As the host's restart would leave it: nothing but files.
        container::settle(host, &web).unwrap();
        world.check_no_place(&web);
        container::start(host, &web).unwrap();
        assert_eq!(world.exit_code(&web), Some(5));
        container::delete(host, &web, false).unwrap();
    });
}

#[test]
fn a_container_survives_its_shim_and_gets_another() {
    isolated("a_container_survives_its_shim_and_gets_another", |world| {
        let (host, web) = (&world.host, name("web"));
        let script =
            "trap 'exit 7' TERM; n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";
        let pid = world.run(&world.spec("web", script));
        world.wait_for_log(&web, "tick 2");
        let mut shim = container::shim::Client::connect(&host.run(&web)).unwrap();
        let pipes = shim.pipes().unwrap();
        assert_eq!(pipes.len(), 3);
        shim.destroy().unwrap();
        let deadline = Instant::now() + WAIT;
        while container::shim::Client::connect(&host.run(&web)).is_ok() {
            assert!(Instant::now() < deadline);
        }
        let status = container::status(host, &web).unwrap();
        assert_eq!(
            (status.state, status.pid),
            (ContainerState::Running, Some(pid))
        );
        assert_eq!(world.exec(&web, "echo in", None).0, "in\n");

        assert!(container::adopt(host, &web, &pipes).unwrap());
        assert!(!container::adopt(host, &web, &[]).unwrap());
        drop(pipes);
        let last = world.log(&web).lines().count();
        world.wait_for_log(&web, &format!("tick {}", last + 5));
        // Not a line was lost in between.
        let log = world.log(&web);
        for (index, line) in log.lines().enumerate() {
            assert_eq!(line, format!("stdout F tick {}", index + 1));
        }
        // Its parent is now this process, the first of its pid namespace.
        let reaper = std::thread::spawn(move || {
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)
        });
        container::kill(host, &web, libc::SIGTERM, false).unwrap();
        reaper.join().unwrap().unwrap();
        assert_eq!(world.exit_code(&web), Some(7));
        container::delete(host, &web, false).unwrap();
    });
}

#[test]
fn one_that_runs_is_deleted_by_force_with_all_its_processes() {
    isolated(
        "one_that_runs_is_deleted_by_force_with_all_its_processes",
        |world| {
            let (host, web) = (&world.host, name("web"));
            world.run(&world.spec(
                "web",
                "trap '' TERM; for i in 1 2 3 4 5; do sleep 1000 & done; sleep 1000",
            ));
            let deadline = Instant::now() + WAIT;
            while container::ps(host, &web).unwrap().len() < 6 {
                assert!(Instant::now() < deadline);
            }
            container::kill(host, &web, libc::SIGUSR1, true).unwrap();
            host.cgroup(&web).freeze(WAIT).unwrap();
            container::delete(host, &web, true).unwrap();
        },
    );
}

/// How CRIU dumps such a container and brings it back: the options that the whole design rests on.
#[test]
fn a_container_can_be_dumped_and_restored() {
    let test = "a_container_can_be_dumped_and_restored";
    if Command::new("criu").arg("--version").output().is_err() {
        assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
        println!("SKIP {test}: needs criu");
        return;
    }
    isolated(test, |world| {
        let (host, web) = (&world.host, name("web"));
        // A file that is open and unlinked, one in /dev/shm, a child, and a counter.
        let script = "echo in >/dev/shm/f; exec 7</dev/shm/f 8>/tmp/gone; rm /tmp/gone; sleep 1000 & \
            n=0; while :; do n=$((n+1)); echo $n > /data/n; echo tick $n; sleep 0.1; done";
        // What CRIU makes alone: without the user namespace, into which it is helped (src/criu/preload_userns.c).
        let spec = ContainerSpec {
            userns: Userns::Host,
            ..world.spec("web", script)
        };
        let pid = world.run(&spec);
        world.wait_for_log(&web, "tick 3");
        let mut shim = container::shim::Client::connect(&host.run(&web)).unwrap();
        let inodes = shim.stdio_inodes().unwrap().unwrap();
        let images = world.host.state_dir.join("images-of-web");
        fs::create_dir(&images).unwrap();
        let before = namespaces(&pid.to_string());
        dump(world, &web, pid, &images);
        assert_eq!(world.exit_code(&web), Some(137));

        let (mut output, pid) = restore(world, &web, inodes, &images);
        let mut ticks = vec![0; 4096];
        let count = output.read(&mut ticks).unwrap();
        let first = String::from_utf8(ticks[..count].to_vec()).unwrap();
        assert!(first.starts_with("tick "), "{first}");
        let after = namespaces(&pid.to_string());
        // All are its own, and the network is the one that it had. (The numbers of the others may be used again.)
        for (ours, after) in namespaces("self").iter().zip(&after) {
            assert_ne!(ours, after);
        }
        assert_eq!(before[2], after[2]);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for expected in ["CapEff:\t00000000200405fb", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(expected), "{status}");
        }
        let inside = Command::new("nsenter")
            .args(["-a", "-t", &pid.to_string(), "sh", "-c"])
            .arg("cat /dev/shm/f; grep ^0 /proc/1/cgroup; cat /sys/fs/cgroup/cgroup.procs | wc -l; cat /proc/kcore")
            .output()
            .unwrap();
        let text = String::from_utf8(inside.stdout).unwrap();
        assert!(
            text.starts_with("in\n0::/\n"),
            "{text} {}",
            String::from_utf8_lossy(&inside.stderr)
        );
        container::delete(host, &web, true).unwrap();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    });
}

fn dump(world: &World, web: &Name, pid: i32, images: &Path) {
    let pin = fs::metadata(world.host.netns(web)).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&pin);
    let output = Command::new("criu")
        .args(["dump", "--tree", &pid.to_string(), "--images-dir"])
        .arg(images)
        .args(["--external", &format!("net[{inode}]:net")])
        .args([
            "--manage-cgroups=ignore",
            "--network-lock",
            "skip",
            "--freeze-cgroup",
        ])
        .arg(world.host.cgroup(web).path())
        .args([
            "--tcp-established",
            "--file-locks",
            "--link-remap",
            "--ghost-limit",
            "64M",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Restores in the same place. The container's output comes out of the pipe.
fn restore(world: &World, web: &Name, inodes: [u64; 2], images: &Path) -> (fs::File, i32) {
    use godwit::sys::before_exec::{BeforeExec, before_exec, number};
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let net = fs::File::open(world.host.netns(web)).unwrap().into();
    let (stdout, stderr) = (write.try_clone().unwrap(), write);
    let pid_file = images.join("pid");
    let mut command = Command::new("criu");
    command.args([
        "restore",
        "--restore-detached",
        "--restore-sibling",
        "--images-dir",
    ]);
    command
        .arg(images)
        .arg("--root")
        .arg(world.host.rootfs(web))
        .arg("--pidfile")
        .arg(&pid_file);
    for (fd, key) in [
        (&net, "net".to_owned()),
        (&stdout, format!("pipe:[{}]", inodes[0])),
        (&stderr, format!("pipe:[{}]", inodes[1])),
    ] {
        command.args(["--inherit-fd", &format!("fd[{}]:{key}", number(fd))]);
    }
    command.args([
        "--manage-cgroups=ignore",
        "--tcp-established",
        "--file-locks",
    ]);
    let procs = world.host.cgroup(web).path().join("cgroup.procs");
    before_exec(
        &mut command,
        BeforeExec {
            cgroup: Some(fs::File::options().write(true).open(procs).unwrap()),
            new_cgroup_namespace: true,
            pass: vec![net, stdout, stderr],
            ..BeforeExec::default()
        },
    );
    let output = command.output().unwrap();
    drop(command);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let pid = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    (fs::File::from(read), pid)
}
