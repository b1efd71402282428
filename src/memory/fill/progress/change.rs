//! What happens to an address space while it is filled.

use std::ops::Range;

/// A change that a log keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// These pages need nothing any more: given up, or unmapped.
    Gone {
        /// The first address.
        start: u64,
        /// The address after the last.
        end: u64,
    },
    /// What was overdue there ([`Layout`](super::super::layout::Layout)) was unmapped.
    Lapsed {
        /// The first address.
        start: u64,
        /// The address after the last.
        end: u64,
    },
    /// That a mapping which has moved is not where it was any more.
    Told {
        /// The first address.
        start: u64,
        /// The address after the last.
        end: u64,
    },
    /// Nothing more will be told of what was before.
    Quiet,
    /// A mapping has moved.
    Moved {
        /// From here …
        from: u64,
        /// … to there.
        to: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// A child has been born and taken over.
    Forked {
        /// The number of its progress.
        child: u64,
    },
}

impl Change {
    pub(super) fn words(self) -> [u64; 4] {
        match self {
            Self::Gone { start, end } => [1, start, end, 0],
            Self::Moved { from, to, length } => [2, from, to, length],
            Self::Forked { child } => [3, child, 0, 0],
            Self::Lapsed { start, end } => [4, start, end, 0],
            Self::Told { start, end } => [5, start, end, 0],
            Self::Quiet => [6, 0, 0, 0],
        }
    }

    pub(super) fn of(words: [u64; 4]) -> Option<Self> {
        match words {
            [1, start, end, _] => Some(Self::Gone { start, end }),
            [2, from, to, length] => Some(Self::Moved { from, to, length }),
            [3, child, ..] => Some(Self::Forked { child }),
            [4, start, end, _] => Some(Self::Lapsed { start, end }),
            [5, start, end, _] => Some(Self::Told { start, end }),
            [6, ..] => Some(Self::Quiet),
            _ => None,
        }
    }
}

/// What a filler that died had read and not yet put into its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlogged {
    /// A fork: nobody may have been told of the child.
    Fork {
        /// What its userfaultfd is in the dead process.
        descriptor: i32,
    },
    /// A mapping that moved.
    Remap {
        /// From here …
        from: u64,
        /// … to there.
        to: u64,
        /// Its length.
        length: u64,
    },
    /// Pages that were given up.
    Remove(Range<u64>),
    /// Something that was unmapped.
    Unmap(Range<u64>),
}

/// Who forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The number of the parent's progress.
    pub number: u64,
    /// How many records its log had.
    pub count: u64,
}
