//! Passes over a tree in which somebody writes.

use std::fs;
use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use godwit::storage::{self, Receiver, Snapshot, StorageError};

use crate::lab::{Lab, deadline, first_seed, ready, settle};
use crate::writer::Writer;

/// Symbolic links in the tree may lead anywhere, so the writer never follows one of its paths' ends;
/// in the middle, they lead only to places within the tree, because it makes no others.
#[test]
fn a_tree_that_is_written_to_meanwhile_arrives_as_it_is_at_last() {
    if !ready("a_tree_that_is_written_to_meanwhile_arrives_as_it_is_at_last") {
        return;
    }
    let (deadline, mut seed) = (deadline(), first_seed());
    while Instant::now() < deadline {
        check_writer(seed);
        seed += 1;
    }
}

/// One history: first pass, perhaps more of them, the last pass. The bits of the seed say how the
/// writer works meanwhile, and whether there are pauses, without which nothing is old enough to be
/// trusted and all is sent again.
fn check_writer(seed: u64) {
    let lab = Lab::new();
    let mut writer = Writer::new(&lab.source, seed);
    writer.work(4000);
    let pause = || match seed & 4 {
        0 => (),
        _ => settle(),
    };
    pause();
    let mut snapshot = disturbed(&lab, &mut writer, seed, None);
    for _ in 0..seed % 3 {
        pause();
        snapshot = disturbed(&lab, &mut writer, seed, Some(&snapshot));
    }
    pause();
    writer.work(20 * (seed as usize % 5));
    let last = lab.send_changes(&snapshot);
    println!("seed {seed}: {} objects, then {last:?}", snapshot.len());
    lab.check_equal();
}

/// A pass while the writer works: between two batches, or all the time in a thread.
fn disturbed(lab: &Lab, writer: &mut Writer, seed: u64, since: Option<&Snapshot>) -> Snapshot {
    let send = |sink: &mut dyn FnMut(Vec<u8>) -> io::Result<()>| match since {
        None => storage::send_all(&lab.source, sink),
        Some(since) => storage::send_again(&lab.source, since, sink),
    };
    if seed & 1 == 0 {
        let mut receiver = Receiver::new(&lab.destination).unwrap();
        let sink = &mut |batch: Vec<u8>| {
            writer.work(15);
            receiver.apply(&batch).map_err(io::Error::other)
        };
        return send(sink).unwrap().0;
    }
    let (stop, start) = (AtomicBool::new(false), Barrier::new(2));
    let pause = Duration::from_micros(if seed & 2 == 0 { 0 } else { 200 });
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            writer.work_until(&stop, pause);
        });
        start.wait();
        let snapshot = lab.pass(send).0;
        stop.store(true, Ordering::Relaxed);
        snapshot
    })
}

/// A pass in which something is done when the first batch is full.
fn interrupted(lab: &Lab, since: Option<&Snapshot>, act: &str) -> Snapshot {
    let mut acted = false;
    let act = |batch: Vec<u8>, receiver: &mut Receiver| {
        if !std::mem::replace(&mut acted, true) {
            lab.sh(act);
        }
        receiver.apply(&batch).map_err(io::Error::other)
    };
    let mut act = act;
    let mut receiver = Receiver::new(&lab.destination).unwrap();
    let sink = &mut |batch| act(batch, &mut receiver);
    match since {
        None => storage::send_all(&lab.source, sink),
        Some(since) => storage::send_again(&lab.source, since, sink),
    }
    .unwrap()
    .0
}

#[test]
fn a_directory_that_is_away_for_a_moment_is_there_at_last() {
    if !ready("a_directory_that_is_away_for_a_moment_is_there_at_last") {
        return;
    }
    let lab = Lab::new();
    // The large file fills a batch while `d` has been listed and `d/a` has not.
    lab.sh(
        "mkdir -p d/a/deep d/b away; echo 1 > d/a/one; echo 2 > d/a/deep/two; echo 3 > d/b/three",
    );
    lab.sh("head -c 900000 /dev/urandom > d/large");
    settle();
    let (snapshot, _) = lab.send_all();
    settle();
    lab.sh("head -c 900000 /dev/urandom > d/large; echo 4 > d/b/four");
    let snapshot = interrupted(&lab, Some(&snapshot), "mv d/a away/a");
    lab.sh("rm away/a/one; mv away/a d/a; rmdir away");
    lab.send_changes(&snapshot);
    lab.check_equal();
}

#[test]
fn what_vanishes_shrinks_grows_or_changes_its_type_is_mended() {
    if !ready("what_vanishes_shrinks_grows_or_changes_its_type_is_mended") {
        return;
    }
    for act in [
        "rm -r z",
        "rm h z/d/d",
        "rm -r z; mkdir z",
        "rm -r z; echo file > z",
        "rm z/0; mkdir z/0; echo in > z/0/in",
        "rm z/0; ln -s /etc z/0; rm z/1; mkfifo z/1",
        "rm -r z/d; ln -s ../a z/d; truncate -s 10 a; : > z/1",
        "truncate -s 5M a; echo more >> z/0; mv z/1 z/2; ln z/0 z/3",
        "mv z y; mkdir z; mv y/d z/d; rm a; mkdir a; echo x > a/a",
    ] {
        const TREE: &str = "rm -rf *; head -c 2000000 /dev/urandom > a; mkdir -p z/d;
            echo 0 > z/0; echo 1 > z/1; echo d > z/d/d; ln z/d/d h";
        let lab = Lab::new();
        lab.sh(TREE);
        settle();
        let snapshot = interrupted(&lab, None, act);
        lab.send_changes(&snapshot);
        lab.check_equal();
        // And the same in a later pass, which knows what the destination has.
        lab.sh(TREE);
        settle();
        let (snapshot, _) = lab.send_all();
        lab.sh("head -c 2000000 /dev/urandom > a");
        let snapshot = interrupted(&lab, Some(&snapshot), act);
        lab.send_changes(&snapshot);
        lab.check_equal();
    }
}

#[test]
fn a_change_during_the_last_pass_is_an_error() {
    if !ready("a_change_during_the_last_pass_is_an_error") {
        return;
    }
    for act in [
        "echo more >> a",
        "truncate -s 5 a",
        "rm -r z",
        "mkdir new",
        "chmod 700 .",
    ] {
        let lab = Lab::new();
        lab.sh("mkdir z; echo 0 > z/0");
        let (snapshot, _) = lab.send_all();
        lab.sh("head -c 2000000 /dev/urandom > a");
        let mut acted = false;
        let sent = storage::send_changes(&lab.source, &snapshot, &Default::default(), &mut |_| {
            if !std::mem::replace(&mut acted, true) {
                lab.sh(act);
            }
            Ok(())
        });
        let unsettled = matches!(sent, Err(StorageError::Unsettled { .. }));
        assert!(unsettled, "{act}: {sent:?}");
    }
}

/// The case for which the rule about racy stamps exists: the same size, in the same tick of the
/// clock. Newer kernels make finer stamps for those who look, except on filesystems like ramfs, and
/// there too as soon as somebody looks elsewhere: so both trees lie on it.
#[test]
fn a_write_right_after_the_pass_is_never_missed() {
    if !ready("a_write_right_after_the_pass_is_never_missed") {
        return;
    }
    check_right_after(&Lab::new());
    let place = tempfile::tempdir().unwrap();
    // The mount is seen by this thread alone, and goes with it.
    let in_a_thread = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let (private, none) = (MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>);
        mount(none, "/", none, private, none).unwrap();
        mount(none, place.path(), Some("ramfs"), MsFlags::empty(), none).unwrap();
        check_right_after(&Lab::within(place.path()));
    };
    thread::scope(|scope| scope.spawn(in_a_thread).join()).unwrap();
}

fn check_right_after(lab: &Lab) {
    let file = lab.source.join("file");
    for round in 0..100_u8 {
        fs::write(&file, [round; 100]).unwrap();
        let (snapshot, _) = lab.send_all();
        fs::write(&file, [round + 100; 100]).unwrap();
        lab.send_changes(&snapshot);
        let arrived = fs::read(lab.destination.join("file")).unwrap();
        assert_eq!(arrived, [round + 100; 100]);
    }
}

#[test]
fn a_refusing_sink_ends_the_pass() {
    let lab = Lab::new();
    fs::write(lab.source.join("file"), "x").unwrap();
    let error = storage::send_all(&lab.source, &mut |_| {
        Err(io::Error::other("the link is cut"))
    })
    .unwrap_err();
    assert!(matches!(error, StorageError::Sink { .. }), "{error}");
}
