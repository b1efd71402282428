//! Checkpoint and restore by the real CRIU.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{WAIT, World, descriptor_of, namespace};

/// Counts in its memory, and has half a megabyte there whose sum it tells each time.
const COUNTER: &str = "x=$(busybox head -c 400000 /dev/urandom | busybox base64); i=0; while :; do \
     i=$((i+1)); s=$(echo \"$x\" | busybox md5sum); echo \"$i $s\" > /dev/shm/new; \
     busybox mv /dev/shm/new /dev/shm/told; sleep 0.02; done";

/// A world, visibly none where there is no CRIU either.
fn world(name: &'static str) -> Option<World> {
    let world = World::new(name)?;
    if let Err(error) = godwit::criu::Criu::find(None) {
        let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
        assert!(!required, "{name}: {error}");
        println!("SKIP {name}: {error}");
        return None;
    }
    Some(world)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What the counter has told last: number and sum.
fn told(pid: i32) -> Option<(u64, String)> {
    let line = fs::read_to_string(format!("/proc/{pid}/root/dev/shm/told")).ok()?;
    let (number, sum) = line.trim().split_once(' ')?;
    Some((number.parse().ok()?, sum.to_owned()))
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < WAIT, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until it has counted on from `before`; its memory is still the same.
fn counts_on(pid: i32, before: &(u64, String)) -> (u64, String) {
    let now = wait("the next number", || {
        told(pid).filter(|now| now.0 > before.0 + 1)
    });
    assert_eq!(now.1, before.1, "its memory is another");
    now
}

/// Whether a process has not ended, be it reaped or not.
fn is_there(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// The mounts of a process, without the numbers that are the kernel's own, and of the view of the cgroups without its
/// source: the cgroup, and a name without a meaning.
fn mounts(pid: i32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mut lines: Vec<String> = table
        .lines()
        .map(|line| line.split(' ').skip(3).collect::<Vec<_>>().join(" "))
        .map(|line| match line.split_once(" - cgroup2") {
            Some((line, _)) => line.split_once(' ').unwrap().1.to_owned(),
            None => line,
        })
        .collect();
    lines.sort();
    lines
}

impl World {
    fn images(&self, what: &str) -> PathBuf {
        self.dir.path().join(format!("images-{what}"))
    }

    /// Restores in the background.
    fn restore(&self, bundle: &Path, images: &Path, id: &str, more: &[&str]) -> i32 {
        let words = ["restore", "--detach", "--image-path", text(images)];
        let bundle = ["--bundle", text(bundle), id];
        let log = self.dir.path().join("restore.out");
        let status = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .arg("--root")
            .arg(self.root())
            .args([&words[..], more, &bundle].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .status();
        let said = fs::read_to_string(&log).unwrap();
        assert!(status.unwrap().success(), "{said}");
        self.pid(id)
    }

    fn background(&self, words: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_godwit"))
            .arg("--root")
            .arg(self.root())
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Nothing of this world is mounted on the host.
    fn check_no_mounts(&self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(text(self.dir.path())), "{table}");
    }
}

#[test]
fn a_container_goes_on_where_it_was() {
    let Some(world) = world("goes-on") else {
        return;
    };
    let volume = world.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |config| {
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/etc/volume", "type": "bind", "source": volume, "options": ["bind", "ro"],
        }));
    });
    let (id, images) = (&world.id("a"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    let mounted = mounts(pid);
    world.done(&["checkpoint", "--image-path", text(images), id]);
    assert!(world.refused(&["state", id]).contains("does not exist"));
    assert!(!is_there(pid));
    world.check_empty();
    // The place of the mount is made again where it is missing.
    fs::remove_dir(world.dir.path().join("rootfs/etc/volume")).unwrap();
    let pid_file = world.dir.path().join("pid");
    let pid = world.restore(&bundle, images, id, &["--pid-file", text(&pid_file)]);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    assert_eq!(world.status(id), "running");
    let now = counts_on(pid, &before);
    assert_eq!(mounts(pid), mounted);
    assert_eq!(world.done(&["exec", id, "hostname"]), "godwit\n");
    let lo = world.done(&["exec", id, "busybox", "ip", "link", "show", "lo"]);
    assert!(lo.contains("LOOPBACK,UP"), "{lo}");
    // And again, from there, under another name.
    let (other, images) = (&world.id("b"), &world.images("b"));
    world.done(&["checkpoint", "--image-path", text(images), id]);
    let pid = world.restore(&bundle, images, other, &[]);
    counts_on(pid, &now);
    world.check_no_mounts();
    world.done(&["delete", "--force", other]);
    world.check_empty();
}

#[test]
fn a_container_that_is_left_running_runs_on() {
    let Some(world) = world("leave") else {
        return;
    };
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |_| {});
    let (id, copy, images) = (&world.id("a"), &world.id("b"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    let leave = [
        "checkpoint",
        "--leave-running",
        "--image-path",
        text(images),
        id,
    ];
    world.done(&leave);
    assert_eq!(
        (world.pid(id), world.status(id)),
        (pid, "running".to_owned())
    );
    let now = counts_on(pid, &before);
    // The same directory takes the next one.
    world.done(&leave);
    counts_on(pid, &now);
    let restored = world.restore(&bundle, images, copy, &[]);
    counts_on(restored, &now);
    // One that is paused stays paused, and its copy runs.
    world.done(&["delete", "--force", copy]);
    world.done(&["pause", id]);
    world.done(&leave);
    assert_eq!(world.status(id), "paused");
    let restored = world.restore(&bundle, images, copy, &[]);
    counts_on(restored, &now);
    for id in [id, copy] {
        world.done(&["delete", "--force", id]);
    }
    world.check_empty();
}

#[test]
fn what_cannot_be_dumped_runs_on_and_leaves_a_log_alone() {
    let Some(world) = world("undumpable") else {
        return;
    };
    let talk = "sleep 100000 | busybox nc -l -p 7000 & sleep 0.2; sleep 100000 | busybox nc 127.0.0.1 7000 &";
    let talks = format!("{talk} {COUNTER}");
    let bundle = world.bundle("bundle", &["sh", "-c", &talks], |_| {});
    let (id, images) = (&world.id("a"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    let connected = || {
        world
            .done(&["exec", id, "busybox", "netstat", "-t"])
            .contains("ESTABLISHED")
    };
    wait("the connection", || connected().then_some(()));
    let why = world.refused(&["checkpoint", "--image-path", text(images), id]);
    assert!(
        why.contains("tcp-established") && why.contains("dump.log"),
        "{why}"
    );
    assert_eq!(world.status(id), "running");
    assert!(connected(), "the connection is lost");
    counts_on(pid, &before);
    let left: Vec<_> = fs::read_dir(images).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].file_name(), "dump.log");
    let no = |words: &[&str]| world.refused(&[&["checkpoint"], words, &[id.as_str()]].concat());
    for (words, field) in [
        (
            vec!["--parent-path", "/x"],
            "--parent-path: must be relative",
        ),
        (vec!["--parent-path", "../x"], "there is no pre-dump in"),
        (vec!["--status-fd", "77"], "--status-fd: 77"),
        (
            vec!["--manage-cgroups-mode", "full"],
            "--manage-cgroups-mode: only soft",
        ),
        (vec!["--lazy-pages"], "--lazy-pages"),
    ] {
        let why = no(&words);
        assert!(why.contains(field), "{why}");
    }
    world.done(&["delete", "--force", id]);
    let created = world.bundle("created", &["sleep", "1000"], |_| {});
    world.create(&created, id);
    assert!(no(&[]).contains("start it first"));
    world.done(&["delete", "--force", id]);
    assert!(no(&[]).contains("does not exist"));
    world.check_empty();
}

#[test]
fn what_cannot_be_restored_says_why_and_leaves_nothing() {
    let Some(world) = world("unrestorable") else {
        return;
    };
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |_| {});
    let (id, other, images) = (&world.id("a"), &world.id("b"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    world.done(&[
        "checkpoint",
        "--leave-running",
        "--image-path",
        text(images),
        id,
    ]);
    let restore = |images: &Path, id: &str| {
        let bundle = text(&bundle);
        world.refused(&[
            "restore",
            "-d",
            "--bundle",
            bundle,
            "--image-path",
            text(images),
            id,
        ])
    };
    assert!(restore(images, id).contains("container with given ID already exists"));
    counts_on(pid, &before);
    world.done(&["delete", "--force", id]);
    assert!(restore(&world.images("none"), other).contains("--image-path"));
    world.check_empty();
    for (image, what) in [
        ("core-1.img", "truncated"),
        ("mountpoints", "removed"),
        ("inventory.img", "garbage"),
    ] {
        let broken = world.images(what);
        let copied = Command::new("cp")
            .arg("-r")
            .args([images, &broken])
            .status();
        assert!(copied.unwrap().success());
        let entries = fs::read_dir(&broken).unwrap().flatten();
        let path = entries
            .map(|entry| entry.path())
            .find(|path| text(path).contains(image))
            .unwrap();
        match what {
            "truncated" => File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(20)
                .unwrap(),
            "removed" => fs::remove_file(&path).unwrap(),
            _ => fs::write(&path, [0xff; 64]).unwrap(),
        }
        let why = restore(&broken, other);
        assert!(
            why.contains("cannot restore container") && why.contains("restore.log"),
            "{why}"
        );
        world.check_empty();
        world.check_no_mounts();
    }
    fs::remove_file(images.join("descriptors.json")).unwrap();
    assert!(restore(images, other).contains("descriptors.json"));
    world.check_empty();
    fs::remove_file(images.join("inventory.img")).unwrap();
    assert!(restore(images, other).contains("was not finished"));
    world.check_empty();
}

#[test]
fn a_killed_checkpoint_leaves_one_container_or_whole_images() {
    let Some(world) = world("killed-dump") else {
        return;
    };
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |_| {});
    let id = &world.id("a");
    let mut pid = world.run(&bundle, id);
    let mut before = wait("the first number", || told(pid));
    for delay in [10, 40, 80, 120, 160, 200, 240, 300] {
        let images = &world.images(&delay.to_string());
        let mut command = world.background(&["checkpoint", "--image-path", text(images), id]);
        std::thread::sleep(Duration::from_millis(delay));
        command.kill().unwrap();
        command.wait().unwrap();
        // CRIU has noticed, or has been through: it counts on, or is gone.
        let runs = wait("a clear state", || {
            if !is_there(pid) {
                return Some(false);
            }
            told(pid)
                .is_some_and(|now| now.0 > before.0 + 5)
                .then_some(true)
        });
        if !runs {
            assert!(
                images.join("inventory.img").exists(),
                "after {delay} ms it is lost"
            );
            world.done(&["delete", "--force", id]);
            world.check_empty();
            pid = world.restore(&bundle, images, id, &[]);
        }
        wait("it is not frozen", || {
            (world.status(id) == "running").then_some(())
        });
        before = counts_on(pid, &before);
    }
    // What was killed half-way is in nobody's way.
    let images = &world.images("last");
    world.done(&["checkpoint", "--image-path", text(images), id]);
    let pid = world.restore(&bundle, images, id, &[]);
    counts_on(pid, &before);
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn a_killed_restore_leaves_nothing_that_runs() {
    let Some(world) = world("killed-restore") else {
        return;
    };
    let reached = world.dir.path().join("reached");
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |_| {});
    let (id, images) = (&world.id("a"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    world.done(&["checkpoint", "--image-path", text(images), id]);
    let words = ["restore", "-d", "--image-path", text(images), "--bundle"];
    // Killed in a hook, with the namespaces made; and at any time.
    let path = bundle.join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    let mut hooked: Value = serde_json::from_str(&config).unwrap();
    let line = format!("echo > {}; exec sleep 1000", reached.display());
    hooked["hooks"] = json!({"prestart": [
        {"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/bin:/usr/bin"], "timeout": 5},
    ]});
    fs::write(&path, hooked.to_string()).unwrap();
    let mut command = world.background(&[&words[..], &[text(&bundle), id]].concat());
    wait("the hook", || reached.exists().then_some(()));
    command.kill().unwrap();
    command.wait().unwrap();
    world.done(&["delete", "--force", id]);
    world.check_empty();
    fs::write(&path, &config).unwrap();
    for delay in [5, 20, 40, 60, 80, 100, 130] {
        let mut command = world.background(&[&words[..], &[text(&bundle), id]].concat());
        std::thread::sleep(Duration::from_millis(delay));
        command.kill().unwrap();
        command.wait().unwrap();
        world.done(&["delete", "--force", id]);
        world.check_empty();
        world.check_no_mounts();
    }
    let pid = world.restore(&bundle, images, id, &[]);
    counts_on(pid, &before);
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn a_terminal_comes_back_with_a_new_master() {
    let Some(world) = world("tty") else {
        return;
    };
    let bundle = world.bundle(
        "bundle",
        &["sh", "-c", "while read l; do echo \"<$l>\"; done"],
        |config| {
            config["process"]["terminal"] = json!(true);
        },
    );
    let (id, images) = (&world.id("a"), &world.images("a"));
    let socket = world.dir.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let with = ["--console-socket", text(&socket)];
    world.done(
        &[
            &["create", "--bundle", text(&bundle)],
            &with[..],
            &[id.as_str()],
        ]
        .concat(),
    );
    let mut master = File::from(descriptor_of(&listener));
    let ask = |master: &mut File, word: &str| {
        writeln!(master, "{word}").unwrap();
        let mut heard = String::new();
        wait("an answer", || {
            let mut bytes = [0; 256];
            let length = master.read(&mut bytes).unwrap();
            heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
            heard.contains(&format!("<{word}>")).then_some(())
        });
    };
    world.done(&["start", id]);
    ask(&mut master, "one");
    world.done(&["checkpoint", "--image-path", text(images), id]);
    let restore = [
        "restore",
        "-d",
        "--bundle",
        text(&bundle),
        "--image-path",
        text(images),
    ];
    let without = world.refused(&[&restore[..], &[id.as_str()]].concat());
    assert!(without.contains("--console-socket"), "{without}");
    world.done(&[&restore[..], &with[..], &[id.as_str()]].concat());
    let mut master = File::from(descriptor_of(&listener));
    ask(&mut master, "two");
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn a_member_of_a_pod_comes_back_into_it() {
    let Some(world) = world("pod-back") else {
        return;
    };
    let pause = world.bundle("pause", &["sleep", "1000"], |_| {});
    let (sandbox, id, images) = (&world.id("pause"), &world.id("a"), &world.images("a"));
    let first = world.run(&pause, sandbox);
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |config| {
        config.as_object_mut().unwrap().remove("hostname");
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let file = match namespace["type"].as_str().unwrap() {
                "network" => "net",
                other @ ("ipc" | "uts") => other,
                _ => continue,
            };
            namespace["path"] = json!(format!("/proc/{first}/ns/{file}"));
        }
    });
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    world.done(&["checkpoint", "--image-path", text(images), id]);
    let pid = world.restore(&bundle, images, id, &[]);
    counts_on(pid, &before);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pid, kind), namespace(first, kind), "{kind}");
    }
    for id in [id, sandbox] {
        world.done(&["delete", "--force", id]);
    }
    world.check_empty();
}

#[test]
fn a_container_with_mapped_users_comes_back() {
    let Some(world) = world("mapped") else {
        return;
    };
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        config["linux"]["uidMappings"] = maps.clone();
        config["linux"]["gidMappings"] = maps.clone();
        config["process"]["user"] = json!({"uid": 0, "gid": 8});
    });
    let owned = Command::new("chown")
        .args(["-R", "100000:100000"])
        .arg(world.dir.path().join("rootfs"))
        .status();
    assert!(owned.unwrap().success());
    // As users have it: everybody may look into the directories above the root.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (id, images) = (&world.id("a"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    let mounted = mounts(pid);
    world.done(&["checkpoint", "--image-path", text(images), id]);
    let pid = world.restore(&bundle, images, id, &[]);
    counts_on(pid, &before);
    let maps = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(
        maps.split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "65536"]
    );
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("\nGid:\t100008\t"), "{status}");
    assert_eq!(mounts(pid), mounted);
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn connections_within_are_kept_if_that_is_asked_for() {
    let Some(world) = world("tcp") else {
        return;
    };
    let talk = "sleep 100000 | busybox nc -l -p 7000 > /dev/shm/got & sleep 0.3; \
                { i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done; } | busybox nc 127.0.0.1 7000";
    let bundle = world.bundle("bundle", &["sh", "-c", talk], |_| {});
    let (id, images) = (&world.id("a"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let lines = |pid: i32| {
        let got = fs::read_to_string(format!("/proc/{pid}/root/dev/shm/got")).unwrap_or_default();
        got.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    wait("some lines", || (lines(pid).len() > 5).then_some(()));
    let why = world.refused(&["checkpoint", "--image-path", text(images), id]);
    assert!(why.contains("tcp-established"), "{why}");
    let before = lines(pid).len();
    wait("it goes on", || {
        (lines(pid).len() > before + 2).then_some(())
    });
    let before = lines(pid).len();
    world.done(&[
        "checkpoint",
        "--tcp-established",
        "--image-path",
        text(images),
        id,
    ]);
    let pid = world.restore(&bundle, images, id, &["--tcp-established"]);
    let now = wait("more lines", || {
        Some(lines(pid)).filter(|now| now.len() > before + 5)
    });
    let wanted: Vec<String> = (1..=now.len()).map(|n| n.to_string()).collect();
    assert_eq!(now, wanted, "a line is lost or there twice");
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn output_that_goes_to_a_file_can_be_appended_to() {
    let Some(world) = world("files") else {
        return;
    };
    let chatty = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    let bundle = world.bundle("bundle", &["sh", "-c", chatty], |_| {});
    let output = world.dir.path().join("output");
    let file = |append: bool| {
        File::options()
            .create(true)
            .append(append)
            .write(true)
            .open(&output)
            .unwrap()
    };
    let godwit = |words: &[&str], stdout: File| {
        let status = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .arg("--root")
            .arg(world.root())
            .args(words)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{words:?}");
    };
    let lines = || fs::read_to_string(&output).unwrap().lines().count();
    let (id, images) = (&world.id("a"), &world.images("a"));
    let run = ["run", "--detach", "--bundle", text(&bundle), id];
    godwit(&run, file(false));
    let why = world.refused(&["checkpoint", "--image-path", text(images), id]);
    assert!(
        why.contains("standard output") && why.contains(">>"),
        "{why}"
    );
    assert!(!images.exists());
    world.done(&["delete", "--force", id]);
    fs::remove_file(&output).unwrap();
    godwit(&run, file(true));
    wait("some lines", || (lines() > 3).then_some(()));
    world.done(&["checkpoint", "--image-path", text(images), id]);
    let before = lines();
    godwit(
        &[
            "restore",
            "-d",
            "--image-path",
            text(images),
            "--bundle",
            text(&bundle),
            id,
        ],
        file(true),
    );
    wait("more lines", || (lines() > before + 3).then_some(()));
    world.done(&["delete", "--force", id]);
    let written = fs::read_to_string(&output).unwrap();
    let wanted: Vec<String> = (1..=written.lines().count())
        .map(|n| n.to_string())
        .collect();
    assert_eq!(
        written.lines().collect::<Vec<_>>(),
        wanted,
        "a line is lost or there twice"
    );
    world.check_empty();
}

#[test]
fn a_pre_dump_is_made_or_refused_with_the_reason() {
    let Some(world) = world("pre-dump") else {
        return;
    };
    let bundle = world.bundle("bundle", &["sh", "-c", COUNTER], |_| {});
    let (id, first, images) = (&world.id("a"), &world.images("first"), &world.images("a"));
    let pid = world.run(&bundle, id);
    let before = wait("the first number", || told(pid));
    let pre_dump = ["checkpoint", "--pre-dump", "--image-path", text(first), id];
    let tracks = godwit::criu::Criu::find(None)
        .unwrap()
        .features()
        .unwrap()
        .mem_track;
    if tracks {
        world.done(&pre_dump);
        let now = counts_on(pid, &before);
        world.done(&[
            "checkpoint",
            "--parent-path",
            "../images-first",
            "--image-path",
            text(images),
            id,
        ]);
        let pid = world.restore(&bundle, images, id, &[]);
        counts_on(pid, &now);
    } else {
        let why = world.refused(&pre_dump);
        assert!(
            why.starts_with("--pre-dump: ") && why.contains("CONFIG_MEM_SOFT_DIRTY"),
            "{why}"
        );
        assert!(!first.exists());
        assert_eq!(world.status(id), "running");
        counts_on(pid, &before);
    }
    world.done(&["delete", "--force", id]);
    world.check_empty();
}

#[test]
fn a_container_in_the_foreground_ends_with_its_code() {
    let Some(world) = world("foreground") else {
        return;
    };
    let command = "while [ ! -e /etc/volume/end ]; do sleep 0.05; done; echo the end; exit 7";
    let volume = world.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let bundle = world.bundle("bundle", &["sh", "-c", command], |config| {
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/etc/volume", "type": "bind", "source": volume, "options": ["bind"],
        }));
    });
    let (id, images) = (&world.id("a"), &world.images("a"));
    // Its output is a pipe, as it is under an orchestrator, and the restore has another one.
    let mut run = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .arg("--root")
        .arg(world.root())
        .args(["run", "--bundle", text(&bundle), id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("the container", || {
        world
            .root()
            .join(id)
            .join("state.json")
            .exists()
            .then_some(())
    });
    world.wait_for(id, "running");
    world.done(&["checkpoint", "--image-path", text(images), id]);
    assert_eq!(run.wait().unwrap().code(), Some(137));
    fs::write(volume.join("end"), "").unwrap();
    let restored = world.godwit(&[
        "restore",
        "--bundle",
        text(&bundle),
        "--image-path",
        text(images),
        id,
    ]);
    let said = String::from_utf8_lossy(&restored.stderr);
    assert_eq!(restored.status.code(), Some(7), "{said}");
    assert_eq!(String::from_utf8_lossy(&restored.stdout), "the end\n");
    world.check_empty();
}
