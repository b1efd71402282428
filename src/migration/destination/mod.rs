//! The host a container comes to: it takes parts, restores, waits for the source's word, and only then
//! lets anything run.

mod receive;
mod serve;

use std::sync::Arc;

use super::conclude::World;
use super::hook::Hook;
use super::journal::Entry;
use super::link::Link;
use super::movable::{Arriving, Destination};
use super::stream::Door;
use crate::model::{MigrationId, Name};

pub use serve::{greet, serve};

/// First words of a connection, understood.
#[derive(Debug)]
pub struct Greeting {
    /// Which migration.
    pub migration: MigrationId,
    /// What for.
    pub purpose: super::message::Purpose,
}

/// All a migration needs on its destination.
pub struct Job<D: Destination> {
    /// What was asked for.
    pub greeting: Greeting,
    /// Who asks.
    pub source: Name,
    /// This host.
    pub host: Arc<D>,
    /// The connection to the source.
    pub link: Link,
    /// Where further streams of the migration come in.
    pub door: Arc<Door>,
    /// Journal and the way back to the source.
    pub world: World,
    /// Where tests stop it.
    pub hook: Arc<dyn Hook>,
    /// Now, seconds since the epoch.
    pub now: u64,
}

/// The restored container of a destination.
pub type RestoredOf<D> = <<D as Destination>::Arriving as Arriving>::Restored;

/// How a migration ended on its destination.
#[derive(Debug)]
pub enum Served<R> {
    /// It was a dry run, or was refused: nothing happened here.
    Nothing,
    /// It ended, as the entry tells.
    Over(Entry),
    /// The source was lost while the container was held: to be given to [`super::conclude::destination`].
    InDoubt(Entry, R),
}
