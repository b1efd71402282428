//! What every page was when it was last sent.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::super::space::Space;
use crate::model::{Bytes, PAGE_SIZE};

/// Pages per block of the table.
const BLOCK: u64 = 512;

/// A page that was never sent. BLAKE3 yields it for no page anybody will ever see.
const NEVER: u128 = 0;

static ZERO_PAGE: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
static ZERO_HASH: LazyLock<u128> = LazyLock::new(|| hash(&ZERO_PAGE));

/// What a page is, compared with what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It is not what was sent, or was never sent.
    Changed,
    /// It is all zero, and was not when it was sent, or was never sent.
    Zero,
    /// It is what was sent, and whoever has it is to be told so.
    Unchanged,
    /// It is what was sent, and nobody needs to be told.
    Known,
    /// Whatever it is, it comes later.
    Behind,
}

/// For every page that was sent, 128 bits of the BLAKE3 hash of what was sent: 4 MiB per GiB of memory.
///
/// The hash is a strong one because its word is final: a page it takes for unchanged is not sent again.
#[derive(Debug, Default)]
pub struct SentPages {
    blocks: HashMap<(Space, u64), Box<[u128; BLOCK as usize]>>,
}

impl SentPages {
    /// What a page is, for a list that names every page: never [`Seen::Known`].
    pub fn compare(&self, space: Space, vaddr: u64, page: &[u8]) -> Seen {
        let (block, at) = place(vaddr);
        let block = self.blocks.get(&(space, block));
        let before = block.map_or(NEVER, |block| block[at]);
        match before {
            NEVER if page == ZERO_PAGE => Seen::Zero,
            NEVER => Seen::Changed,
            before => judge(before, page).1,
        }
    }

    /// What a page is, which is from now on taken for sent: never [`Seen::Unchanged`].
    pub fn update(&mut self, space: Space, vaddr: u64, page: &[u8]) -> Seen {
        let (block, at) = place(vaddr);
        let new = || Box::new([NEVER; BLOCK as usize]);
        let slot = &mut self.blocks.entry((space, block)).or_insert_with(new)[at];
        let (now, seen) = judge(*slot, page);
        *slot = now;
        match seen {
            Seen::Unchanged => Seen::Known,
            other => other,
        }
    }

    /// Nothing of this space is taken for sent any more.
    pub fn forget(&mut self, space: Space) {
        self.blocks.retain(|(other, _), _| *other != space);
    }

    /// The memory this table takes.
    pub fn size(&self) -> Bytes {
        Bytes(self.blocks.len() as u64 * (BLOCK * 16 + 48))
    }
}

/// The hash of a page, and what the page is compared with the hash before.
fn judge(before: u128, page: &[u8]) -> (u128, Seen) {
    if page == ZERO_PAGE {
        let seen = if before == *ZERO_HASH {
            Seen::Unchanged
        } else {
            Seen::Zero
        };
        return (*ZERO_HASH, seen);
    }
    let now = hash(page);
    let seen = if now == before {
        Seen::Unchanged
    } else {
        Seen::Changed
    };
    (now, seen)
}

fn hash(page: &[u8]) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(page).as_bytes()[..16]);
    u128::from_le_bytes(first)
}

fn place(vaddr: u64) -> (u64, usize) {
    let page = vaddr / PAGE_SIZE;
    (page / BLOCK, (page % BLOCK) as usize)
}

#[cfg(test)]
mod test {
    use super::*;

    const TASK: Space = Space::Task(1);
    const ZERO: [u8; 4096] = [0; 4096];
    const ONE: [u8; 4096] = [1; 4096];

    #[test]
    fn a_page_is_news_until_it_was_sent_and_again_when_it_changes() {
        let mut sent = SentPages::default();
        assert_eq!(sent.compare(TASK, 0x1000, &ONE), Seen::Changed);
        assert_eq!(sent.update(TASK, 0x1000, &ONE), Seen::Changed);
        assert_eq!(sent.update(TASK, 0x1000, &ONE), Seen::Known);
        assert_eq!(sent.compare(TASK, 0x1000, &ONE), Seen::Unchanged);
        assert_eq!(sent.compare(TASK, 0x2000, &ONE), Seen::Changed);
        assert_eq!(sent.compare(Space::Shared(1), 0x1000, &ONE), Seen::Changed);
        let mut other = ONE;
        other[4095] = 2;
        assert_eq!(sent.compare(TASK, 0x1000, &other), Seen::Changed);
        assert_eq!(sent.update(TASK, 0x1000, &other), Seen::Changed);
        assert_eq!(sent.compare(TASK, 0x1000, &ONE), Seen::Changed);
    }

    #[test]
    fn what_is_forgotten_is_news_again() {
        let mut sent = SentPages::default();
        sent.update(TASK, 0x1000, &ONE);
        sent.update(Space::Task(2), 0x1000, &ONE);
        sent.forget(TASK);
        assert_eq!(sent.update(TASK, 0x1000, &ONE), Seen::Changed);
        assert_eq!(sent.update(Space::Task(2), 0x1000, &ONE), Seen::Known);
    }

    #[test]
    fn a_page_of_zeros_is_told_once() {
        let mut sent = SentPages::default();
        assert_eq!(sent.compare(TASK, 0, &ZERO), Seen::Zero);
        assert_eq!(sent.update(TASK, 0, &ZERO), Seen::Zero);
        assert_eq!(sent.update(TASK, 0, &ZERO), Seen::Known);
        assert_eq!(sent.compare(TASK, 0, &ZERO), Seen::Unchanged);
        assert_eq!(sent.update(TASK, 0, &ONE), Seen::Changed);
        assert_eq!(sent.compare(TASK, 0, &ZERO), Seen::Zero);
    }
}
