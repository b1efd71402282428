//! Pages that are not in the store yet when the container already runs: they were left on its source, and come one by
//! one.
//!
//! ```text
//!                         images/later/desk      who waits for which page; "something came"
//!  source ══▶ Incoming ◀──────────────────────── filler ──▶ tasks
//!                │ 1. bytes                         ▲
//!                ├──────────▶ parent/pages-N.img ───┤
//!                │ 2. "here"                        │ only what is "here"
//!                └──────────▶ later/PID.here ───────┘
//!             later/PID.runs: which pages these are; written once, before anything is restored
//! ```
//!
//! **Invariant:** a page is called "here" after its bytes are in the store, and once it is, they never change. Nobody
//! reads a page that is not: who waits for one goes on waiting, whoever is killed meanwhile. Both files survive the
//! filler and the daemon.

mod desk;
mod incoming;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(super) use desk::{Desk, Waiting, Wanted};
pub use incoming::{Incoming, Listening, Run};

use super::index::{Done, Index};
use crate::memory::MemoryError;
use crate::memory::space::is_run;
use crate::model::PAGE_SIZE;
use crate::sys::shared::SharedWords;

/// Those of one process.
#[derive(Debug)]
pub struct Later {
    /// Which they are.
    pub index: Index,
    here: SharedWords,
}

impl Later {
    /// Which of them are here, or not needed any more.
    pub fn here(&self) -> Done<'_> {
        Done::new(&self.here, self.index.pages())
    }

    /// Those of a process by its id when it was dumped; none where it has none.
    pub fn open(images: &Path, vpid: u32) -> Result<Option<Self>, MemoryError> {
        let path = file(images, vpid, "runs");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let index = read(&bytes)
            .ok_or_else(|| failed("make sense of", &path)(io::ErrorKind::InvalidData.into()))?;
        let path = file(images, vpid, "here");
        let here = map(&path, &index, false).map_err(failed("map", &path))?;
        Ok(Some(Self { index, here }))
    }
}

/// Notes the pages of a process that come later, none of which is here. Their directory is made with the first.
pub fn note(
    images: &Path,
    vpid: u32,
    ranges: impl Iterator<Item = Range<u64>>,
) -> Result<(), MemoryError> {
    let directory = directory(images);
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make", &directory)(error));
        }
        _ => {}
    }
    let index = Index::new(ranges);
    let path = file(images, vpid, "here");
    map(&path, &index, true).map_err(failed("map", &path))?;
    let words = index.ranges().flat_map(|range| [range.start, range.end]);
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let path = file(images, vpid, "runs");
    fs::write(&path, bytes).map_err(failed("write", &path))
}

/// Where all this is kept.
fn directory(images: &Path) -> PathBuf {
    images.join("later")
}

fn file(images: &Path, vpid: u32, kind: &str) -> PathBuf {
    directory(images).join(format!("{vpid}.{kind}"))
}

fn map(path: &Path, index: &Index, new: bool) -> io::Result<SharedWords> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).create_new(new).mode(0o600);
    let words = usize::try_from(index.words()).map_err(|_| io::ErrorKind::InvalidInput)?;
    SharedWords::map(&how.open(path)?, words)
}

/// Runs that ascend, one at least.
fn read(bytes: &[u8]) -> Option<Index> {
    let (runs, rest) = bytes.as_chunks::<16>();
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(runs.len());
    for run in runs {
        let (start, end) = run.split_at(8);
        let start = u64::from_le_bytes(start.try_into().ok()?);
        let end = u64::from_le_bytes(end.try_into().ok()?);
        let after = ranges.last().map_or(0, |last| last.end);
        let length = end.checked_sub(start)?;
        if start < after || length % PAGE_SIZE != 0 || !is_run(start, length / PAGE_SIZE) {
            return None;
        }
        ranges.push(start..end);
    }
    (rest.is_empty() && !ranges.is_empty()).then(|| Index::new(ranges.into_iter()))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemoryError + use<> {
    let path = path.to_owned();
    move |source| MemoryError::Fill {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod test;
