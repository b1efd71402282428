//! Joining, the side that made the token. The protocol is drawn at the head of the room.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::server::TlsStream;

use crate::model::{Digest, Name};

use super::book::{Admitted, PeerBook};
use super::error::PeerError;
use super::join::{Unread, read_message, write_message};
use super::socket::Socket;
use super::state::Peer;
use super::wire::{Message, Refusal};

/// How long a bearer may take to say what it wants, and again to say goodbye.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a bad token waits for its answer, holding one of the few places for joining: what guesses or floods
/// gets a handful of tries in a second.
const RELUCTANCE: Duration = Duration::from_millis(300);

/// Why a bearer has not become a peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAdmitted {
    /// It said nothing in time, or went away.
    #[error("it did not ask within {PATIENCE:?}")]
    Slow,
    /// It said something else.
    #[error("it did not ask as a bearer of a token does")]
    Talk(#[source] Unread),
    /// It said a message that is not due.
    #[error("it began with a message that is not due")]
    OutOfTurn,
    /// Its token is bad, or its name.
    #[error("it asked to join as {name}")]
    Refused {
        name: Name,
        #[source]
        refusal: Refusal,
    },
    /// It could not pin this host in turn.
    #[error("{name} has withdrawn from joining: it could not record this host")]
    Withdrawn { name: Name },
    /// It has withdrawn, and the book could not be written.
    #[error(
        "{name} has withdrawn from joining, and stays in the book: use `godwit peer remove {name}`"
    )]
    NotForgotten {
        name: Name,
        #[source]
        source: PeerError,
    },
}

/// Hears the bearer whose certificate is `fingerprint`, and answers. On success it is pinned, on the disk.
pub(super) async fn admit(
    book: &Arc<PeerBook>,
    mut tls: TlsStream<Socket>,
    fingerprint: Digest,
) -> Result<Peer, NotAdmitted> {
    let deadline = Instant::now() + PATIENCE;
    let asked = timeout_at(deadline, read_message(&mut tls)).await;
    let question = asked
        .map_err(|_| NotAdmitted::Slow)?
        .map_err(NotAdmitted::Talk)?;
    let Message::Ask {
        secret,
        name,
        address,
    } = question
    else {
        return Err(NotAdmitted::OutOfTurn);
    };
    let work = {
        let (book, name) = (book.clone(), name.clone());
        move || book.admit(&secret, name, address, fingerprint)
    };
    let decided = tokio::task::spawn_blocking(work).await;
    match decided.unwrap_or(Err(Refusal::Failed)) {
        Ok(admitted) => welcome(book, &mut tls, admitted).await,
        Err(refusal) => {
            sleep(RELUCTANCE).await;
            let goodbye = async {
                write_message(&mut tls, &Message::Refused(refusal)).await?;
                tls.shutdown().await
            };
            // A bearer that does not listen misses the reason, nothing else.
            let _ = timeout(PATIENCE, goodbye).await;
            Err(NotAdmitted::Refused { name, refusal })
        }
    }
}

async fn welcome(
    book: &Arc<PeerBook>,
    tls: &mut (impl AsyncRead + AsyncWrite + Unpin),
    admitted: Admitted,
) -> Result<Peer, NotAdmitted> {
    let answer = Message::Welcome {
        name: book.name().clone(),
        address: book.advertise().clone(),
    };
    let talk = async {
        write_message(tls, &answer).await.map_err(Unread::Broken)?;
        read_message(tls).await
    };
    // Only a clear withdrawal undoes the pin: of a bearer that falls silent nobody knows whether it pinned us.
    if !matches!(timeout(PATIENCE, talk).await, Ok(Ok(Message::Withdrawn))) {
        return Ok(admitted.peer);
    }
    let name = admitted.peer.name.clone();
    let undo = {
        let book = book.clone();
        move || book.withdraw(admitted)
    };
    match tokio::task::spawn_blocking(undo).await {
        Ok(Ok(())) => Err(NotAdmitted::Withdrawn { name }),
        Ok(Err(source)) => Err(NotAdmitted::NotForgotten { name, source }),
        Err(source) => Err(NotAdmitted::NotForgotten {
            name,
            source: PeerError::Lost { source },
        }),
    }
}
