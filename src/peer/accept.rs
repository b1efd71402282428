//! Listening: every connection is a stranger's until its handshake proves otherwise.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::server::{StartHandshake, TlsStream};
use tokio_rustls::{LazyConfigAcceptor, server};
use tokio_util::sync::CancellationToken;

use crate::model::{Digest, Name};

use super::admit::{NotAdmitted, admit};
use super::book::PeerBook;
use super::error::{PeerError, chain};
use super::limit::Limit;
use super::socket::{self, Socket};
use super::state::Peer;
use super::stream::PeerStream;
use super::verify::Guard;
use super::wire::WELCOME;
use super::{ALPN_JOIN, ALPN_PEER, config};

/// Hears of everyone who was refused: where from, and why, in one line.
pub type OnRefused = Arc<dyn Fn(SocketAddr, String) + Send + Sync>;

/// How long a handshake may take. One that trickles in is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a refused stranger keeps its place, so that one address cannot fill the log.
const SULK: Duration = Duration::from_millis(250);
/// Connections that are not (yet) a peer's, in all and from one address.
const STRANGERS: (usize, usize) = (256, 64);
/// The same for connections from where a peer is known to listen: they do not queue behind strangers.
const NEIGHBOURS: (usize, usize) = (512, 128);
/// Those among them that are joining.
const JOINING: (usize, usize) = (8, 2);

/// Serves `listener` until `shutdown`, and hands every stream of a peer to `on_peer`.
///
/// Strangers, bad tokens and handshakes that fail are logged, counted ([`PeerBook::refusals`]) and told to
/// `on_refused`. `on_peer` is called on the runtime and must not block: it spawns what serves the stream. A host that
/// joins appears in the book ([`PeerBook::changes`]). When this returns, no connection is left half open; streams
/// handed out before live on.
pub async fn accept<F>(
    book: Arc<PeerBook>,
    listener: TcpListener,
    shutdown: CancellationToken,
    on_peer: F,
    on_refused: OnRefused,
) where
    F: Fn(Peer, PeerStream) + Send + Sync + 'static,
{
    let door = Arc::new(Door {
        book,
        strangers: Limit::new(STRANGERS.0, STRANGERS.1),
        neighbours: Limit::new(NEIGHBOURS.0, NEIGHBOURS.1),
        joining: Limit::new(JOINING.0, JOINING.1),
        turned_away: AtomicU64::new(0),
        on_peer,
        on_refused,
    });
    let mut visits = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(visit) = visits.join_next() => {
                if let Err(error) = visit {
                    tracing::error!(error = chain(&error), "a connection's task has died");
                }
            }
            arrival = listener.accept() => match arrival {
                Ok((tcp, address)) => {
                    visits.spawn(door.clone().receive(tcp, address));
                }
                Err(error) => {
                    // Out of descriptors, usually: what ends meanwhile frees some.
                    tracing::warn!(error = chain(&error), "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    visits.shutdown().await;
}

/// The listening side of this host.
struct Door<F> {
    book: Arc<PeerBook>,
    strangers: Arc<Limit>,
    neighbours: Arc<Limit>,
    joining: Arc<Limit>,
    turned_away: AtomicU64,
    on_peer: F,
    on_refused: OnRefused,
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("too many connections are open that are not a peer's")]
    Crowded,
    #[error("too many hosts are joining at once")]
    CrowdedJoin,
    #[error("the connection cannot be set up")]
    Socket(#[source] io::Error),
    #[error("the handshake took more than {PATIENCE:?}")]
    Slow { shown: Option<Digest> },
    #[error("what came is not the beginning of a TLS handshake")]
    Hello(#[source] io::Error),
    #[error("it offers no protocol of ours")]
    Protocol,
    #[error("the certificate {shown} is not pinned here")]
    Stranger { shown: Digest },
    #[error("the handshake failed{}", with_certificate(.shown))]
    Handshake {
        shown: Option<Digest>,
        #[source]
        source: io::Error,
    },
    #[error("{name} was removed during its handshake")]
    Removed { name: Name },
    #[error("the welcome for {name} could not be sent")]
    Unwelcomed {
        name: Name,
        #[source]
        source: io::Error,
    },
    #[error("joining failed for certificate {shown}")]
    Join {
        shown: Digest,
        #[source]
        source: NotAdmitted,
    },
    #[error("TLS cannot be set up")]
    Config(#[source] PeerError),
}

fn with_certificate(shown: &Option<Digest>) -> String {
    shown.map_or_else(String::new, |shown| format!(" for certificate {shown}"))
}

impl Refused {
    fn shown(&self) -> Option<Digest> {
        match self {
            Self::Stranger { shown } | Self::Join { shown, .. } => Some(*shown),
            Self::Handshake { shown, .. } | Self::Slow { shown } => *shown,
            _ => None,
        }
    }
}

/// What a connection turned out to be.
enum Visit {
    OfPeer(Peer, PeerStream),
    OfNewPeer(Peer),
}

impl<F: Fn(Peer, PeerStream) + Send + Sync + 'static> Door<F> {
    async fn receive(self: Arc<Self>, tcp: TcpStream, address: SocketAddr) {
        let limit = if self.book.has_peer_at(address.ip()) {
            &self.neighbours
        } else {
            &self.strangers
        };
        let Some(slot) = limit.enter(address.ip()) else {
            return self.turn_away(address, &Refused::Crowded);
        };
        match self.greet(tcp, address).await {
            Ok(Visit::OfPeer(peer, stream)) => {
                drop(slot);
                tracing::debug!(peer = %peer.name, %address, "a peer has connected");
                (self.on_peer)(peer, stream);
            }
            Ok(Visit::OfNewPeer(peer)) => {
                tracing::info!(peer = %peer.name, %address, fingerprint = %peer.fingerprint, "a host has joined");
            }
            Err(Refused::CrowdedJoin) => self.turn_away(address, &Refused::CrowdedJoin),
            Err(refused) => {
                self.refuse(address, &refused);
                sleep(SULK).await;
            }
        }
    }

    async fn greet(&self, tcp: TcpStream, address: SocketAddr) -> Result<Visit, Refused> {
        let socket = socket::tune(tcp).map_err(Refused::Socket)?;
        let deadline = Instant::now() + PATIENCE;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), socket);
        let hello = timeout_at(deadline, hello)
            .await
            .map_err(|_| Refused::Slow { shown: None })?
            .map_err(Refused::Hello)?;
        // Exactly one protocol: it decides which certificates are good, so there is nothing to choose between.
        let offered: Vec<Vec<u8>> = hello
            .client_hello()
            .alpn()
            .into_iter()
            .flatten()
            .take(2)
            .map(<[u8]>::to_vec)
            .collect();
        match offered.as_slice() {
            [one] if one == ALPN_PEER => self.greet_peer(hello, address, deadline).await,
            [one] if one == ALPN_JOIN => self.greet_bearer(hello, address, deadline).await,
            _ => {
                // No protocol of ours is among them, or none at all: the alert says which kind of server this is.
                let guard = Guard::peers(self.book.clone());
                let result = self.shake_hands(hello, &guard, b"godwit", deadline).await;
                result.and(Err(Refused::Protocol))
            }
        }
    }

    async fn greet_peer(
        &self,
        hello: StartHandshake<Socket>,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<Visit, Refused> {
        let guard = Guard::peers(self.book.clone());
        let (mut tls, shown) = self.shake_hands(hello, &guard, ALPN_PEER, deadline).await?;
        // The book may have changed since the guard has looked; the welcome must not come after a removal.
        let peer = self.book.pinned(shown).ok_or(Refused::Stranger { shown })?;
        let welcome = async {
            tls.write_all(&[WELCOME]).await?;
            tls.flush().await
        };
        let sent = timeout_at(deadline, welcome).await;
        sent.map_err(|_| Refused::Slow { shown: Some(shown) })?
            .map_err(|source| Refused::Unwelcomed {
                name: peer.name.clone(),
                source,
            })?;
        match self.book.pinned(shown) {
            Some(peer) => {
                let stream = PeerStream::new(&peer, address, tls.into());
                Ok(Visit::OfPeer(peer, stream))
            }
            None => Err(Refused::Removed { name: peer.name }),
        }
    }

    async fn greet_bearer(
        &self,
        hello: StartHandshake<Socket>,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<Visit, Refused> {
        let slot = self.joining.enter(address.ip());
        let _slot = slot.ok_or(Refused::CrowdedJoin)?;
        let guard = Guard::bearers();
        let (tls, shown) = self.shake_hands(hello, &guard, ALPN_JOIN, deadline).await?;
        let admitted = admit(&self.book, tls, shown).await;
        admitted
            .map(Visit::OfNewPeer)
            .map_err(|source| Refused::Join { shown, source })
    }

    /// The rest of the handshake, and the certificate that was proved in it.
    async fn shake_hands(
        &self,
        hello: StartHandshake<Socket>,
        guard: &Arc<Guard>,
        alpn: &[u8],
        deadline: Instant,
    ) -> Result<(TlsStream<Socket>, Digest), Refused> {
        let config =
            config::server(self.book.identity(), guard.clone(), alpn).map_err(Refused::Config)?;
        let shaken = timeout_at(deadline, hello.into_stream(config))
            .await
            .map_err(|_| Refused::Slow {
                shown: guard.shown(),
            })?;
        let tls: server::TlsStream<Socket> = shaken.map_err(|source| match guard.shown() {
            Some(shown) if guard.has_refused() => Refused::Stranger { shown },
            shown => Refused::Handshake { shown, source },
        })?;
        // TLS requires a certificate and the protocol; a slip there would open the door, so it is looked at again.
        match guard.shown() {
            Some(shown) if tls.get_ref().1.alpn_protocol() == Some(alpn) => Ok((tls, shown)),
            _ => Err(Refused::Protocol),
        }
    }

    fn refuse(&self, address: SocketAddr, refused: &Refused) {
        let counters = &self.book.counters;
        let counter = match refused {
            Refused::Join { .. } => &counters.tokens,
            _ => &counters.strangers,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let reason = chain(refused);
        let fingerprint = refused
            .shown()
            .map_or_else(|| "none".to_owned(), |shown| shown.to_string());
        tracing::warn!(%address, fingerprint, reason, "a connection was refused");
        (self.on_refused)(address, reason);
    }

    /// Like [`Door::refuse`], for refusals that a flood could multiply: only the 1st, 2nd, 4th, 8th … is told.
    fn turn_away(&self, address: SocketAddr, refused: &Refused) {
        self.book.counters.crowded.fetch_add(1, Ordering::Relaxed);
        let so_far = self.turned_away.fetch_add(1, Ordering::Relaxed) + 1;
        if so_far.is_power_of_two() {
            let reason = format!("{refused} ({so_far} turned away so far)");
            tracing::warn!(%address, reason, "a connection was turned away");
            (self.on_refused)(address, reason);
        }
    }
}
