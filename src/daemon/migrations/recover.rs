//! What a daemon that starts finds in its journal, and takes up again.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio_util::sync::CancellationToken;

use super::frozen::HeldDeparture;
use super::home::{Bundled, Home};
use super::restored::RestoredArrival;
use super::{Migrations, remains};
use crate::container::{ContainerError, Record};
use crate::migration::{Entry, Journal, JournalState, MigrationError, conclude};
use crate::model::{ContainerState, MigrationId, Phase, Side};

impl Migrations {
    /// Ends what can be ended at once, and goes on asking, in the background, about what is in doubt.
    pub async fn recover(self: &Arc<Self>) {
        let entries = self.journal.all().unwrap_or_else(|error| {
            tracing::error!("the journal of migrations cannot be read: {error}");
            Vec::new()
        });
        self.clear(&entries);
        for entry in entries.into_iter().filter(|entry| !entry.state.is_final()) {
            tracing::warn!(migration = %entry.id, container = %entry.container, side = ?entry.side, state = ?entry.state, "taking up a migration again");
            // It runs: what is fetched for it is no matter of doubt.
            if entry.state != JournalState::Filling {
                self.board.begin(&entry, CancellationToken::new());
            }
            let this = Arc::clone(self);
            let open = matches!(
                entry.state,
                JournalState::HandedOver
                    | JournalState::Serving
                    | JournalState::Ready
                    | JournalState::Accepted
                    | JournalState::Filling
            );
            let task = tokio::spawn(async move { this.take_up(entry).await });
            // What needs nobody else's word is done before the first request is taken.
            if !open && task.await.is_err() {
                tracing::error!("a defect stopped the recovery of a migration");
            }
        }
    }

    /// Takes away, in the background, what migrations that are over have left: the images of a container that was
    /// still being filled when the daemon ended go when that is done.
    fn clear(&self, entries: &[Entry]) {
        let directories = remains::directories(&self.context).unwrap_or_else(|error| {
            tracing::error!("the directories of migrations cannot be read: {error}");
            Vec::new()
        });
        let over = |directory: &PathBuf| {
            let name = directory.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.parse::<MigrationId>().ok());
            let mut all = entries.iter().filter(|entry| !entry.state.is_final());
            // What is no migration's is not ours to remove.
            remains::is_gone(directory) || id.is_some_and(|id| all.all(|entry| entry.id != id))
        };
        for directory in directories.into_iter().filter(over) {
            let bundled = Bundled::kept(&directory);
            if let Some(Err(error)) = bundled.map(|bundled| {
                bundled.forget_address(&self.context);
                bundled.end(&self.context)
            }) {
                tracing::error!(directory = %directory.display(), "a container of a bundle was not given back: {error}");
                continue;
            }
            thread::spawn(move || {
                let filled = remains::request(&directory).map_or(Ok(()), |request| {
                    remains::wait_until_filled(&request.images, &request.cgroup)
                });
                let cleared = filled.and_then(|()| remains::remove_directory(&directory));
                if let Err(error) = cleared {
                    tracing::error!(directory = %directory.display(), "what a migration has left was not removed: {error}");
                }
            });
        }
    }

    async fn take_up(self: Arc<Self>, entry: Entry) {
        let bundled = Bundled::kept(&remains::directory(&self.context, entry.id));
        let home = match (bundled, Record::load(&self.context.host, &entry.container)) {
            (Some(bundled), _) => Home::Bundle(Box::new(bundled)),
            (None, Ok(record)) => Home::Own(Box::new(record)),
            // Gone: it was removed before the journal said so.
            (None, Err(ContainerError::NotFound { .. })) => {
                let state = match (entry.side, entry.state) {
                    (Side::Source, JournalState::HandedOver | JournalState::Serving)
                    | (Side::Destination, JournalState::Filling) => JournalState::Moved,
                    _ => JournalState::StayedHere,
                };
                return self.forget(&entry, state);
            }
            (None, Err(error)) => {
                tracing::error!(container = %entry.container, "its record cannot be read: {error}");
                return;
            }
        };
        if let Home::Own(record) = &home
            && has_ended_here(&entry, record.state)
        {
            return self.forget(&entry, JournalState::Moved);
        }
        let mut decisions = self.board.doubt(entry.id, entry.report.clone());
        if matches!(entry.state, JournalState::HandedOver | JournalState::Ready) {
            self.mark(&entry.container, ContainerState::InDoubt).await;
        }
        let ended = match (entry.side, home) {
            (Side::Source, home) => {
                let held = HeldDeparture::after_restart(&self.context, entry.id, &entry.peer, home);
                conclude::source_after_restart(entry.clone(), held, &self.world, &mut decisions)
                    .await
            }
            // What leaves no host but this one is never on its way to it.
            (Side::Destination, Home::Bundle(_)) => return,
            (Side::Destination, Home::Own(record)) => {
                let restored =
                    RestoredArrival::after_restart(&self.context, entry.id, &entry.peer, *record);
                match restored {
                    Ok(restored) => {
                        let (world, entry) = (&self.world, entry.clone());
                        conclude::destination_after_restart(entry, restored, world, &mut decisions)
                            .await
                    }
                    Err(error) => Err(MigrationError::local(Phase::Restore, error)),
                }
            }
        };
        self.concluded(&entry, ended);
    }

    /// It is over: the container's record is gone, which is the last thing that goes, or tells how it ended here.
    fn forget(&self, entry: &Entry, state: JournalState) {
        let ended = Entry {
            state,
            ..entry.clone()
        };
        if let Err(error) = self.journal.write(&ended) {
            tracing::error!(migration = %entry.id, "its end was not journalled: {error}");
        }
        let directory = remains::directory(&self.context, entry.id);
        if let Err(error) = remains::remove_directory(&directory) {
            tracing::error!(migration = %entry.id, "its images were not removed: {error}");
        }
        self.board.end(entry.id);
    }
}

/// Whether a container that had come is known to have run here, and does no more: the host went down between the record
/// of it and the journal's. What it was is gone with its memory, and must not be resumed where it came from.
fn has_ended_here(entry: &Entry, recorded: ContainerState) -> bool {
    entry.side == Side::Destination
        && matches!(entry.state, JournalState::Accepted | JournalState::Filling)
        && recorded == ContainerState::Stopped
}
