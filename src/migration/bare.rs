//! Single frames over a byte stream, by whoever has it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::codec::{self, HEADER, Kind};
use super::error::MigrationError;
use super::message::Message;
use super::pace::Pace;
use crate::model::{Bytes, Phase, Rate};

/// A byte stream to another host: TLS in production, a pipe in memory in tests.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// What all connections of a migration share: how fast they may write, and how much they have written.
#[derive(Debug, Default)]
pub(super) struct Wire {
    pace: Pace,
    written: AtomicU64,
}

impl Wire {
    /// At most so many bytes per second.
    pub(super) fn set_rate(&self, rate: Option<Rate>) {
        self.pace.set(rate);
    }

    /// Writes a frame, no faster than it may be.
    pub(super) async fn write(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        kind: Kind,
        number: Option<u64>,
        payload: &[u8],
    ) -> io::Result<()> {
        let number = number.map(u64::to_le_bytes);
        let number = number.as_ref().map_or(&[][..], |number| &number[..]);
        let length = number.len() + payload.len();
        let header = codec::header_of(kind, length).map_err(io::Error::other)?;
        let whole = header.len() + length;
        match self.pace.piece() {
            // One vectored write: a header of its own would be a record, and a system call, of its own.
            None => {
                let mut all = Buf::chain(Buf::chain(&header[..], number), payload);
                stream.write_all_buf(&mut all).await?;
            }
            Some(_) if kind == Kind::Control => {
                self.pace.spend(whole);
                stream.write_all(&[&header[..], payload].concat()).await?;
            }
            Some(piece) => {
                self.pace.take(header.len() + number.len()).await;
                stream.write_all(&[&header[..], number].concat()).await?;
                for part in payload.chunks(piece) {
                    self.pace.take(part.len()).await;
                    stream.write_all(part).await?;
                    // What waits in a buffer would go out later, faster than it may.
                    stream.flush().await?;
                }
            }
        }
        self.written.fetch_add(whole as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes written so far, headers included.
    pub(super) fn written(&self) -> Bytes {
        Bytes(self.written.load(Ordering::Relaxed))
    }
}

/// Reads a frame, its payload into `payload`, whose memory is used again.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    payload: &mut Vec<u8>,
) -> Result<Kind, MigrationError> {
    // The phase is filled in by who waits; a reader does not know it.
    let lost = lost(Phase::Negotiate);
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await.map_err(&lost)?;
    let (kind, length) =
        codec::parse_header(header).map_err(|source| MigrationError::Codec { source })?;
    payload.resize(length, 0);
    stream.read_exact(payload).await.map_err(&lost)?;
    Ok(kind)
}

/// A message as the payload of a control frame.
pub(super) fn encode(message: &Message) -> Vec<u8> {
    // Messages are values of a closed set with string keys: JSON cannot fail on them.
    serde_json::to_vec(message).unwrap_or_default()
}

/// The message in the payload of a control frame.
pub(super) fn understand(payload: &[u8]) -> Result<Message, MigrationError> {
    serde_json::from_slice(payload).map_err(|error| MigrationError::Unexpected {
        what: format!("a message that cannot be understood ({error})"),
        phase: Phase::Negotiate,
    })
}

/// A stream that broke.
pub(super) fn lost(phase: Phase) -> impl Fn(io::Error) -> MigrationError {
    move |source| MigrationError::LinkLost {
        phase,
        source: Some(source),
    }
}

/// Says something over a stream that no [`super::Link`] has taken over.
pub(super) async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &Message,
) -> io::Result<()> {
    let payload = encode(message);
    Wire::default()
        .write(stream, Kind::Control, None, &payload)
        .await?;
    stream.flush().await
}

/// The next message over a stream that no [`super::Link`] has taken over.
pub(super) async fn wait_for(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Message, MigrationError> {
    let mut payload = Vec::new();
    match read_frame(stream, &mut payload).await? {
        Kind::Control => understand(&payload),
        kind => Err(MigrationError::Unexpected {
            what: format!("a frame of {kind:?}"),
            phase: Phase::Negotiate,
        }),
    }
}
