//! One address space that is being filled: a restored process, or a child it has had since.

mod event;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::index::{Done, WORD};
use super::layout::Layout;
use super::progress::{Change, Numbers, Parent, Progress, Unlogged, settle};
use super::source::Source;
use crate::memory::MemoryError;
use crate::model::PAGE_SIZE;
use crate::sys::userfaultfd::{Event, Placed, Registered, Userfaultfd};

/// As many bytes as are placed at once: a word's pages.
pub const CHUNK: usize = (WORD * PAGE_SIZE) as usize;

static ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];

/// Ends of the address spaces there are, the longest first: which it is the kernel says.
const ENDS: [u64; 8] = [
    (1 << 56) - PAGE_SIZE,
    1 << 52,
    1 << 48,
    1 << 47,
    (1 << 47) - PAGE_SIZE,
    1 << 39,
    (1 << 32) - 2 * PAGE_SIZE,
    3 << 30,
];
/// How often it is looked whether a space is quiet.
const LOOKS: u32 = 100;
/// Below this nobody may map anything.
const FIRST: u64 = 1 << 16;

/// An address space that is being filled.
///
/// **Invariant:** a page is placed under the read lock of the layout, and an event is *read* under its write lock: a
/// page that the container gives up, moves or unmaps is never placed by somebody who does not know of that yet.
#[derive(Debug)]
pub struct Member {
    uffd: Userfaultfd,
    source: Arc<Source>,
    progress: Progress,
    layout: RwLock<Layout>,
    /// The next word that nobody has taken yet.
    next: AtomicU64,
    gone: AtomicBool,
}

/// How placing pages ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// They are there.
    Done,
    /// The address space was just being changed: events are to be read, then it is to be tried again.
    Again,
}

/// What an event was.
#[derive(Debug)]
pub enum Happened {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// A child is born, and has joined the members.
    Born(Arc<Member>),
    /// Something moved or went.
    Changed,
}

/// Takes what a new child needs into safe hands, before anything else is done with it.
pub type Keep<'a> = dyn FnMut(u64, BorrowedFd<'_>) -> Result<(), MemoryError> + 'a;

impl Member {
    /// A process that CRIU has just told of. Its files are made in `directory`.
    pub fn restored(
        directory: &Path,
        number: u64,
        uffd: Userfaultfd,
        source: Arc<Source>,
    ) -> Result<Arc<Self>, MemoryError> {
        let layout = Layout::at_home(source.index.ranges());
        let progress =
            Progress::create(directory, number, source.vpid, &source.index, &layout, None)?;
        Ok(Self::begin(uffd, source, progress, layout))
    }

    /// A process whose filler has died. What had been read is applied; what was lost with that filler is an error,
    /// unless it is the descriptor of a child that `kept` knows.
    pub fn resumed(
        directory: &Path,
        number: u64,
        uffd: Userfaultfd,
        source: Arc<Source>,
        kept: &mut dyn FnMut(Parent) -> Option<u64>,
    ) -> Result<Arc<Self>, MemoryError> {
        let (progress, layout, unlogged) = Progress::resume(directory, number, &source.index)?;
        let member = Self::begin(uffd, source, progress, layout);
        let mut layout = member
            .layout
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let changes = match unlogged {
            None => Vec::new(),
            Some(Unlogged::Remap { from, to, length }) => vec![Change::Moved { from, to, length }],
            Some(Unlogged::Remove(range)) => vec![gone(range)],
            Some(Unlogged::Unmap(range)) => member.unmapped(range, &layout)?,
            Some(Unlogged::Fork) => {
                let count = member.progress.count();
                let child = kept(Parent { number, count }).ok_or_else(|| {
                    let what = format!(
                        "a child of process {} was born while the filler was killed, and nobody has its userfaultfd",
                        member.source.vpid
                    );
                    MemoryError::FillStuck { what }
                })?;
                vec![Change::Forked { child }]
            }
        };
        let index = &member.source.index;
        member.progress.log(&changes, &mut layout, index)?;
        drop(layout);
        // Whoever waited for an answer of the dead one asks again.
        member.wake_all();
        Ok(member)
    }

    fn begin(
        uffd: Userfaultfd,
        source: Arc<Source>,
        progress: Progress,
        layout: Layout,
    ) -> Arc<Self> {
        let member = Arc::new(Self {
            uffd,
            source,
            progress,
            layout: RwLock::new(layout),
            next: AtomicU64::new(0),
            gone: AtomicBool::new(false),
        });
        member.source.join(Arc::clone(&member));
        member
    }

    /// The number of its progress.
    pub fn number(&self) -> u64 {
        self.progress.number()
    }

    /// Where its bytes come from.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Whether it was forked here.
    pub fn is_child(&self) -> bool {
        self.progress.parent().is_some()
    }

    /// The number of the lazy page at this address; none where there is none.
    pub fn number_at(&self, page: u64) -> Option<u64> {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        self.source.index.number(layout.home(page)?)
    }

    /// Which of its pages need nothing any more.
    pub fn done(&self) -> Done<'_> {
        self.progress.done()
    }

    /// Whether its process is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// The next word to fill; none when all were taken.
    pub fn take_word(&self) -> Option<u64> {
        let words = self.source.index.words();
        let order = Ordering::Relaxed;
        let next = |next: u64| (next < words).then_some(next + 1);
        self.next.fetch_update(order, order, next).ok()
    }

    /// Whether all words were taken.
    pub fn is_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.source.index.words()
    }

    /// Begins with the first word again.
    pub fn start_over(&self) {
        self.next.store(0, Ordering::Relaxed);
    }

    /// Asks whether every lazy page is where faults on it are told. False where the process is gone.
    pub fn check(&self) -> Result<bool, MemoryError> {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        let mut ranges: Vec<Range<u64>> =
            layout.pieces().map(|p| p.here..p.here + p.length).collect();
        while let Some(range) = ranges.pop() {
            let registered = self.uffd.registered(range.clone());
            match registered.map_err(self.failed("ask about"))? {
                Registered::Yes | Registered::Changing => {}
                Registered::Gone => {
                    self.gone.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                Registered::No if range.end - range.start > PAGE_SIZE => {
                    // It may be in two mappings.
                    let half = (range.end - range.start) / 2 / PAGE_SIZE * PAGE_SIZE;
                    let middle = range.start + half;
                    ranges.extend([range.start..middle, middle..range.end]);
                }
                Registered::No => {
                    let what = format!(
                        "the page at {:#x} of process {} was restored without its userfaultfd: restore it eagerly",
                        range.start, self.source.vpid
                    );
                    return Err(MemoryError::FillStuck { what });
                }
            }
        }
        Ok(true)
    }

    /// Whether its process is still there, so far as can be told at no cost.
    pub fn look(&self) {
        let gone = self.uffd.registered(FIRST..FIRST + PAGE_SIZE);
        if matches!(gone, Ok(Registered::Gone)) {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    /// Answers who waits for a page.
    pub fn answer(&self, address: u64, buffer: &mut [u8]) -> Result<Outcome, MemoryError> {
        let page = address / PAGE_SIZE * PAGE_SIZE;
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(home) = layout.home(page)
            && let Some(number) = self.source.index.number(home)
            && !self.done().is_done(number)
        {
            match self.place(page, home..home + PAGE_SIZE, buffer)? {
                Outcome::Again => return Ok(Outcome::Again),
                Outcome::Done => {}
            }
        }
        // What has no bytes in the store, or none any more, is zero; what is there wakes who waits.
        let range = page..page + PAGE_SIZE;
        let placed = self.uffd.zeropage(range.clone());
        match placed.map_err(self.failed("place zeros for"))? {
            Placed::All | Placed::Some(_) => {}
            Placed::Changing => return Ok(Outcome::Again),
            Placed::Exists | Placed::Unmapped => {
                self.uffd.wake(range).map_err(self.failed("wake"))?;
            }
            Placed::Gone => self.gone.store(true, Ordering::Relaxed),
        }
        Ok(Outcome::Done)
    }

    /// Fills the pages of a word that are missing.
    pub fn fill(&self, word: u64, buffer: &mut [u8]) -> Result<Outcome, MemoryError> {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        for run in self.done().missing(word) {
            for (_, home) in self.source.index.homes(run) {
                for piece in layout.at(home) {
                    let home = piece.home..piece.home + piece.length;
                    if self.place(piece.here, home, buffer)? == Outcome::Again {
                        return Ok(Outcome::Again);
                    }
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// Places the pages of a range of homes at `here`. Zeros are not placed: that is what a missing page is.
    fn place(
        &self,
        here: u64,
        home: Range<u64>,
        buffer: &mut [u8],
    ) -> Result<Outcome, MemoryError> {
        let mut at = home.start;
        while at < home.end && !self.is_gone() {
            let length = (home.end - at).min(buffer.len() as u64);
            let bytes = &mut buffer[..length as usize];
            let read = self.source.read(at, bytes);
            read.map_err(self.failed("read the pages of"))?;
            let pages: Vec<&[u8]> = bytes.chunks_exact(ZEROS.len()).collect();
            let mut from = 0;
            for run in pages.chunk_by(|a, b| (*a == ZEROS) == (*b == ZEROS)) {
                let to = from + run.len() * ZEROS.len();
                let home_of = at + from as u64;
                if run[0] == ZEROS {
                    settle(self.done(), &self.source.index, home_of..at + to as u64);
                } else {
                    let here = here + (home_of - home.start);
                    if self.copy(here, home_of, &bytes[from..to])? == Outcome::Again {
                        return Ok(Outcome::Again);
                    }
                }
                from = to;
            }
            at += length;
        }
        Ok(Outcome::Done)
    }

    fn copy(&self, here: u64, home: u64, bytes: &[u8]) -> Result<Outcome, MemoryError> {
        let length = bytes.len() as u64;
        let settle = |from: u64, to: u64| {
            settle(self.done(), &self.source.index, home + from..home + to);
        };
        let mut at = 0;
        // One page at a time after a range that is not of one mapping.
        let mut step = length;
        while at < length {
            let end = (at + step).min(length);
            let placed = self.uffd.copy(here + at, &bytes[at as usize..end as usize]);
            let next = match placed.map_err(self.failed("place pages of"))? {
                Placed::All => end,
                Placed::Some(placed) => at + placed,
                // It was placed before, and that was not noted.
                Placed::Exists => at + PAGE_SIZE,
                Placed::Changing => return Ok(Outcome::Again),
                Placed::Unmapped if end - at > PAGE_SIZE => {
                    step = PAGE_SIZE;
                    continue;
                }
                // No mapping that anybody would see it in: of a child, one that it did not inherit.
                Placed::Unmapped => at + PAGE_SIZE,
                Placed::Gone => {
                    self.gone.store(true, Ordering::Relaxed);
                    return Ok(Outcome::Done);
                }
            };
            settle(at, next);
            at = next;
        }
        Ok(Outcome::Done)
    }

    /// Reads an event and takes note of it; none when there is none.
    pub fn read(
        self: &Arc<Self>,
        directory: &Path,
        numbers: &Numbers,
        keep: &mut Keep<'_>,
    ) -> Result<Option<Happened>, MemoryError> {
        let mut layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        let event = self.progress.read(&self.uffd);
        let Some(event) = event.map_err(self.failed("read the events of"))? else {
            self.see_whether_quiet();
            return Ok(None);
        };
        let changes = match event {
            Event::Fault { address, .. } => {
                self.progress.forget();
                return Ok(Some(Happened::Fault(address)));
            }
            Event::Fork { child } => {
                let child = self.born(directory, numbers.next(), child, &mut layout, keep)?;
                return Ok(Some(Happened::Born(child)));
            }
            Event::Remap { from, to, length } => vec![Change::Moved { from, to, length }],
            Event::Remove { range } => vec![gone(range)],
            Event::Unmap { range } => self.unmapped(range, &layout)?,
        };
        let index = &self.source.index;
        self.progress.log(&changes, &mut layout, index)?;
        Ok(Some(Happened::Changed))
    }

    /// Where nothing waits to be read, looks for the moment at which nothing changes either. Who was read last may
    /// have to wake up first.
    fn see_whether_quiet(&self) {
        for _ in 0..LOOKS {
            if self.progress.is_quiet() {
                return;
            }
            match self.uffd.registered(FIRST..FIRST + PAGE_SIZE) {
                Ok(Registered::Changing) => std::thread::yield_now(),
                _ => self.progress.quiet(),
            }
        }
    }

    fn wake_all(&self) {
        // It only fails where the space ends before.
        let _ = ENDS.iter().find(|end| self.uffd.wake(FIRST..**end).is_ok());
    }

    /// Nobody needs it any more: its files go, and with the last duplicate of its descriptor its registrations.
    pub fn retire(&self) {
        self.source.leave(self.number());
        self.progress.remove();
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> MemoryError {
        let vpid = self.source.vpid;
        move |source| MemoryError::Fill {
            operation,
            path: format!("process {vpid}").into(),
            source,
        }
    }
}

impl AsFd for Member {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

fn gone(range: Range<u64>) -> Change {
    Change::Gone {
        start: range.start,
        end: range.end,
    }
}
