//! The freezer and the end of a cgroup, on the real kernel.

use super::*;
use std::process::{Child, Command};

/// A cgroup of its own below a parent of its own; both go with it.
struct Scratch {
    root: CgroupRoot,
    cgroup: Cgroup,
}

impl Scratch {
    fn new(test: &str) -> Option<Self> {
        if !crate::sys::process::is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP {test}: needs root");
            return None;
        }
        let root = CgroupRoot::find(&format!("godwit-test-{}-{test}", std::process::id())).unwrap();
        let cgroup = root.container(&"one".parse().unwrap());
        cgroup.create().unwrap();
        Some(Self { root, cgroup })
    }

    fn sleeper(&self) -> Child {
        let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        self.cgroup.join(child.id() as i32).unwrap();
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.cgroup.remove().unwrap();
        fs::remove_dir(self.root.path()).unwrap();
    }
}

#[test]
fn a_frozen_process_stands_still_and_a_thawed_one_goes_on() {
    let Some(scratch) = Scratch::new("freeze") else {
        return;
    };
    let mut child = scratch.sleeper();
    let group = &scratch.cgroup;
    assert_eq!(group.procs().unwrap(), [child.id() as i32]);
    assert!(group.populated().unwrap() && !group.is_frozen().unwrap());
    group.freeze(Duration::from_secs(5)).unwrap();
    assert!(group.is_frozen().unwrap());
    group.thaw().unwrap();
    group
        .wait_for("frozen", false, Duration::from_secs(5))
        .unwrap();
    group.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn removal_takes_frozen_processes_and_nested_cgroups_along_and_may_be_repeated() {
    let Some(scratch) = Scratch::new("remove") else {
        return;
    };
    fs::create_dir(scratch.cgroup.path().join("nested")).unwrap();
    let mut child = scratch.sleeper();
    scratch.cgroup.freeze(Duration::from_secs(5)).unwrap();
    // A child of ours must be reaped while the removal waits for it.
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    scratch.cgroup.remove().unwrap();
    assert!(!scratch.cgroup.path().exists());
    scratch.cgroup.remove().unwrap();
    reaper.join().unwrap();
}

#[test]
fn a_limit_without_its_controller_is_refused_by_name() {
    let Some(scratch) = Scratch::new("limit") else {
        return;
    };
    scratch.cgroup.apply(&Limits::default()).unwrap();
    let limits = Limits {
        pids: Some(5),
        ..Limits::default()
    };
    let limit = scratch.cgroup.path().join("pids.max");
    match scratch.cgroup.apply(&limits) {
        Ok(()) => assert_eq!(fs::read_to_string(limit).unwrap(), "5\n"),
        Err(error) => assert!(!limit.exists() && error.to_string().contains("`pids`")),
    }
}

#[test]
fn a_throttled_cgroup_has_its_limits_back_when_the_throttle_is_gone() {
    let Some(scratch) = Scratch::new("throttle") else {
        return;
    };
    let group = &scratch.cgroup;
    let limits = Limits::default();
    let max = || fs::read_to_string(group.path().join(plan::CPU_MAX)).unwrap();
    let mut throttle = Throttle::new(group.clone(), limits.clone());
    if !group.can_throttle() {
        assert!(!throttle.set(Some(80)).unwrap() && !throttle.set(None).unwrap());
        group.unthrottle(&limits).unwrap();
        println!("SKIP the rest of throttle: no cpu controller in cgroup v2 here");
        return;
    }
    assert!(throttle.set(Some(80)).unwrap());
    assert!(max().ends_with(" 20000\n"), "{}", max());
    assert!(throttle.set(None).unwrap());
    assert_eq!(max(), "max 100000\n");
    assert!(throttle.set(Some(20)).unwrap());
    drop(throttle);
    assert_eq!(max(), "max 100000\n");
}

#[test]
fn a_throttled_process_is_slower() {
    let Some(scratch) = Scratch::new("slower") else {
        return;
    };
    let group = &scratch.cgroup;
    if !group.can_throttle() {
        println!("SKIP slower: no cpu controller in cgroup v2 here");
        return;
    }
    let mut child = Command::new("/bin/sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    group.join(child.id() as i32).unwrap();
    let mut throttle = Throttle::new(group.clone(), Limits::default());
    let used = || {
        let stat = || {
            let text = fs::read_to_string(group.path().join("cpu.stat")).unwrap();
            plan::cpu_used(&text).unwrap()
        };
        let before = stat();
        std::thread::sleep(Duration::from_millis(500));
        stat() - before
    };
    let free = used();
    assert!(throttle.set(Some(20)).unwrap());
    let slow = used();
    group.kill().unwrap();
    child.wait().unwrap();
    assert!(slow < free / 2, "{slow} of {free} microseconds");
}
