//! One request at a time per container.
//!
//! A request holds the container's lock while it works. A migration, which takes long, holds it only while
//! it changes the container's state: in the states `migrating`, `arriving` and `in-doubt` the requests that
//! would disturb it are refused by [`super::requests`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::DaemonError;
use crate::model::Name;

/// How long a request waits for the one before it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The locks of all containers.
#[derive(Debug, Default)]
pub struct Locks {
    by_name: Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>,
}

/// Proof that no other request works on this container.
#[derive(Debug)]
pub struct Locked {
    name: Name,
    _guard: OwnedMutexGuard<()>,
}

impl Locked {
    /// Whose lock it is.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl Locks {
    /// Waits until the requests before are done; [`DaemonError::Busy`] when that takes too long.
    pub async fn lock(&self, name: &Name) -> Result<Locked, DaemonError> {
        let lock = self.of(name);
        match tokio::time::timeout(PATIENCE, lock.lock_owned()).await {
            Ok(guard) => Ok(Locked {
                name: name.clone(),
                _guard: guard,
            }),
            Err(_) => Err(DaemonError::Busy { name: name.clone() }),
        }
    }

    /// The lock, if nobody has it.
    pub fn try_lock(&self, name: &Name) -> Option<Locked> {
        let guard = self.of(name).try_lock_owned().ok()?;
        Some(Locked {
            name: name.clone(),
            _guard: guard,
        })
    }

    fn of(&self, name: &Name) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        // A lock that nobody holds or waits for is as good as a new one.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(name.clone()).or_default())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn a_second_request_on_one_container_waits_and_another_container_does_not() {
        let locks = Arc::new(Locks::default());
        let (web, db): (Name, Name) = ("web".parse().unwrap(), "db".parse().unwrap());
        let first = locks.lock(&web).await.unwrap();
        assert!(locks.try_lock(&web).is_none());
        assert!(locks.try_lock(&db).is_some());
        let waiting = tokio::spawn({
            let (locks, web) = (Arc::clone(&locks), web.clone());
            async move { locks.lock(&web).await.map(|locked| locked.name().clone()) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.await.unwrap().unwrap(), web);
        assert!(locks.try_lock(&web).is_some());
    }
}
