//! What is true after a restart of the daemon, or of the host.
//!
//! A container is what its record says; whether it runs is asked of its shim and of the kernel. What follows
//! from the two is decided by one pure function, `decide`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::containers::blocking;
use super::migrations::Bundled;
use super::ports::Port;
use super::{Config, Context, Daemon, DaemonError, chain};
use crate::container::{self, ContainerError, Record, place};
use crate::model::{ContainerState, Name};

/// What is done about a name that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Nothing is missing.
    Keep,
    /// It was never finished, or its record is gone: what is left of it is removed.
    Remove,
    /// It has ended while nobody watched: what only a running container needs is freed.
    Settle,
    /// It runs: it is watched, and gets a shim if it has none.
    Watch,
    /// It is part of a migration, which knows more.
    LeaveToMigration,
}

/// From what is recorded (none: there is no record) and what is seen, what is done.
fn decide(recorded: Option<ContainerState>, seen: ContainerState) -> Action {
    use ContainerState::{Arriving, Created, Creating, InDoubt, Migrating, Running, Stopped};
    match (recorded, seen) {
        (None | Some(Creating), _) => Action::Remove,
        (Some(Migrating | Arriving | InDoubt), _) => Action::LeaveToMigration,
        (Some(Stopped), _) | (Some(Created), Created) => Action::Keep,
        (Some(Created | Running), Stopped) => Action::Settle,
        (Some(Created | Running), _) => Action::Watch,
    }
}

/// Makes what is recorded true again, and takes up what was going on.
///
/// A container about which something fails is left as it is and told of in the log: one damaged container
/// must not keep a host from serving the others.
pub async fn recover(context: &Arc<Context>, daemon: &Daemon) -> Result<(), DaemonError> {
    let this = Arc::clone(context);
    let running = blocking("the recovery", move || {
        let running = recover_containers(&this)?;
        release_leases(&this)?;
        forget_outputs(&this);
        Ok(running)
    });
    for name in running.await? {
        daemon.containers.watch(name);
    }
    if let Some(outside) = &daemon.outside {
        outside.migrations.recover().await;
    }
    Ok(())
}

/// Returns the containers that run, or are to run again.
fn recover_containers(context: &Context) -> Result<Vec<Name>, DaemonError> {
    let mut running = Vec::new();
    for name in names(&context.config)? {
        match recover_one(context, &name) {
            Ok(Action::Watch) => running.push(name),
            // It is to run: who watches it starts it again. One that was handed over has no record any more, or is
            // left to its migration.
            Ok(Action::Keep | Action::Settle) => {
                if container::restart_after(&context.host, &name).is_ok_and(|p| p.is_some()) {
                    running.push(name);
                }
            }
            Ok(_) => {}
            Err(e) => {
                tracing::error!(container = %name, "it could not be recovered: {}", chain(&e))
            }
        }
    }
    Ok(running)
}

fn recover_one(context: &Context, name: &Name) -> Result<Action, ContainerError> {
    let host = &context.host;
    let recorded = match Record::load(host, name) {
        Ok(record) => Some(record.state),
        Err(ContainerError::NotFound { .. }) => None,
        Err(e) => return Err(e),
    };
    let seen = match recorded {
        Some(_) => container::status(host, name)?.state,
        None => ContainerState::Creating,
    };
    let action = decide(recorded, seen);
    match action {
        Action::Keep | Action::LeaveToMigration => {}
        Action::Watch => tracing::info!(container = %name, "it runs on"),
        Action::Remove => {
            tracing::warn!(container = %name, "it was never finished: what is left of it is removed");
            place::remove(host, name)?;
        }
        Action::Settle => {
            container::settle(host, name)?;
            tracing::info!(container = %name, "it has ended meanwhile");
        }
    }
    Ok(action)
}

/// Every name of which anything is found.
pub(super) fn names(config: &Config) -> Result<BTreeSet<Name>, DaemonError> {
    let (run, state) = (&config.run_dir, &config.state_dir);
    let mut names = BTreeSet::new();
    for directory in [
        state.join("containers"),
        run.join("containers"),
        run.join("netns"),
        run.join("userns"),
    ] {
        names.extend(names_in(directory)?);
    }
    Ok(names)
}

fn names_in(directory: PathBuf) -> Result<Vec<Name>, DaemonError> {
    let failed = |source| DaemonError::Io {
        what: format!("list {}", directory.display()),
        source,
    };
    let mut names = Vec::new();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.to_str().and_then(|name| name.parse::<Name>().ok()));
    }
    Ok(names)
}

/// Closes what was kept open for containers that are not here any more, or have ended.
fn forget_outputs(context: &Context) {
    for name in context.outputs.names() {
        match Record::load(&context.host, &name).map(|record| record.state) {
            Err(ContainerError::NotFound { .. }) | Ok(ContainerState::Stopped) => {
                context.outputs.forget(&name);
            }
            _ => {}
        }
    }
}

/// Gives back addresses whose containers are nowhere: a crash between the lease and the record leaves such.
fn release_leases(context: &Context) -> Result<(), DaemonError> {
    let lent = Bundled::all_kept(&context.config.run_dir);
    for entry in context.leases.list() {
        let lent = lent.iter().any(|bundled| bundled.spec.name == entry.name);
        if lent || Port::load(&context.config.run_dir, &entry.name).is_some() {
            // Its migration knows more, or its engine.
            continue;
        }
        let here = Record::load(&context.host, &entry.name);
        let nowhere = matches!(here, Err(ContainerError::NotFound { .. }));
        if nowhere && entry.moved_to.is_none() {
            tracing::info!(name = %entry.name, address = %entry.lease.address, "its address is given back");
            context.leases.release(&entry.name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;
    use ContainerState::{Arriving, Created, Creating, InDoubt, Migrating, Running, Stopped};

    #[test]
    fn what_was_never_finished_is_removed() {
        for seen in [Creating, Created, Running, Stopped] {
            assert_eq!(decide(Some(Creating), seen), Action::Remove);
            assert_eq!(decide(None, seen), Action::Remove);
        }
    }

    #[test]
    fn what_ended_meanwhile_is_concluded_and_what_runs_is_watched() {
        assert_eq!(decide(Some(Running), Stopped), Action::Settle);
        assert_eq!(decide(Some(Created), Stopped), Action::Settle);
        assert_eq!(decide(Some(Running), Running), Action::Watch);
        // The daemon ended between the start and the record of it.
        assert_eq!(decide(Some(Created), Running), Action::Watch);
        assert_eq!(decide(Some(Created), Created), Action::Keep);
        assert_eq!(decide(Some(Stopped), Stopped), Action::Keep);
    }

    #[test]
    fn a_migration_is_never_decided_here() {
        for recorded in [Migrating, Arriving, InDoubt] {
            for seen in [Migrating, Arriving, InDoubt, Stopped, Running] {
                assert_eq!(decide(Some(recorded), seen), Action::LeaveToMigration);
            }
        }
    }
}
