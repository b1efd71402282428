//! Frames of pages on their way to whichever stream is free.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::super::link::OutboxError;

/// Frames that wait: about 4 MiB, enough that a stream never waits for a thread.
const MOST: usize = 8;

/// A frame of pages.
#[derive(Debug)]
pub(in super::super) struct Page {
    /// Its number among all of the migration.
    pub(in super::super) number: u64,
    pub(in super::super) payload: Vec<u8>,
}

/// Threads put frames in, streams take them out.
#[derive(Debug, Default)]
pub(in super::super) struct Queue {
    state: Mutex<State>,
    /// For streams: there may be a frame.
    ready: Notify,
    /// For threads: there may be room.
    room: Condvar,
    lost: CancellationToken,
    /// Whether the last frame has been put in.
    complete: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Arc<Page>>,
    streams: usize,
    /// Why the last stream was lost that was lost.
    why: Option<String>,
}

impl Queue {
    /// A queue for so many streams.
    pub(super) fn new(streams: usize) -> Self {
        let queue = Self::default();
        queue.state().streams = streams;
        queue
    }

    /// Puts a frame in, waiting while there is no room.
    pub(in super::super) fn push(
        &self,
        page: Page,
        cancel: &CancellationToken,
    ) -> Result<(), OutboxError> {
        let mut state = self.state();
        loop {
            if cancel.is_cancelled() {
                return Err(OutboxError::Cancelled);
            }
            if self.lost.is_cancelled() {
                return Err(OutboxError::Lost);
            }
            if state.frames.len() < MOST {
                break;
            }
            // Nobody wakes a thread when the migration is cancelled.
            let waited = self.room.wait_timeout(state, Duration::from_millis(50));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.frames.push_back(Arc::new(page));
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// The next frame, which `keep` has seen before anybody else may ask. Cancel-safe.
    pub(super) async fn next(&self, keep: impl Fn(Arc<Page>)) -> Arc<Page> {
        loop {
            let ready = self.ready.notified();
            let next = self.state().frames.pop_front();
            if let Some(page) = next {
                keep(Arc::clone(&page));
                self.room.notify_one();
                return page;
            }
            ready.await;
        }
    }

    /// Waits until a frame waits.
    pub(super) async fn wanted(&self) {
        loop {
            let ready = self.ready.notified();
            if !self.is_empty() {
                // Whoever can take it now is to know of it, too.
                self.ready.notify_one();
                return;
            }
            ready.await;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().frames.is_empty()
    }

    /// Frames of a stream that broke: they come first.
    pub(super) fn put_back(&self, frames: VecDeque<Arc<Page>>) {
        let mut state = self.state();
        for frame in frames.into_iter().rev() {
            state.frames.push_front(frame);
            self.ready.notify_one();
        }
    }

    /// A stream is lost for good. Without any there is nothing to wait for.
    pub(super) fn lose_stream(&self, why: String) {
        let mut state = self.state();
        state.streams -= 1;
        state.why = Some(why);
        if state.streams == 0 {
            self.lost.cancel();
            self.room.notify_all();
        }
    }

    /// No frame will be put in any more.
    pub(in super::super) fn complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// Waits until every stream is lost.
    pub(in super::super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Why a stream was lost, where one was.
    pub(in super::super) fn why_lost(&self) -> Option<String> {
        self.state().why.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
