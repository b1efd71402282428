//! The migrations this host takes part in.

use std::sync::Arc;

use super::{Context, DaemonError};
use crate::api::types::MigrationStatus;
use crate::model::{Finding, MigrationId, MigrationOptions, Name, Side};
use crate::peer::PeerStream;

/// The migrations this host takes part in.
pub struct Migrations {
    _context: Arc<Context>,
}

const MIGRATION: DaemonError = DaemonError::NotYet {
    what: "a migration",
};

impl Migrations {
    /// None yet.
    pub fn new(context: Arc<Context>) -> Self {
        Self { _context: context }
    }

    /// Begins to move a container to another host.
    pub async fn start(
        &self,
        _name: &Name,
        _to: &Name,
        _options: MigrationOptions,
    ) -> Result<MigrationId, DaemonError> {
        Err(MIGRATION)
    }

    /// Says what would prevent it.
    pub async fn dry_run(&self, _name: &Name, _to: &Name) -> Result<Vec<Finding>, DaemonError> {
        Err(MIGRATION)
    }

    /// Asks a migration to end with the container where it was.
    pub fn cancel(&self, id: MigrationId) -> Result<(), DaemonError> {
        Err(DaemonError::NoSuchMigration { id })
    }

    /// All that are known.
    pub fn list(&self) -> Vec<MigrationStatus> {
        Vec::new()
    }

    /// One of them.
    pub fn get(&self, _id: MigrationId) -> Option<MigrationStatus> {
        None
    }

    /// Decides one that is in doubt.
    pub async fn resolve(&self, id: MigrationId, _keep: Side) -> Result<(), DaemonError> {
        Err(DaemonError::NoSuchMigration { id })
    }

    /// A peer has connected: serves what it wants.
    pub async fn serve_incoming(self: &Arc<Self>, _peer: Name, _stream: PeerStream) {}

    /// Ends or takes up again what a daemon before this one began.
    pub async fn recover(&self) {}
}
