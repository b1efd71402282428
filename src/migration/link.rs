//! Frames over a byte stream, in both directions at once.
//!
//! A task of its own reads and one writes, so that receiving may be abandoned at any await without losing
//! bytes, and threads that produce data can hand it over by blocking on a bounded queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::codec::{self, Frame, HEADER, Kind};
use super::error::{Cause, MigrationError};
use super::message::Message;
use super::pace::Pace;
use crate::model::{Bytes, Phase, Rate};

/// A byte stream to another host: TLS in production, a pipe in memory in tests.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

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
    queue: mpsc::Sender<Frame>,
    cancel: CancellationToken,
    written: Arc<AtomicU64>,
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
        self.queue
            .blocking_send(Frame { kind, payload })
            .map_err(|_| OutboxError::Lost)
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

    /// Bytes written so far, headers included.
    pub fn written(&self) -> Bytes {
        Bytes(self.written.load(Ordering::Relaxed))
    }
}

fn control(message: &Message) -> Frame {
    // Messages are values of a closed set with string keys: JSON cannot fail on them.
    Frame {
        kind: Kind::Control,
        payload: serde_json::to_vec(message).unwrap_or_default(),
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
        Self::paced(stream, cancel, None)
    }

    /// The same; no more than so much goes out per second, whatever it is.
    pub fn paced(stream: impl Duplex, cancel: CancellationToken, rate: Option<Rate>) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (in_tx, inbox) = mpsc::channel(QUEUE);
        let (queue, out_rx) = mpsc::channel(QUEUE);
        let written = Arc::new(AtomicU64::new(0));
        let reader = tokio::spawn(read_all(read, in_tx));
        let writer = tokio::spawn(write_all(write, out_rx, written.clone(), Pace::new(rate)));
        Self {
            inbox,
            outbox: Outbox {
                queue,
                cancel,
                written,
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
    // The phase is filled in by who waits; a reader does not know it.
    let lost = |source| MigrationError::LinkLost {
        phase: Phase::Negotiate,
        source: Some(source),
    };
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await.map_err(lost)?;
    let (kind, length) =
        codec::parse_header(header).map_err(|source| MigrationError::Codec { source })?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.map_err(lost)?;
    if kind != Kind::Control {
        return Ok(Inbound::Data(Frame { kind, payload }));
    }
    match serde_json::from_slice(&payload) {
        Ok(message) => Ok(Inbound::Message(message)),
        Err(error) => {
            let what = format!("a message that cannot be understood ({error})");
            Err(MigrationError::Unexpected {
                what,
                phase: Phase::Negotiate,
            })
        }
    }
}

async fn write_all<S: Duplex>(
    mut stream: WriteHalf<S>,
    mut queue: mpsc::Receiver<Frame>,
    written: Arc<AtomicU64>,
    mut pace: Pace,
) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        let header = codec::header(frame.kind, &frame.payload).map_err(io::Error::other)?;
        pace.take(HEADER).await;
        stream.write_all(&header).await?;
        for piece in frame.payload.chunks(pace.piece()) {
            pace.take(piece.len()).await;
            stream.write_all(piece).await?;
        }
        written.fetch_add((HEADER + frame.payload.len()) as u64, Ordering::Relaxed);
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
