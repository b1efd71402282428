//! Where frames of pages arrive, whichever stream they came by.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::super::bare::{Duplex, Wire, read_frame};
use super::super::codec::{Kind, Numbered};
use super::super::error::{Cause, MigrationError};
use crate::model::Phase;

/// How far a number may be ahead of the first one that has not come.
const AHEAD: u64 = 1 << 14;
/// After so many bytes, or frames, the source hears what was taken.
const CONFIRM_BYTES: usize = 1 << 20;
const CONFIRM_FRAMES: u64 = 16;

/// Takes batches of pages, from several threads at once.
pub trait TakePages: Send + Sync {
    /// Takes one.
    ///
    /// # Errors
    /// When it is malformed or cannot be kept.
    fn take(&self, batch: &[u8]) -> Result<(), Cause>;
}

/// Takes every frame once, and counts them.
pub struct Intake {
    /// Until the end.
    pages: Mutex<Option<Arc<dyn TakePages>>>,
    state: Mutex<State>,
    changed: Notify,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// All numbers below this one have come.
    below: u64,
    /// And these.
    above: BTreeSet<u64>,
    /// Frames in the store.
    taken: u64,
    streams: usize,
    failed: Option<MigrationError>,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").finish_non_exhaustive()
    }
}

impl State {
    /// Notes a number; false: it has come before.
    fn note(&mut self, number: u64) -> Result<bool, MigrationError> {
        if number < self.below || self.above.contains(&number) {
            return Ok(false);
        }
        if number - self.below > AHEAD {
            let what = format!("frame {number} when {} had not come", self.below);
            let phase = Phase::Memory;
            return Err(MigrationError::Unexpected { what, phase });
        }
        self.above.insert(number);
        while self.above.remove(&self.below) {
            self.below += 1;
        }
        Ok(true)
    }
}

impl Intake {
    /// Nothing has come yet.
    pub fn new(pages: Arc<dyn TakePages>) -> Arc<Self> {
        Arc::new(Self {
            pages: Mutex::new(Some(pages)),
            state: Mutex::default(),
            changed: Notify::new(),
            ended: CancellationToken::new(),
        })
    }

    /// Takes a frame, unless it was taken before. An error is the end of the migration, and kept for it.
    pub(in super::super) fn take(&self, frame: &Numbered<'_>) {
        let new = self.state().note(frame.number);
        match new {
            Ok(false) => {}
            Ok(true) => {
                let taking = Taking(self);
                let taken = match self.pages() {
                    Some(pages) => pages.take(frame.batch),
                    None => Err("all pages were here already".into()),
                };
                std::mem::forget(taking);
                match taken {
                    Ok(()) => self.state().taken += 1,
                    Err(cause) => self.fail(MigrationError::local(Phase::Memory, cause)),
                }
                self.changed.notify_waiters();
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&self, error: MigrationError) {
        self.state().failed.get_or_insert(error);
        self.changed.notify_waiters();
    }

    /// Waits until so many frames are in the store, neither more nor fewer.
    pub(in super::super) async fn until(&self, frames: u64) -> Result<(), MigrationError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(error) = state.failed.take() {
                    return Err(error);
                }
                if state.taken == frames {
                    return Ok(());
                }
                if state.taken > frames {
                    let what = format!("{} frames of pages where it counts {frames}", state.taken);
                    let phase = Phase::Memory;
                    return Err(MigrationError::Unexpected { what, phase });
                }
            }
            changed.await;
        }
    }

    /// Waits until something goes wrong.
    pub(in super::super) async fn failure(&self) -> MigrationError {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(error) = self.state().failed.take() {
                return error;
            }
            changed.await;
        }
    }

    /// Takes no more.
    pub(super) fn close(&self) {
        self.ended.cancel();
    }

    /// Takes no more, and waits until the streams' threads have let go of the store.
    pub(in super::super) async fn end(&self) {
        self.ended.cancel();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.state().streams == 0 {
                drop(self.locked_pages().take());
                return;
            }
            changed.await;
        }
    }

    /// Takes what comes over a stream, until it ends. Blocks between two awaits: on a thread of its own.
    pub(super) async fn serve(&self, stream: impl Duplex, replaced: &CancellationToken) {
        let _serving = Serving::begin(self);
        let (mut read, mut write) = tokio::io::split(stream);
        let wire = Wire::default();
        let mut payload = Vec::new();
        let (mut taken, mut told, mut bytes) = (0u64, 0u64, 0);
        loop {
            let next = tokio::select! {
                biased;
                () = self.ended.cancelled() => {
                    // Or the source would send again, somewhere, what is here.
                    confirm(&wire, &mut write, taken).await.ok();
                    write.shutdown().await.ok();
                    return;
                }
                () = replaced.cancelled() => return,
                next = read_frame(&mut read, &mut payload) => next,
            };
            let frame = match next {
                Ok(Kind::Pages) => Numbered::decode(&payload),
                Ok(kind) => {
                    let what = format!("a frame of {kind:?} over a stream of pages");
                    let phase = Phase::Memory;
                    return self.fail(MigrationError::Unexpected { what, phase });
                }
                // The source dials again, or says over its first connection that it gives up.
                Err(MigrationError::LinkLost { .. }) => return,
                Err(error) => return self.fail(error),
            };
            match frame {
                Ok(frame) => self.take(&frame),
                Err(source) => return self.fail(MigrationError::Codec { source }),
            }
            (taken, bytes) = (taken + 1, bytes + payload.len());
            if bytes < CONFIRM_BYTES && taken - told < CONFIRM_FRAMES {
                continue;
            }
            if confirm(&wire, &mut write, taken).await.is_err() {
                return;
            }
            (told, bytes) = (taken, 0);
        }
    }

    fn pages(&self) -> Option<Arc<dyn TakePages>> {
        self.locked_pages().clone()
    }

    fn locked_pages(&self) -> MutexGuard<'_, Option<Arc<dyn TakePages>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn confirm(
    wire: &Wire,
    stream: &mut (impl AsyncWrite + Unpin),
    taken: u64,
) -> io::Result<()> {
    let word = taken.to_le_bytes();
    wire.write(stream, Kind::Taken, None, &word).await?;
    stream.flush().await
}

/// A frame that is being taken. Dropped by a panic: then it never will be, and nobody must wait for it.
struct Taking<'a>(&'a Intake);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let cause = "a thread that takes pages has died";
        self.0.fail(MigrationError::local(Phase::Memory, cause));
    }
}

/// A stream that is being served.
struct Serving<'a>(&'a Intake);

impl<'a> Serving<'a> {
    fn begin(intake: &'a Intake) -> Self {
        intake.state().streams += 1;
        Self(intake)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.state().streams -= 1;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_number_is_new_once_in_whatever_order_they_come() {
        let mut state = State::default();
        for number in [0, 2, 1, 5, 3, 4] {
            assert!(state.note(number).unwrap(), "{number}");
            assert!(!state.note(number).unwrap(), "{number}");
        }
        assert_eq!((state.below, state.above.len()), (6, 0));
        assert!(!state.note(0).unwrap());
        assert!(state.note(6 + AHEAD + 1).is_err() && state.note(u64::MAX).is_err());
        assert!(state.note(6 + AHEAD).unwrap());
    }
}
