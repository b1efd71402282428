use super::*;
use crate::memory::frame::{LONGEST_BATCH, RUN_PAGES};
use crate::memory::{Decoder, Frame, Space};
use crate::model::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

const TASK: Space = Space::Task(7);

/// A page that compresses, one that does not, or zeros.
fn page(kind: u8, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    match kind {
        0 => vec![0; PAGE],
        1 => (0..PAGE).map(|n| (n / 100) as u8 | 1).collect(),
        _ => (0..PAGE).map(|_| random()).collect(),
    }
}

/// What the frames of `done` say of every page.
fn meant(done: &Done) -> BTreeMap<u64, Vec<u8>> {
    let mut pages = BTreeMap::new();
    let mut decoder = Decoder::new().unwrap();
    let mut each = |frame: &Frame<'_>| {
        match frame {
            Frame::Pages { vaddr, bytes, .. } => {
                for (number, page) in bytes.chunks(PAGE).enumerate() {
                    let at = vaddr + (number * PAGE) as u64;
                    assert!(pages.insert(at, page.to_vec()).is_none());
                }
            }
            Frame::Zero {
                vaddr, pages: n, ..
            } => {
                for number in 0..*n {
                    let at = vaddr + number * PAGE_SIZE;
                    assert!(pages.insert(at, vec![0; PAGE]).is_none());
                }
            }
            Frame::Unchanged { .. } => {}
            Frame::Behind { .. } | Frame::Changes(_) | Frame::List { .. } => panic!("{frame:?}"),
        }
        Ok(())
    };
    decoder.decode(&done.bytes, &mut each).unwrap();
    pages
}

fn packed_at(level: i32, pages: &[(u64, Vec<u8>)]) -> Done {
    let mut batch = Batch::new(Vec::new());
    for (vaddr, bytes) in pages {
        assert_eq!(batch.take(TASK, *vaddr, bytes), PAGE);
    }
    let mut packer = Packer::new().unwrap();
    packer
        .pack(batch, vec![7; 100], level, &Copies::new(Bytes(0)))
        .unwrap()
}

#[test]
fn what_compresses_is_small_and_what_does_not_is_as_it_is() {
    let run = |kind| -> Vec<(u64, Vec<u8>)> {
        (0..RUN_PAGES)
            .map(|n| (n * PAGE_SIZE, page(kind, n + 1)))
            .collect()
    };
    let even = packed_at(1, &run(1));
    assert!(even.bytes.len() < RUN_PAGES as usize * PAGE / 10);
    for level in [0, 1, 3, -5, 19] {
        let noise = packed_at(level, &run(2));
        assert_eq!(noise.bytes.len(), RUN_PAGES as usize * PAGE + HEADER);
        assert_eq!(noise.pages, Pages(RUN_PAGES));
    }
    let zeros = packed_at(0, &run(0));
    assert_eq!((zeros.bytes.len(), zeros.zero), (HEADER, Pages(RUN_PAGES)));
}

#[test]
fn memory_that_compresses_is_found_behind_much_that_does_not() {
    let mut packer = Packer::new().unwrap();
    let copies = Copies::new(Bytes(0));
    let mut length = |kind| {
        let mut batch = Batch::new(Vec::new());
        for number in 0..8 {
            batch.take(TASK, number * PAGE_SIZE, &page(kind, number + 1));
        }
        let done = packer.pack(batch, Vec::new(), 1, &copies).unwrap();
        done.bytes.len()
    };
    let plain = 8 * PAGE + HEADER;
    assert!((0..100).all(|_| length(2) == plain));
    let late = (0..100).take_while(|_| length(1) == plain).count();
    assert!(late < SELDOM as usize, "{late}");
    assert!((0..100).all(|_| length(1) < plain), "each is tried again");
}

#[test]
fn a_full_batch_takes_no_more_and_is_a_batch_all_the_same() {
    let mut batch = Batch::new(Vec::new());
    let mut taken = 0;
    // Scattered pages, every other one with zeros beside it, and a mark after each.
    while batch.take(TASK, taken * 3 * PAGE_SIZE, &page(taken as u8 % 2, 1)) > 0 {
        taken += 1;
        assert!(
            batch.mark(&crate::memory::frame::unchanged(
                TASK,
                (taken * 3 - 1) * PAGE_SIZE,
                1
            )) || taken > 100
        );
    }
    assert_eq!(taken, RUN_PAGES);
    let copies = Copies::new(Bytes(0));
    let done = Packer::new()
        .unwrap()
        .pack(batch, Vec::new(), 0, &copies)
        .unwrap();
    assert!(done.bytes.len() <= LONGEST_BATCH);
    assert_eq!(meant(&done).len() as u64, taken);
    let mut marks = Batch::new(Vec::new());
    while marks.mark(&zero(TASK, 0, 1)) {}
    assert_eq!(marks.take(TASK, 0, &page(1, 1)), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_batch_means_its_pages(
        kinds in prop::collection::vec((0u8..3, 1u64..3), 1..RUN_PAGES as usize),
        level in prop::sample::select(vec![0, -5, 1, 3]),
    ) {
        let mut vaddr = 0;
        let mut pages = Vec::new();
        for (number, (kind, step)) in kinds.iter().enumerate() {
            vaddr += step * PAGE_SIZE;
            pages.push((vaddr, page(*kind, number as u64 + 1)));
        }
        let done = packed_at(level, &pages);
        let zeros = kinds.iter().filter(|(kind, _)| *kind == 0).count();
        prop_assert_eq!(done.zero, Pages(zeros as u64));
        prop_assert_eq!(done.pages, Pages((kinds.len() - zeros) as u64));
        prop_assert_eq!(meant(&done), pages.into_iter().collect::<BTreeMap<_, _>>());
    }
}
