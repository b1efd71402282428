//! Threads that pack pages, shared by all rounds of one migration.
//!
//! ```text
//! tracker ─▶ Sender ─ batches ─▶ workers (zeros, compression, checksums)
//!              ▲  │                  │
//!              └──┼──── frames ◀─────┘      the sender's own thread hands them on: `out` need not be shared
//!                 └─▶ out ─▶ link
//! ```
//!
//! **Invariant:** memory is bounded: no more than [`Pool::most`] batches are on their way, and a sender that finds so
//! many waits for one of them. A worker that dies is an error of the sender, never a batch that is silently lost.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::MemoryError;
use super::copies::Copies;
use super::level::Level;
use super::pack::{Batch, Done, Packer};
use crate::model::{Bytes, Compress};
use crate::sys::scheduling;

/// The most threads: beyond that the reader of the memory is the slowest.
const MOST_WORKERS: usize = 4;

/// What copies of pages that were sent may take, for whoever asks for nothing else.
const COPIES: Bytes = Bytes(32 << 20);

/// Threads that turn pages into frames, and what they know from one round to the next.
#[derive(Debug)]
pub struct Pool {
    jobs: Option<mpsc::Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    level: Level,
    copies: Copies,
    spare: Mutex<Vec<Vec<u8>>>,
    most_spare: usize,
}

/// A batch to be packed.
struct Job {
    batch: Batch,
    reply: Reply,
}

/// The way back to the sender, which hears of every batch once, whatever becomes of it.
#[derive(Debug)]
struct Reply(Option<mpsc::Sender<Result<Done, MemoryError>>>);

impl Reply {
    fn say(mut self, done: Result<Done, MemoryError>) {
        if let Some(sender) = self.0.take() {
            // A sender that is gone has failed before.
            sender.send(done).ok();
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            sender.send(Err(MemoryError::WorkerLost)).ok();
        }
    }
}

impl Pool {
    /// As many threads as there are processors, four at most.
    ///
    /// # Errors
    /// When a thread or a compressor cannot be made.
    pub fn new(compress: Compress) -> Result<Self, MemoryError> {
        Self::with_workers(compress, scheduling::processors().min(MOST_WORKERS))
    }

    /// The same with so many threads.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn with_workers(compress: Compress, workers: usize) -> Result<Self, MemoryError> {
        Self::with_copies(compress, workers, COPIES)
    }

    /// The same, and copies of pages that were sent take no more than `limit`: of nothing, there are none.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn with_copies(
        compress: Compress,
        workers: usize,
        limit: Bytes,
    ) -> Result<Self, MemoryError> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let shared = Arc::new(Shared {
            level: Level::new(compress, workers),
            copies: Copies::new(limit),
            spare: Mutex::default(),
            most_spare: 2 * workers + 4,
        });
        let mut pool = Self {
            jobs: Some(jobs),
            workers: Vec::new(),
            shared,
        };
        for number in 0..workers.max(1) {
            let (queue, shared) = (Arc::clone(&queue), Arc::clone(&pool.shared));
            let packer = Packer::new()?;
            let worker = thread::Builder::new()
                .name(format!("pack-{number}"))
                .spawn(move || work(&queue, &shared, packer))
                .map_err(|source| MemoryError::Worker { source })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// The destination has acknowledged everything that was sent so far: pages that are sent again may go as what has
    /// changed in them. Whoever never says so sends whole pages.
    pub fn next_round(&self) {
        self.shared.copies.next_round();
    }

    /// Copies of what was sent.
    pub(super) fn copies(&self) -> &Copies {
        &self.shared.copies
    }

    /// The most batches that are on their way at once.
    pub(super) fn most(&self) -> usize {
        self.workers.len() + 2
    }

    pub(super) fn level(&self) -> &Level {
        &self.shared.level
    }

    /// An empty batch.
    pub(super) fn batch(&self) -> Batch {
        Batch::new(self.shared.spare())
    }

    /// Has a batch packed; `reply` hears of it.
    pub(super) fn pack(&self, batch: Batch, reply: mpsc::Sender<Result<Done, MemoryError>>) {
        let reply = Reply(Some(reply));
        if let Some(jobs) = &self.jobs {
            // Without workers the reply is dropped, and so says so.
            jobs.send(Job { batch, reply }).ok();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A worker that has panicked was told of already.
            worker.join().ok();
        }
    }
}

impl Shared {
    fn spare(&self) -> Vec<u8> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_default()
    }

    fn keep(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.most_spare {
            spare.push(buffer);
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, shared: &Shared, mut packer: Packer) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { batch, reply }) = next else {
            return;
        };
        let done = packer.pack(batch, shared.spare(), shared.level.now(), &shared.copies);
        let done = done.map(|mut done| {
            shared.level.packed(done.plain, done.compressing);
            shared.keep(std::mem::take(&mut done.spare));
            done
        });
        reply.say(done);
    }
}
