//! One thread per running container: tends to it, draws the conclusion when its command ends, and starts it again where
//! its spec says so.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;

use super::{Containers, DaemonError};
use crate::model::{ContainerState, Name};

/// How long one wait lasts. In between the container is tended to.
const TURN: Duration = Duration::from_secs(5);
/// How long a container that ended in a migration is left to the migration.
const ASIDE: Duration = Duration::from_millis(500);

/// Which containers are watched, and how often each was asked for.
#[derive(Debug, Default)]
pub struct Watched(Mutex<HashMap<Name, u64>>);

impl Watched {
    /// Counts one more wish. Whether it is the first, and a watcher has to be started, is told.
    fn wish(&self, name: &Name) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wishes = all.entry(name.clone()).or_default();
        *wishes += 1;
        *wishes == 1
    }

    fn wishes(&self, name: &Name) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).copied().unwrap_or(0)
    }

    /// Ends the watch, unless another was wished for after `seen` wishes had been counted: that one may mean
    /// another container of the same name.
    fn end(&self, name: &Name, seen: u64) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = all.get(name).is_none_or(|&wishes| wishes == seen);
        if over {
            all.remove(name);
        }
        over
    }
}

/// Watches a container, unless it is watched already.
pub(super) fn watch(containers: &Containers, name: Name) {
    if !containers.watched.wish(&name) {
        return;
    }
    let (this, runtime) = (containers.clone(), Handle::current());
    let watched = name.clone();
    let spawned = thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            loop {
                let seen = this.watched.wishes(&watched);
                // Deleted or moved away meanwhile: whoever did it has told so.
                let ended = until_it_ends(&this, &watched, &runtime);
                if ended.is_ok() && again(&this, &watched, &runtime) {
                    continue;
                }
                if this.watched.end(&watched, seen) {
                    break;
                }
            }
        });
    if let Err(e) = spawned {
        tracing::error!(container = %name, "cannot watch it: {e}");
        containers.watched.end(&name, 1);
    }
}

fn until_it_ends(this: &Containers, name: &Name, runtime: &Handle) -> Result<(), DaemonError> {
    loop {
        if let Err(e) = this.backend.tend(name) {
            tracing::warn!(container = %name, "cannot see to its shim: {}", e.chain());
        }
        if !this.backend.wait(name, TURN)? {
            continue;
        }
        // Under the lock, so that it is not concluded while somebody deletes it or starts it again.
        let locked = runtime.block_on(this.locks.lock(name))?;
        let status = this.backend.status(name)?;
        if status.migration.is_some() {
            // The frozen copy has been killed, or is about to be found dead: the migration decides.
            drop(locked);
            thread::sleep(ASIDE);
            continue;
        }
        if status.state != ContainerState::Stopped {
            // Started again meanwhile.
            continue;
        }
        if this.backend.settle(name)? {
            tracing::info!(container = %name, exit_code = status.exit_code, "its command has ended");
            this.events.container(name, ContainerState::Stopped);
        }
        return Ok(());
    }
}

/// Starts the command again that has ended, if its spec says so and nobody has anything against it, after the pause.
/// Whether it, or something in its place, is to be watched on is told.
fn again(this: &Containers, name: &Name, runtime: &Handle) -> bool {
    loop {
        // Deleted meanwhile, it has no policy.
        let Ok(Some(pause)) = this.backend.restart_after(name) else {
            return false;
        };
        tracing::info!(container = %name, ?pause, "its command is started again after a pause");
        thread::sleep(pause);
        match runtime.block_on(this.locks.lock(name)) {
            Ok(_locked) => match start_again(this, name) {
                Ok(going_on) => return going_on,
                // That was counted as another try.
                Err(e) => {
                    tracing::warn!(container = %name, "it does not start again: {}", e.chain())
                }
            },
            Err(e) => {
                tracing::warn!(container = %name, "it is not started again now: {}", e.chain())
            }
        }
    }
}

/// Under its lock: it may have been stopped, started, deleted or made anew in the pause.
fn start_again(this: &Containers, name: &Name) -> Result<bool, DaemonError> {
    if this.backend.restart_after(name)?.is_none() {
        let running = this.backend.status(name)?.state == ContainerState::Running;
        return Ok(running);
    }
    this.backend.restart(name)?;
    this.events.container(name, ContainerState::Running);
    Ok(true)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_wish_during_a_watch_keeps_it_going() {
        let watched = Watched::default();
        let name: Name = "web".parse().unwrap();
        assert!(watched.wish(&name));
        let seen = watched.wishes(&name);
        assert!(!watched.wish(&name));
        assert!(!watched.end(&name, seen));
        let seen = watched.wishes(&name);
        assert!(watched.end(&name, seen));
        assert!(watched.wish(&name));
    }
}
