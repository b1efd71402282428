//! Segments of shared memory that become the container's without a copy: the memfd in which the store has kept a
//! segment's pages is the one that CRIU restores.
//!
//! ```text
//! PageStore ─▶ Complete::take_segments ─▶ Segments ─▶ SegmentServer, at images/segments
//!                                                        ▲ number    │ memfd, empty list of pages
//!                                                        └─── CRIU ◀─┘ (criu/preload_segments.c)
//! ```
//!
//! **Invariant:** a segment that is handed over is complete before anybody can ask for it, and has no list of pages
//! among the images: without an answer CRIU finds no list and fails. It never makes an empty segment of it. The memory
//! lives as long as the server or whoever was handed it; when both are gone before the container has run, the
//! restore fails, and the source has the only copy.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{self, shutdown};
use prost::Message;

use super::MemoryError;
use super::images::{COMMON_MAGIC, create, first_free, image_error, pagemap};
use super::space::{Entry, Space};
use super::store::{Complete, StoredSpace, punch};
use crate::model::{PAGE_SIZE, Pages};
use crate::sys::fdpass;

const MEMFD_MAGIC: u32 = 0x4845_3499;
/// The socket's name in the directory of the images; `preload_segments.c` has it too.
const SOCKET: &str = "segments";

/// CRIU's `memfd_inode_entry`, as far as it is needed.
#[derive(Clone, PartialEq, Eq, Message)]
struct Memfd {
    #[prost(string, required, tag = "1")]
    name: String,
    #[prost(uint64, required, tag = "4")]
    size: u64,
    #[prost(uint32, required, tag = "5")]
    shmid: u32,
    #[prost(uint32, optional, tag = "8")]
    hugetlb: Option<u32>,
}

/// Segments that are complete.
#[derive(Debug, Default)]
pub struct Segments {
    files: HashMap<u64, File>,
    /// CRIU's list of no pages.
    list: Vec<u8>,
    /// How many pages they have.
    pub pages: Pages,
}

impl Complete<'_> {
    /// Takes the segments out that can be handed over to CRIU, which restores from the images in `directory`: what is
    /// left is a matter for [`link_images`](super::link_images).
    ///
    /// They are `owner`'s, who is the container's root: in a user namespace that one gives them whom they were, which he
    /// could not with what is root's of the host.
    ///
    /// # Errors
    /// When a file cannot be sized or cut, or the directory not be read or written.
    pub fn take_segments(&mut self, directory: &Path, owner: u32) -> Result<Segments, MemoryError> {
        let Some(memfds) = memfds(directory)? else {
            return Ok(Segments::default());
        };
        let mut segments = Segments::default();
        for memfd in memfds {
            let id = memfd.shmid.into();
            let space = Space::Shared(id);
            let (Some(list), Some(stored)) = (self.lists.get(&space), self.store.known(space))
            else {
                continue;
            };
            let ends = list.last().map_or(0, Entry::end);
            let same = stored.memfd.as_ref() == Some(&memfd.name);
            if !same
                || memfd.hugetlb.is_some()
                || !memfd.size.is_multiple_of(PAGE_SIZE)
                || ends > memfd.size
            {
                continue;
            }
            let file = whole(&stored, list, memfd.size).and_then(|file| {
                fchown(&file, Some(owner), Some(owner))?;
                Ok(file)
            });
            let file = file.map_err(self.store.failed("complete a segment"))?;
            segments.files.insert(id, file);
            segments.pages += list.iter().map(|e| Pages(e.pages.into())).sum::<Pages>();
            self.lists.remove(&space);
        }
        if !segments.files.is_empty() {
            // A list has to name an image of pages, and that to exist.
            let number = first_free(directory)?;
            create(directory, &format!("pages-{number}.img"))?;
            segments.list = pagemap(number, &[]);
        }
        Ok(segments)
    }
}

/// A segment's file of this size, in which nothing is left but what its list names.
fn whole(stored: &StoredSpace, list: &[Entry], size: u64) -> io::Result<File> {
    let mut at = 0;
    for entry in list {
        if entry.vaddr > at {
            punch(&stored.file, at, entry.vaddr - at)?;
        }
        at = entry.end();
    }
    if size > at {
        punch(&stored.file, at, size - at)?;
    }
    stored.file.set_len(size)?;
    stored.file.try_clone()
}

/// The memfds that the images have; none at all where they cannot be handed over.
fn memfds(directory: &Path) -> Result<Option<Vec<Memfd>>, MemoryError> {
    let name = "memfd.img";
    match fs::read(directory.join(name)) {
        Ok(bytes) => Ok(read(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(image_error("read", directory, name)(error)),
    }
}

/// The memfds of an image; none where it is not one.
fn read(bytes: &[u8]) -> Option<Vec<Memfd>> {
    let magic = [COMMON_MAGIC.to_le_bytes(), MEMFD_MAGIC.to_le_bytes()].concat();
    let mut rest = bytes.strip_prefix(magic.as_slice())?;
    let mut memfds = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (message, after) = after.split_at_checked(length)?;
        memfds.push(Memfd::decode(message).ok()?);
        rest = after;
    }
    rest.is_empty().then_some(memfds)
}

/// Hands segments to a CRIU that asks for them, until it is dropped.
#[derive(Debug)]
pub struct SegmentServer {
    listener: Arc<OwnedFd>,
}

impl Segments {
    /// Listens in the directory of the images; nobody has to where there are no segments.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve(self, directory: &Path) -> Result<Option<SegmentServer>, MemoryError> {
        if self.files.is_empty() {
            return Ok(None);
        }
        let listener = fdpass::listen_at(&directory.join(SOCKET));
        let listener = listener.map_err(image_error("listen at", directory, SOCKET))?;
        let listener = Arc::new(listener);
        let theirs = Arc::clone(&listener);
        thread::spawn(move || {
            while let Ok(connection) = fdpass::accept(theirs.as_fd()) {
                if let Err(error) = self.answer(&connection) {
                    tracing::warn!(%error, "a segment of shared memory was not handed over");
                }
            }
        });
        Ok(Some(SegmentServer { listener }))
    }

    fn answer(&self, connection: &OwnedFd) -> io::Result<()> {
        let Some((asked, _)) = fdpass::receive(connection.as_fd())? else {
            return Ok(());
        };
        let asked: [u8; 8] = asked
            .try_into()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let Some(file) = self.files.get(&u64::from_ne_bytes(asked)) else {
            return fdpass::send(connection.as_fd(), b"n", &[], true);
        };
        // One of its own for everybody who reads it.
        let mut list = File::from(memfd_create("no pages", MFdFlags::MFD_CLOEXEC)?);
        list.write_all(&self.list)?;
        io::Seek::rewind(&mut list)?;
        fdpass::send(
            connection.as_fd(),
            b"y",
            &[file.as_fd(), list.as_fd()],
            true,
        )
    }
}

impl Drop for SegmentServer {
    fn drop(&mut self) {
        // Whoever waits in accept(2) hears of it; it fails for no socket that listens.
        let _ = shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
    }
}
