//! Dialling: a TCP connection, a handshake with exactly one acceptable certificate, a welcome.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::model::Name;

use super::address::Address;
use super::book::PeerBook;
use super::error::{PeerError, tls_error};
use super::socket::{self, Socket};
use super::state::Peer;
use super::stream::PeerStream;
use super::verify::OnlyThis;
use super::wire::WELCOME;
use super::{ALPN_PEER, config};

/// All of a dialling together.
const LIMIT: Duration = Duration::from_secs(10);
/// One of several addresses that a name may have.
const LIMIT_EACH: Duration = Duration::from_secs(4);

/// A stream to the peer of this name.
///
/// On success the other end has the pinned certificate, has proved its key, and has found ours in its own book. Fails
/// within ten seconds if there is nobody, or somebody else.
pub async fn dial(book: &Arc<PeerBook>, peer: &Name) -> Result<PeerStream, PeerError> {
    let peer = book
        .find(peer)
        .ok_or_else(|| PeerError::UnknownPeer { name: peer.clone() })?;
    let deadline = Instant::now() + LIMIT;
    let tcp = connect(&peer.address, deadline).await?;
    let rule = OnlyThis::new(peer.fingerprint);
    let result = greet(book, &rule, tcp, &peer, deadline).await;
    match rule.shown() {
        Some(presented) if presented != peer.fingerprint => Err(PeerError::WrongCertificate {
            address: peer.address.to_string(),
            expected: peer.fingerprint,
            presented,
            peer: peer.name,
        }),
        _ => result,
    }
}

async fn greet(
    book: &PeerBook,
    rule: &Arc<OnlyThis>,
    tcp: Socket,
    peer: &Peer,
    deadline: Instant,
) -> Result<PeerStream, PeerError> {
    let address = tcp
        .get_ref()
        .peer_addr()
        .map_err(broken_off(&peer.address))?;
    let mut tls = shake_hands(book, rule, ALPN_PEER, tcp, &peer.address, deadline)
        .await
        .map_err(|error| match error {
            PeerError::Handshake { source, .. } => refused(peer, source),
            other => other,
        })?;
    // In TLS 1.3 our side is ready before the other has looked at our certificate: the welcome says that it has.
    let welcome = within(deadline, "welcome this host", &peer.address, tls.read_u8()).await?;
    match welcome {
        Ok(WELCOME) => Ok(PeerStream::new(peer, address, tls.into())),
        Ok(_) => Err(PeerError::Protocol {
            address: peer.address.to_string(),
        }),
        Err(source) => Err(refused(peer, source)),
    }
}

/// Tells "you are not welcome" from every other way in which a greeting fails.
fn refused(peer: &Peer, source: io::Error) -> PeerError {
    let address = peer.address.to_string();
    match tls_error(&source) {
        Some(rustls::Error::AlertReceived(
            AlertDescription::AccessDenied | AlertDescription::CertificateRequired,
        )) => PeerError::NotPinnedThere {
            peer: peer.name.clone(),
            address,
            source,
        },
        Some(_) => PeerError::Handshake { address, source },
        None => PeerError::BrokenOff { address, source },
    }
}

/// A tuned TCP connection to the first of the address's hosts that answers.
pub(super) async fn connect(address: &Address, deadline: Instant) -> Result<Socket, PeerError> {
    let resolve = lookup_host(address.as_str());
    let found = within(deadline, "be found by name", address, resolve).await?;
    let hosts = found.map_err(|source| PeerError::Resolve {
        address: address.to_string(),
        source,
    })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for host in hosts {
        let attempt = timeout(LIMIT_EACH, TcpStream::connect(host));
        match within(deadline, "answer", address, attempt).await? {
            Ok(Ok(tcp)) => match socket::tune(tcp) {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error,
            },
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(PeerError::Connect {
        address: address.to_string(),
        source: last,
    })
}

/// The handshake of the dialling side, for either protocol.
pub(super) async fn shake_hands(
    book: &PeerBook,
    rule: &Arc<OnlyThis>,
    alpn: &[u8],
    tcp: Socket,
    address: &Address,
    deadline: Instant,
) -> Result<TlsStream<Socket>, PeerError> {
    let config = config::client(book.identity(), rule.clone(), alpn)?;
    // TLS wants a name to ask for. Ours is neither sent nor checked.
    let nobody = ServerName::try_from("godwit").expect("a valid name");
    let handshake = TlsConnector::from(config).connect(nobody, tcp);
    let tls = within(deadline, "shake hands", address, handshake)
        .await?
        .map_err(|source| PeerError::Handshake {
            address: address.to_string(),
            source,
        })?;
    if tls.get_ref().1.alpn_protocol() == Some(alpn) {
        Ok(tls)
    } else {
        Err(PeerError::Protocol {
            address: address.to_string(),
        })
    }
}

/// Waits until the deadline of the whole and says, if it comes, what was being done.
pub(super) async fn within<T>(
    deadline: Instant,
    operation: &'static str,
    address: &Address,
    work: impl Future<Output = T>,
) -> Result<T, PeerError> {
    timeout_at(deadline, work)
        .await
        .map_err(|_| PeerError::Timeout {
            operation,
            address: address.to_string(),
            limit: LIMIT,
        })
}

pub(super) fn broken_off(address: &Address) -> impl Fn(io::Error) -> PeerError {
    move |source| PeerError::BrokenOff {
        address: address.to_string(),
        source,
    }
}
