//! The streams of a migration on its source: opened, filled, dialled again when they break.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::super::bare::{Duplex, Wire, lost, read_frame, say, wait_for};
use super::super::codec::{Kind, taken};
use super::super::conclude::Dial;
use super::super::error::MigrationError;
use super::super::message::{Message, NEWEST_VERSION, OLDEST_VERSION, Purpose};
use super::queue::{Page, Queue};
use super::window::Window;
use super::{MOST_STREAMS, StreamOffer};
use crate::model::{MigrationId, Name, Phase};

/// How long opening a stream may take.
const OPENING: Duration = Duration::from_secs(5);
/// For how long a stream that broke is dialled again, usually; and half of the time in which something must come through
/// one, however often it can be dialled again.
pub(in super::super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts, at first.
const PAUSE: Duration = Duration::from_millis(50);

/// Where streams go to, and what they must show there.
pub(in super::super) struct Way {
    pub(in super::super) dial: Arc<dyn Dial>,
    pub(in super::super) peer: Name,
    pub(in super::super) migration: MigrationId,
    pub(in super::super) offer: StreamOffer,
    /// For how long a stream that broke is dialled again.
    pub(in super::super) patience: Duration,
}

impl Way {
    /// A stream that the destination has taken.
    async fn open(&self, index: u8) -> Result<Box<dyn Duplex>, MigrationError> {
        let phase = Phase::Memory;
        let opening = async {
            let mut stream = self.dial.dial(&self.peer).await.map_err(lost(phase))?;
            let hello = Message::Hello {
                oldest: OLDEST_VERSION,
                newest: NEWEST_VERSION,
                migration: self.migration,
                purpose: Purpose::Stream {
                    token: self.offer.token,
                    index,
                },
            };
            say(&mut stream, &hello).await.map_err(lost(phase))?;
            match wait_for(&mut stream).await? {
                Message::Welcome { .. } => Ok(stream),
                Message::Failed { why } => Err(MigrationError::OtherSide { why }),
                other => Err(MigrationError::unexpected(&other, phase)),
            }
        };
        let late = || lost(phase)(io::ErrorKind::TimedOut.into());
        timeout(OPENING, opening)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// The same, as often as it takes, for as long as is worth while.
    async fn open_again(&self, index: u8) -> Result<Box<dyn Duplex>, MigrationError> {
        let until = Instant::now() + self.patience;
        let mut pause = PAUSE;
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
            match self.open(index).await {
                // What was refused once is refused for good.
                Err(error @ MigrationError::LinkLost { .. }) if Instant::now() > until => {
                    return Err(error);
                }
                Err(MigrationError::LinkLost { .. }) => {}
                opened => return opened,
            }
        }
    }
}

/// The streams of a migration. They end when this is dropped.
#[derive(Debug)]
pub(in super::super) struct Streams(Vec<JoinHandle<()>>);

impl Drop for Streams {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Streams {
    /// Opens up to `count` streams, fewer where the destination takes no more. None where not one could be opened:
    /// pages then go over the first connection like everything else.
    pub(in super::super) async fn open(
        way: Way,
        count: u8,
        wire: &Arc<Wire>,
    ) -> Option<(Self, Arc<Queue>)> {
        let mut opened = Vec::new();
        for index in 0..count.min(way.offer.most).min(MOST_STREAMS) {
            match way.open(index).await {
                Ok(stream) => opened.push((index, stream)),
                Err(error) => {
                    tracing::warn!(migration = %way.migration, error = %error.chain(), "a stream for pages could not be opened");
                    break;
                }
            }
        }
        if opened.is_empty() {
            return None;
        }
        let queue = Arc::new(Queue::new(opened.len()));
        let way = Arc::new(way);
        let run = |(index, stream)| {
            let (way, queue, wire) = (Arc::clone(&way), Arc::clone(&queue), Arc::clone(wire));
            tokio::spawn(async move { run(&way, index, stream, &queue, &wire).await })
        };
        let tasks = opened.into_iter().map(run).collect();
        Some((Self(tasks), queue))
    }
}

/// A stream's life.
async fn run(way: &Way, index: u8, mut stream: Box<dyn Duplex>, queue: &Queue, wire: &Wire) {
    // Connections in a row through which nothing came, and since when that is so.
    let (mut barren, mut since) = (0, Instant::now());
    loop {
        let begin = Instant::now();
        let (unconfirmed, confirmed, error) = carry(stream, queue, wire).await;
        let frames = unconfirmed.len();
        if confirmed > 0 || frames == 0 {
            barren = 0;
        } else {
            barren += 1;
            since = if barren == 1 { begin } else { since };
        }
        let silent = since.elapsed();
        queue.put_back(unconfirmed);
        tracing::info!(migration = %way.migration, stream = index, frames, error = %error.chain(), "a stream of pages has ended");
        // A cable that carries short frames only lets a connection begin, time after time.
        if barren > 1 && silent > way.patience * 2 {
            let why = format!(
                "it takes connections, and in {:.0} s nothing came through {barren} of them: do frames of full length get there (MTU)?",
                silent.as_secs_f64()
            );
            tracing::warn!(migration = %way.migration, stream = index, why, "a stream is lost");
            return queue.lose_stream(why);
        }
        // Where nothing is left to be sent the destination has ended it.
        queue.wanted().await;
        stream = match way.open_again(index).await {
            Ok(stream) => {
                tracing::info!(migration = %way.migration, stream = index, "a stream of pages was dialled again");
                stream
            }
            // What it had sent and did not hear of came by another stream, and the destination is at the next step.
            Err(MigrationError::OtherSide { .. }) if queue.is_complete() => return,
            Err(error) => {
                tracing::warn!(migration = %way.migration, stream = index, error = %error.chain(), "a stream is lost");
                return queue.lose_stream(error.chain());
            }
        };
    }
}

/// Sends frames over a stream until it breaks. Returns what is not confirmed by then, how many were confirmed, and why it
/// broke.
async fn carry(
    stream: Box<dyn Duplex>,
    queue: &Queue,
    wire: &Wire,
) -> (VecDeque<Arc<Page>>, u64, MigrationError) {
    let window = Mutex::new(Window::default());
    let locked =
        || -> MutexGuard<'_, Window> { window.lock().unwrap_or_else(PoisonError::into_inner) };
    let (mut read, mut write) = tokio::io::split(stream);
    let room = Notify::new();
    let phase = Phase::Memory;
    let sending = async {
        loop {
            while !locked().has_room() {
                room.notified().await;
            }
            if queue.is_empty() {
                write.flush().await.map_err(lost(phase))?;
            }
            // In the window before it is written: a write that fails halfway is one to be done again.
            let page = queue.next(|page| locked().push(page)).await;
            let written = wire.write(&mut write, Kind::Pages, Some(page.number), &page.payload);
            written.await.map_err(lost(phase))?;
        }
    };
    let hearing = async {
        let mut payload = Vec::new();
        loop {
            let kind = read_frame(&mut read, &mut payload)
                .await
                .map_err(|error| error.in_phase(phase))?;
            let unexpected = || MigrationError::Unexpected {
                what: format!("a frame of {kind:?} over a stream of pages"),
                phase,
            };
            if kind != Kind::Taken {
                return Err(unexpected());
            }
            let count = taken(&payload).map_err(|source| MigrationError::Codec { source })?;
            locked().confirm(count).map_err(|_| unexpected())?;
            room.notify_one();
        }
    };
    let ended: Result<std::convert::Infallible, MigrationError> = tokio::select! {
        ended = sending => ended,
        ended = hearing => ended,
    };
    let Err(error) = ended;
    let mut window = locked();
    (window.unconfirmed(), window.confirmed(), error)
}
