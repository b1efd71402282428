//! What is left when the tasks stand still: every page they have, and which of them are still unsent.

use std::ops::Range;

use super::super::space::{Entry, PageFlags, Space};
use super::super::{MemoryError, Sender};
use super::read::{self, Judge};
use super::{RoundStats, SentPages};
use crate::model::PAGE_SIZE;
use crate::sys::process_memory::ProcessMemory;

/// What a tracker's last look at frozen tasks has found.
#[derive(Debug, Default)]
pub struct Residual {
    /// Their address spaces.
    pub spaces: Vec<OwnedSpace>,
}

/// The memory of one address space that need not go through CRIU.
#[derive(Debug)]
pub struct OwnedSpace {
    /// The host process id.
    pub pid: i32,
    /// Whose it is.
    pub space: Space,
    /// The private mappings, ascending: CRIU is to find no page in them, guard pages apart.
    pub ranges: Vec<OwnedRange>,
    /// Every page in them, ascending: `PRESENT`, and `LAZY` too where it may come after the restore.
    pub list: Vec<Entry>,
    pub(super) memory: ProcessMemory,
    pub(super) unsent: Vec<Range<u64>>,
    pub(super) judge: Judge,
}

/// Addresses of private mappings that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRange {
    /// From where to where.
    pub range: Range<u64>,
    /// Whether there are guard pages in it, which CRIU must still see.
    pub guards: bool,
}

impl Residual {
    /// Sends what is unsent. The tasks must stand still; CRIU may have them meanwhile.
    ///
    /// # Errors
    /// When a page cannot be read, for its content would be lost; when `sender` fails.
    pub fn send(
        &self,
        sent: &SentPages,
        sender: &mut Sender<'_>,
    ) -> Result<RoundStats, MemoryError> {
        let mut stats = RoundStats::default();
        for space in &self.spaces {
            let unsent = space.unsent.iter().cloned();
            space.send(unsent, sent, sender, &mut stats)?;
        }
        sender.flush()?;
        Ok(stats)
    }
}

impl OwnedSpace {
    /// Sends these pages, each of which must be readable.
    pub(super) fn send(
        &self,
        runs: impl Iterator<Item = Range<u64>>,
        sent: &SentPages,
        sender: &mut Sender<'_>,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        let mut judge = |vaddr: u64, page: &[u8]| match self.judge {
            Judge::Tracked => read::tracked(page),
            Judge::Compared => sent.compare(self.space, vaddr, page),
        };
        let unread = read::send(&self.memory, self.space, runs, &mut judge, sender, stats)?;
        match unread.into_iter().next() {
            None => Ok(()),
            Some(run) => Err(MemoryError::Unreadable {
                pid: self.pid,
                vaddr: run.start,
            }),
        }
    }

    /// Adds a mapping to the ranges.
    pub(super) fn own(&mut self, range: Range<u64>, guards: bool) {
        match self.ranges.last_mut() {
            Some(last) if last.range.end == range.start && last.guards == guards => {
                last.range.end = range.end;
            }
            _ => self.ranges.push(OwnedRange { range, guards }),
        }
    }

    /// Adds pages to the list. `stacks` are the addresses of pages that a thread's stack pointer points into: CRIU
    /// wants them at once.
    pub(super) fn list(&mut self, run: Range<u64>, lazy: bool, stacks: &[u64]) {
        let eager = PageFlags::PRESENT;
        if !lazy {
            return note(&mut self.list, run, eager);
        }
        let mut at = run.start;
        let within = stacks.iter().filter(|page| run.contains(page));
        for page in within {
            note(&mut self.list, at..*page, eager.with(PageFlags::LAZY));
            at = page + PAGE_SIZE;
            note(&mut self.list, *page..at, eager);
        }
        note(&mut self.list, at..run.end, eager.with(PageFlags::LAZY));
    }
}

/// Adds a run to a list that ends before it.
fn note(list: &mut Vec<Entry>, run: Range<u64>, flags: PageFlags) {
    let mut vaddr = run.start;
    while vaddr < run.end {
        let pages = u32::try_from((run.end - vaddr) / PAGE_SIZE).unwrap_or(u32::MAX);
        match list.last_mut() {
            Some(last) if last.end() == vaddr && last.flags == flags => {
                match last.pages.checked_add(pages) {
                    Some(whole) => last.pages = whole,
                    None => list.push(Entry {
                        vaddr,
                        pages,
                        flags,
                    }),
                }
            }
            _ => list.push(Entry {
                vaddr,
                pages,
                flags,
            }),
        }
        vaddr += u64::from(pages) * PAGE_SIZE;
    }
}

/// Adds a run to runs that end before it.
pub(super) fn extend(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn space() -> OwnedSpace {
        OwnedSpace {
            pid: 1,
            space: Space::Task(1),
            ranges: Vec::new(),
            list: Vec::new(),
            memory: ProcessMemory::open(std::process::id().cast_signed()).unwrap(),
            unsent: Vec::new(),
            judge: Judge::Tracked,
        }
    }

    #[test]
    fn pages_under_a_stack_pointer_are_not_lazy() {
        let mut space = space();
        let stacks = [0x1000, 0x4000, 0x8000];
        space.list(0x1000..0x3000, true, &stacks);
        space.list(0x3000..0x5000, true, &stacks);
        space.list(0x5000..0x6000, true, &stacks);
        space.list(0x8000..0xa000, false, &stacks);
        let found: Vec<_> = space
            .list
            .iter()
            .map(|e| (e.vaddr, e.pages, e.flags.bits()))
            .collect();
        assert_eq!(
            found,
            [
                (0x1000, 1, 4),
                (0x2000, 2, 6),
                (0x4000, 1, 4),
                (0x5000, 1, 6),
                (0x8000, 2, 4),
            ]
        );
    }

    #[test]
    fn mappings_that_follow_each_other_are_one_range() {
        let mut space = space();
        space.own(0x1000..0x2000, false);
        space.own(0x2000..0x3000, false);
        space.own(0x3000..0x4000, true);
        space.own(0x5000..0x6000, true);
        let ranges: Vec<_> = space.ranges.iter().map(|r| (&r.range, r.guards)).collect();
        assert_eq!(
            ranges,
            [
                (&(0x1000..0x3000), false),
                (&(0x3000..0x4000), true),
                (&(0x5000..0x6000), true),
            ]
        );
    }
}
