//! The tracker that reads everything: slow, and right on every kernel.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::unistd::{Whence, lseek64};

use super::super::frame::RUN_PAGES;
use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::maps::{self, Mapping};
use super::{RoundStats, SentPages, Target, Tracker};
use crate::model::{PAGE_SIZE, Pages};
use crate::sys::pagemap;

const PIECE: usize = (RUN_PAGES * PAGE_SIZE) as usize;

/// Every round reads every page that has content and compares its hash with what was sent.
///
/// Tasks are neither stopped nor touched. A page that is written while it is read may be sent torn: it differs
/// from what it is at the end, and the final dump sends it again.
#[derive(Debug, Default)]
pub struct HashTracker {
    sent: SentPages,
}

impl HashTracker {
    /// A tracker that has sent nothing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Tracker for HashTracker {
    fn round(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<RoundStats, MemoryError> {
        let mut round = Round {
            sent: &mut self.sent,
            sender,
            stats: RoundStats::default(),
            buffer: vec![0; PIECE],
            segments: HashSet::new(),
        };
        for target in targets {
            round.task(*target)?;
        }
        round.sender.flush()?;
        Ok(round.stats)
    }

    fn sent(&self) -> &SentPages {
        &self.sent
    }
}

struct Round<'a, 'b> {
    sent: &'a mut SentPages,
    sender: &'a mut Sender<'b>,
    stats: RoundStats,
    buffer: Vec<u8>,
    /// Shared memory that was looked at already, by way of another mapping.
    segments: HashSet<u64>,
}

impl Round<'_, '_> {
    fn task(&mut self, target: Target) -> Result<(), MemoryError> {
        let failed = |operation| {
            move |source| MemoryError::Task {
                operation,
                pid: target.pid,
                source,
            }
        };
        let of = |name: &str| format!("/proc/{}/{name}", target.pid);
        let text = alive(fs::read_to_string(of("maps"))).map_err(failed("read the mappings"))?;
        let pagemap = alive(File::open(of("pagemap"))).map_err(failed("open the page table"))?;
        let memory = alive(File::open(of("mem"))).map_err(failed("open the memory"))?;
        let (Some(text), Some(pagemap), Some(memory)) = (text, pagemap, memory) else {
            return Ok(());
        };
        let space = Space::Task(target.vpid);
        for mapping in maps::parse(&text) {
            match mapping {
                Mapping::Private { range } => {
                    let mut runs = Vec::new();
                    let scanned = pagemap::own_pages(&pagemap, range, &mut |run| runs.push(run));
                    alive(scanned).map_err(failed("read the page table"))?;
                    for run in runs {
                        self.pages(space, &memory, run)?;
                    }
                }
                Mapping::Shared { range, inode } => {
                    if self.segments.insert(inode) {
                        let link = of(&format!("map_files/{:x}-{:x}", range.start, range.end));
                        self.segment(inode, &link)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The pages of a shared segment that have content, by way of the file behind a mapping of it. One that
    /// cannot be opened is left to the dump.
    fn segment(&mut self, inode: u64, link: &str) -> Result<(), MemoryError> {
        let Ok(file) = File::open(link) else {
            return Ok(());
        };
        let mut at = 0;
        while let Some(run) = next_data(&file, at) {
            at = run.end;
            self.pages(Space::Shared(inode), &file, run)?;
        }
        Ok(())
    }

    /// Sends what is news of a run, read from `file` at the run's own addresses.
    fn pages(&mut self, space: Space, file: &File, run: Range<u64>) -> Result<(), MemoryError> {
        let mut at = run.start;
        while at < run.end {
            let until_border = PIECE as u64 - at % PIECE as u64;
            let wanted = (run.end - at).min(until_border) as usize;
            // Reading stops where a mapping ended meanwhile, or cannot be read at all (a device's): what cannot
            // be read is left to the dump.
            let read = match file.read_at(&mut self.buffer[..wanted], at) {
                Ok(read) => read - read % PAGE_SIZE as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if read == 0 {
                at += PAGE_SIZE;
                continue;
            }
            let (sent, stats) = (&mut *self.sent, &mut self.stats);
            let mut seen = |vaddr, page: &[u8]| {
                let seen = sent.update(space, vaddr, page);
                stats.scanned += Pages(1);
                if seen != super::Seen::Known {
                    stats.changed += Pages(1);
                }
                seen
            };
            self.sender
                .pages(space, at, &self.buffer[..read], &mut seen)?;
            at += read as u64;
        }
        Ok(())
    }
}

/// What a task that has ended does not have any more is nothing, and no error.
fn alive<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The next run of pages with content in a file of shared memory, whole pages.
fn next_data(file: &File, from: u64) -> Option<Range<u64>> {
    let seek = |at: u64, whence| {
        let found = lseek64(file.as_fd(), i64::try_from(at).ok()?, whence).ok()?;
        u64::try_from(found).ok()
    };
    let start = seek(from, Whence::SeekData)?;
    let end = seek(start, Whence::SeekHole)?;
    let start = start - start % PAGE_SIZE;
    let end = end.next_multiple_of(PAGE_SIZE);
    (start < end).then_some(start..end)
}
