//! Pages out of a task's memory into frames.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::frame::RUN_PAGES;
use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::residual::extend;
use super::{RoundStats, Seen};
use crate::model::{PAGE_SIZE, Pages};
use crate::sys::process_memory::ProcessMemory;

/// How much is read at once: a frame's worth, at a border, so that no run is cut in two.
pub const PIECE: usize = (RUN_PAGES * PAGE_SIZE) as usize;

static ZERO_PAGE: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];

/// How it is known which pages are news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// Somebody has tracked writes: all pages that are read are.
    Tracked,
    /// Nobody has: each is compared with what was sent.
    Compared,
}

/// What is sent of a page that is news.
pub fn tracked(page: &[u8]) -> Seen {
    if page == ZERO_PAGE {
        Seen::Zero
    } else {
        Seen::Changed
    }
}

/// Where pages are read from, by address: at most so many bytes, which are appended.
pub type Read<'a> = dyn Fn(u64, usize, &mut Vec<u8>) -> io::Result<usize> + 'a;

/// Sends these runs of a task's memory as `judge` finds each page. Returns the runs that could not be read.
pub fn send(
    memory: &ProcessMemory,
    space: Space,
    runs: impl Iterator<Item = Range<u64>>,
    judge: &mut dyn FnMut(u64, &[u8]) -> Seen,
    sender: &mut Sender<'_>,
    stats: &mut RoundStats,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let read = |at, length, into: &mut Vec<u8>| memory.append(at, length, into);
    send_from(&read, space, runs, judge, sender, stats)
}

/// Sends a run of memory that nobody writes to. Returns the runs that could not be read.
pub fn send_still(
    memory: &ProcessMemory,
    space: Space,
    run: Range<u64>,
    sender: &mut Sender<'_>,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let mut judge = |_: u64, page: &[u8]| tracked(page);
    let mut stats = RoundStats::default();
    send(
        memory,
        space,
        std::iter::once(run),
        &mut judge,
        sender,
        &mut stats,
    )
}

/// As [`send`], from anywhere.
pub fn send_from(
    source: &Read<'_>,
    space: Space,
    runs: impl Iterator<Item = Range<u64>>,
    judge: &mut dyn FnMut(u64, &[u8]) -> Seen,
    sender: &mut Sender<'_>,
    stats: &mut RoundStats,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let mut unread = Vec::new();
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            let until_border = PIECE as u64 - at % PIECE as u64;
            let wanted = (run.end - at).min(until_border) as usize;
            let mut seen = |vaddr, page: &[u8]| {
                let seen = judge(vaddr, page);
                stats.scanned += Pages(1);
                if !matches!(seen, Seen::Known | Seen::Unchanged) {
                    stats.changed += Pages(1);
                }
                seen
            };
            let mut read = |length, into: &mut Vec<u8>| patiently(source, at, length, into);
            let read = sender.read(space, at, wanted, &mut read, &mut seen)?;
            if read == 0 {
                extend(&mut unread, at..at + PAGE_SIZE);
                at += PAGE_SIZE;
            }
            at += read as u64;
        }
    }
    Ok(unread)
}

/// Reads as far as it goes, since mappings end while a process runs: how many bytes, none where nothing can be read.
fn patiently(source: &Read<'_>, at: u64, length: usize, into: &mut Vec<u8>) -> usize {
    loop {
        return match source(at, length, into) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
    }
}

/// The same source for files.
pub fn append_of(file: &File, at: u64, length: usize, into: &mut Vec<u8>) -> io::Result<usize> {
    let before = into.len();
    into.resize(before + length, 0);
    let read = file.read_at(&mut into[before..], at);
    into.truncate(before + read.as_ref().copied().unwrap_or(0));
    read
}
