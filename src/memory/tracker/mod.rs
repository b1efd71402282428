//! Rounds of pre-copy: what has changed in running tasks since the round before, and what is left at the end.
//!
//! **Invariant:** a tracker may send a page too often, never too seldom: once [`Residual::send`] has returned, the
//! destination has, of every page in a [list](OwnedSpace::list), byte for byte what the frozen task has.
//!
//! **Invariant:** no tracker leaves a trace in a task that goes on: nothing after [`Tracker::release`] or its drop.
//! After [`Tracker::last`] there is nothing that a dump could see either: no descriptor, no tracer. What then still
//! is there, the marks in the page table, takes the longer to remove the more memory there is, and a task that is
//! handed over never needs it removed.
//!
//! ```text
//! tasks run:     round ─▶ round ─▶ … ─▶ round      pages that are news, as frames
//! tasks frozen:  last ─▶ Residual                  every page by name; unsent code at once
//! CRIU dumps:    Residual::send                    the rest; CRIU finds no page in what the Residual has
//! killed, or about to go on: release
//! ```
//!
//! Private memory is the tracker's alone, and so is shared memory, which is sent once per segment and by content hash.
//! What is not, as a SysV segment that nobody has attached, or one that ends within a page, CRIU dumps at the end,
//! through a `DumpSink` that compares with [`Tracker::sent`].
//!
//! The other kind of round is CRIU's own, on kernels with soft-dirty bits: `Session::pre_dump` with `track_mem`, a
//! page server and a [`PreDumpSink`](super::PreDumpSink), each round's images directory the parent of the next;
//! then the final dump, whose parent is the last of them, with `DumpSink::new(…).after(&rounds)`: `checkpoint::predump`.

mod hash;
mod inject;
mod list;
mod maps;
mod offered;
mod own;
mod read;
mod residual;
mod segment;
mod sent;
mod since;
mod soft_dirty;
mod task;
mod uffd_wp;
mod watch;

pub use hash::HashTracker;
pub use offered::{choose, offered};
pub(super) use read::send_still;
pub use residual::{OwnedRange, OwnedSpace, Residual};
pub use segment::{OwnedSegment, memfd_names};
pub use sent::{Seen, SentPages};
pub use soft_dirty::SoftDirtyTracker;
pub use uffd_wp::UffdWpTracker;

use super::{MemoryError, Sender};
use crate::model::{Pages, TrackerChoice};

/// A process whose memory is to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its host process id.
    pub pid: i32,
    /// Its process id inside the container, by which CRIU names its memory.
    pub vpid: u32,
}

/// What a round found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundStats {
    /// Pages looked at.
    pub scanned: Pages,
    /// Pages that were new or had changed, zero ones included.
    pub changed: Pages,
}

/// Finds and sends what has changed since the round before.
pub trait Tracker: Send {
    /// Which it is; never [`TrackerChoice::Auto`].
    fn kind(&self) -> TrackerChoice;

    /// One round over tasks that run meanwhile. A task that ends, or unmaps what is being read, is no error.
    ///
    /// # Errors
    /// When a task cannot be looked at; when `sender` fails. What the destination holds is then not known: the
    /// tracker is spent.
    fn round(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<RoundStats, MemoryError>;

    /// The last look, over frozen tasks: finds every private page and which of them are unsent, sends the unsent
    /// ones of executable mappings at once, for CRIU puts code there a moment later, and returns the rest, to be sent
    /// while CRIU dumps. Tasks that have run since are looked at again.
    ///
    /// # Errors
    /// As of [`Self::round`].
    fn last(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<Residual, MemoryError>;

    /// Takes every trace out of the tasks, before they go on or after they have died. May be called at any time, and
    /// more than once.
    fn release(&mut self);

    /// What the rounds have sent of memory that is compared by content: shared memory, and private memory where
    /// writes could not be tracked.
    fn sent(&self) -> &SentPages;
}

#[cfg(test)]
mod test;
