//! What the service manager keeps open while there is no daemon: the read ends of the containers' outputs.
//!
//! A shim that is killed is replaced by the daemon, which has duplicates of the pipes it read from (see
//! [`Backend::tend`](super::Backend::tend)). Were they only here, a shim that dies while the daemon is being restarted
//! would take the container's output with it, and the container's next word would end it with SIGPIPE. So they are
//! in systemd's file descriptor store, too (sd_notify(3), `FDSTORE=1`), from which the next daemon has them:
//! under `NAME.0` standard output, `NAME.1` standard error, `NAME.2` the first process. A container's name has no dot.
//!
//! Without a service manager, or with one that keeps nothing, nothing is lost but that.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sd_notify::NotifyState;

use super::service;
use crate::model::Name;
use crate::sys::descriptor;

/// The most descriptors that a shim hands out.
const MOST: usize = 3;

/// The outputs of the containers of this host, by name.
#[derive(Debug, Default)]
pub struct Outputs(Mutex<HashMap<Name, Vec<OwnedFd>>>);

impl Outputs {
    /// What an earlier daemon has left. To be called once, before any thread exists: the descriptors are then this
    /// process's own.
    pub fn left() -> Self {
        let Ok(left) = sd_notify::listen_fds_with_names() else {
            return Self::default();
        };
        let mut all: HashMap<Name, BTreeMap<usize, OwnedFd>> = HashMap::new();
        for (fd, label) in left {
            match (descriptor::take_inherited(fd), parse(&label)) {
                (Ok(fd), Some((name, number))) => {
                    all.entry(name).or_default().insert(number, fd);
                }
                (Ok(_), None) => tracing::warn!(
                    label,
                    "the daemon was given a descriptor of an unknown kind"
                ),
                (Err(e), _) => {
                    tracing::warn!(label, "a descriptor that was to be given is not there: {e}")
                }
            }
        }
        let whole = |(name, fds)| Some((name, complete(fds)?));
        Self(Mutex::new(all.into_iter().filter_map(whole).collect()))
    }

    /// Whether there is anything of this container.
    pub fn has(&self, name: &Name) -> bool {
        self.all().contains_key(name)
    }

    /// From now on they are kept, here and in the store. What the store has already, it has once: systemd compares
    /// descriptors with kcmp(2).
    pub fn keep(&self, name: &Name, fds: Vec<OwnedFd>) {
        for (number, fd) in fds.iter().take(MOST).enumerate() {
            let label = label(name, number);
            let state = [NotifyState::FdStore, NotifyState::FdName(&label)];
            if let Err(e) = sd_notify::notify_with_fds(&state, &[fd.as_fd()]) {
                tracing::warn!(container = %name, "the service manager does not keep its output: {e}");
            }
        }
        self.all().insert(name.clone(), fds);
    }

    /// For a new shim. The store keeps its own.
    pub fn take(&self, name: &Name) -> Vec<OwnedFd> {
        self.all().remove(name).unwrap_or_default()
    }

    /// Nobody needs them any more.
    pub fn forget(&self, name: &Name) {
        if self.all().remove(name).is_none() {
            return;
        }
        for number in 0..MOST {
            let label = label(name, number);
            service::tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(&label)]);
        }
    }

    /// Whose there are.
    pub fn names(&self) -> Vec<Name> {
        self.all().keys().cloned().collect()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Name, Vec<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In their order; none when one is missing, since each is known by its place.
fn complete(fds: BTreeMap<usize, OwnedFd>) -> Option<Vec<OwnedFd>> {
    let gapless = fds.keys().copied().eq(0..fds.len());
    gapless.then(|| fds.into_values().collect())
}

fn label(name: &Name, number: usize) -> String {
    format!("{name}.{number}")
}

fn parse(label: &str) -> Option<(Name, usize)> {
    let (name, number) = label.split_once('.')?;
    let number = number.parse().ok().filter(|&number| number < MOST)?;
    Some((name.parse().ok()?, number))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_label_says_whose_and_which() {
        let name: Name = "web-1".parse().unwrap();
        for number in 0..MOST {
            assert_eq!(parse(&label(&name, number)), Some((name.clone(), number)));
        }
        for wrong in ["", "web", "web.3", "web.x", "WEB.0", "web.0.1", "unknown"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn outputs_with_a_gap_are_none() {
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert_eq!(
            complete(BTreeMap::from([(0, fd()), (1, fd())]))
                .unwrap()
                .len(),
            2
        );
        assert!(complete(BTreeMap::from([(0, fd()), (2, fd())])).is_none());
        assert!(complete(BTreeMap::from([(1, fd())])).is_none());
    }
}
