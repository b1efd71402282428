//! Copies of pages that were sent, so that one that is sent again goes as what has changed in it.
//!
//! ```text
//! page ─▶ a copy of it, sent in an earlier round? ─ little differs ─▶ the difference (mostly zeros: compresses well)
//!                  │ no, or much differs ────────────────────────────▶ the page
//!                  └─ whatever goes: the copy is this page from now on
//! ```
//!
//! **Invariant:** a copy that is used is what the destination has. Only what a destination has acknowledged is: pages
//! of one round may overtake each other, so a copy serves from the next round on; and who sends a page by another way,
//! as zeros, has its copy forgotten.
//!
//! **Invariant:** memory is bounded. Whoever comes first stays, until pages that are sent again need the room: what was
//! not sent for the longest time goes first, and nothing of the round itself, so that memory that is written as a whole
//! and is larger than this keeps a part of it here instead of nothing.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::frame::xor;
use super::space::Space;
use crate::model::{Bytes, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;
/// Where a page may be: so many pages whose places collide are kept side by side.
const WAYS: usize = 4;
/// What a copy takes: the page, its place here, what the allocator adds.
const COST: u64 = PAGE_SIZE + (size_of::<Set>() / WAYS) as u64 + 16;
const WORD: usize = 8;
/// Where more words than this have changed, the page goes as it is: it may compress better than its difference.
const MOST_WORDS: usize = PAGE / WORD / 3;

/// The copies of one migration, for any number of threads.
#[derive(Debug)]
pub(super) struct Copies {
    sets: Box<[Mutex<Set>]>,
    round: AtomicU32,
    /// Whether there ever was one: most containers have far more zero pages than anything to forget.
    any: AtomicBool,
}

type Set = [Slot; WAYS];

#[derive(Debug, Default)]
struct Slot {
    /// None: free.
    page: Option<(Space, u64)>,
    /// When it was sent last.
    round: u32,
    /// None: sent twice in that round, and nobody knows which the destination has.
    bytes: Option<Box<[u8]>>,
}

impl Copies {
    /// No more than this, all in all; of nothing, none.
    pub(super) fn new(limit: Bytes) -> Self {
        let sets = limit.0 / (COST * WAYS as u64);
        Self {
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            round: AtomicU32::new(0),
            any: AtomicBool::new(false),
        }
    }

    /// The destination has everything that was sent so far: from now on that serves as copies.
    pub(super) fn next_round(&self) {
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    /// A page is being sent. True: what has changed in it was appended to `changes`, a word of zeros for each that has
    /// not, and that is to be sent instead.
    pub(super) fn send(
        &self,
        space: Space,
        vaddr: u64,
        page: &[u8],
        changes: &mut Vec<u8>,
    ) -> bool {
        let Some(mut set) = self.set(space, vaddr) else {
            return false;
        };
        let now = self.round.load(Ordering::Relaxed);
        let known = set
            .iter_mut()
            .find(|slot| slot.page == Some((space, vaddr)));
        if let Some(slot) = known {
            return slot.send(now, page, changes);
        }
        let free = set
            .iter_mut()
            .filter(|slot| slot.page.is_none() || slot.round < now)
            .min_by_key(|slot| (slot.page.is_some(), slot.round));
        if let Some(slot) = free {
            slot.page = Some((space, vaddr));
            slot.keep(now, page);
            self.any.store(true, Ordering::Relaxed);
        }
        false
    }

    /// The destination has something else of these pages from now on.
    pub(super) fn forget(&self, space: Space, vaddr: u64, pages: u64) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        for number in 0..pages {
            let at = vaddr + number * PAGE_SIZE;
            if let Some(mut set) = self.set(space, at)
                && let Some(slot) = set.iter_mut().find(|slot| slot.page == Some((space, at)))
            {
                *slot = Slot::default();
            }
        }
    }

    /// Pages next to each other are never in each other's way.
    fn set(&self, space: Space, vaddr: u64) -> Option<MutexGuard<'_, Set>> {
        let (kind, id) = space.parts();
        let base = (id << 1 | u64::from(kind & 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = (vaddr / PAGE_SIZE).wrapping_add(base >> 16);
        let set = place.checked_rem(self.sets.len() as u64)?;
        let set = self.sets[set as usize].lock();
        Some(set.unwrap_or_else(PoisonError::into_inner))
    }
}

impl Slot {
    /// As of [`Copies::send`], for the page that this is of.
    fn send(&mut self, now: u32, page: &[u8], changes: &mut Vec<u8>) -> bool {
        if self.round == now {
            self.bytes = None;
            return false;
        }
        let Some(copy) = &self.bytes else {
            self.keep(now, page);
            return false;
        };
        let few = changed_words(copy, page) <= MOST_WORDS;
        if few {
            let at = changes.len();
            changes.extend_from_slice(page);
            xor(&mut changes[at..], copy);
        }
        self.keep(now, page);
        few
    }

    fn keep(&mut self, now: u32, page: &[u8]) {
        self.round = now;
        match &mut self.bytes {
            Some(copy) => copy.copy_from_slice(page),
            None => self.bytes = Some(page.into()),
        }
    }
}

/// How many words of two pages differ.
fn changed_words(one: &[u8], other: &[u8]) -> usize {
    let (one, other) = (one.chunks_exact(WORD), other.chunks_exact(WORD));
    one.zip(other).filter(|(one, other)| one != other).count()
}

#[cfg(test)]
mod test {
    use super::*;

    const TASK: Space = Space::Task(1);

    fn page(fill: u8, changed: usize) -> Vec<u8> {
        let mut page = vec![fill; PAGE];
        page[..changed].fill(fill ^ 0xff);
        page
    }

    /// What goes instead of a page.
    fn instead(copies: &Copies, vaddr: u64, page: &[u8]) -> Option<Vec<u8>> {
        let mut changes = Vec::new();
        let sent = copies.send(TASK, vaddr, page, &mut changes);
        assert_eq!(changes.len(), if sent { PAGE } else { 0 });
        sent.then_some(changes)
    }

    #[test]
    fn a_page_that_changed_little_goes_as_what_changed_from_the_next_round_on() {
        let copies = Copies::new(Bytes(1 << 20));
        assert_eq!(instead(&copies, 0x1000, &page(7, 0)), None);
        copies.next_round();
        assert_eq!(instead(&copies, 0x1000, &page(7, 100)), Some(page(0, 100)));
        copies.next_round();
        // Against what was sent last.
        assert_eq!(instead(&copies, 0x1000, &page(7, 100)), Some(page(0, 0)));
        copies.next_round();
        assert_eq!(instead(&copies, 0x1000, &page(7, 4000)), None, "too much");
        copies.next_round();
        assert_eq!(instead(&copies, 0x1000, &page(7, 4000)), Some(page(0, 0)));
        assert_eq!(instead(&copies, 0x2000, &page(7, 4000)), None);
        let other = copies.send(Space::Shared(1), 0x1000, &page(7, 0), &mut Vec::new());
        assert!(!other, "it is another space");
    }

    #[test]
    fn what_the_destination_may_not_have_is_no_copy() {
        let copies = Copies::new(Bytes(1 << 20));
        instead(&copies, 0x1000, &page(1, 0));
        instead(&copies, 0x1000, &page(2, 0));
        copies.next_round();
        assert_eq!(instead(&copies, 0x1000, &page(2, 0)), None, "sent twice");
        copies.next_round();
        assert_eq!(instead(&copies, 0x1000, &page(2, 0)), Some(page(0, 0)));
        copies.forget(TASK, 0, 9);
        copies.next_round();
        assert_eq!(instead(&copies, 0x1000, &page(2, 0)), None, "forgotten");
    }

    /// How many of these pages go as what has changed.
    fn few(copies: &Copies, pages: std::ops::Range<u64>, fill: u8) -> usize {
        let sent = pages.filter_map(|n| instead(copies, n * PAGE_SIZE, &page(9, fill.into())));
        sent.count()
    }

    #[test]
    fn memory_that_is_larger_keeps_a_part_here() {
        let copies = Copies::new(Bytes(COST * 64));
        for fill in 0..4 {
            copies.next_round();
            assert_eq!(few(&copies, 0..100, fill), if fill == 0 { 0 } else { 64 });
        }
        let kept = |set: &Mutex<Set>| {
            set.lock()
                .unwrap()
                .iter()
                .filter(|s| s.bytes.is_some())
                .count()
        };
        assert_eq!(copies.sets.iter().map(kept).sum::<usize>(), 64);
    }

    #[test]
    fn what_is_sent_again_replaces_what_is_not() {
        let copies = Copies::new(Bytes(COST * 64));
        copies.next_round();
        few(&copies, 0..100, 0);
        copies.next_round();
        assert_eq!(few(&copies, 80..100, 1), 0);
        copies.next_round();
        assert_eq!(few(&copies, 80..100, 2), 20);
    }

    #[test]
    fn without_room_there_is_none() {
        let copies = Copies::new(Bytes(0));
        for fill in 0..3 {
            copies.next_round();
            assert_eq!(few(&copies, 0..10, fill), 0);
        }
        copies.forget(TASK, 0, 10);
    }
}
