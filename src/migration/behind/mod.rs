//! Post-copy: a container runs at its destination while a part of its memory is still on its frozen copy.
//!
//! ```text
//! source                                              destination
//!         … DumpEnd tells how many pages are left behind; the rest is as ever …
//! journal HandedOver
//! HandOver                                      ───▶  journal Accepted
//!                                               ◀───  Hello (Fetch), over a connection of its own
//! Welcome, or Failed (not now), or Gone (never) ───▶
//!                                               ◀───  Ask: pages that somebody waits for, and others
//! Pages, those first that somebody waits for    ───▶  store; fill; … it runs: journal Filling
//!                                               ◀───  Running, over the first connection: the blackout ends
//! journal Serving                                     … until nothing is missing:  journal Moved
//!                                               ◀───  Fetched
//! kill the frozen copy, journal Moved
//! ```
//!
//! The destination drives: it asks for a page once per connection, and keeps so much on its way that the link is never
//! idle and who waits for a page does not wait long behind what nobody waits for. What it does not have it asks for
//! again over the next connection. So the source keeps nothing but the frozen copy, and either daemon may be restarted.
//!
//! **Invariant:** a page that is missing is waited for, and never read as zeros. Where the source cannot give it any
//! more, or is not heard of for [`LOST_AFTER`], the container is killed, then journalled as lost; it runs nowhere.
//!
//! **Invariant:** the frozen copy is killed when the destination has journalled that it needs nothing more of it, and
//! not before; from [`Serving`](super::JournalState::Serving) on nothing ever resumes it.

mod fetch;
mod shelf;
pub mod wire;

use std::sync::Arc;

use tokio::sync::Notify;

pub use fetch::LOST_AFTER;
pub(super) use fetch::{Fetching, begin};
pub(super) use shelf::OnShelf;
pub use shelf::Shelf;

use self::wire::Run;
use super::error::Cause;
use crate::model::Pages;

/// Hands a batch of page frames on.
pub type HandOn<'a> = dyn FnMut(Vec<u8>) -> std::io::Result<()> + Send + 'a;

/// The memory of a frozen copy, on its source. May be read as long as the copy is there.
pub trait Remainder: Send + Sync + 'static {
    /// Makes sure that they can be read. Blocks.
    ///
    /// # Errors
    /// When they cannot, now or for ever.
    fn open(&self) -> Result<(), Cause>;

    /// Reads pages, each as it is. Blocks.
    ///
    /// # Errors
    /// When one of them cannot be read, and so never will be; when `out` fails, with its error.
    fn read(&self, run: Run, out: &mut HandOn<'_>) -> Result<(), Cause>;
}

/// The pages that a container which was let run here does not have yet. Nothing here waits long.
pub trait Later: Send + Sync + 'static {
    /// How many there are.
    fn missing(&self) -> Pages;

    /// Whether nobody needs any of them any more: all are here, or the container has ended.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn is_over(&self) -> Result<bool, Cause>;

    /// Nothing is on its way any more.
    fn begin(&self);

    /// Whom to tell when [`Self::wanted`] has news.
    fn wake(&self) -> Arc<Notify>;

    /// Those that somebody waits for, and are not on their way; they are from now on.
    fn wanted(&self) -> Vec<Run>;

    /// At most so many of the others; the same.
    fn next(&self, most: u32) -> Option<Run>;

    /// Takes a batch of pages. How many there were.
    ///
    /// # Errors
    /// When it is malformed or cannot be kept.
    fn take(&self, batch: &[u8]) -> Result<Pages, Cause>;

    /// They will never come: kills the container, and notes the reason where its users look for it. When this returns
    /// no process of it is left.
    ///
    /// # Errors
    /// When it could not be killed.
    fn lose(&self, why: &str) -> Result<(), Cause>;
}
