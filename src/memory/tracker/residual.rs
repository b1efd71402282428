//! What is left when the tasks stand still: every page they have, and which of them are still unsent.

use std::ops::Range;

use super::super::space::{Entry, PageFlags, Space};
use super::super::{MemoryError, Sender};
use super::read::{self, Judge};
use super::segment::OwnedSegment;
use super::{RoundStats, Seen, SentPages};
use crate::sys::process_memory::ProcessMemory;

/// What a tracker's last look at frozen tasks has found.
#[derive(Debug, Default)]
pub struct Residual {
    /// Their address spaces.
    pub spaces: Vec<OwnedSpace>,
    /// The shared memory that they have.
    pub segments: Vec<OwnedSegment>,
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
    /// Sends what is unsent. The tasks must stand still; CRIU may have them meanwhile. With `behind` it is only said of
    /// what may come after the restore that it does ([`Frozen`](crate::memory::Frozen)).
    ///
    /// # Errors
    /// When a page cannot be read, for its content would be lost; when `sender` fails.
    pub fn send(
        &self,
        sent: &SentPages,
        sender: &mut Sender<'_>,
        behind: bool,
    ) -> Result<RoundStats, MemoryError> {
        let mut stats = RoundStats::default();
        for space in &self.spaces {
            let mut unsent = space.unsent.clone();
            if behind {
                let (later, now) = part(&unsent, &space.list);
                space.leave_behind(later, sent, sender)?;
                unsent = now;
            }
            space.send(unsent.into_iter(), sent, sender, &mut stats)?;
        }
        for segment in &self.segments {
            segment.send(sent, sender, &mut stats)?;
        }
        sender.flush()?;
        Ok(stats)
    }
}

impl OwnedSpace {
    /// Says of these pages that they come later, but for what is known to be what was sent.
    fn leave_behind(
        &self,
        runs: Vec<Range<u64>>,
        sent: &SentPages,
        sender: &mut Sender<'_>,
    ) -> Result<(), MemoryError> {
        if self.judge == Judge::Tracked {
            let mut runs = runs.into_iter();
            return runs.try_for_each(|run| sender.behind(self.space, run));
        }
        let mut judge = |vaddr: u64, page: &[u8]| match sent.compare(self.space, vaddr, page) {
            Seen::Changed => Seen::Behind,
            other => other,
        };
        let mut stats = RoundStats::default();
        let runs = runs.into_iter();
        let unread = read::send(
            &self.memory,
            self.space,
            runs,
            &mut judge,
            sender,
            &mut stats,
        )?;
        self.all_read(&unread)
    }

    fn all_read(&self, unread: &[Range<u64>]) -> Result<(), MemoryError> {
        match unread.first() {
            None => Ok(()),
            Some(run) => Err(MemoryError::Unreadable {
                pid: self.pid,
                vaddr: run.start,
            }),
        }
    }

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
        self.all_read(&unread)
    }
}

/// Those parts of ascending runs that entries of the list call lazy, and the others.
fn part(runs: &[Range<u64>], list: &[Entry]) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
    let (mut lazy, mut other) = (Vec::new(), Vec::new());
    for run in runs {
        let first = list.partition_point(|entry| entry.end() <= run.start);
        for entry in list[first..].iter().take_while(|e| e.vaddr < run.end) {
            let within = entry.vaddr.max(run.start)..entry.end().min(run.end);
            if entry.flags.contains(PageFlags::LAZY) {
                extend(&mut lazy, within);
            } else {
                extend(&mut other, within);
            }
        }
    }
    (lazy, other)
}

/// Adds a run to runs that end before it.
pub(super) fn extend(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}
