//! What has become of an address space, where it survives the process that works on it.
//!
//! ```text
//! 3.state   header, and a bit per lazy page: done      mapped, so that a bit is kept by being set
//! 3.layout  where the pages were when this began       written once
//! 3.log     what has moved or gone since               one record after the other
//! ```
//!
//! An event takes effect in the container when it is *read*: from then on a record of it is the only witness. So the
//! kernel itself writes it into the header ([`Userfaultfd::read_recorded`]); then it goes into the log, then the
//! count in the header makes it part of it, then its place is free for the next. A successor finds it in exactly one
//! of the two.

mod change;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

pub use change::{Change, Parent, Unlogged};

use super::index::{Done, Index, WORD};
use super::layout::{Layout, Piece};
use crate::memory::MemoryError;
use crate::sys::shared::SharedWords;
use crate::sys::userfaultfd::{Event, Userfaultfd};

const MAGIC: u64 = 0x476f_6477_6974_4631;
/// Words of the header: a page, which is kept in memory.
const HEADER: usize = 512;
/// The most records of a log: 32 MiB. Beyond them a filler that dies takes the container with it.
const MOST_RECORDS: u64 = 1 << 20;
const RECORD: usize = 32;

// Words of the header.
const VPID: usize = 1;
const PAGES: usize = 2;
const COUNT: usize = 3;
const BEFORE: usize = 4;
const UNRECORDED: usize = 5;
const PARENT: usize = 6;
const PARENT_COUNT: usize = 7;
const QUIET: usize = 8;
const EVENT: usize = 12;

/// The progress of one address space.
#[derive(Debug)]
pub struct Progress {
    directory: PathBuf,
    number: u64,
    words: SharedWords,
    log: File,
}

impl Progress {
    /// Makes the files of a space that begins with this layout, and bits that are set already.
    pub fn create(
        directory: &Path,
        number: u64,
        vpid: u32,
        index: &Index,
        layout: &Layout,
        parent: Option<Parent>,
    ) -> Result<Self, MemoryError> {
        let failed = |operation| failed(operation, directory, number);
        let mut bytes = Vec::new();
        for piece in layout.pieces() {
            let words = [piece.here, piece.home, piece.length, piece.moved];
            bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }
        let create = |kind| open(directory, number, kind, true);
        let file = create("layout").map_err(failed("create"))?;
        file.write_all_at(&bytes, 0).map_err(failed("write"))?;
        let log = create("log").map_err(failed("create"))?;
        let state = create("state").map_err(failed("create"))?;
        let words = map(&state, index.pages()).map_err(failed("map"))?;
        let set = |at: usize, value: u64| words[at].store(value, Ordering::Relaxed);
        set(VPID, vpid.into());
        set(PAGES, index.pages());
        if let Some(parent) = parent {
            set(PARENT, parent.number);
            set(PARENT_COUNT, parent.count);
        }
        words[0].store(MAGIC, Ordering::Release);
        Ok(Self {
            directory: directory.to_owned(),
            number,
            words,
            log,
        })
    }

    /// Takes up what another filler has left, and replays it: where the pages are, and what was read last.
    pub fn resume(
        directory: &Path,
        number: u64,
        index: &Index,
    ) -> Result<(Self, Layout, Option<Unlogged>), MemoryError> {
        let failed = |operation| failed(operation, directory, number);
        let damaged = || failed("make sense of")(io::ErrorKind::InvalidData.into());
        let open = |kind| open(directory, number, kind, false);
        let state = open("state").map_err(failed("open"))?;
        let words = map(&state, index.pages()).map_err(failed("map"))?;
        let log = open("log").map_err(failed("open"))?;
        let progress = Self {
            directory: directory.to_owned(),
            number,
            words,
            log,
        };
        if progress.get(0) != MAGIC || progress.get(PAGES) != index.pages() {
            return Err(damaged());
        }
        if progress.get(UNRECORDED) != 0 {
            return Err(failed("go on with what was not recorded in")(
                io::ErrorKind::FileTooLarge.into(),
            ));
        }
        let bytes = fs::read(path(directory, number, "layout")).map_err(failed("read"))?;
        let pieces = bytes.as_chunks::<RECORD>().0.iter().map(|record| {
            let [here, home, length, moved] = words_of(record);
            Piece {
                here,
                home,
                length,
                moved,
            }
        });
        let mut layout = Layout::of(pieces).ok_or_else(damaged)?;
        for at in 0..progress.count() {
            let change = progress.record(at).map_err(failed("read"))?;
            progress.apply(change.ok_or_else(damaged)?, at, &mut layout, index);
        }
        let unlogged = progress.unlogged().map_err(|()| damaged())?;
        Ok((progress, layout, unlogged))
    }

    /// The number of this progress.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Who forked this; none for what CRIU restored.
    pub fn parent(&self) -> Option<Parent> {
        let number = self.get(PARENT);
        (number != 0).then(|| Parent {
            number,
            count: self.get(PARENT_COUNT),
        })
    }

    /// How many changes are in the log.
    pub fn count(&self) -> u64 {
        self.words[COUNT].load(Ordering::Acquire)
    }

    /// The bits.
    pub fn done(&self) -> Done<'_> {
        Done::new(&self.words[HEADER..], self.get(PAGES))
    }

    /// Reads the next event of the space's userfaultfd. It is to be taken note of with [`Self::log`], or, where it
    /// changes nothing, with [`Self::forget`].
    pub fn read(&self, uffd: &Userfaultfd) -> io::Result<Option<Event>> {
        self.forget();
        self.set(BEFORE, self.count());
        let Some(record) = self.words.get(EVENT..).and_then(<[_]>::first_chunk) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        uffd.read_recorded(record)
    }

    /// Every event of the changes so far has been read, and no other waits: what is told from now on happened later.
    pub fn quiet(&self) {
        let mark = mark(self.count());
        if self.get(QUIET) != mark {
            self.set(QUIET, mark);
        }
    }

    /// Whether that was so since the move with this mark.
    pub fn was_quiet_since(&self, moved: u64) -> bool {
        moved <= self.get(QUIET)
    }

    /// Where the mapping came to that moved by the change with this mark; none where it is not known.
    pub fn destination(&self, moved: u64) -> Option<Range<u64>> {
        match self.record(moved.checked_sub(1)?) {
            Ok(Some(Change::Moved { to, length, .. })) => Some(to..to.saturating_add(length)),
            _ => None,
        }
    }

    /// Whether that was so since the last change.
    pub fn is_quiet(&self) -> bool {
        self.count() == 0 || self.was_quiet_since(mark(self.count()))
    }

    /// What was read last changed nothing.
    pub fn forget(&self) {
        self.words[EVENT].store(0, Ordering::Release);
    }

    /// Keeps what the event that was read has changed, all of it or nothing, and applies it.
    pub fn log(
        &self,
        changes: &[Change],
        layout: &mut Layout,
        index: &Index,
    ) -> Result<(), MemoryError> {
        let count = self.count();
        let after = count + changes.len() as u64;
        if after <= MOST_RECORDS {
            let mut bytes = Vec::with_capacity(changes.len() * RECORD);
            for change in changes {
                bytes.extend(change.words().iter().flat_map(|word| word.to_ne_bytes()));
            }
            let written = self.log.write_all_at(&bytes, count * RECORD as u64);
            written.map_err(failed("write", &self.directory, self.number))?;
        } else if self.get(UNRECORDED) == 0 {
            eprintln!(
                "the address space {} changes very much: from now on the container is lost if this process is",
                self.number
            );
            self.set(UNRECORDED, 1);
        }
        self.words[COUNT].store(after, Ordering::Release);
        self.forget();
        for (at, change) in (count..).zip(changes) {
            self.apply(*change, at, layout, index);
        }
        Ok(())
    }

    /// Removes the files.
    pub fn remove(&self) {
        for kind in ["state", "layout", "log"] {
            // They go with the directory at the latest.
            let _ = fs::remove_file(path(&self.directory, self.number, kind));
        }
    }

    fn apply(&self, change: Change, at: u64, layout: &mut Layout, index: &Index) {
        let gone = match change {
            Change::Gone { start, end } => layout.remove(start..end),
            Change::Lapsed { start, end } => layout.lapse(&(start..end)),
            Change::Moved { from, to, length } => {
                layout.remap(from, to, length, mark(at + 1));
                Vec::new()
            }
            Change::Told { start, end } => {
                layout.told(&(start..end));
                Vec::new()
            }
            Change::Quiet => layout.quiet(),
            Change::Forked { .. } => Vec::new(),
        };
        for home in gone {
            settle(self.done(), index, home);
        }
    }

    fn record(&self, at: u64) -> io::Result<Option<Change>> {
        let mut bytes = [0; RECORD];
        self.log.read_exact_at(&mut bytes, at * RECORD as u64)?;
        Ok(Change::of(words_of(&bytes)))
    }

    fn unlogged(&self) -> Result<Option<Unlogged>, ()> {
        // A log that has grown since has the event already.
        if self.get(BEFORE) != self.count() {
            return Ok(None);
        }
        let [kind, first, second, third] = [0, 1, 2, 3].map(|n| self.get(EVENT + n));
        Ok(match kind & 0xFF {
            // A fault that was read and not answered happens again when it is woken.
            0 | 0x12 => None,
            0x13 => Some(Unlogged::Fork {
                // The kernel's `struct uffd_msg` has it in 32 bits.
                descriptor: first as u32 as i32,
            }),
            0x14 => Some(Unlogged::Remap {
                from: first,
                to: second,
                length: third,
            }),
            0x15 => Some(Unlogged::Remove(first..second)),
            0x16 => Some(Unlogged::Unmap(first..second)),
            _ => return Err(()),
        })
    }

    fn get(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::Acquire)
    }

    fn set(&self, at: usize, value: u64) {
        self.words[at].store(value, Ordering::Release);
    }
}

/// The process whose pages these were, by its id when it was dumped.
pub fn vpid_of(directory: &Path, number: u64) -> Result<u32, MemoryError> {
    let word = header(directory, number, VPID)?;
    u32::try_from(word)
        .map_err(|_| failed("make sense of", directory, number)(io::ErrorKind::InvalidData.into()))
}

/// Who forked this one; none for what CRIU restored.
pub fn parent_of(directory: &Path, number: u64) -> Result<Option<Parent>, MemoryError> {
    let parent = header(directory, number, PARENT)?;
    let count = header(directory, number, PARENT_COUNT)?;
    let number = parent;
    Ok((number != 0).then_some(Parent { number, count }))
}

fn header(directory: &Path, number: u64, at: usize) -> Result<u64, MemoryError> {
    let failed = |operation| failed(operation, directory, number);
    let state = open(directory, number, "state", false).map_err(failed("open"))?;
    let mut word = [0; 8];
    let read = state.read_exact_at(&mut word, at as u64 * 8);
    read.map_err(failed("read"))?;
    Ok(u64::from_ne_bytes(word))
}

/// The mark of what a log of so many records says; never 0.
fn mark(count: u64) -> u64 {
    count + 1
}

/// Numbers for progress, each given once, whoever gives them.
#[derive(Debug)]
pub struct Numbers(SharedWords);

impl Numbers {
    /// Those of a fill.
    pub fn of(directory: &Path) -> Result<Self, MemoryError> {
        let open = || {
            let mut how = OpenOptions::new();
            how.read(true).write(true).create(true).truncate(false);
            SharedWords::map(&how.mode(0o600).open(directory.join("numbers"))?, 1)
        };
        open().map(Self).map_err(failed("count in", directory, 0))
    }

    /// A new one; never 0.
    pub fn next(&self) -> u64 {
        self.0[0].fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Notes that the pages of a range of homes are done.
pub fn settle(done: Done<'_>, index: &Index, home: Range<u64>) {
    let Some(first) = index.number(home.start) else {
        return;
    };
    let pages = (home.end - home.start) / crate::model::PAGE_SIZE;
    done.set(first..first + pages);
}

fn map(state: &File, pages: u64) -> io::Result<SharedWords> {
    let words = usize::try_from(pages.div_ceil(WORD)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let words = SharedWords::map(state, HEADER + words)?;
    // Without the right to lock memory an event could only be lost where the header has just been swapped out.
    let _ = words.lock(HEADER);
    // Even so it must be there for the first event.
    words[EVENT].fetch_or(0, Ordering::Relaxed);
    Ok(words)
}

fn path(directory: &Path, number: u64, kind: &str) -> PathBuf {
    directory.join(format!("{number}.{kind}"))
}

fn open(directory: &Path, number: u64, kind: &str, new: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(new)
        .mode(0o600)
        .open(path(directory, number, kind))
}

fn words_of(record: &[u8; RECORD]) -> [u64; 4] {
    let words = record.as_chunks::<8>().0;
    [0, 1, 2, 3].map(|at| u64::from_ne_bytes(words[at]))
}

fn failed(
    operation: &'static str,
    directory: &Path,
    number: u64,
) -> impl Fn(io::Error) -> MemoryError {
    let path = directory.join(number.to_string());
    move |source| MemoryError::Fill {
        operation,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::PAGE_SIZE;

    fn space() -> (Index, Layout) {
        let range = PAGE_SIZE..201 * PAGE_SIZE;
        let index = Index::new(std::iter::once(range.clone()));
        (index, Layout::at_home(std::iter::once(range)))
    }

    #[test]
    fn a_successor_finds_what_was_logged_and_what_was_only_read() {
        let directory = tempfile::tempdir().unwrap();
        let (index, mut layout) = space();
        let page = |n: u64| n * PAGE_SIZE;
        let progress = Progress::create(directory.path(), 3, 77, &index, &layout, None).unwrap();
        progress.done().set(0..5);
        let moved = Change::Moved {
            from: page(100),
            to: page(1000),
            length: page(10),
        };
        let gone = Change::Gone {
            start: page(50),
            end: page(60),
        };
        progress.log(&[moved], &mut layout, &index).unwrap();
        progress.log(&[gone], &mut layout, &index).unwrap();
        assert_eq!(progress.done().left(), 200 - 5 - 10);
        let again = || Progress::resume(directory.path(), 3, &index).unwrap();
        let (resumed, replayed, unlogged) = again();
        assert_eq!((&replayed, unlogged), (&layout, None));
        assert_eq!(replayed.home(page(1003)), Some(page(103)));
        assert_eq!(resumed.done().left(), 185);
        assert_eq!(vpid_of(directory.path(), 3).unwrap(), 77);

        // Read by the kernel into the header, and then the process died.
        let event = [0x15, page(1), page(2), 0];
        for (n, word) in event.into_iter().enumerate() {
            progress.words[EVENT + n].store(word, Ordering::Relaxed);
        }
        progress.set(BEFORE, progress.count());
        assert_eq!(again().2, Some(Unlogged::Remove(page(1)..page(2))));
        // Logged, and its place not yet freed.
        progress.words[COUNT].fetch_sub(1, Ordering::Relaxed);
        assert_eq!(again().2, None);
        progress.words[COUNT].fetch_add(1, Ordering::Relaxed);
        for (kind, expected) in [
            (0x12, None),
            (0x13, Some(Unlogged::Fork { descriptor: 4096 })),
        ] {
            progress.words[EVENT].store(kind, Ordering::Relaxed);
            assert_eq!(again().2, expected);
        }
        progress.words[EVENT].store(0x99, Ordering::Relaxed);
        assert!(Progress::resume(directory.path(), 3, &index).is_err());
        progress.forget();
        assert_eq!(again().2, None);
    }

    #[test]
    fn what_was_not_recorded_is_not_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let (index, mut layout) = space();
        let progress = Progress::create(directory.path(), 1, 1, &index, &layout, None).unwrap();
        progress.set(COUNT, MOST_RECORDS);
        let gone = Change::Gone { start: 0, end: 1 };
        progress.log(&[gone], &mut layout, &index).unwrap();
        let resumed = Progress::resume(directory.path(), 1, &index);
        assert!(matches!(resumed, Err(MemoryError::Fill { .. })));
    }
}
