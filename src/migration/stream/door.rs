//! Where further streams of a migration find it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime;
use tokio_util::sync::CancellationToken;

use super::super::bare::{Duplex, say};
use super::super::message::{Message, NEWEST_VERSION};
use super::intake::Intake;
use super::{MOST_STREAMS, StreamOffer, StreamToken};
use crate::model::{MigrationId, Name};

/// The migrations of this host that expect streams.
#[derive(Debug, Default)]
pub struct Door(Mutex<HashMap<MigrationId, Expected>>);

#[derive(Debug)]
struct Expected {
    source: Name,
    token: StreamToken,
    intake: Arc<Intake>,
    /// Each stream's, which ends the one before it of the same index: a stream that is dialled again may come before
    /// the broken one is known to be broken.
    streams: HashMap<u8, CancellationToken>,
}

/// A stream that no migration expects. Why not is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no migration of {migration} expects such a stream of this host")]
pub struct NotExpected {
    /// Which migration it named.
    pub migration: MigrationId,
}

/// A migration that expects streams until this is dropped.
#[derive(Debug)]
pub(in super::super) struct Awaited {
    door: Arc<Door>,
    migration: MigrationId,
    pub(in super::super) offer: StreamOffer,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(expected) = self.door.expected().remove(&self.migration) {
            expected.intake.close();
        }
    }
}

impl Door {
    /// From now on streams of this migration from its source are let in.
    pub(in super::super) fn expect(
        self: &Arc<Self>,
        migration: MigrationId,
        source: &Name,
        intake: &Arc<Intake>,
    ) -> Awaited {
        let token = StreamToken::random();
        let expected = Expected {
            source: source.clone(),
            token,
            intake: Arc::clone(intake),
            streams: HashMap::new(),
        };
        self.expected().insert(migration, expected);
        Awaited {
            door: Arc::clone(self),
            migration,
            offer: StreamOffer {
                token,
                most: MOST_STREAMS,
            },
        }
    }

    /// Serves a stream to its end, where a migration of this peer expects it; else tells the peer so.
    ///
    /// It is served by a thread with a runtime of its own, for which `settle` makes the stream ready in that thread.
    ///
    /// # Errors
    /// When none does.
    pub async fn enter<S: Duplex>(
        &self,
        mut stream: S,
        settle: impl FnOnce(&mut S) -> io::Result<()> + Send + 'static,
        peer: &Name,
        migration: MigrationId,
        token: StreamToken,
        index: u8,
    ) -> Result<(), NotExpected> {
        let Some((intake, replaced)) = self.admit(peer, migration, token, index) else {
            let refused = NotExpected { migration };
            let why = refused.to_string();
            // Whoever does not listen misses the reason.
            say(&mut stream, &Message::Failed { why }).await.ok();
            return Err(refused);
        };
        let version = NEWEST_VERSION;
        if say(&mut stream, &Message::Welcome { version })
            .await
            .is_err()
        {
            return Ok(());
        }
        let served = tokio::task::spawn_blocking(move || {
            let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                settle(&mut stream)?;
                intake.serve(stream, &replaced).await;
                Ok(())
            })
        });
        let served: Result<io::Result<()>, _> = served.await;
        match served {
            Ok(Ok(())) => {}
            // The source dials again.
            Ok(Err(error)) => {
                tracing::error!(%migration, stream = index, %error, "a stream could not be served");
            }
            Err(error) => {
                tracing::error!(%migration, stream = index, %error, "a stream's thread has died");
            }
        }
        Ok(())
    }

    fn admit(
        &self,
        peer: &Name,
        migration: MigrationId,
        token: StreamToken,
        index: u8,
    ) -> Option<(Arc<Intake>, CancellationToken)> {
        let mut expected = self.expected();
        let found = expected.get_mut(&migration)?;
        if found.token != token || found.source != *peer || index >= MOST_STREAMS {
            return None;
        }
        let replaced = CancellationToken::new();
        if let Some(old) = found.streams.insert(index, replaced.clone()) {
            old.cancel();
        }
        Some((Arc::clone(&found.intake), replaced))
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<MigrationId, Expected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
