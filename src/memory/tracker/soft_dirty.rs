//! The tracker that asks the kernel's soft-dirty bits: for kernels that have those and no asynchronous write
//! protection, and for tasks that are not to be touched at all.
//!
//! ```text
//! clear ─▶ read everything, compare, send ─▶ round: what is dirty since, compare, send ─▶ … ─▶ last look, frozen
//!   ▲                                                                               │
//!   └─────────────── too much is dirty by now: all over again ◀────────────────────┘
//! ```
//!
//! **Why not scan and clear in each round.** Bits can be read and bits can be cleared, but not in one step, and a
//! clear is of the whole address space. A page that is written between the two, and not again, would be lost. CRIU
//! stops the tasks meanwhile; our rounds do not stop anybody. So there is no such window here: **whatever is
//! cleared is read afterwards, all of it.** A write before the clear has returned is in what is read (the clear ends
//! by flushing the TLBs, so nobody writes past the page table then); a write after it leaves a bit, and bits only
//! ever become more until we clear again. A round reads what is dirty since the clear, which may be more than what
//! was written since the round before, and what has not changed is found out by its hash.
//!
//! **Invariant:** a page is taken for sent only if it was read after the clear, is not dirty, and is still the page
//! that was read. The last is not idle: where mremap moves 2 MiB at once, it moves a page table, and marks nothing.
//! So of each such block one clean page's frame is remembered (a *witness*) before the block is read. In another
//! block's table there is another frame at its place: a frame that was freed and used again is dirty, wherever it is.
//! What this cannot see is a block moved away, another one put in its place and read, and the first one moved back,
//! all between two looks of ours that are less than a millisecond apart.
//!
//! Kernel threads that merge equal pages (KSM) clear bits as they do so; while they run, memory is compared. So it is
//! where devices write it, and where two processes share it, as a clear for one would be a clear for the other.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::Range;

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::hash::compare;
use super::maps::Private;
use super::own::{self, Found, Kind, Look, Looked, Unknown};
use super::read::{self, Judge};
use super::segment::{self, Segments};
use super::since::Since;
use super::task::{FileSystems, Task};
use super::watch::is_written_directly;
use super::{Residual, RoundStats, SentPages, Target, Tracker};
use crate::model::{Pages, TrackerChoice};
use crate::sys::{kcmp, pagemap};

/// So many dirty pages are compared in each round without a thought.
const FEW: Pages = Pages(1024);
/// When this part of all pages is dirty, everything is read once more instead.
const PART: u64 = 4;

/// Soft-dirty bits, cleared seldom. See above for why it is right.
///
/// Tasks are neither stopped nor touched. Their first write to a page after a clear costs a fault.
#[derive(Debug, Default)]
pub struct SoftDirtyTracker {
    known: HashMap<i32, Known>,
    sent: SentPages,
    file_systems: FileSystems,
}

#[derive(Debug)]
struct Known {
    space: Space,
    /// When the process began: its number alone may be that of another by now.
    began: u64,
    since: Since,
    /// Mappings of which `smaps` had nothing special to tell.
    plain: HashSet<Range<u64>>,
}

/// Why the bits of a process say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Blind {
    #[error("it has files open for direct I/O, whose writes to its memory are not seen")]
    Direct,
    #[error("it shares its memory with another process")]
    Shared,
    #[error("the kernel merges equal pages (/sys/kernel/mm/ksm/run), which loses soft-dirty bits")]
    Merging,
    #[error("its soft-dirty bits cannot be cleared")]
    Uncleared,
}

impl SoftDirtyTracker {
    /// A tracker that has sent nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn round_over(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<RoundStats, MemoryError> {
        let mut stats = RoundStats::default();
        let mut segments = Segments::default();
        let merging = is_merging();
        for target in targets {
            let Some(task) = Task::open(target.pid)? else {
                continue;
            };
            if let Err(why) = self.meet(*target, merging) {
                let pid = target.pid;
                tracing::info!(pid, %why, "a process is not tracked in this round: its memory is compared");
                self.known.remove(&pid);
            }
            self.space(*target, &task, sender, &mut stats)?;
            segments.round(&task, &mut self.sent, sender, &mut stats)?;
        }
        sender.flush()?;
        Ok(stats)
    }

    /// Clears the bits of a process, where that has not been done or is due again.
    fn meet(&mut self, target: Target, merging: bool) -> Result<(), Blind> {
        if merging {
            return Err(Blind::Merging);
        }
        let pid = target.pid;
        let (space, began) = (Space::Task(target.vpid), began(pid));
        if let Some(known) = self.known.get(&pid)
            && (known.space, Some(known.began)) == (space, began)
        {
            let Since { pages, dirty, .. } = known.since;
            if dirty <= FEW || dirty.0 <= pages.0 / PART {
                return Ok(());
            }
        }
        self.known.remove(&pid);
        let mut others = self.known.keys();
        if others.any(|other| kcmp::same_memory(pid, *other).unwrap_or(true)) {
            return Err(Blind::Shared);
        }
        // Before and after: what began to be written in between would not be seen.
        let cleared = !is_written_directly(pid) && pagemap::clear_soft_dirty(pid).is_ok();
        if is_written_directly(pid) {
            return Err(Blind::Direct);
        }
        let began = began.filter(|_| cleared).ok_or(Blind::Uncleared)?;
        let known = Known {
            space,
            began,
            since: Since::default(),
            plain: HashSet::new(),
        };
        self.known.insert(pid, known);
        Ok(())
    }

    fn space(
        &mut self,
        target: Target,
        task: &Task,
        sender: &mut Sender<'_>,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        let space = Space::Task(target.vpid);
        let mappings = task.private(&mut self.file_systems);
        let sent = &mut self.sent;
        let Some(known) = self.known.get_mut(&target.pid) else {
            for mapping in &mappings {
                let runs = task.own(mapping)?;
                compare(task, space, runs, sent, sender, stats)?;
            }
            return Ok(());
        };
        let found = known.since.look(task, &mappings)?;
        let unsent = found.into_iter().flatten();
        let unsent = unsent.filter(|found| found.kind == Kind::Unsent);
        let runs = unsent.map(|found| found.pages);
        let since = &mut known.since;
        let mut judge = |vaddr: u64, page: &[u8]| {
            since.note(vaddr);
            sent.update(space, vaddr, page)
        };
        // What cannot be read is not noted, and is left to the last look.
        read::send(&task.memory, space, runs, &mut judge, sender, stats)?;
        known.learn(task, &mappings)
    }

    /// The last look at one task.
    fn look(
        &mut self,
        target: Target,
        merging: bool,
        sender: &mut Sender<'_>,
    ) -> Result<Option<super::OwnedSpace>, MemoryError> {
        let space = Space::Task(target.vpid);
        let known = self.known.get_mut(&target.pid).filter(|known| {
            !merging && known.space == space && Some(known.began) == began(target.pid)
        });
        let task = Task::open(target.pid)?;
        let (Some(known), Some(task)) = (known, task) else {
            let systems = &mut self.file_systems;
            return own::look(target, &Unknown, systems, &self.sent, sender);
        };
        let mappings = task.private(&mut self.file_systems);
        let found = known.since.look(&task, &mappings)?;
        let ranges = mappings.into_iter().map(|mapping| mapping.range);
        let frozen = Frozen {
            found: ranges.zip(found).collect(),
            plain: &known.plain,
        };
        own::look(target, &frozen, &mut self.file_systems, &self.sent, sender)
    }
}

impl Known {
    /// Finds out which of the anonymous mappings are special while that stops nobody.
    fn learn(&mut self, task: &Task, mappings: &[Private]) -> Result<(), MemoryError> {
        let anonymous = || mappings.iter().filter(|mapping| mapping.file.is_none());
        if anonymous().all(|mapping| self.plain.contains(&mapping.range)) {
            return Ok(());
        }
        let special: HashSet<_> = task.special(true)?.into_iter().map(|(r, _)| r).collect();
        let plain = anonymous().filter(|mapping| !special.contains(&mapping.range));
        self.plain = plain.map(|mapping| mapping.range.clone()).collect();
        Ok(())
    }
}

/// What was found in a frozen task.
struct Frozen<'a> {
    found: HashMap<Range<u64>, Vec<Found>>,
    plain: &'a HashSet<Range<u64>>,
}

impl Look for Frozen<'_> {
    fn judge(&self) -> Judge {
        Judge::Compared
    }

    fn pages(&self, task: &Task, mapping: &Private) -> Result<Looked, MemoryError> {
        match self.found.get(&mapping.range) {
            Some(found) => Ok(Looked {
                found: found.clone(),
                untracked: false,
            }),
            None => Unknown.pages(task, mapping),
        }
    }

    fn lazy(&self, mapping: &Private, _: bool) -> Option<bool> {
        self.plain.contains(&mapping.range).then_some(true)
    }
}

impl Tracker for SoftDirtyTracker {
    fn kind(&self) -> TrackerChoice {
        TrackerChoice::SoftDirty
    }

    fn round(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<RoundStats, MemoryError> {
        let alive: HashSet<i32> = targets.iter().map(|target| target.pid).collect();
        self.known.retain(|pid, _| alive.contains(pid));
        self.round_over(targets, sender)
    }

    fn last(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<Residual, MemoryError> {
        let merging = is_merging();
        let mut residual = Residual {
            segments: segment::owned(targets)?,
            ..Residual::default()
        };
        for target in targets {
            residual.spaces.extend(self.look(*target, merging, sender)?);
        }
        sender.flush()?;
        Ok(residual)
    }

    fn release(&mut self) {
        // A cleared bit is no trace: nothing but a reader of bits can tell.
        self.known.clear();
    }

    fn sent(&self) -> &SentPages {
        &self.sent
    }
}

/// Whether the kernel merges equal pages. Where it cannot, there is no such file.
fn is_merging() -> bool {
    fs::read_to_string("/sys/kernel/mm/ksm/run").is_ok_and(|run| run.trim() != "0")
}

/// When a process began, in the kernel's ticks: none when it has ended.
fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may be anything (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}
