//! Shared memory: once per segment, whoever maps it, by content hash. No tracker of writes to one address space
//! sees those by way of another.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::unistd::{Whence, lseek64};

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::maps::Mapping;
use super::task::Task;
use super::{RoundStats, SentPages, read};
use crate::model::PAGE_SIZE;

/// The segments of one round.
#[derive(Debug, Default)]
pub struct Segments {
    /// Those that were looked at already, by way of another mapping.
    seen: HashSet<u64>,
}

impl Segments {
    /// Sends what is news in the segments that a task has mapped.
    pub fn round(
        &mut self,
        task: &Task,
        sent: &mut SentPages,
        sender: &mut Sender<'_>,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        for mapping in &task.mappings {
            let Mapping::Shared { range, inode } = mapping else {
                continue;
            };
            if !self.seen.insert(*inode) {
                continue;
            }
            let Range { start, end } = range;
            let link = format!("/proc/{}/map_files/{start:x}-{end:x}", task.pid);
            // One that cannot be opened is left to the dump.
            let Ok(file) = File::open(link) else {
                continue;
            };
            let space = Space::Shared(*inode);
            let mut judge = |vaddr: u64, page: &[u8]| sent.update(space, vaddr, page);
            let read = |at, buffer: &mut [u8]| file.read_at(buffer, at);
            let runs = Data { file: &file, at: 0 };
            // So is what cannot be read.
            read::send_from(&read, space, runs, &mut judge, sender, stats)?;
        }
        Ok(())
    }
}

/// The runs of pages with content in a file of shared memory.
struct Data<'a> {
    file: &'a File,
    at: u64,
}

impl Iterator for Data<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let seek = |at: u64, whence| {
            let found = lseek64(self.file.as_fd(), i64::try_from(at).ok()?, whence).ok()?;
            u64::try_from(found).ok()
        };
        let start = seek(self.at, Whence::SeekData)?;
        let end = seek(start, Whence::SeekHole)?;
        let start = start - start % PAGE_SIZE;
        self.at = end.next_multiple_of(PAGE_SIZE);
        (start < self.at).then_some(start..self.at)
    }
}
