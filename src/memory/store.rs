//! The destination's page store: what arrived, whatever the round, ready for a restore.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::frame::Changes;
use super::presence::Presence;
use super::space::{Entry, Space};
use super::{Decoder, Frame, MemoryError};
use crate::model::{Bytes, PAGE_SIZE, Pages};

/// The most address spaces; each costs an open file.
const MOST_SPACES: usize = 4096;
/// What an address space is charged beside its pages.
const SPACE_COST: u64 = 4096;
/// What an entry of a list is charged.
const ENTRY_COST: u64 = 32;

/// One sparse file per address space, page at offset = address, the last writer wins. Shared memory is kept in memfds,
/// where their names are known ([`Self::with_segments`]).
///
/// The files have no names: when the store is dropped, or its process dies, their memory is free. The directory
/// is best a tmpfs, whose files may be as long as any address is high.
///
/// **Invariant:** a page is here, or was declared zero, or is missing, and the three are told apart: presence is
/// counted in a map of its own and never guessed from a file's content. Everything a sender can make this store
/// keep is charged against its limit before it is kept.
#[derive(Debug)]
pub struct PageStore {
    directory: PathBuf,
    limit: Bytes,
    charged: AtomicU64,
    names: HashMap<u64, String>,
    spaces: RwLock<HashMap<Space, Arc<StoredSpace>>>,
}

/// The pages of one address space.
#[derive(Debug)]
pub struct StoredSpace {
    pub(super) file: File,
    /// The name of the memfd that the file is; none where it is of the store's directory.
    pub(super) memfd: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) presence: Presence,
    /// The parts of the list, by the index of their first entry.
    parts: BTreeMap<u64, Vec<Entry>>,
    /// How many entries the whole list has, once its last part has come.
    whole: Option<u64>,
}

/// A store that holds every page of every list: what may be restored.
#[derive(Debug)]
pub struct Complete<'a> {
    pub(super) store: &'a PageStore,
    /// The lists, each in the order of its addresses.
    pub(super) lists: BTreeMap<Space, Vec<Entry>>,
    /// How many pages they name.
    pub pages: Pages,
    /// How many of them come later.
    pub behind: Pages,
}

impl Complete<'_> {
    /// The address spaces to restore.
    pub fn spaces(&self) -> impl Iterator<Item = Space> + '_ {
        self.lists.keys().copied()
    }
}

impl PageStore {
    /// A store in an existing directory that keeps at most `limit`.
    pub fn create(directory: &Path, limit: Bytes) -> Result<Self, MemoryError> {
        let store = Self {
            directory: directory.to_owned(),
            limit,
            charged: AtomicU64::new(0),
            names: HashMap::new(),
            spaces: RwLock::default(),
        };
        // Now, and not at the first page: whether files without names can be made here.
        store.new_file()?;
        Ok(store)
    }

    /// The same, for a container that has these segments of shared memory, each with the name that its memfd has. Their
    /// pages are kept in memfds of that name, which can [become](Complete::take_segments) the segments.
    #[must_use]
    pub fn with_segments(mut self, segments: impl IntoIterator<Item = (u64, String)>) -> Self {
        self.names = segments.into_iter().collect();
        self
    }

    /// What is kept now: pages with bytes, and what it takes to know of them.
    pub fn used(&self) -> Bytes {
        Bytes(self.charged.load(Ordering::Relaxed))
    }

    /// Takes in a batch of frames. May be called from several threads at once, with different pages and a decoder each.
    pub fn take(&self, decoder: &mut Decoder, batch: &[u8]) -> Result<(), MemoryError> {
        decoder.decode(batch, &mut |frame| self.apply(frame))
    }

    /// Takes in a frame. May be called from several threads at once, with different pages.
    pub fn apply(&self, frame: &Frame<'_>) -> Result<(), MemoryError> {
        match frame {
            Frame::Pages {
                space,
                vaddr,
                bytes,
            } => self.write(*space, *vaddr, bytes),
            Frame::Zero {
                space,
                vaddr,
                pages,
            } => self.zero(*space, *vaddr, *pages),
            Frame::Unchanged {
                space,
                vaddr,
                pages,
            } => self.unchanged(*space, *vaddr, *pages),
            Frame::Behind {
                space,
                vaddr,
                pages,
            } => self.behind(*space, *vaddr, *pages),
            Frame::Changes(changes) => self.change(changes),
            Frame::List {
                space,
                first,
                entries,
                last,
            } => self.list(*space, *first, entries, *last),
        }
    }

    /// Keeps pages.
    pub fn write(&self, space: Space, vaddr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let stored = self.space(space)?;
        {
            let mut state = stored.state();
            let cost = state
                .presence
                .cost_of_data(vaddr, bytes.len() as u64 / PAGE_SIZE);
            self.charge(cost)?;
            state
                .presence
                .set_data(vaddr, bytes.len() as u64 / PAGE_SIZE);
        }
        let written = stored.file.write_all_at(bytes, vaddr);
        written.map_err(self.failed("keep a page"))
    }

    /// Keeps what has become of pages that are here.
    pub fn change(&self, changes: &Changes<'_>) -> Result<(), MemoryError> {
        let (space, vaddr) = (changes.space, changes.vaddr);
        self.unchanged(space, vaddr, changes.pages())?;
        let stored = self.space(space)?;
        let mut pages = vec![0; (changes.pages() * PAGE_SIZE) as usize];
        let read = read_sparse(&stored.file, &mut pages, vaddr);
        read.map_err(self.failed("read a page"))?;
        changes.apply(&mut pages)?;
        self.write(space, vaddr, &pages)
    }

    /// Keeps pages of zeros; they cost no memory.
    pub fn zero(&self, space: Space, vaddr: u64, pages: u64) -> Result<(), MemoryError> {
        let stored = self.space(space)?;
        let freed = {
            let mut state = stored.state();
            self.charge(state.presence.cost_of_zero(vaddr, pages))?;
            state.presence.set_zero(vaddr, pages)
        };
        if freed > 0 {
            punch(&stored.file, vaddr, pages * PAGE_SIZE).map_err(self.failed("drop a page"))?;
            self.charged.fetch_sub(freed * PAGE_SIZE, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Notes pages that come when the process runs. They are charged now. What is here of them is stale, and goes.
    pub fn behind(&self, space: Space, vaddr: u64, pages: u64) -> Result<(), MemoryError> {
        if !matches!(space, Space::Task(_)) {
            return Err(MemoryError::NotBehind { space, vaddr });
        }
        let stored = self.space(space)?;
        let mut state = stored.state();
        self.charge(state.presence.cost_of_data(vaddr, pages))?;
        state.presence.set_behind(vaddr, pages);
        drop(state);
        punch(&stored.file, vaddr, pages * PAGE_SIZE).map_err(self.failed("drop a page"))
    }

    /// Checks that pages are here which the sender believes to be here.
    pub fn unchanged(&self, space: Space, vaddr: u64, pages: u64) -> Result<(), MemoryError> {
        let stored = self.known(space);
        let missing = match &stored {
            Some(stored) => stored.state().presence.first_missing(vaddr, pages, true),
            None => Some(vaddr),
        };
        match missing {
            None => Ok(()),
            Some(vaddr) => Err(MemoryError::PageMissing { space, vaddr }),
        }
    }

    /// Keeps a part of the list of a space's pages.
    pub fn list(
        &self,
        space: Space,
        first: u64,
        entries: &[Entry],
        last: bool,
    ) -> Result<(), MemoryError> {
        let wrong = |what| MemoryError::List { space, what };
        let count = entries.len() as u64;
        let end = first.checked_add(count).ok_or(wrong("too long"))?;
        let stored = self.space(space)?;
        let mut state = stored.state();
        if last && state.whole.is_some() {
            return Err(wrong("ended twice"));
        }
        self.charge(count * ENTRY_COST)?;
        if last {
            state.whole = Some(end);
        }
        if count > 0 && state.parts.insert(first, entries.to_vec()).is_some() {
            return Err(wrong("told twice"));
        }
        Ok(())
    }

    /// Checks that the lists are whole and that every page they name is here. Only then may anything be
    /// restored: a page that is missing is an error, and never a page of zeros.
    pub fn verify(&self) -> Result<Complete<'_>, MemoryError> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        let mut lists = BTreeMap::new();
        let (mut pages, mut behind) = (Pages(0), Pages(0));
        for (space, stored) in spaces.iter() {
            let state = stored.state();
            // A process that ended before the final dump has pages here and no list.
            if state.parts.is_empty() && state.whole.is_none() {
                continue;
            }
            let list = state.whole_list(*space)?;
            for entry in &list {
                let missing = state
                    .presence
                    .first_missing(entry.vaddr, entry.pages.into(), false);
                if let Some(vaddr) = missing {
                    let space = *space;
                    return Err(MemoryError::PageMissing { space, vaddr });
                }
                pages += Pages(entry.pages.into());
                behind += state.behind(entry);
            }
            lists.insert(*space, list);
        }
        if lists.is_empty() {
            return Err(MemoryError::NoList);
        }
        Ok(Complete {
            store: self,
            lists,
            pages,
            behind,
        })
    }

    /// The stored space, where there is one.
    pub(super) fn known(&self, space: Space) -> Option<Arc<StoredSpace>> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        spaces.get(&space).cloned()
    }

    /// Gives back what pages cost that have been moved elsewhere.
    pub(super) fn moved_away(&self, pages: u64) {
        self.charged.fetch_sub(pages * PAGE_SIZE, Ordering::Relaxed);
    }

    /// The stored space, made where there is none.
    fn space(&self, space: Space) -> Result<Arc<StoredSpace>, MemoryError> {
        if let Some(stored) = self.known(space) {
            return Ok(stored);
        }
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = spaces.get(&space) {
            return Ok(stored.clone());
        }
        if spaces.len() == MOST_SPACES {
            return Err(MemoryError::TooManySpaces { most: MOST_SPACES });
        }
        self.charge(SPACE_COST)?;
        let (file, memfd) = match self.new_memfd(space) {
            Some((file, name)) => (file, Some(name)),
            None => (self.new_file()?, None),
        };
        let stored = Arc::new(StoredSpace {
            file,
            memfd,
            state: Mutex::default(),
        });
        spaces.insert(space, stored.clone());
        Ok(stored)
    }

    /// A memfd for a segment whose name is known. One that no memfd can have is known for nothing.
    fn new_memfd(&self, space: Space) -> Option<(File, String)> {
        let Space::Shared(id) = space else {
            return None;
        };
        let name = self.names.get(&id)?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let made = memfd_create(name.as_str(), flags).ok()?;
        Some((File::from(made), name.clone()))
    }

    fn new_file(&self) -> Result<File, MemoryError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(&self.directory)
            .map_err(self.failed("make a file"))
    }

    fn charge(&self, bytes: u64) -> Result<(), MemoryError> {
        let limit = self.limit.0;
        let more = |used: u64| used.checked_add(bytes).filter(|&used| used <= limit);
        let order = Ordering::Relaxed;
        match self.charged.fetch_update(order, order, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(MemoryError::Full { limit: self.limit }),
        }
    }

    pub(super) fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> MemoryError {
        let directory = self.directory.clone();
        move |source| MemoryError::Store {
            operation,
            directory,
            source,
        }
    }
}

impl StoredSpace {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many pages of an entry come later.
    fn behind(&self, entry: &Entry) -> Pages {
        let runs = self.presence.behind_runs(entry.vaddr, entry.pages.into());
        runs.into_iter().map(|(_, pages)| Pages(pages)).sum()
    }

    /// The list, put together from its parts: complete, ascending, nothing twice.
    fn whole_list(&self, space: Space) -> Result<Vec<Entry>, MemoryError> {
        let wrong = |what| MemoryError::List { space, what };
        let whole = self.whole.ok_or(wrong("without its end"))?;
        let mut list: Vec<Entry> = Vec::new();
        for (first, part) in &self.parts {
            if *first != list.len() as u64 {
                return Err(wrong("not complete"));
            }
            list.extend(part);
        }
        if list.len() as u64 != whole {
            return Err(wrong("not complete"));
        }
        let ascending = list.windows(2).all(|two| two[0].end() <= two[1].vaddr);
        if ascending {
            Ok(list)
        } else {
            Err(wrong("out of order"))
        }
    }
}

/// Reads from a file that may end before, in a buffer of zeros.
fn read_sparse(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives the memory of a range of a file back; it reads as zeros from now on.
pub(super) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = i64::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, mode, offset, length)?)
}

#[cfg(test)]
mod test;
