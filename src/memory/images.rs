//! CRIU's memory images: written for a restore, and read again by the fill.
//!
//! Per address space a `pagemap-<vpid>.img` or `pagemap-shmem-<id>.img`, two magic numbers and records of a length
//! and a message, and a `pages-<number>.img`, the bytes of all its pages one after the other. CRIU finds a page
//! by adding up the entries before its own.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use prost::Message;

use super::space::{Entry, PageFlags, Space, is_run};
use super::store::{StoredSpace, punch};
use super::{MemoryError, PageStore};
use crate::model::PAGE_SIZE;

pub(super) const COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// As many pages as are moved before their memory is given back: what a thread holds twice.
const MOVED_AT_ONCE: u64 = 512;

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

/// CRIU 4.2 reads the count in field 5 where there is one, older ones know field 2 alone: with both, any reads it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct PagemapEntry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    narrow_count: u32,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    wide_count: Option<u64>,
}

/// Address spaces that are copied.
pub(super) struct Copy<'a> {
    store: &'a PageStore,
    directory: &'a Path,
    moves: VecDeque<Move>,
}

impl<'a> Copy<'a> {
    pub fn new(store: &'a PageStore, directory: &'a Path) -> Self {
        Self {
            store,
            directory,
            moves: VecDeque::new(),
        }
    }

    /// Writes the pagemap of a space and notes what is to be copied for it.
    pub fn add(&mut self, space: Space, number: u32, list: &[Entry]) -> Result<(), MemoryError> {
        let present = |entry: &Entry| Entry {
            flags: PageFlags::PRESENT,
            ..*entry
        };
        let present: Vec<Entry> = list.iter().map(present).collect();
        write_pagemap(self.directory, space, number, &present)?;
        let pages = create(self.directory, &format!("pages-{number}.img"))?;
        let count: u64 = list.iter().map(|entry| u64::from(entry.pages)).sum();
        let resized = pages.set_len(count * PAGE_SIZE);
        resized.map_err(image_error("size", self.directory, "a pages image"))?;
        if let Some(stored) = self.store.known(space) {
            moves(&stored, pages, list, &mut self.moves);
        }
        Ok(())
    }

    /// Copies.
    pub fn run(self, threads: usize) -> Result<(), MemoryError> {
        let (store, directory) = (self.store, self.directory);
        let jobs = Mutex::new(self.moves);
        move_all(store, directory, &jobs, threads)
    }
}

fn move_all(
    store: &PageStore,
    directory: &Path,
    jobs: &Mutex<VecDeque<Move>>,
    threads: usize,
) -> Result<(), MemoryError> {
    // Most often there is nothing to move, and threads cost more than the rest.
    let most = lock(jobs).len();
    thread::scope(|scope| {
        let workers =
            (0..threads.max(1).min(most)).map(|_| scope.spawn(|| run(store, directory, jobs)));
        let workers: Vec<_> = workers.collect();
        let results = workers.into_iter().map(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect::<Result<Vec<()>, _>>().map(drop)
    })
}

fn lock(jobs: &Mutex<VecDeque<Move>>) -> MutexGuard<'_, VecDeque<Move>> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run of pages on its way from the store to an image.
struct Move {
    from: Arc<StoredSpace>,
    to: Arc<File>,
    vaddr: u64,
    offset: u64,
    pages: u64,
}

/// What is to be moved for a list. Zero pages are not: the image is sparse and reads as zeros there.
fn moves(from: &Arc<StoredSpace>, to: File, list: &[Entry], into: &mut VecDeque<Move>) {
    let to = Arc::new(to);
    let state = from.state();
    let mut offset = 0;
    for entry in list {
        for (vaddr, pages) in state.presence.data_runs(entry.vaddr, entry.pages.into()) {
            let mut done = 0;
            while done < pages {
                let now = (pages - done).min(MOVED_AT_ONCE);
                let vaddr = vaddr + done * PAGE_SIZE;
                into.push_back(Move {
                    from: from.clone(),
                    to: to.clone(),
                    vaddr,
                    offset: offset + (vaddr - entry.vaddr),
                    pages: now,
                });
                done += now;
            }
        }
        offset += u64::from(entry.pages) * PAGE_SIZE;
    }
}

fn run(
    store: &PageStore,
    directory: &Path,
    jobs: &Mutex<VecDeque<Move>>,
) -> Result<(), MemoryError> {
    loop {
        let job = lock(jobs).pop_front();
        let Some(job) = job else { return Ok(()) };
        let length = job.pages * PAGE_SIZE;
        copy(&job.from.file, job.vaddr, &job.to, job.offset, length).map_err(image_error(
            "copy pages into",
            directory,
            "a pages image",
        ))?;
        punch(&job.from.file, job.vaddr, length).map_err(store.failed("give a page back"))?;
        store.moved_away(job.pages);
    }
}

/// Copies within the kernel where it can.
fn copy(from: &File, at: u64, to: &File, offset: u64, length: u64) -> io::Result<()> {
    let signed =
        |n: u64| i64::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (mut source, mut target) = (signed(at)?, signed(offset)?);
    let mut left = length;
    while left > 0 {
        match copy_file_range(
            from,
            Some(&mut source),
            to,
            Some(&mut target),
            left as usize,
        ) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => left -= copied as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let mut buffer = vec![0; left as usize];
                let done = length - left;
                from.read_exact_at(&mut buffer, at + done)?;
                return to.write_all_at(&buffer, offset + done);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The image's bytes: magic numbers, the head, an entry for every run. The flags say where its pages are, which is
/// not what they said in the dump.
pub(super) fn pagemap(pages_id: u32, list: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 + list.len() * 24);
    bytes.extend(COMMON_MAGIC.to_le_bytes());
    bytes.extend(PAGEMAP_MAGIC.to_le_bytes());
    let mut record = |message: &[u8]| {
        // Messages of at most five small fields.
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
    };
    record(&PagemapHead { pages_id }.encode_to_vec());
    for entry in list {
        let message = PagemapEntry {
            vaddr: entry.vaddr,
            narrow_count: entry.pages,
            flags: Some(entry.flags.bits()),
            wide_count: Some(entry.pages.into()),
        };
        record(&message.encode_to_vec());
    }
    bytes
}

/// The number of the pages and the list of a pagemap image of ours; none where it is not one.
pub(super) fn read_pagemap(bytes: &[u8]) -> Option<(u32, Vec<Entry>)> {
    let magic = [COMMON_MAGIC.to_le_bytes(), PAGEMAP_MAGIC.to_le_bytes()].concat();
    let mut rest = bytes.strip_prefix(magic.as_slice())?;
    let mut next = || -> Option<Option<&[u8]>> {
        let Some((length, after)) = rest.split_first_chunk::<4>() else {
            return rest.is_empty().then_some(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (message, after) = after.split_at_checked(length)?;
        rest = after;
        Some(Some(message))
    };
    let head = PagemapHead::decode(next()??).ok()?;
    let mut list: Vec<Entry> = Vec::new();
    while let Some(message) = next()? {
        let entry = PagemapEntry::decode(message).ok()?;
        let pages = entry.wide_count.unwrap_or(entry.narrow_count.into());
        let pages = u32::try_from(pages).ok()?;
        let flags = PageFlags::from_bits(entry.flags.unwrap_or(0))?;
        let after = list.last().map_or(0, Entry::end);
        if !is_run(entry.vaddr, pages.into()) || entry.vaddr < after {
            return None;
        }
        list.push(Entry {
            vaddr: entry.vaddr,
            pages,
            flags,
        });
    }
    Some((head.pages_id, list))
}

pub(super) fn write_pagemap(
    directory: &Path,
    space: Space,
    pages_id: u32,
    list: &[Entry],
) -> Result<(), MemoryError> {
    let name = match space {
        Space::Task(vpid) => format!("pagemap-{vpid}.img"),
        Space::Shared(id) => format!("pagemap-shmem-{id}.img"),
    };
    let mut file = create(directory, &name)?;
    let written = file.write_all(&pagemap(pages_id, list));
    written.map_err(image_error("write", directory, &name))
}

/// A new file; one that is there already is an error, for it is not ours.
pub(super) fn create(directory: &Path, name: &str) -> Result<File, MemoryError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(directory.join(name))
        .map_err(image_error("create", directory, name))
}

/// The first number after those of all pages images in `directory`.
pub(super) fn first_free(directory: &Path) -> Result<u32, MemoryError> {
    let names = fs::read_dir(directory);
    let names = names.map_err(image_error("read the directory", directory, ""))?;
    let numbers = names.filter_map(|name| {
        let name = name.ok()?.file_name();
        let number = name
            .to_str()?
            .strip_prefix("pages-")?
            .strip_suffix(".img")?;
        number.parse::<u32>().ok()
    });
    Ok(numbers.max().map_or(1, |most| most.saturating_add(1)))
}

pub(super) fn image_error(
    operation: &'static str,
    directory: &Path,
    name: &str,
) -> impl FnOnce(io::Error) -> MemoryError {
    let path = directory.join(name);
    move |source| MemoryError::Image {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod test;
