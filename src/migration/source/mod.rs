//! The host a container leaves: a list of phases, and one line beyond which nothing resumes it.

mod blackout;
mod negotiate;
mod precopy;
mod run;
mod serve;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::behind::Shelf;
use super::conclude::Dial;
use super::hook::Hook;
use super::journal::{Entry, Journal};
use super::link::Link;
use super::movable::Movable;
use super::observe::Observer;
use crate::model::{MigrationOptions, MigrationReport, Name};

pub use run::{dry_run, run};

/// All a migration needs on its source.
pub struct Job<C: Movable> {
    /// Its journal entry, in the state `Began` and not yet written.
    pub entry: Entry,
    /// This host.
    pub host: Name,
    /// The container.
    pub container: C,
    /// The connection to the destination.
    pub link: Link,
    /// What it works with.
    pub services: Services,
}

/// What a migration works with on its source.
#[derive(Clone)]
pub struct Services {
    /// What the caller wishes.
    pub options: MigrationOptions,
    /// Cancelled: stop before the handover. Must be the token the link was made with.
    pub cancel: CancellationToken,
    /// This host's journal.
    pub journal: Arc<dyn Journal>,
    /// Who is told how it goes.
    pub observer: Arc<dyn Observer>,
    /// Where tests stop it.
    pub hook: Arc<dyn Hook>,
    /// For how long a destination may not be heard of that has lost its source: [`LOST_AFTER`](super::behind::LOST_AFTER).
    pub lost_after: Duration,
    /// Where the frozen copy is for a destination that still fetches memory of it.
    pub shelf: Arc<Shelf>,
    /// How pages get streams of their own; none: they go over the link like everything else.
    pub streams: Option<MoreStreams>,
}

/// How pages get streams of their own.
#[derive(Clone)]
pub struct MoreStreams {
    /// How many at most.
    pub count: u8,
    /// A way to the other host.
    pub dial: Arc<dyn Dial>,
}

/// How a migration ended on its source.
#[derive(Debug)]
pub struct Ended<H> {
    /// The report, with the outcome as far as it is known.
    pub report: MigrationReport,
    /// The entry as it stands, the report in it.
    pub entry: Entry,
    /// The frozen copy, when the outcome is in doubt: to be given to [`super::conclude::source`].
    pub in_doubt: Option<H>,
}
