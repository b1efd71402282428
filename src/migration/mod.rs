//! A container goes from this host to that one: live, once, or not at all.
//!
//! **Invariant:** exactly one copy runs, whatever dies when. The whole of the argument is below; the code
//! that carries it is [`source::run`] (until the handover a failure resumes the source, afterwards nothing
//! can), [`destination::serve`] (nothing runs without the source's word) and [`conclude`] (two hosts that
//! lost each other in between find out what is true).
//!
//! **Invariant:** this room moves values and bytes. It sees the container through [`Movable`] and
//! [`Destination`] and never learns what CRIU is, so that `tests/protocol.rs` can run both ends in one
//! process and let everything fail at every phase.
//!
//! ```text
//! source                                              destination
//! Hello   versions, migration id                ───▶
//!                                               ◀───  Welcome   the version both speak
//! Offer   container, facts of this host         ───▶  preflight
//!                                               ◀───  Refusal(findings) | Reserved(needs the image?)
//! image records … ImageEnd    (when needed)     ───▶  image store
//! file records  … StorageEnd  (it runs)         ───▶  overlay's upper layer
//! page frames   … RoundEnd    (it runs)         ───▶  page store
//!                                               ◀───  RoundAck     (policy: another round, freeze, give up)
//! ── freeze: the blackout begins ──
//! Frozen                                        ───▶  frames for it are kept here from now on
//!                                               ◀───  Holding
//! gate closed: GateClosed                       ───▶  nobody else has it: announced again
//! page frames, image chunks … DumpEnd           ───▶  page store, images in a tmpfs
//! file records  … ResidualEnd                   ───▶  upper layer; restore, held before its first instruction
//!                                                     journal Ready
//!                                               ◀───  Ready
//! journal HandedOver ── from here the source never resumes by itself ──
//! HandOver                                      ───▶  journal Accepted; let it run; gate opened, announced
//!                                               ◀───  Running: the blackout ends
//! kill the frozen copy, journal Moved                 journal Moved
//! ```
//!
//! Page frames may go over connections of their own, which may break and come back: see [`stream`]. Where the policy says
//! so, a part of the memory is left behind, and fetched when the container runs: see [`behind`].
//!
//! What each host concludes when the other is lost:
//!
//! | last journalled here | source | destination |
//! |---|---|---|
//! | nothing, Began / Reserved | resume: it stayed here | discard: the source cannot have handed over without Ready |
//! | Ready | | ask the source: HandedOver → run; StayedHere → discard; no answer → in doubt, ask again |
//! | HandedOver | ask the destination: Running → kill the frozen copy; Discarded → resume; no answer → in doubt | |
//! | Accepted | | run (restore again when it has to) |
//! | Serving | give pages; ask the destination: Running or Lost → kill the frozen copy; never resume | |
//! | Filling | | it runs: fetch pages; where the source is lost kill it and say Lost |
//! | Moved, StayedHere, Lost | nothing to do | nothing to do |
//!
//! *Discarded* is a durable statement that the destination never ran this copy and never will; it is the
//! only word on which a source resumes after its handover.

mod bare;
pub mod behind;
pub mod codec;
pub mod conclude;
pub mod destination;
pub mod error;
pub mod forecast;
pub mod hook;
pub mod journal;
pub mod link;
pub mod message;
pub mod movable;
pub mod observe;
mod pace;
pub mod policy;
pub mod preflight;
mod record;
pub mod source;
pub mod stream;

pub use behind::{Later, Remainder, Shelf};
pub use error::{Cause, MigrationError};
pub use hook::{Hook, NoHook};
pub use journal::{Entry, Journal, JournalState};
pub use link::{Duplex, Link, Outbox};
pub use message::{Message, NamedSegment, Offer, Summary, ToldStep};
pub use movable::{
    Arriving, Destination, HandedOver, Held, Left, Movable, Restored, RoundStats, RunError,
};
pub use observe::Observer;
