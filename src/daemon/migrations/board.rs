//! The migrations of this host: those under way in memory, those before in the journal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::types::{MigrationState, MigrationStatus};
use crate::daemon::DaemonError;
use crate::migration::journal::Directory;
use crate::migration::{Entry, Journal, JournalState};
use crate::model::{MigrationId, MigrationReport, Name, Progress, Side};

/// A migration under way.
struct Live {
    status: MigrationStatus,
    cancel: CancellationToken,
    decisions: Option<mpsc::Sender<Side>>,
}

impl Live {
    /// How it stands, by what the journal says of it too: one that is in doubt may be known to run elsewhere.
    fn now(&self, entry: Option<&Entry>) -> MigrationStatus {
        let mut status = self.status.clone();
        let serving = entry.is_some_and(|entry| entry.state == JournalState::Serving);
        if serving {
            status.state = MigrationState::Serving;
        }
        status
    }
}

/// All migrations of this host.
pub struct Board {
    host: Name,
    journal: Arc<Directory>,
    live: Mutex<HashMap<MigrationId, Live>>,
}

impl Board {
    /// The migrations of `host`, of which the journal knows those that were.
    pub fn new(host: Name, journal: Arc<Directory>) -> Self {
        Self {
            host,
            journal,
            live: Mutex::default(),
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<MigrationId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A migration begins. `cancel` ends it, as long as that can be done.
    pub fn begin(&self, entry: &Entry, cancel: CancellationToken) {
        let status = self.told(entry);
        let live = Live {
            status: MigrationStatus {
                report: None,
                state: MigrationState::UnderWay,
                ..status
            },
            cancel,
            decisions: None,
        };
        self.live().insert(entry.id, live);
    }

    /// It goes on.
    pub fn progress(&self, id: MigrationId, progress: &Progress) {
        if let Some(live) = self.live().get_mut(&id) {
            live.status.progress = Some(progress.clone());
        }
    }

    /// It is in doubt: what a person decides comes out of the receiver.
    pub fn doubt(&self, id: MigrationId, report: Option<MigrationReport>) -> mpsc::Receiver<Side> {
        let (sender, receiver) = mpsc::channel(1);
        if let Some(live) = self.live().get_mut(&id) {
            live.status.state = MigrationState::InDoubt;
            live.status.report = report;
            live.decisions = Some(sender);
        }
        receiver
    }

    /// It is over, and the journal knows how it was.
    pub fn end(&self, id: MigrationId) {
        self.live().remove(&id);
    }

    /// All, oldest first.
    pub fn list(&self) -> Vec<MigrationStatus> {
        let entries = self.journal.all().unwrap_or_else(|error| {
            tracing::error!("the journal of migrations cannot be read: {error}");
            Vec::new()
        });
        let live = self.live();
        let now = |entry: &Entry| live.get(&entry.id).map(|live| live.now(Some(entry)));
        let mut all: Vec<MigrationStatus> = entries
            .iter()
            .map(|entry| now(entry).unwrap_or_else(|| self.told(entry)))
            .collect();
        // One that is not journalled yet is the youngest.
        let new = live
            .values()
            .filter(|live| !entries.iter().any(|e| e.id == live.status.id));
        all.extend(new.map(|live| live.status.clone()));
        all
    }

    /// One of them.
    pub fn get(&self, id: MigrationId) -> Option<MigrationStatus> {
        let entry = self.journal.read(id).ok().flatten();
        if let Some(live) = self.live().get(&id) {
            return Some(live.now(entry.as_ref()));
        }
        entry.map(|entry| self.told(&entry))
    }

    /// Asks it to end.
    pub fn cancel(&self, id: MigrationId) -> Result<(), DaemonError> {
        let live = self.live();
        let Some(found) = live.get(&id) else {
            drop(live);
            let known = self.get(id).is_some();
            return Err(if known {
                DaemonError::MigrationOver { id }
            } else {
                DaemonError::NoSuchMigration { id }
            });
        };
        if found.status.side == Side::Destination {
            let source = found.status.source.clone();
            return Err(DaemonError::CancelAtSource {
                id,
                source_host: source,
            });
        }
        let entry = self.journal.read(id).ok().flatten();
        let state = found.now(entry.as_ref()).state;
        if matches!(state, MigrationState::InDoubt | MigrationState::Serving) {
            return Err(DaemonError::HandedOver { id });
        }
        found.cancel.cancel();
        Ok(())
    }

    /// Asks all that can still be cancelled to end.
    pub fn cancel_all(&self) {
        self.live().values().for_each(|live| live.cancel.cancel());
    }

    /// Where a person's decision about a migration goes.
    pub fn decisions(
        &self,
        id: MigrationId,
        keep: Side,
    ) -> Result<mpsc::Sender<Side>, DaemonError> {
        let entry = self.journal.read(id).ok().flatten();
        let runs_there = entry.is_some_and(|entry| entry.state == JournalState::Serving);
        if runs_there && keep == Side::Source {
            return Err(DaemonError::RanThere { id });
        }
        let decisions = self.live().get(&id).and_then(|live| live.decisions.clone());
        decisions.ok_or_else(|| match self.get(id) {
            Some(_) => DaemonError::NotInDoubt { id },
            None => DaemonError::NoSuchMigration { id },
        })
    }

    /// What the journal tells of a migration.
    fn told(&self, entry: &Entry) -> MigrationStatus {
        let (source, destination) = match entry.side {
            Side::Source => (self.host.clone(), entry.peer.clone()),
            Side::Destination => (entry.peer.clone(), self.host.clone()),
        };
        MigrationStatus {
            id: entry.id,
            container: entry.container.clone(),
            source,
            destination,
            side: entry.side,
            progress: None,
            report: entry.report.clone(),
            why: entry.why.clone(),
            state: match entry.state {
                JournalState::Moved => MigrationState::Moved,
                JournalState::StayedHere => MigrationState::Stayed,
                JournalState::Began
                | JournalState::Reserved
                | JournalState::Ready
                | JournalState::HandedOver
                | JournalState::Accepted => MigrationState::UnderWay,
                JournalState::Serving => MigrationState::Serving,
                JournalState::Filling => MigrationState::Filling,
                JournalState::Lost => MigrationState::Lost,
            },
        }
    }
}
