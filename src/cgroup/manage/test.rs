//! Cgroups of bundles, on the real kernel.

use std::io;
use std::process::{Child, Command, Stdio};

use super::*;

fn resources(json: serde_json::Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

/// Whether this may run here; otherwise it says why not.
fn is_root(test: &str) -> bool {
    let root = crate::sys::process::is_root();
    if !root {
        assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
        println!("SKIP {test}: needs root");
    }
    root
}

/// A cgroup that goes with the test.
struct Scratch(Group);

impl Scratch {
    fn new(test: &str, json: serde_json::Value) -> Self {
        let path = format!("/godwit-test-{}/{test}", std::process::id());
        let resources = resources(json);
        let planned = Group::plan(
            test,
            Some(Path::new(&path)),
            Driver::CgroupFs,
            Some(&resources),
        );
        Self(planned.unwrap().create().unwrap())
    }

    /// Runs a shell in it.
    fn shell(&self, script: &str) -> Child {
        let script = format!("read go; {script}");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.0.add(child.id() as i32).unwrap();
        io::Write::write_all(child.stdin.as_mut().unwrap(), b"\n").unwrap();
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.remove().unwrap();
        // Other tests of this process may be in there yet.
        let _ = fs::remove_dir(self.0.path().parent().unwrap());
    }
}

#[test]
fn a_device_is_open_to_those_who_may_and_to_nobody_else() {
    if !is_root("devices") {
        return;
    }
    let scratch = Scratch::new(
        "devices",
        serde_json::json!({"devices": [{"allow": false, "access": "rwm"}]}),
    );
    let directory = tempfile::tempdir().unwrap();
    // The host's kernel log: there everywhere, and nothing happens when it is opened.
    let node = directory.path().join("kmsg");
    let script = format!(
        "mknod {0} c 1 11 && echo made; (: < {0}) 2>/dev/null && echo open; : > /dev/null && echo null",
        node.display()
    );
    let run = || {
        let _ = fs::remove_file(&node);
        let output = scratch.shell(&script).wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(), "made\nnull\n");
    scratch
        .0
        .update(&resources(serde_json::json!({"devices": [
            {"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]})))
        .unwrap();
    assert_eq!(run(), "made\nopen\nnull\n");
    let programs = bpf::device_programs(scratch.0.directory().unwrap().as_fd()).unwrap();
    assert_eq!(programs.len(), 1, "the one before is replaced, not joined");
}

#[test]
fn it_freezes_thaws_counts_and_ends_with_all_that_is_below() {
    if !is_root("life") {
        return;
    }
    let scratch = Scratch::new("life", serde_json::json!({}));
    let group = &scratch.0;
    let mut child = scratch.shell("sleep 60");
    fs::create_dir(group.path().join("below")).unwrap();
    let mut other = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    Group::at(group.path().join("below"), Driver::CgroupFs)
        .add(other.id() as i32)
        .unwrap();
    let found = group.processes().unwrap();
    assert!(found.contains(&(child.id() as i32)) && found.contains(&(other.id() as i32)));
    group.freeze().unwrap();
    assert!(group.is_frozen().unwrap());
    group.thaw().unwrap();
    assert!(group.stats().cpu.usage.total > 0);
    let reaper = std::thread::spawn(move || (child.wait().unwrap(), other.wait().unwrap()));
    group.remove().unwrap();
    assert!(!group.exists());
    group.remove().unwrap();
    reaper.join().unwrap();
}

#[test]
fn one_that_somebody_is_in_is_not_taken_over_and_an_empty_one_is() {
    if !is_root("occupied") {
        return;
    }
    let scratch = Scratch::new("occupied", serde_json::json!({}));
    let path = format!("/godwit-test-{}/occupied", std::process::id());
    let plan = || Group::plan("x", Some(Path::new(&path)), Driver::CgroupFs, None).unwrap();
    let mut child = scratch.shell("sleep 60");
    let error = plan().create().unwrap_err();
    assert!(
        matches!(error, CgroupError::Occupied { count: 1.., .. }),
        "{error}"
    );
    scratch.0.kill().unwrap();
    child.wait().unwrap();
    scratch.0.cgroup.wait_for("populated", false, WAIT).unwrap();
    scratch.0.cgroup.freeze(WAIT).unwrap();
    assert!(!plan().create().unwrap().is_frozen().unwrap());
}

#[test]
fn a_limit_is_kept_or_refused_by_name_and_leaves_nothing() {
    if !is_root("limits") {
        return;
    }
    let path = format!("/godwit-test-limits-{}/a", std::process::id());
    let limits = resources(serde_json::json!({"pids": {"limit": 77}}));
    match Group::plan("a", Some(Path::new(&path)), Driver::CgroupFs, Some(&limits)) {
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("pids.limit") && text.contains("`pids`"),
                "{text}"
            );
        }
        Ok(planned) => {
            let group = planned.create().unwrap();
            assert_eq!(group.cgroup.read("pids.max").unwrap(), "77\n");
            group
                .update(&resources(serde_json::json!({"pids": {"limit": -1}})))
                .unwrap();
            assert_eq!(group.stats().pids.limit, 0);
            group.remove().unwrap();
            fs::remove_dir(group.path().parent().unwrap()).unwrap();
        }
    }
    // What the kernel does not take.
    let unified = resources(serde_json::json!({"unified": {"cgroup.max.depth": "many"}}));
    let planned = Group::plan(
        "a",
        Some(Path::new(&path)),
        Driver::CgroupFs,
        Some(&unified),
    )
    .unwrap();
    let directory = planned.path();
    assert!(planned.create().is_err());
    assert!(
        !directory.parent().unwrap().exists(),
        "what was made is gone"
    );
}

#[test]
fn an_update_that_fails_is_taken_back() {
    if !is_root("update") {
        return;
    }
    let scratch = Scratch::new("update", serde_json::json!({}));
    let update = resources(serde_json::json!({"unified": {
        "cgroup.max.depth": "5", "cgroup.max.descendants": "many"}}));
    assert!(scratch.0.update(&update).is_err());
    assert_eq!(scratch.0.cgroup.read("cgroup.max.depth").unwrap(), "max\n");
    let update = resources(serde_json::json!({"unified": {"cgroup.max.depth": "5"}}));
    scratch.0.update(&update).unwrap();
    assert_eq!(scratch.0.cgroup.read("cgroup.max.depth").unwrap(), "5\n");
}
