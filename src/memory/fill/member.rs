//! One address space that is being filled: a restored process, or a child it has had since.

mod bring;
mod event;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use bring::Outcome;

use super::index::Done;
use super::layout::Layout;
use super::progress::{Change, Numbers, Parent, Progress, Unlogged};
use super::source::Source;
use crate::memory::MemoryError;
use crate::model::PAGE_SIZE;
use crate::sys::userfaultfd::{Event, Registered, Userfaultfd};

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
/// **Invariant:** a page is placed, and an event is *read*, under the lock of the layout: a page that the container
/// gives up, moves or unmaps is never placed by somebody who does not know of that yet. Only the thread that answers
/// faults ever takes that lock: nobody waits for somebody who does not run.
#[derive(Debug)]
pub struct Member {
    uffd: Userfaultfd,
    source: Arc<Source>,
    progress: Progress,
    layout: Mutex<Layout>,
    /// The next word that nobody has taken yet.
    next: AtomicU64,
    gone: AtomicBool,
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

/// Where the descriptor of a child is that was born while a filler was killed.
pub struct Heirs<'a> {
    /// The child of this birth, where the guard has it.
    pub held: &'a dyn Fn(Parent) -> Option<u64>,
    /// The descriptor that had this number in the filler, where that was kept.
    pub kept: &'a dyn Fn(i32) -> Option<Userfaultfd>,
    /// Where the number of a child that nobody had been told of comes from.
    pub numbers: &'a Numbers,
    /// See [`Keep`].
    pub keep: &'a mut Keep<'a>,
}

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

    /// A process whose filler has died. What had been read is applied. If that is a birth of which nobody had been
    /// told yet, the child is returned as well; that nobody has its descriptor is an error.
    pub fn resumed(
        directory: &Path,
        number: u64,
        uffd: Userfaultfd,
        source: Arc<Source>,
        heirs: &mut Heirs<'_>,
    ) -> Result<(Arc<Self>, Option<Arc<Self>>), MemoryError> {
        let (progress, layout, unlogged) = Progress::resume(directory, number, &source.index)?;
        let member = Self::begin(uffd, source, progress, layout);
        let mut layout = member.layout();
        let mut born = None;
        let changes = match unlogged {
            None => Vec::new(),
            Some(Unlogged::Remap { from, to, length }) => vec![Change::Moved { from, to, length }],
            Some(Unlogged::Remove(range)) => vec![gone(range)],
            Some(Unlogged::Unmap(range)) => member.unmapped(range, &layout)?,
            Some(Unlogged::Fork { descriptor }) => {
                let count = member.progress.count();
                match (heirs.held)(Parent { number, count }) {
                    Some(child) => vec![Change::Forked { child }],
                    None => {
                        let child = (heirs.kept)(descriptor).ok_or_else(|| member.orphan())?;
                        let number = heirs.numbers.next();
                        let keep = &mut *heirs.keep;
                        born = Some(member.born(directory, number, child, &mut layout, keep)?);
                        Vec::new()
                    }
                }
            }
        };
        let index = &member.source.index;
        member.progress.log(&changes, &mut layout, index)?;
        drop(layout);
        // Whoever waited for an answer of the dead one asks again.
        member.wake_all();
        Ok((member, born))
    }

    fn orphan(&self) -> MemoryError {
        let what = format!(
            "a child of process {} was born while the filler was killed, and nobody has its userfaultfd",
            self.source.vpid
        );
        MemoryError::FillStuck { what }
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
            layout: Mutex::new(layout),
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
        let layout = self.layout();
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

    fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// The next word to fill; none when all were taken. What cannot be filled yet is taken in a later turn.
    pub fn take_word(&self) -> Option<u64> {
        let words = self.source.index.words();
        let order = Ordering::Relaxed;
        let next = |next: u64| (next < words).then_some(next + 1);
        loop {
            let word = self.next.fetch_update(order, order, next).ok()?;
            if self.has_work(word) {
                return Some(word);
            }
        }
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
        let layout = self.layout();
        let mut ranges: Vec<Range<u64>> =
            layout.pieces().map(|p| p.here..p.here + p.length).collect();
        while let Some(range) = ranges.pop() {
            let registered = self.uffd.registered(range.clone());
            match registered.map_err(self.failed("ask about"))? {
                Registered::Yes | Registered::Changing => {}
                Registered::Gone => {
                    self.set_gone();
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

    /// Whether its process is still there, so far as can be told at no cost, and whether anything is still to be told of
    /// what is overdue.
    pub fn look(&self) -> Result<(), MemoryError> {
        let gone = self.uffd.registered(FIRST..FIRST + PAGE_SIZE);
        if matches!(gone, Ok(Registered::Gone)) {
            self.set_gone();
        }
        let mut layout = self.layout();
        if layout.is_awaiting() {
            self.see_whether_quiet(&mut layout)?;
        }
        Ok(())
    }

    /// Reads an event and takes note of it; none when there is none.
    pub fn read(
        self: &Arc<Self>,
        directory: &Path,
        numbers: &Numbers,
        keep: &mut Keep<'_>,
    ) -> Result<Option<Happened>, MemoryError> {
        let mut layout = self.layout();
        let event = self.progress.read(&self.uffd);
        let Some(event) = event.map_err(self.failed("read the events of"))? else {
            self.see_whether_quiet(&mut layout)?;
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
    /// have to wake up first. What is overdue then will never be told of.
    fn see_whether_quiet(&self, layout: &mut Layout) -> Result<(), MemoryError> {
        for _ in 0..LOOKS {
            if self.progress.is_quiet() {
                return Ok(());
            }
            match self.uffd.registered(FIRST..FIRST + PAGE_SIZE) {
                Ok(Registered::Changing) => std::thread::yield_now(),
                _ => {
                    if layout.is_awaiting() {
                        let quiet = [Change::Quiet];
                        self.progress.log(&quiet, layout, &self.source.index)?;
                    }
                    self.progress.quiet();
                }
            }
        }
        Ok(())
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
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
