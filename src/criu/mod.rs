//! Drives one `criu swrk` per request. Knows no container.
//!
//! **Invariant:** whatever happens to a request, the tasks are either what its success promises or what they
//! were before it. CRIU is never killed while it holds tasks, a notification that is not known is refused, and a
//! conversation that ends early ends CRIU's work.
//!
//! ```text
//! us                                        criu swrk
//! start: socket pair, inherited fds ──────▶ waits
//! request (one SEQPACKET message)   ──────▶
//!                                   ◀────── notification: a step, perhaps with a pid or an fd
//! verdict                           ──────▶ goes on, or undoes its work
//!                                   ◀────── … more steps …
//!                                   ◀────── answer; it ends by itself
//! ```
//!
//! File descriptors are of two kinds, and it matters: images and work directories are opened *by CRIU through
//! our `/proc` entry*, so they are numbers of this process; a page server's socket and inherited descriptors are
//! numbers of the CRIU process, and must be given to it when it starts ([`Spawn::pass`]).

mod dumped;
mod error;
#[cfg(test)]
mod fake;
mod feature;
mod hide;
mod log;
mod notify;
mod place;
mod preload;
pub mod request;
pub mod rpc;
mod self_test;
mod session;
mod smaps;
mod spared;
mod spawn;
mod stats;
mod timers;

pub use error::CriuError;
pub use feature::{Criu, Features};
pub use hide::{BadRange, Hidden, HiddenFile, HideTable};
pub use log::LogTail;
pub use notify::{Notify, Verdict};
pub use request::{Allowed, DumpRequest, Leave, RestoreRequest, Server};
pub use rpc::NetworkLock;
pub use self_test::{NotHiding, SelfTest};
pub use session::{Canceller, DumpDone, RestoreDone, Session};
pub use smaps::{Described, Letters, MappingFlags, SmapsTable, Told};
pub use spared::NotSparing;
pub use spawn::{Spawn, may_read_limits};
pub use stats::{DumpStats, RestoreStats};
pub use timers::wound;
