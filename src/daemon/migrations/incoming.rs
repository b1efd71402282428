//! What is known of a container on its way to this host, whatever has become of it.

use std::path::PathBuf;
use std::sync::Arc;

use super::remains;
use crate::container::record::Life;
use crate::container::{Record, place};
use crate::daemon::Context;
use crate::migration::Cause;
use crate::model::{ContainerSpec, ContainerState, Generation, Lease, MigrationId, Name};

/// What is known of a container that comes, whatever has become of it.
pub struct Incoming {
    pub context: Arc<Context>,
    pub source: Name,
    pub id: MigrationId,
    pub spec: ContainerSpec,
    pub created_at: u64,
    pub generation: Generation,
}

impl Incoming {
    pub fn directory(&self) -> PathBuf {
        remains::directory(&self.context, self.id)
    }

    pub fn images(&self) -> PathBuf {
        self.directory().join("images")
    }

    pub fn record(&self, state: ContainerState, generation: Generation) -> Record {
        let on_the_way = matches!(state, ContainerState::Arriving | ContainerState::InDoubt);
        Record {
            spec: self.spec.clone(),
            generation,
            created_at: self.created_at,
            state,
            migration: on_the_way.then_some(self.id),
            exit_code: None,
            why: None,
            // Whoever has it restarted does so here from now on: it has run, wherever that was, since it was made.
            life: Life {
                wanted: true,
                started_at: self.created_at,
                ..Life::default()
            },
        }
    }

    /// Nothing of it is left on this host. Idempotent.
    pub fn remove(&self) -> Result<(), Cause> {
        self.context.outputs.forget(&self.spec.name);
        let removed = place::remove(&self.context.host, &self.spec.name);
        let cleared = remains::remove_directory(&self.directory());
        let leased = give_back(
            &self.context,
            &self.spec.name,
            &self.spec.lease,
            &self.source,
        );
        removed?;
        cleared?;
        leased
    }
}

/// An address of this host's own pool stays reserved for a container that lives elsewhere.
fn give_back(context: &Context, name: &Name, lease: &Lease, source: &Name) -> Result<(), Cause> {
    let (first, last) = context.network.config().pool;
    if !context
        .leases
        .list()
        .iter()
        .any(|entry| entry.name == *name)
    {
        return Ok(());
    }
    if (first..=last).contains(&lease.address) {
        context.leases.moved_away(name, source)?;
    } else {
        context.leases.release(name)?;
    }
    Ok(())
}
