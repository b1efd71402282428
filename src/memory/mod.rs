//! Pages on the move: CRIU's page-server wire, page frames, dirty trackers, the destination's page store.
//!
//! **Invariant:** what is restored is byte for byte what was dumped. The final dump's list names every page; the
//! destination restores nothing until it holds each of them, and a page that is missing is an error and never a
//! page of zeros.
//!
//! ```text
//! source                                                        destination
//! running tasks ─▶ Tracker ─┐                                   ┌▶ PageStore ─▶ verify ─▶ images ─▶ CRIU
//! frozen tasks ─▶ Residual ─┼▶ Sender ─▶ frames ═══ link ═══▶ Decoder              │        └─▶ fill, lazily
//! CRIU's dump ─▶ PageServer ┘  (DumpSink: what is left to CRIU,                    └─▶ Segments ─▶ CRIU
//!                               and every space's list)
//! ```
//!
//! Frames may go over several connections at once. Within a round a page is sent at most once, so their order is
//! free; a round must be acknowledged as a whole before the next one begins. A page that is sent again goes as what has
//! changed in it since, where the source still has a copy of what it sent.

mod copies;
mod error;
pub mod fill;
pub mod frame;
mod frozen;
#[cfg(test)]
mod fuzz;
mod images;
mod level;
mod link;
mod mappings;
mod pack;
mod page_server;
mod pool;
mod presence;
mod segments;
mod send;
mod sink;
mod space;
mod store;
pub mod tracker;
pub mod wire;

pub use error::MemoryError;
pub use frame::{Changes, Decoder, Frame, LONGEST_BATCH};
pub use frozen::Frozen;
pub use link::{Placed, link_images};
pub use page_server::{PageServer, PageSink, Served, Stopper};
pub use pool::Pool;
pub use segments::{SegmentServer, Segments};
pub use send::{Out, Sender, Sent};
pub use sink::{DumpSink, PreDumpSink, PreDumped};
pub use space::{Entry, PageFlags, Space};
pub use store::{Complete, PageStore, StoredSpace};
pub use tracker::{
    HashTracker, OwnedRange, OwnedSegment, OwnedSpace, Residual, RoundStats, Seen, SentPages,
    SoftDirtyTracker, Target, Tracker, UffdWpTracker,
};
