//! Shared memory: once per segment, whoever has it, by content hash. No tracker of writes to one address space
//! sees those by way of another, or of a descriptor.

mod owned;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek64};

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::maps::Mapping;
use super::task::Task;
use super::{RoundStats, SentPages, read};
use crate::model::PAGE_SIZE;

pub use owned::OwnedSegment;
pub(super) use owned::owned;

/// A segment, by way of somebody who has it.
#[derive(Debug)]
struct Segment {
    /// What CRIU names it by: its inode number, which of a SysV segment is its id.
    inode: u64,
    file: File,
    /// The name of the memfd that CRIU restores it as; none of a SysV segment.
    name: Option<String>,
}

/// The segments of these processes that CRIU will restore as memfds, each with the name of that: what a store wants to
/// know beforehand ([`PageStore::with_segments`](crate::memory::PageStore::with_segments)).
///
/// # Errors
/// When a process cannot be looked at.
pub fn memfd_names(pids: &[i32]) -> Result<Vec<(u64, String)>, MemoryError> {
    let mut segments = Segments::default();
    let mut names = Vec::new();
    for pid in pids {
        if let Some(task) = Task::open(*pid)? {
            let found = segments.of(&task).into_iter();
            names.extend(found.filter_map(|segment| Some((segment.inode, segment.name?))));
        }
    }
    names.retain(|(inode, _)| !segments.ambiguous.contains(inode));
    Ok(names)
}

/// The segments of one round.
#[derive(Debug, Default)]
pub struct Segments {
    /// Those that were looked at already, by way of another task, and whether it was a SysV segment.
    seen: HashMap<u64, bool>,
    /// Two of them have this number, and so for CRIU too.
    ambiguous: HashSet<u64>,
}

impl Segments {
    /// Sends what is news in the segments that a task has.
    pub fn round(
        &mut self,
        task: &Task,
        sent: &mut SentPages,
        sender: &mut Sender<'_>,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        for Segment { inode, file, .. } in self.of(task) {
            // What changes meanwhile, or cannot be read, is left to the last look.
            let runs = data(&file).unwrap_or_default().into_iter();
            let space = Space::Shared(inode);
            let mut judge = |vaddr: u64, page: &[u8]| sent.update(space, vaddr, page);
            let read = |at, length, into: &mut Vec<u8>| read::append_of(&file, at, length, into);
            read::send_from(&read, space, runs, &mut judge, sender, stats)?;
        }
        Ok(())
    }

    /// The segments that a task has mapped or open, and that no task before it had. One that cannot be opened is left
    /// to the dump, and so is one that nobody has: a memfd in a message on its way, or a SysV segment.
    fn of(&mut self, task: &Task) -> Vec<Segment> {
        let mut found = Vec::new();
        for mapping in &task.mappings {
            let Mapping::Shared { range, inode, sysv } = mapping else {
                continue;
            };
            if self.is_new(*inode, *sysv) {
                let Range { start, end } = range;
                let link = format!("/proc/{}/map_files/{start:x}-{end:x}", task.pid);
                found.extend(open(Path::new(&link)));
            }
        }
        let descriptors = fs::read_dir(format!("/proc/{}/fd", task.pid));
        for link in descriptors.into_iter().flatten().flatten() {
            let path = link.path();
            let is_memfd = fs::read_link(&path).is_ok_and(|name| {
                let name = name.as_os_str().as_encoded_bytes();
                name.starts_with(b"/memfd:") || name.starts_with(b"/dev/zero (deleted)")
            });
            if is_memfd
                && let Ok(data) = fs::metadata(&path)
                && self.is_new(data.ino(), false)
            {
                found.extend(open(&path));
            }
        }
        found
    }

    fn is_new(&mut self, inode: u64, sysv: bool) -> bool {
        match self.seen.insert(inode, sysv) {
            None => true,
            Some(before) => {
                if before != sysv {
                    self.ambiguous.insert(inode);
                }
                false
            }
        }
    }
}

/// Opens a segment; none where it is gone, or is memory of another kind, as huge pages.
fn open(link: &Path) -> Option<Segment> {
    let file = File::open(link).ok()?;
    let data = file.metadata().ok()?;
    (data.dev() == (*DEVICE)?).then(|| Segment {
        inode: data.ino(),
        file,
        name: fs::read_link(link).ok().as_deref().and_then(memfd_name),
    })
}

/// The name of the memfd that a link in `/proc` leads to, as CRIU takes it (`criu/memfd.c`, `dump_one_memfd`): that of
/// anonymous memory is the file's that it is a mapping of.
fn memfd_name(link: &Path) -> Option<String> {
    let name = link.to_str()?.strip_suffix(" (deleted)")?;
    let name = name.strip_prefix("/memfd:").unwrap_or(name);
    (!name.starts_with("/SYSV")).then(|| name.to_owned())
}

/// The device that all segments are on, and nothing else.
static DEVICE: LazyLock<Option<u64>> = LazyLock::new(|| {
    let file = memfd_create("device", MFdFlags::MFD_CLOEXEC).ok()?;
    Some(File::from(file).metadata().ok()?.dev())
});

/// The runs of pages with content in a file of shared memory: what CRIU takes for them (`criu/shmem.c`,
/// `next_data_segment`).
fn data(file: &File) -> io::Result<Vec<Range<u64>>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        match lseek64(file.as_fd(), at, whence) {
            Ok(found) => u64::try_from(found)
                .map(Some)
                .map_err(|_| io::ErrorKind::InvalidData.into()),
            Err(Errno::ENXIO) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Some(start) = seek(at, Whence::SeekData)? {
        let Some(end) = seek(start, Whence::SeekHole)? else {
            break;
        };
        let start = start - start % PAGE_SIZE;
        at = end.next_multiple_of(PAGE_SIZE);
        if start >= at {
            break;
        }
        super::residual::extend(&mut runs, start..at);
    }
    Ok(runs)
}
