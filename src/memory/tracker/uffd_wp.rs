//! The tracker that write-protects: finds what was written while everything runs, and reads no more than that.

use std::collections::{HashMap, HashSet};

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::hash::compare;
use super::inject::{self, Refusal};
use super::own::{self, Look, Unknown};
use super::segment::{self, Segments};
use super::task::{FileSystems, Task};
use super::watch::{Untracked, Watch, is_written_directly};
use super::{Residual, RoundStats, SentPages, Target, Tracker};
use crate::model::TrackerChoice;
use crate::sys::userfaultfd::Userfaultfd;

/// How often it is tried to track a task: one that shares its memory for a moment (vfork) soon has its own.
const ATTEMPTS: u32 = 3;

/// Asynchronous write protection by a userfaultfd per address space: Linux 6.7. See `watch.rs` for why it is right.
///
/// A task gets its userfaultfd from one thread of its own, which is stopped for it once, for some 100 µs. A task
/// that cannot be tracked is compared by content, as [`HashTracker`](super::HashTracker) does.
#[derive(Debug, Default)]
pub struct UffdWpTracker {
    known: HashMap<i32, Known>,
    /// Descriptors that a task still has, as it was frozen when it should have closed them.
    left: Vec<Left>,
    sent: SentPages,
    file_systems: FileSystems,
}

#[derive(Debug)]
struct Known {
    space: Space,
    how: How,
}

#[derive(Debug)]
enum How {
    Tracked(Watch),
    Compared { attempts: u32 },
}

#[derive(Debug)]
struct Left {
    pid: i32,
    number: i32,
    uffd: Userfaultfd,
}

impl UffdWpTracker {
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
        for target in targets {
            let Some(task) = Task::open(target.pid)? else {
                continue;
            };
            self.meet(*target, &task);
            self.space(*target, &task, sender, &mut stats)?;
            segments.round(&task, &mut self.sent, sender, &mut stats)?;
        }
        sender.flush()?;
        Ok(stats)
    }

    /// Decides how a task's writes are found, where that is not known yet.
    fn meet(&mut self, target: Target, task: &Task) {
        let space = Space::Task(target.vpid);
        let before = self
            .known
            .remove(&target.pid)
            .filter(|known| known.space == space);
        let direct = is_written_directly(target.pid);
        let how = match before.map(|known| known.how) {
            Some(How::Tracked(_)) | None if direct => self.compare(target, &Untracked::Direct),
            Some(How::Tracked(watch)) => How::Tracked(watch),
            Some(How::Compared { attempts }) if direct || attempts >= ATTEMPTS => {
                How::Compared { attempts }
            }
            Some(How::Compared { attempts }) => self.try_to_track(target, task, attempts),
            None => self.try_to_track(target, task, 0),
        };
        self.known.insert(target.pid, Known { space, how });
    }

    fn try_to_track(&mut self, target: Target, task: &Task, attempts: u32) -> How {
        match Watch::new(task, &mut self.file_systems) {
            Ok(watch) => {
                // What was compared before is sent by another hand from now on.
                self.sent.forget(Space::Task(target.vpid));
                How::Tracked(watch)
            }
            Err(why) if attempts == 0 => {
                self.compare(target, &why)
                    .after(attempts, why, &mut self.left)
            }
            Err(why) => How::Compared { attempts }.after(attempts, why, &mut self.left),
        }
    }

    /// From now on the task's memory is compared by content, all of it being news once.
    fn compare(&mut self, target: Target, why: &Untracked) -> How {
        let pid = target.pid;
        tracing::info!(pid, %why, "the writes of a process cannot be tracked: its memory is compared");
        self.sent.forget(Space::Task(target.vpid));
        How::Compared { attempts: 0 }
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
        let before = stats.changed;
        // An exec is found out at the first page that has to be registered: then everything begins anew, once.
        for again in [true, false] {
            // Frames of one round may overtake each other: a page that was sent in it waits for the next one, or for
            // the last look.
            if stats.changed > before {
                return Ok(());
            }
            let Some(How::Tracked(watch)) = self.known.get_mut(&target.pid).map(|k| &mut k.how)
            else {
                break;
            };
            let mut rounds = mappings
                .iter()
                .map(|mapping| watch.round(task, space, mapping, sender, stats));
            let failed = rounds.find_map(|round| round.map(Result::err).transpose());
            let Some(why) = failed.transpose()? else {
                // Only where nothing was written directly while the pages were protected and read.
                if !is_written_directly(target.pid) {
                    return Ok(());
                }
                let how = self.compare(target, &Untracked::Direct);
                self.known.insert(target.pid, Known { space, how });
                break;
            };
            let how = match why {
                Untracked::Gone if again => self.try_to_track(target, task, 0),
                why => self.compare(target, &why),
            };
            self.known.insert(target.pid, Known { space, how });
        }
        if stats.changed > before {
            return Ok(());
        }
        for mapping in &mappings {
            let runs = task.own(mapping)?;
            compare(task, space, runs, &mut self.sent, sender, stats)?;
        }
        Ok(())
    }

    /// The last look at one task.
    fn look(
        &mut self,
        target: Target,
        sender: &mut Sender<'_>,
    ) -> Result<Option<super::OwnedSpace>, MemoryError> {
        let space = Space::Task(target.vpid);
        let known = self
            .known
            .get(&target.pid)
            .filter(|known| known.space == space);
        let mut look: &dyn Look = &Unknown;
        if let Some(How::Tracked(watch)) = known.map(|known| &known.how) {
            let task = Task::open(target.pid)?;
            let knows = task.map(|task| watch.knows(&task, &mut self.file_systems));
            if knows.transpose()? == Some(true) {
                look = watch;
            }
        }
        own::look(target, look, &mut self.file_systems, &self.sent, sender)
    }
}

impl How {
    /// Counts an attempt, and keeps what it left behind.
    fn after(self, attempts: u32, why: Untracked, left: &mut Vec<Left>) -> Self {
        if let Untracked::Refused(Refusal::Left { pid, number, uffd }) = why {
            left.push(Left { pid, number, uffd });
        }
        match self {
            Self::Compared { .. } => Self::Compared {
                attempts: attempts + 1,
            },
            tracked => tracked,
        }
    }
}

impl Tracker for UffdWpTracker {
    fn kind(&self) -> TrackerChoice {
        TrackerChoice::UffdWp
    }

    fn round(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<RoundStats, MemoryError> {
        self.close_left();
        let alive: HashSet<i32> = targets.iter().map(|target| target.pid).collect();
        self.known.retain(|pid, _| alive.contains(pid));
        let stats = self.round_over(targets, sender);
        if stats.is_err() {
            self.release();
        }
        stats
    }

    fn last(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<Residual, MemoryError> {
        let spaces: Result<Vec<_>, _> = targets
            .iter()
            .filter_map(|target| self.look(*target, sender).transpose())
            .collect();
        self.close_left();
        let spaces = spaces?;
        let segments = segment::owned(targets)?;
        sender.flush()?;
        Ok(Residual { spaces, segments })
    }

    fn release(&mut self) {
        // Closing a userfaultfd undoes all that it did.
        self.known.clear();
        self.close_left();
    }

    fn sent(&self) -> &SentPages {
        &self.sent
    }
}

impl UffdWpTracker {
    fn close_left(&mut self) {
        for Left { pid, number, uffd } in std::mem::take(&mut self.left) {
            if inject::close(pid, number, &uffd).is_err() {
                self.left.push(Left { pid, number, uffd });
            }
        }
    }
}

impl Drop for UffdWpTracker {
    fn drop(&mut self) {
        self.release();
    }
}
