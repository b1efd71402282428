//! A container that runs here, until all of its memory is here too.

use std::sync::Arc;
use std::time::Instant;

use super::super::behind::{self, Fetching};
use super::super::error::MigrationError;
use super::super::journal::{Entry, JournalState};
use super::super::movable::{Restored, RunError};
use super::{World, blocking, discard, write};
use crate::model::{Pages, Phase, Step};

/// A container that was let run here.
pub struct Running<R> {
    restored: R,
    /// Since when.
    pub since: Instant,
    fetching: Option<Fetching>,
    /// How many pages it does not have yet.
    pub behind: Pages,
}

impl<R: Restored> Running<R> {
    /// What was done to let it run.
    pub fn steps(&mut self) -> Vec<Step> {
        self.restored.steps()
    }
}

/// Lets an accepted container run. The journal says `Accepted` already. Where it runs it comes back to be
/// [finished](finish): its images are still there, a part of its memory may not be, and the other host should hear first.
///
/// # Errors
/// When it cannot run; if it never ran it is discarded and the entry says so, which sends the source's
/// copy on its way again.
pub async fn accept<R: Restored>(
    mut entry: Entry,
    mut restored: R,
    fetching: Option<Fetching>,
    world: &World,
) -> Result<(Entry, Option<Running<R>>), MigrationError> {
    let generation = entry.generation;
    let (mut restored, left) = blocking(Phase::Handover, move || {
        let left = restored.later();
        Ok((restored, left))
    })
    .await?;
    let left = match left {
        Ok(left) => left,
        Err(cause) => {
            tracing::error!(migration = %entry.id, error = %cause, "what was left behind of the container cannot be fetched; it goes back to its source");
            return Ok((discard(entry, restored, world).await?, None));
        }
    };
    let later = left.as_ref().map(|left| Arc::clone(&left.later));
    let fetching = match (fetching, left) {
        (None, Some(left)) => Some(behind::begin(&entry, left, world)),
        (fetching, _) => fetching,
    };
    if let Some(fetching) = &fetching {
        fetching.it_is_held();
    }
    let (restored, ran) = blocking(Phase::Handover, move || {
        let ran = restored.run(generation);
        Ok((restored, ran))
    })
    .await?;
    match ran {
        Ok(since) => {
            let behind = later.map_or(Pages(0), |later| later.missing());
            match &fetching {
                None => write(world, &mut entry, JournalState::Moved)?,
                Some(fetching) => {
                    fetching.it_runs();
                    // `Accepted` has the same meaning to whoever asks, and to the next start.
                    if let Err(error) = write(world, &mut entry, JournalState::Filling) {
                        tracing::warn!(migration = %entry.id, "that it runs was not journalled: {}", error.chain());
                    }
                }
            }
            let running = Running {
                restored,
                since,
                fetching,
                behind,
            };
            Ok((entry, Some(running)))
        }
        Err(RunError::NeverRan(cause)) => {
            drop(fetching);
            tracing::error!(migration = %entry.id, error = %cause, "the container could not be let run; it goes back to its source");
            Ok((discard(entry, restored, world).await?, None))
        }
        Err(error @ RunError::HasRun(_)) => {
            if let Some(later) = later {
                // Nobody will go on fetching.
                let why = format!("the container cannot go on here: {error}");
                blocking(Phase::Handover, move || later.lose(&why)).await?;
            }
            write(world, &mut entry, JournalState::Moved)?;
            Err(MigrationError::local(Phase::Handover, error))
        }
    }
}

/// Fetches what a container that runs does not have yet, tells its source, and frees the images. A failure of the last
/// is logged: the container does not depend on it.
///
/// # Errors
/// When the journal cannot be written: the source then keeps its copy until the next start.
pub async fn finish<R: Restored>(
    mut entry: Entry,
    running: Running<R>,
    world: &World,
) -> Result<Entry, MigrationError> {
    let Running {
        restored, fetching, ..
    } = running;
    if let Some(fetching) = fetching {
        let ending = fetching.end().await;
        let fetched = &ending.fetched;
        tracing::info!(migration = %entry.id, on_demand = %fetched.on_demand, pushed = %fetched.pushed, took = ?fetched.took, lost = ?fetched.lost, "what was left behind is fetched");
        entry.why = fetched.lost.clone();
        let state = match fetched.lost {
            Some(_) => JournalState::Lost,
            None => JournalState::Moved,
        };
        write(world, &mut entry, state)?;
        ending.tell().await;
    }
    if let Err(error) = blocking(Phase::Settle, move || restored.settle()).await {
        tracing::warn!(migration = %entry.id, error = %error.chain(), "images of a finished migration were not freed");
    }
    Ok(entry)
}

/// Goes on fetching for a container that was let run by a daemon before this one.
pub(super) async fn go_on<R: Restored>(
    entry: Entry,
    mut restored: R,
    world: &World,
) -> Result<Entry, MigrationError> {
    let (restored, left) = blocking(Phase::Fill, move || {
        let left = restored.later()?;
        Ok((restored, left))
    })
    .await?;
    // Where nothing is left to be fetched there is nothing to wait for.
    let Some(left) = left else {
        let mut entry = entry;
        write(world, &mut entry, JournalState::Moved)?;
        blocking(Phase::Settle, move || restored.settle()).await?;
        return Ok(entry);
    };
    let behind = left.later.missing();
    let fetching = behind::begin(&entry, left, world);
    fetching.it_runs();
    let running = Running {
        restored,
        since: Instant::now(),
        fetching: Some(fetching),
        behind,
    };
    finish(entry, running, world).await
}
