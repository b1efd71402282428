//! Frames over a byte stream, in both directions at once.
//!
//! A task of its own reads and one writes, so that receiving may be abandoned at any await without losing
//! bytes, and threads that produce data can hand it over by blocking on a bounded queue. Pages may have streams of
//! their own ([`super::stream`]).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use super::bare::Duplex;
use super::bare::{Wire, encode, read_frame, understand};
use super::codec::{Frame, Kind};
use super::error::{Cause, MigrationError};
use super::message::Message;
use super::stream::{Page, Queue};
use crate::model::{Bytes, Phase, Rate};

/// Frames waiting to be written or taken: about 16 MiB at most in each direction.
const QUEUE: usize = 16;

/// What came in.
#[derive(Debug)]
pub enum Inbound {
    /// A control message.
    Message(Message),
    /// A frame of data.
    Data(Frame),
}

/// The sending half: may be cloned and used from threads.
#[derive(Debug, Clone)]
pub struct Outbox {
    queue: mpsc::Sender<Outgoing>,
    cancel: CancellationToken,
    wire: Arc<Wire>,
    pages: Arc<PagesOut>,
}

/// The frames of pages of a migration, counted, and the streams they go by where there are any.
#[derive(Debug, Default)]
struct PagesOut {
    count: AtomicU64,
    streams: OnceLock<Arc<Queue>>,
}

/// A frame that waits to be written.
#[derive(Debug)]
struct Outgoing {
    kind: Kind,
    /// Pages have one.
    number: Option<u64>,
    payload: Vec<u8>,
}

/// Why a frame could not be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// Nobody writes any more.
    #[error("the connection to the other host is lost")]
    Lost,
    /// The migration is being cancelled.
    #[error("the migration is cancelled")]
    Cancelled,
}

impl Outbox {
    /// Hands a frame over, waiting while the queue is full. From threads, never from a task.
    ///
    /// # Errors
    /// When the connection is lost or the migration is cancelled.
    pub fn send(&self, kind: Kind, payload: Vec<u8>) -> Result<(), OutboxError> {
        if self.cancel.is_cancelled() {
            return Err(OutboxError::Cancelled);
        }
        let pages = kind == Kind::Pages;
        let number = pages.then(|| self.pages.count.fetch_add(1, Ordering::Relaxed));
        if let (Some(number), Some(streams)) = (number, self.pages.streams.get()) {
            return streams.push(Page { number, payload }, &self.cancel);
        }
        let frame = Outgoing {
            kind,
            number,
            payload,
        };
        self.queue
            .blocking_send(frame)
            .map_err(|_| OutboxError::Lost)
    }

    /// Hands a frame over that is none of pages, waiting while the queue is full. From a task.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn put(&self, kind: Kind, payload: Vec<u8>) -> Result<(), OutboxError> {
        let frame = Outgoing {
            kind,
            number: None,
            payload,
        };
        self.queue.send(frame).await.map_err(|_| OutboxError::Lost)
    }

    /// Says something, waiting while the queue is full. From threads, never from a task.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn say_blocking(&self, message: &Message) -> Result<(), OutboxError> {
        self.queue
            .blocking_send(control(message))
            .map_err(|_| OutboxError::Lost)
    }

    /// Says something. From a task.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn say(&self, message: &Message) -> Result<(), OutboxError> {
        self.queue
            .send(control(message))
            .await
            .map_err(|_| OutboxError::Lost)
    }

    /// Bytes written so far, headers included, over all streams.
    pub fn written(&self) -> Bytes {
        self.wire.written()
    }

    /// Frames of pages that were handed over so far: what a destination must have taken when it hears of it.
    pub fn pages(&self) -> u64 {
        self.pages.count.load(Ordering::Relaxed)
    }

    /// The same, of the last of them.
    pub fn end_pages(&self) -> u64 {
        if let Some(streams) = self.pages.streams.get() {
            streams.complete();
        }
        self.pages()
    }

    /// From now on at most so many bytes per second are written, all streams together.
    pub fn set_bandwidth(&self, rate: Option<Rate>) {
        self.wire.set_rate(rate);
    }

    /// From now on pages go by these streams.
    pub(super) fn use_streams(&self, queue: Arc<Queue>) {
        // Asked for once, before the first page.
        self.pages.streams.set(queue).ok();
    }

    /// What all connections of this migration share.
    pub(super) fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// Waits until pages cannot be sent any more because every stream is lost.
    pub(super) async fn streams_lost(&self) {
        match self.pages.streams.get() {
            Some(streams) => streams.lost().await,
            None => std::future::pending().await,
        }
    }

    /// Why a stream was lost, where one was.
    pub(super) fn why_streams_lost(&self) -> Option<String> {
        self.pages.streams.get()?.why_lost()
    }
}

fn control(message: &Message) -> Outgoing {
    Outgoing {
        kind: Kind::Control,
        number: None,
        payload: encode(message),
    }
}

/// One connection between two hosts.
#[derive(Debug)]
pub struct Link {
    inbox: mpsc::Receiver<Result<Inbound, MigrationError>>,
    outbox: Outbox,
    reader: JoinHandle<()>,
    writer: JoinHandle<io::Result<()>>,
}

impl Link {
    /// Takes a stream over. Data is refused by [`Outbox::send`] once `cancel` is cancelled.
    pub fn new(stream: impl Duplex, cancel: CancellationToken) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (in_tx, inbox) = mpsc::channel(QUEUE);
        let (queue, out_rx) = mpsc::channel(QUEUE);
        let wire = Arc::new(Wire::default());
        let reader = tokio::spawn(read_all(read, in_tx));
        let writer = tokio::spawn(write_all(write, out_rx, Arc::clone(&wire)));
        Self {
            inbox,
            outbox: Outbox {
                queue,
                cancel,
                wire,
                pages: Arc::default(),
            },
            reader,
            writer,
        }
    }

    /// A connection that has ended, to stand in while the real one is used by a thread.
    pub fn closed() -> Self {
        let (stream, _) = tokio::io::duplex(1);
        Self::new(stream, CancellationToken::new())
    }

    /// The sending half.
    pub fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// The next thing that comes in. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is lost, or the bytes are not of this protocol.
    pub async fn receive(&mut self, phase: Phase) -> Result<Inbound, MigrationError> {
        self.inbox
            .recv()
            .await
            .unwrap_or(Err(MigrationError::LinkLost {
                phase,
                source: None,
            }))
    }

    /// The same, for threads.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn receive_blocking(&mut self, phase: Phase) -> Result<Inbound, MigrationError> {
        self.inbox
            .blocking_recv()
            .unwrap_or(Err(MigrationError::LinkLost {
                phase,
                source: None,
            }))
    }

    /// The next control message; data has no place here.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub async fn receive_message(&mut self, phase: Phase) -> Result<Message, MigrationError> {
        match self.receive(phase).await? {
            Inbound::Message(message) => Ok(message),
            Inbound::Data(frame) => Err(MigrationError::Unexpected {
                what: format!("a frame of {:?}", frame.kind),
                phase,
            }),
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn say(&self, message: &Message, phase: Phase) -> Result<(), MigrationError> {
        self.outbox
            .say(message)
            .await
            .map_err(|_| MigrationError::LinkLost {
                phase,
                source: None,
            })
    }

    /// Writes what is queued, then closes. Clones of the outbox must be gone.
    pub async fn close(self) {
        let Self {
            inbox,
            outbox,
            reader,
            writer,
        } = self;
        drop(outbox);
        // A peer that takes nothing more must not hold us: what was said last is lost with the link.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), writer).await;
        drop(inbox);
        reader.abort();
    }
}

async fn read_all<S: Duplex>(
    mut stream: ReadHalf<S>,
    inbox: mpsc::Sender<Result<Inbound, MigrationError>>,
) {
    loop {
        let next = read_one(&mut stream).await;
        let last = next.is_err();
        if inbox.send(next).await.is_err() || last {
            return;
        }
    }
}

async fn read_one<S: Duplex>(stream: &mut ReadHalf<S>) -> Result<Inbound, MigrationError> {
    let mut payload = Vec::new();
    let kind = read_frame(stream, &mut payload).await?;
    if kind == Kind::Control {
        understand(&payload).map(Inbound::Message)
    } else {
        Ok(Inbound::Data(Frame { kind, payload }))
    }
}

async fn write_all<S: Duplex>(
    mut stream: WriteHalf<S>,
    mut queue: mpsc::Receiver<Outgoing>,
    wire: Arc<Wire>,
) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        wire.write(&mut stream, frame.kind, frame.number, &frame.payload)
            .await?;
        if queue.is_empty() {
            stream.flush().await?;
        }
    }
    stream.shutdown().await
}

impl MigrationError {
    /// The same error, told from the phase in which it was noticed.
    #[must_use]
    pub fn in_phase(self, now: Phase) -> Self {
        match self {
            Self::LinkLost { source, .. } => Self::LinkLost { phase: now, source },
            Self::Unexpected { what, .. } => Self::Unexpected { what, phase: now },
            other => other,
        }
    }

    /// What a blocking step reported: a lost link or a cancellation keep their meaning.
    pub fn of_step(phase: Phase, cause: Cause) -> Self {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(cause.as_ref());
        while let Some(error) = next {
            match outbox_error(error) {
                Some(OutboxError::Lost) => {
                    return Self::LinkLost {
                        phase,
                        source: None,
                    };
                }
                Some(OutboxError::Cancelled) => return Self::Cancelled { phase },
                None => next = error.source(),
            }
        }
        Self::Local {
            phase,
            source: cause,
        }
    }
}

/// The outbox's word, where an error carries it: inside an [`io::Error`] it is no `source` but the error
/// itself.
fn outbox_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a OutboxError> {
    let inner = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    error
        .downcast_ref()
        .or_else(|| inner.and_then(|inner| inner.downcast_ref()))
}
