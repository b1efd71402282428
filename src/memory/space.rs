//! Which memory is meant: an address space, a run of pages in it, and what CRIU says about such a run.

use std::fmt;

use crate::model::PAGE_SIZE;

/// The first address no page may reach: files, and so stores, end there.
pub const ADDRESS_END: u64 = 1 << 63;

/// A set of pages with addresses of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The private memory of a process, by its process id *inside* the container.
    Task(u32),
    /// A shared memory segment, by the inode number it had on the source; its addresses begin at 0.
    Shared(u64),
}

impl Space {
    const TASK: u8 = 1;
    const SHARED: u8 = 2;

    /// The space of this type and id, where there can be such a one. CRIU's page server wire and our frames
    /// number the types alike.
    pub(super) fn from_parts(kind: u8, id: u64) -> Option<Self> {
        match kind {
            Self::TASK => {
                let id = u32::try_from(id).ok()?;
                (id > 0 && i32::try_from(id).is_ok()).then_some(Self::Task(id))
            }
            // The page server wire has 56 bits for it.
            Self::SHARED => (id < 1 << 56).then_some(Self::Shared(id)),
            _ => None,
        }
    }

    /// Its type and id.
    pub(super) fn parts(self) -> (u8, u64) {
        match self {
            Self::Task(id) => (Self::TASK, id.into()),
            Self::Shared(id) => (Self::SHARED, id),
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(id) => write!(f, "task {id}"),
            Self::Shared(id) => write!(f, "shared memory {id}"),
        }
    }
}

/// What CRIU says about a run of pages, in the bits of its pagemap entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageFlags(u32);

impl PageFlags {
    /// The parent images have these pages.
    pub const PARENT: Self = Self(1);
    /// These pages may come after the restore.
    pub const LAZY: Self = Self(2);
    /// These pages are in the images, or follow on the wire.
    pub const PRESENT: Self = Self(4);

    /// The flags in `bits`; none where one is not known, for then the run's meaning is not known either.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (bits & !7 == 0).then_some(Self(bits))
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A run of pages CRIU has told of in the final dump: the restored process has exactly the pages of its
/// entries, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The first page's address.
    pub vaddr: u64,
    /// How many pages; never 0.
    pub pages: u32,
    /// What CRIU says about them.
    pub flags: PageFlags,
}

impl Entry {
    /// The address after the last page.
    pub fn end(&self) -> u64 {
        self.vaddr + u64::from(self.pages) * PAGE_SIZE
    }
}

/// Whether a run of `pages` pages can begin at `vaddr`: not empty, on a page's border, not past the end.
pub(super) fn is_run(vaddr: u64, pages: u64) -> bool {
    let end = pages
        .checked_mul(PAGE_SIZE)
        .and_then(|bytes| vaddr.checked_add(bytes));
    pages > 0 && vaddr.is_multiple_of(PAGE_SIZE) && end.is_some_and(|end| end <= ADDRESS_END)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_space_survives_its_parts_and_nothing_else_is_one() {
        for space in [
            Space::Task(1),
            Space::Task(4_194_304),
            Space::Shared(0),
            Space::Shared(77),
        ] {
            let (kind, id) = space.parts();
            assert_eq!(Space::from_parts(kind, id), Some(space));
        }
        for (kind, id) in [
            (0, 1),
            (3, 1),
            (1, 0),
            (1, 1 << 31),
            (1, u64::MAX),
            (2, 1 << 56),
        ] {
            assert_eq!(Space::from_parts(kind, id), None, "{kind} {id}");
        }
    }

    #[test]
    fn a_run_stays_below_the_end_and_on_page_borders() {
        assert!(is_run(0, 1) && is_run(ADDRESS_END - PAGE_SIZE, 1));
        assert!(!is_run(0, 0) && !is_run(1, 1) && !is_run(ADDRESS_END, 1));
        assert!(!is_run(0, u64::MAX) && !is_run(PAGE_SIZE, u64::MAX / PAGE_SIZE));
    }
}
