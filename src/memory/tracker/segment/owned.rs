//! The last look at shared memory, when the tasks stand still: every page that exists, and what of it is news.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::super::super::space::{Entry, PageFlags, Space};
use super::super::super::{MemoryError, Sender};
use super::super::list::note;
use super::super::read::{self, PIECE};
use super::super::residual::extend;
use super::super::task::Task;
use super::super::{RoundStats, Seen, SentPages, Target};
use super::{Segment, Segments, data};
use crate::model::{PAGE_SIZE, Pages};
use crate::sys::scheduling;

/// The most threads that compare.
const MOST_THREADS: usize = 4;

/// A segment of shared memory that need not go through CRIU.
#[derive(Debug)]
pub struct OwnedSegment {
    /// The device number of its file.
    pub device: u64,
    /// The inode number of its file.
    pub inode: u64,
    /// Whose pages they are.
    pub space: Space,
    /// Every page that exists in it, ascending.
    pub list: Vec<Entry>,
    file: File,
    /// Those of which it is not known whether the destination has them.
    unsure: Vec<Range<u64>>,
}

/// The segments of frozen tasks that need not go through CRIU.
pub fn owned(targets: &[Target]) -> Result<Vec<OwnedSegment>, MemoryError> {
    let mut segments = Segments::default();
    let mut found = Vec::new();
    for target in targets {
        if let Some(task) = Task::open(target.pid)? {
            found.extend(segments.of(&task));
        }
    }
    found.retain(|segment| !segments.ambiguous.contains(&segment.inode));
    let owned = found.into_iter().map(own);
    owned.filter_map(Result::transpose).collect()
}

/// A segment with every page that exists in it. One that ends in the middle of a page is left to CRIU: what is behind
/// its end can only be seen in a mapping.
fn own(segment: Segment) -> Result<Option<OwnedSegment>, MemoryError> {
    let Segment { inode, file, .. } = segment;
    let failed = |source| MemoryError::Segment {
        operation: "look for the pages of",
        inode,
        source,
    };
    let facts = file.metadata().map_err(failed)?;
    if !facts.len().is_multiple_of(PAGE_SIZE) {
        return Ok(None);
    }
    let unsure = data(&file).map_err(failed)?;
    let mut list = Vec::new();
    for run in &unsure {
        note(&mut list, run.clone(), PageFlags::PRESENT);
    }
    Ok(Some(OwnedSegment {
        device: facts.dev(),
        inode,
        space: Space::Shared(inode),
        list,
        file,
        unsure,
    }))
}

impl OwnedSegment {
    /// Sends what of it is news, each page of which must be readable.
    pub(in super::super) fn send(
        &self,
        sent: &SentPages,
        sender: &mut Sender<'_>,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        let news = self.news(sent)?;
        stats.scanned += pages(&self.unsure);
        let mut now = RoundStats::default();
        let mut judge = |_, page: &[u8]| read::tracked(page);
        let source = |at, length, into: &mut Vec<u8>| read::append_of(&self.file, at, length, into);
        let runs = news.into_iter();
        let unread = read::send_from(&source, self.space, runs, &mut judge, sender, &mut now)?;
        stats.changed += now.changed;
        match unread.first() {
            None => Ok(()),
            Some(_) => Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// What is not, byte for byte, what was sent: compared by several threads, for everything waits for it.
    fn news(&self, sent: &SentPages) -> Result<Vec<Range<u64>>, MemoryError> {
        let pieces: Vec<Range<u64>> = self.unsure.iter().flat_map(pieces).collect();
        let next = AtomicUsize::new(0);
        let compare = || {
            let mut buffer = vec![0; PIECE];
            let mut news = Vec::new();
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let bytes = &mut buffer[..(piece.end - piece.start) as usize];
                self.file.read_exact_at(bytes, piece.start)?;
                for (page, at) in bytes.chunks_exact(PAGE_SIZE as usize).zip(0..) {
                    let at = piece.start + at * PAGE_SIZE;
                    if sent.compare(self.space, at, page) != Seen::Unchanged {
                        extend(&mut news, at..at + PAGE_SIZE);
                    }
                }
            }
            Ok(news)
        };
        let threads = scheduling::processors().min(MOST_THREADS).min(pieces.len());
        let found: io::Result<Vec<Vec<Range<u64>>>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(compare)).collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(found) => found,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        });
        let mut news: Vec<Range<u64>> = found.map_err(|e| self.failed(e))?.concat();
        news.sort_by_key(|run| run.start);
        Ok(news)
    }

    fn failed(&self, source: io::Error) -> MemoryError {
        MemoryError::Segment {
            operation: "read",
            inode: self.inode,
            source,
        }
    }
}

/// A run in pieces that are read at once.
fn pieces(run: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let (mut at, end) = (run.start, run.end);
    std::iter::from_fn(move || {
        let piece = at..end.min((at / PIECE as u64 + 1) * PIECE as u64);
        at = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

fn pages(runs: &[Range<u64>]) -> Pages {
    Pages(
        runs.iter()
            .map(|run| (run.end - run.start) / PAGE_SIZE)
            .sum(),
    )
}
