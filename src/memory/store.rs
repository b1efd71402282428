//! The destination's page store: what arrived, whatever the round, ready for a restore.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nix::fcntl::{FallocateFlags, fallocate};

use super::presence::Presence;
use super::space::{Entry, Space};
use super::{Frame, MemoryError};
use crate::model::{Bytes, PAGE_SIZE, Pages};

/// The most address spaces; each costs an open file.
const MOST_SPACES: usize = 4096;
/// What an address space is charged beside its pages.
const SPACE_COST: u64 = 4096;
/// What an entry of a list is charged.
const ENTRY_COST: u64 = 32;

/// One sparse file per address space, page at offset = address, the last writer wins.
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
    spaces: RwLock<HashMap<Space, Arc<StoredSpace>>>,
}

/// The pages of one address space.
#[derive(Debug)]
pub struct StoredSpace {
    pub(super) file: File,
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
            spaces: RwLock::default(),
        };
        // Now, and not at the first page: whether files without names can be made here.
        store.new_file()?;
        Ok(store)
    }

    /// What is kept now: pages with bytes, and what it takes to know of them.
    pub fn used(&self) -> Bytes {
        Bytes(self.charged.load(Ordering::Relaxed))
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

    /// Checks that pages are here which the sender believes to be here.
    pub fn unchanged(&self, space: Space, vaddr: u64, pages: u64) -> Result<(), MemoryError> {
        let stored = self.known(space);
        let missing = match &stored {
            Some(stored) => stored.state().presence.first_missing(vaddr, pages),
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
        let mut pages = Pages(0);
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
                    .first_missing(entry.vaddr, entry.pages.into());
                if let Some(vaddr) = missing {
                    let space = *space;
                    return Err(MemoryError::PageMissing { space, vaddr });
                }
                pages += Pages(entry.pages.into());
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
        let stored = Arc::new(StoredSpace {
            file: self.new_file()?,
            state: Mutex::default(),
        });
        spaces.insert(space, stored.clone());
        Ok(stored)
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

/// Gives the memory of a range of a file back; it reads as zeros from now on.
pub(super) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = i64::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, mode, offset, length)?)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::memory::PageFlags;
    use std::os::unix::fs::MetadataExt;

    const PAGE: usize = PAGE_SIZE as usize;
    const TASK: Space = Space::Task(1);

    fn store(limit: u64) -> (PageStore, tempfile::TempDir) {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = PageStore::create(directory.path(), Bytes(limit)).unwrap();
        (store, directory)
    }

    fn entry(vaddr: u64, pages: u32) -> Entry {
        Entry {
            vaddr,
            pages,
            flags: PageFlags::PRESENT,
        }
    }

    fn page_of(store: &PageStore, vaddr: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        let stored = store.known(TASK).unwrap();
        stored.file.read_exact_at(&mut bytes, vaddr).unwrap();
        bytes
    }

    #[test]
    fn addresses_up_to_the_last_are_kept_sparsely() {
        let (store, _directory) = store(1 << 20);
        let last = super::super::space::ADDRESS_END - 2 * PAGE_SIZE;
        for vaddr in [0, 0x5555_5555_5000, (1 << 47) - PAGE_SIZE, 1 << 56, last] {
            let fill = (vaddr >> 40) as u8 | 1;
            store.write(TASK, vaddr, &[fill; PAGE]).unwrap();
            assert_eq!(page_of(&store, vaddr), [fill; PAGE], "{vaddr:#x}");
        }
        let blocks = store.known(TASK).unwrap().file.metadata().unwrap().blocks();
        assert!(blocks * 512 <= 6 * PAGE_SIZE, "{blocks}");
    }

    #[test]
    fn the_last_writer_wins_and_is_charged_once() {
        let (store, _directory) = store(1 << 20);
        store.write(TASK, 0x1000, &[1; 2 * PAGE]).unwrap();
        let used = store.used();
        store.write(TASK, 0x2000, &[2; PAGE]).unwrap();
        assert_eq!(store.used(), used);
        assert_eq!(page_of(&store, 0x1000), [1; PAGE]);
        assert_eq!(page_of(&store, 0x2000), [2; PAGE]);
        store.zero(TASK, 0x1000, 1).unwrap();
        assert_eq!(store.used().0, used.0 - PAGE_SIZE);
        assert_eq!(page_of(&store, 0x1000), [0; PAGE]);
    }

    #[test]
    fn a_missing_page_is_an_error_and_never_a_zero() {
        let (store, _directory) = store(1 << 20);
        assert!(matches!(store.verify(), Err(MemoryError::NoList)));
        store.write(TASK, 0x1000, &[1; PAGE]).unwrap();
        store.zero(TASK, 0x2000, 1).unwrap();
        store.list(TASK, 0, &[entry(0x1000, 3)], true).unwrap();
        assert!(matches!(
            store.verify(),
            Err(MemoryError::PageMissing { vaddr: 0x3000, .. })
        ));
        store.zero(TASK, 0x3000, 1).unwrap();
        assert_eq!(store.verify().unwrap().pages, Pages(3));
    }

    #[test]
    fn unchanged_pages_must_be_here() {
        let (store, _directory) = store(1 << 20);
        assert!(store.unchanged(TASK, 0x1000, 1).is_err());
        store.write(TASK, 0x1000, &[1; PAGE]).unwrap();
        store.zero(TASK, 0x2000, 3).unwrap();
        store.unchanged(TASK, 0x1000, 4).unwrap();
        assert!(matches!(
            store.unchanged(TASK, 0x1000, 5),
            Err(MemoryError::PageMissing { vaddr: 0x5000, .. })
        ));
    }

    #[test]
    fn a_list_comes_in_any_order_but_must_be_whole() {
        let (one, two, three) = (entry(0x1000, 1), entry(0x3000, 1), entry(0x5000, 1));
        let parts: [(u64, &[Entry], bool); 3] =
            [(0, &[one], false), (1, &[two], false), (2, &[three], true)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let (store, _directory) = store(1 << 20);
            store.write(TASK, 0x1000, &[1; 5 * PAGE]).unwrap();
            for (done, at) in order.into_iter().enumerate() {
                if done > 0 {
                    assert!(store.verify().is_err(), "{order:?}, {done} parts");
                }
                let (first, entries, last) = parts[at];
                store.list(TASK, first, entries, last).unwrap();
            }
            assert_eq!(store.verify().unwrap().pages, Pages(3), "{order:?}");
        }
    }

    #[test]
    fn a_list_that_contradicts_itself_is_refused() {
        let (store, _directory) = store(1 << 20);
        store.write(TASK, 0x1000, &[1; 5 * PAGE]).unwrap();
        store.list(TASK, 0, &[entry(0x1000, 1)], false).unwrap();
        assert!(store.list(TASK, 0, &[entry(0x2000, 1)], false).is_err());
        assert!(
            store
                .list(TASK, u64::MAX, &[entry(0x2000, 1)], true)
                .is_err()
        );
        store.list(TASK, 1, &[entry(0x1000, 2)], true).unwrap();
        assert!(store.list(TASK, 2, &[], true).is_err());
        assert!(matches!(store.verify(), Err(MemoryError::List { .. })));
    }

    #[test]
    fn nothing_is_kept_beyond_the_limit() {
        let (store, _directory) = store(64 << 10);
        let mut kept = 0;
        let error = loop {
            match store.write(TASK, kept * PAGE_SIZE, &[1; PAGE]) {
                Ok(()) => kept += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, MemoryError::Full { .. }));
        assert!((10..16).contains(&kept), "{kept}");
        // Marks and lists cost too, or a sender could make the store grow with them.
        let far = |n: u64| (n << 30, 1);
        let marks = (0..1000).map(|n| store.zero(TASK, far(n).0, far(n).1));
        assert!(marks.into_iter().any(|marked| marked.is_err()));
        let list = vec![entry(0, 1); 4096];
        assert!(store.list(Space::Task(2), 0, &list, false).is_err());
        assert!(store.used() <= Bytes(64 << 10));
    }

    #[test]
    fn there_are_only_so_many_spaces() {
        let (store, _directory) = store(1 << 30);
        let result: Result<(), _> =
            (1..=MOST_SPACES as u32 + 1).try_for_each(|id| store.zero(Space::Task(id), 0, 1));
        // Whichever comes first: the store's own limit, or the system's on open files.
        assert!(matches!(
            result,
            Err(MemoryError::TooManySpaces { .. } | MemoryError::Store { .. })
        ));
    }

    #[test]
    fn writers_on_several_threads_lose_nothing() {
        let (store, _directory) = store(64 << 20);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let store = &store;
                scope.spawn(move || {
                    for page in (thread..1024).step_by(4) {
                        let bytes = [page as u8 | 1; PAGE];
                        store.write(TASK, page * PAGE_SIZE, &bytes).unwrap();
                    }
                });
            }
        });
        store.list(TASK, 0, &[entry(0, 1024)], true).unwrap();
        assert_eq!(store.verify().unwrap().pages, Pages(1024));
        for page in 0..1024u64 {
            assert_eq!(page_of(&store, page * PAGE_SIZE)[0], page as u8 | 1);
        }
    }
}
