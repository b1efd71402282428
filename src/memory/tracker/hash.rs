//! The tracker that reads everything: slow, and right on every kernel.

use std::ops::Range;

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::own::{self, Unknown};
use super::read;
use super::segment::{self, Segments};
use super::task::{FileSystems, Task};
use super::{Residual, RoundStats, SentPages, Target, Tracker};
use crate::model::TrackerChoice;

/// Every round reads every page that has content and compares its hash with what was sent.
///
/// Tasks are neither stopped nor touched. A page that is written while it is read may be sent torn: it differs
/// from what it is at the end, and is sent again.
#[derive(Debug, Default)]
pub struct HashTracker {
    sent: SentPages,
    file_systems: FileSystems,
}

impl HashTracker {
    /// A tracker that has sent nothing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Tracker for HashTracker {
    fn kind(&self) -> TrackerChoice {
        TrackerChoice::Hash
    }

    fn round(
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
            let space = Space::Task(target.vpid);
            for mapping in task.private(&mut self.file_systems) {
                let runs = task.own(&mapping)?;
                compare(&task, space, runs, &mut self.sent, sender, &mut stats)?;
            }
            segments.round(&task, &mut self.sent, sender, &mut stats)?;
        }
        sender.flush()?;
        Ok(stats)
    }

    fn last(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<Residual, MemoryError> {
        let mut residual = Residual {
            segments: segment::owned(targets)?,
            ..Residual::default()
        };
        for target in targets {
            let systems = &mut self.file_systems;
            let space = own::look(*target, &Unknown, systems, &self.sent, sender)?;
            residual.spaces.extend(space);
        }
        sender.flush()?;
        Ok(residual)
    }

    fn release(&mut self) {}

    fn sent(&self) -> &SentPages {
        &self.sent
    }
}

/// Sends what is news of these runs. What cannot be read is left to the last look.
pub(super) fn compare(
    task: &Task,
    space: Space,
    runs: Vec<Range<u64>>,
    sent: &mut SentPages,
    sender: &mut Sender<'_>,
    stats: &mut RoundStats,
) -> Result<(), MemoryError> {
    let mut judge = |vaddr: u64, page: &[u8]| sent.update(space, vaddr, page);
    let runs = runs.into_iter();
    read::send(&task.memory, space, runs, &mut judge, sender, stats).map(drop)
}
