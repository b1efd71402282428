//! Joining, the side that bears the token. The protocol is drawn at the head of the room.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::model::{Digest, Name};

use super::ALPN_JOIN;
use super::address::Address;
use super::book::PeerBook;
use super::dial::{broken_off, connect, shake_hands, within};
use super::error::{PeerError, chain};
use super::state::Peer;
use super::token::JoinToken;
use super::verify::OnlyThis;
use super::wire::{HEADER, Message, WireError, decode_header};

/// All of a joining together.
const LIMIT: Duration = Duration::from_secs(10);

/// Joins the host at `address` with a token that was made there.
///
/// On success each of the two hosts has the other in its book. The token is not sent before the other end has proved
/// to be the host that made it. On failure this host's book is unchanged, and the other's too, unless the link broke
/// in the very moment between its pin and ours: then it knows us and we do not know it, and joining again with a new
/// token mends that.
pub async fn join(book: &Arc<PeerBook>, address: &str, token: &str) -> Result<Peer, PeerError> {
    let address: Address = address
        .parse()
        .map_err(|source| PeerError::Address { source })?;
    let token: JoinToken = token
        .parse()
        .map_err(|source| PeerError::Token { source })?;
    if token.fingerprint() == book.fingerprint() {
        return Err(PeerError::OwnToken);
    }
    let deadline = Instant::now() + LIMIT;
    let tcp = connect(&address, deadline).await?;
    let rule = OnlyThis::new(token.fingerprint());
    let handshake = shake_hands(book, &rule, ALPN_JOIN, tcp, &address, deadline).await;
    let mut tls = match rule.shown() {
        Some(presented) if presented != token.fingerprint() => {
            return Err(PeerError::TokenOfAnother {
                address: address.to_string(),
                expected: token.fingerprint(),
                presented,
            });
        }
        _ => handshake?,
    };
    let talk = ask(book, &token, &address, &mut tls);
    let (name, advertised) = within(deadline, "answer", &address, talk).await??;
    let pinned = pin(book, name, advertised, token.fingerprint()).await;
    let last = match &pinned {
        Ok(_) => Message::Kept,
        Err(_) => Message::Withdrawn,
    };
    // Whatever becomes of this word: what we did is done. Unheard, the other side keeps its pin.
    let goodbye = async {
        tls.write_all(&last.encode()).await?;
        tls.shutdown().await
    };
    if let Ok(Err(error)) = within(deadline, "say goodbye", &address, goodbye).await {
        tracing::debug!(%address, error = chain(&error), "the end of a joining was not heard");
    }
    pinned
}

async fn ask(
    book: &PeerBook,
    token: &JoinToken,
    address: &Address,
    tls: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<(Name, Address), PeerError> {
    let question = Message::Ask {
        secret: token.secret().clone(),
        name: book.name().clone(),
        address: book.advertise().clone(),
    };
    let sent = write_message(tls, &question).await;
    sent.map_err(broken_off(address))?;
    match read_message(tls).await {
        Ok(Message::Welcome { name, address }) => Ok((name, address)),
        Ok(Message::Refused(source)) => Err(PeerError::JoinRefused {
            address: address.to_string(),
            source,
        }),
        Ok(_) => Err(PeerError::OutOfTurn {
            address: address.to_string(),
        }),
        Err(Unread::Broken(source)) => Err(broken_off(address)(source)),
        Err(Unread::Malformed(source)) => Err(PeerError::Answer {
            address: address.to_string(),
            source,
        }),
    }
}

async fn pin(
    book: &Arc<PeerBook>,
    name: Name,
    address: Address,
    fingerprint: Digest,
) -> Result<Peer, PeerError> {
    let book = book.clone();
    tokio::task::spawn_blocking(move || book.pin(name, address, fingerprint))
        .await
        .map_err(|source| PeerError::Lost { source })?
}

/// No message came.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// The stream ended or failed.
    #[error("the connection broke off in the middle of joining")]
    Broken(#[source] io::Error),
    /// Something else came.
    #[error("what came is no message of joining")]
    Malformed(#[source] WireError),
}

pub(super) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> Result<Message, Unread> {
    let mut header = [0; HEADER];
    let read = stream.read_exact(&mut header).await;
    read.map_err(Unread::Broken)?;
    let (kind, length) = decode_header(header).map_err(Unread::Malformed)?;
    let mut body = vec![0; length];
    let read = stream.read_exact(&mut body).await;
    read.map_err(Unread::Broken)?;
    Message::decode(kind, &body).map_err(Unread::Malformed)
}

pub(super) async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &Message,
) -> io::Result<()> {
    stream.write_all(&message.encode()).await?;
    stream.flush().await
}
