use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;
use crate::memory::frame::{self, Decoder, HEADER};
use crate::memory::images::write_pagemap;
use crate::memory::space::{Entry, PageFlags};
use crate::memory::{Space, fuzz};
use crate::model::Pages;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE: usize = PAGE_SIZE as usize;

/// The images of a process 7, whose pages 10 to 30 come later, and 100 to 300.
fn images() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path();
    fs::create_dir(images.join("parent")).unwrap();
    let list = [Entry {
        vaddr: 0,
        pages: 400,
        flags: PageFlags::LAZY,
    }];
    write_pagemap(images, Space::Task(7), 3, &list).unwrap();
    let store = File::create(images.join("parent/pages-3.img")).unwrap();
    store.set_len(400 * PAGE_SIZE).unwrap();
    note(
        images,
        7,
        [page(10)..page(30), page(100)..page(300)].into_iter(),
    )
    .unwrap();
    directory
}

fn page(number: u64) -> u64 {
    number * PAGE_SIZE
}

fn pages(first: u64, count: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.resize(HEADER + count * PAGE, fill);
    frame::seal_pages(&mut frame, Space::Task(7), page(first));
    frame
}

#[test]
fn pages_are_here_when_their_bytes_are_and_never_change_again() {
    let images = images();
    let incoming = Incoming::open(images.path()).unwrap().unwrap();
    let later = Later::open(images.path(), 7).unwrap().unwrap();
    assert_eq!(incoming.missing(), Pages(220));
    let mut decoder = Decoder::new().unwrap();
    let mut take = |batch: &[u8]| incoming.take(&mut decoder, batch);
    assert_eq!(take(&pages(20, 2, 5)).unwrap(), Pages(2));
    assert_eq!(take(&pages(21, 2, 6)).unwrap(), Pages(2));
    assert_eq!(
        take(&frame::zero(Space::Task(7), page(100), 3)).unwrap(),
        Pages(3)
    );
    assert_eq!(incoming.missing(), Pages(214));
    let number = |n: u64| later.index.number(page(n)).unwrap();
    for (n, here) in [
        (19, false),
        (20, true),
        (22, true),
        (23, false),
        (100, true),
    ] {
        assert_eq!(later.here().is_done(number(n)), here, "{n}");
    }
    let store = File::open(images.path().join("parent/pages-3.img")).unwrap();
    let mut bytes = vec![9; 3 * PAGE];
    store.read_exact_at(&mut bytes, page(20)).unwrap();
    assert_eq!(bytes, [[5; PAGE], [5; PAGE], [6; PAGE]].concat());
    // What was not left behind is refused, whoever's it is.
    for batch in [
        pages(9, 2, 1),
        pages(30, 1, 1),
        frame::zero(Space::Task(8), page(20), 1).to_vec(),
        frame::zero(Space::Shared(7), page(20), 1).to_vec(),
        frame::unchanged(Space::Task(7), page(23), 1).to_vec(),
        frame::behind(Space::Task(7), page(23), 1).to_vec(),
        b"?".to_vec(),
    ] {
        assert!(
            take(&batch).is_err(),
            "{:?}",
            &batch[..HEADER.min(batch.len())]
        );
    }
    assert!(!later.here().is_done(number(23)));
    assert!(Later::open(images.path(), 8).unwrap().is_none());
}

#[test]
fn every_page_is_asked_for_once_until_it_is_asked_for_anew() {
    let images = images();
    let incoming = Incoming::open(images.path()).unwrap().unwrap();
    let all = || {
        let runs = std::iter::from_fn(|| incoming.next(16));
        let pages = runs.flat_map(|run| {
            assert!(run.vpid == 7 && (1..=16).contains(&run.pages));
            let first = run.vaddr / PAGE_SIZE;
            first..first + u64::from(run.pages)
        });
        pages.collect::<Vec<u64>>()
    };
    let expected: BTreeSet<u64> = (10..30).chain(100..300).collect();
    for _ in 0..2 {
        let asked = all();
        assert_eq!(asked.len(), 220);
        assert_eq!(asked.into_iter().collect::<BTreeSet<u64>>(), expected);
        assert_eq!(incoming.next(16), None);
        incoming.begin();
    }
    let mut decoder = Decoder::new().unwrap();
    incoming.take(&mut decoder, &pages(100, 100, 1)).unwrap();
    assert_eq!(all().len(), 120);
}

#[test]
fn who_waits_is_heard_first_and_told_when_it_came() {
    let images = images();
    let incoming = Arc::new(Incoming::open(images.path()).unwrap().unwrap());
    let mut desk = Desk::of(images.path());
    let wanted: BTreeSet<Wanted> = [(7, page(200)), (7, page(299)), (7, page(5))].into();
    // Nobody is there yet.
    assert!(matches!(desk.wait_for(&wanted), Waiting::Same));
    let (tell, told) = channel();
    let listening = incoming.listen(move || tell.send(()).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(60));
    assert!(matches!(desk.wait_for(&wanted), Waiting::New));
    assert!(matches!(desk.wait_for(&wanted), Waiting::Same));
    for _ in 0..3 {
        told.recv_timeout(Duration::from_secs(10)).unwrap();
    }
    let runs = incoming.wanted(3);
    let run = |first, pages| Run {
        vpid: 7,
        vaddr: page(first),
        pages,
    };
    assert_eq!(runs, [run(200, 4), run(299, 1)]);
    assert_eq!(incoming.wanted(3), [], "they are on their way");
    incoming.begin();
    assert_eq!(incoming.wanted(0), [run(200, 1), run(299, 1)]);
    let mut decoder = Decoder::new().unwrap();
    incoming.take(&mut decoder, &pages(200, 1, 1)).unwrap();
    assert_eq!(incoming.wanted(0), []);
    let heard = || {
        use nix::poll::{PollFd, PollFlags, poll};
        let socket = desk.socket().unwrap();
        let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
        poll(&mut polled, 10_000u16).unwrap()
    };
    assert_eq!(heard(), 1);
    // A daemon that is gone, and one that comes after it.
    drop(listening);
    desk.hear();
    desk.hear();
    assert!(desk.socket().is_none());
    let _listening = incoming.listen(|| ()).unwrap();
    std::thread::sleep(Duration::from_millis(60));
    assert!(matches!(desk.wait_for(&wanted), Waiting::New));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let images = images();
    let path = file(images.path(), 7, "runs");
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    for bad in [
        vec![],
        vec![1; 16],
        words(&[page(5), page(4)]),
        words(&[page(4), page(4)]),
        words(&[page(4), page(8), page(6), page(9)]),
        words(&[0, u64::MAX]),
        [words(&[page(4), page(8)]), vec![0]].concat(),
    ] {
        fs::write(&path, &bad).unwrap();
        assert!(Later::open(images.path(), 7).is_err(), "{bad:?}");
    }
}

#[test]
fn any_frames_are_taken_or_refused() {
    let images = images();
    let incoming = Incoming::open(images.path()).unwrap().unwrap();
    let mut decoder = Decoder::new().unwrap();
    let mut random = proptest::test_runner::TestRunner::deterministic();
    let valid = [
        pages(20, 3, 1),
        frame::zero(Space::Task(7), page(100), 5).to_vec(),
    ];
    fuzz::run(2000, || {
        let change = (0..2usize, 0..HEADER, any::<u8>(), 0..4 * PAGE);
        let tree = change.new_tree(&mut random).unwrap();
        let (which, at, byte, length) = proptest::strategy::ValueTree::current(&tree);
        let mut batch = valid[which].clone();
        batch[at] = byte;
        batch.truncate(length.max(1));
        let _ = incoming.take(&mut decoder, &batch);
    });
    assert!(incoming.missing() <= Pages(220));
}

proptest! {
    #[test]
    fn any_word_is_a_page_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        match desk::meaning(&bytes) {
            Some(page) => prop_assert_eq!(desk::word(page).to_vec(), bytes),
            None => prop_assert_ne!(bytes.len(), 12),
        }
    }
}
