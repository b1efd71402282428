//! Rounds of pre-copy: what has changed in running tasks since the round before.
//!
//! **Invariant:** a tracker may miss a change, never invent one as sent: the final dump tells every page, and what
//! goes unsent there is only what is byte for byte what was sent before.
//!
//! The other kind of round is CRIU's own, on kernels with soft-dirty bits: `Session::pre_dump` with `track_mem`, a
//! page server and a [`PreDumpSink`](super::PreDumpSink), each round's images directory the parent of the next;
//! then the final dump, whose parent is the last of them, with `DumpSink::new(…).after(&rounds)`.

mod hash;
mod maps;
mod sent;

pub use hash::HashTracker;
pub use sent::{Seen, SentPages};

use super::{MemoryError, Sender};
use crate::model::Pages;

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
    /// One round over tasks that run meanwhile. A task that ends, or unmaps what is being read, is no error.
    ///
    /// After an error, of `sender` for instance, what the destination holds is not known: the tracker is spent.
    fn round(
        &mut self,
        targets: &[Target],
        sender: &mut Sender<'_>,
    ) -> Result<RoundStats, MemoryError>;

    /// What the rounds so far have sent, for the final dump.
    fn sent(&self) -> &SentPages;
}
