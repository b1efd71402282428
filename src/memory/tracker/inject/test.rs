//! Threads that wait in all kinds of calls (`tests/workload/calls.c`) are stopped again and again, and notice nothing.

use std::io::Read;
use std::time::{Duration, Instant};

use super::super::test::{World, assert_no_trace, can_run, workload};
use super::*;
use crate::model::TrackerChoice;
use crate::sys::userfaultfd::{FEATURE_WP_ASYNC, FEATURE_WP_UNPOPULATED};

/// How long each mode is disturbed.
const LONG: Duration = Duration::from_millis(1500);

/// Lets `disturb` do its worst to a workload, and expects it to find nothing wrong. Returns how often.
fn disturbed(mode: &str, mut disturb: impl FnMut(i32)) -> u32 {
    let mut world = World::start(&workload("calls"), &[mode]);
    let pid = world.child.id().cast_signed();
    let end = Instant::now() + LONG;
    let mut times = 0;
    while Instant::now() < end {
        disturb(pid);
        times += 1;
    }
    assert_no_trace(&world);
    drop(world.child.stdin.take());
    let mut said = String::new();
    world.said.read_to_string(&mut said).unwrap();
    let wrong: Vec<_> = said
        .lines()
        .filter(|line| !line.starts_with("end "))
        .collect();
    assert!(said.contains("end "), "{mode}: {said}");
    assert!(wrong.is_empty(), "{mode}: {said}");
    println!("{mode}: disturbed {times} times, {}", said.trim_end());
    times
}

fn works(uffd: &Userfaultfd) {
    uffd.handshake(FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED)
        .unwrap();
}

#[test]
fn whatever_a_thread_waits_for_it_gets() {
    if !can_run("waiting threads", TrackerChoice::UffdWp) {
        return;
    }
    for mode in ["quiet", "signals", "seccomp", "blocked"] {
        let mut turn = 0;
        let mut busy = 0;
        let times = disturbed(mode, |pid| {
            // Each thread in turn, whatever it is doing.
            let threads = all_threads(pid);
            let tid = threads[turn % threads.len()];
            turn += 1;
            let deadline = Instant::now() + Duration::from_secs(5);
            let made = thread::spawn(move || Stopped::run(pid, tid, deadline, Stopped::make));
            match made.join().unwrap() {
                Ok((uffd, _)) => works(&uffd),
                Err(Refusal::Busy) => busy += 1,
                Err(other) => panic!("{mode}: {other:?}"),
            }
            thread::sleep(Duration::from_micros(500));
        });
        assert!(busy <= times / 20, "{mode}: {busy} of {times}");
    }
}

#[test]
fn a_child_of_just_then_inherits_nothing() {
    if !can_run("forking", TrackerChoice::UffdWp) {
        return;
    }
    disturbed("fork", |pid| {
        works(&userfaultfd(pid).unwrap());
    });
}

#[test]
fn a_stopped_process_stays_stopped() {
    if !can_run("a stopped process", TrackerChoice::UffdWp) {
        return;
    }
    let state = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    disturbed("stopped", |pid| {
        let process = crate::sys::pidfd::open(pid).unwrap();
        crate::sys::pidfd::signal(process.as_fd(), libc::SIGSTOP).unwrap();
        while state(pid) != 'T' {
            thread::yield_now();
        }
        works(&userfaultfd(pid).unwrap());
        let end = Instant::now() + Duration::from_secs(5);
        while state(pid) != 'T' {
            assert!(Instant::now() < end, "{}", state(pid));
        }
        thread::sleep(Duration::from_millis(20));
        assert_eq!(state(pid), 'T');
        crate::sys::pidfd::signal(process.as_fd(), libc::SIGCONT).unwrap();
        thread::sleep(Duration::from_millis(20));
    });
}

#[test]
fn a_frozen_process_is_given_up_and_goes_on_when_it_is_thawed() {
    if !can_run("a frozen process", TrackerChoice::UffdWp) {
        return;
    }
    let mut world = World::start(&workload("calls"), &["stopped"]);
    let pid = world.child.id().cast_signed();
    world.freeze(true);
    let begin = Instant::now();
    let refusal = userfaultfd(pid).unwrap_err();
    assert!(matches!(refusal, Refusal::Busy), "{refusal:?}");
    assert!(begin.elapsed() < PATIENCE * 2);
    assert_no_trace(&world);
    world.freeze(false);
    works(&userfaultfd(pid).unwrap());
    drop(world.child.stdin.take());
    let mut said = String::new();
    world.said.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("end "), "{said}");
}

#[test]
fn a_process_that_ends_is_no_error_of_another_kind() {
    if !can_run("an ending process", TrackerChoice::UffdWp) {
        return;
    }
    for _ in 0..20 {
        let mut world = World::start(&workload("calls"), &["stopped"]);
        let pid = world.child.id().cast_signed();
        let killer = thread::spawn({
            let kill = world.cgroup.join("cgroup.kill");
            move || fs::write(kill, "1").unwrap()
        });
        let made = userfaultfd(pid);
        killer.join().unwrap();
        match made {
            // The kernel does not let anybody trace what is just ending.
            Ok(_) | Err(Refusal::Ended | Refusal::Take { .. } | Refusal::Trace { .. }) => {}
            // It was killed between the two calls. What has ended has nothing that could be closed.
            Err(Refusal::Left { pid, number, uffd }) => {
                assert!(!world.child.wait().unwrap().success());
                close(pid, number, &uffd).unwrap();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}
