//! Frames of pages that are told by what has changed in them; pure.

use super::super::MemoryError;
use super::super::space::Space;
use super::{CHANGES, HEADER, Header};
use crate::model::PAGE_SIZE;

const WORD: usize = 8;

/// What has changed in pages since they were sent. Whether that is what was meant shows only where they were kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes<'a> {
    /// Whose pages.
    pub space: Space,
    /// The first one's address.
    pub vaddr: u64,
    pub(super) xor: &'a [u8],
    pub(super) header: Header,
}

impl Changes<'_> {
    /// How many pages.
    pub fn pages(&self) -> u64 {
        self.header.count.into()
    }

    /// Makes of these pages, as they were sent before, what they are now.
    pub fn apply(&self, pages: &mut [u8]) -> Result<(), MemoryError> {
        xor(pages, self.xor);
        if pages.len() == self.xor.len() && self.header.checksum_of(pages) == self.header.checksum {
            return Ok(());
        }
        let (space, vaddr) = (self.space, self.vaddr);
        Err(MemoryError::Changes { space, vaddr })
    }
}

/// Completes a frame of the changes that make these pages of what was sent before; the changes are in place behind the
/// room for its header.
pub fn seal_changes(frame: &mut [u8], space: Space, vaddr: u64, pages: &[u8]) {
    let (header, xor) = frame.split_at_mut(HEADER);
    debug_assert_eq!(xor.len(), pages.len());
    let count = pages.len() as u64 / PAGE_SIZE;
    header.copy_from_slice(&Header::new(CHANGES, space, count, vaddr, 0, xor.len()).seal(pages));
}

/// Makes of pages their difference from others, and of a difference the pages.
pub fn xor(pages: &mut [u8], others: &[u8]) {
    let words = pages.chunks_exact_mut(WORD).zip(others.chunks_exact(WORD));
    for (word, other) in words {
        let (mut one, mut two) = ([0; WORD], [0; WORD]);
        one.copy_from_slice(word);
        two.copy_from_slice(other);
        word.copy_from_slice(&(u64::from_ne_bytes(one) ^ u64::from_ne_bytes(two)).to_ne_bytes());
    }
}
