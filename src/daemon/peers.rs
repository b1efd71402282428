//! Who the other hosts are, and the door they come in by.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::config::PeerSection;
use super::containers::blocking;
use super::{DaemonError, Events, Migrations};
use crate::api::types::{PeerInfo, TokenAnswer};
use crate::model::{EventKind, Name};
use crate::peer::{self, Address, Peer, PeerBook, PeerError};

/// The other hosts.
#[derive(Clone)]
pub struct Peers {
    book: Arc<PeerBook>,
    events: Events,
}

impl Peers {
    /// Those in the book.
    pub fn new(book: Arc<PeerBook>, events: Events) -> Self {
        Self { book, events }
    }

    /// All of them.
    pub fn list(&self) -> Vec<PeerInfo> {
        self.book.list().into_iter().map(info).collect()
    }

    /// A token, with which one host may join once within `ttl` seconds.
    pub async fn token(&self, ttl: u64) -> Result<TokenAnswer, DaemonError> {
        let book = Arc::clone(&self.book);
        blocking("a token", move || {
            let token = book
                .token(Duration::from_secs(ttl))
                .map_err(DaemonError::Peer)?;
            Ok(TokenAnswer {
                token: token.to_string(),
                address: book.advertise().to_string(),
                ttl,
            })
        })
        .await
    }

    /// Joins the host at `address`, which gave the token.
    pub async fn join(&self, address: &str, token: &str) -> Result<PeerInfo, DaemonError> {
        let field = |field, problem: String, remedy: &str| DaemonError::Field {
            field,
            problem,
            remedy: remedy.to_owned(),
        };
        let peer = peer::join(&self.book, address, token)
            .await
            .map_err(|e| match e {
                PeerError::Address { source } => field(
                    "address",
                    source.to_string(),
                    "write it like 192.0.2.1:7447",
                ),
                PeerError::Token { source } => field(
                    "token",
                    source.to_string(),
                    "make one with `godwit peer token` on the other host",
                ),
                e => DaemonError::Peer(e),
            })?;
        self.tell(peer.name.to_string(), "joined".to_owned());
        Ok(info(peer))
    }

    /// Trusts a host no longer.
    pub async fn remove(&self, name: &Name) -> Result<(), DaemonError> {
        let (book, wanted) = (Arc::clone(&self.book), name.clone());
        let removed = blocking("a peer", move || match book.remove(&wanted) {
            Ok(peer) => Ok(peer),
            Err(PeerError::UnknownPeer { name }) => Err(DaemonError::NoSuchPeer { name }),
            Err(e) => Err(DaemonError::Peer(e)),
        });
        removed.await?;
        self.tell(name.to_string(), "removed".to_owned());
        Ok(())
    }

    /// Lets other hosts in by `listener` until `shutdown`; streams of peers go to `migrations`.
    pub async fn serve(
        self,
        listener: TcpListener,
        migrations: Arc<Migrations>,
        shutdown: CancellationToken,
    ) {
        let on_peer = move |peer: Peer, stream| {
            let migrations = Arc::clone(&migrations);
            tokio::spawn(async move { migrations.serve_incoming(peer.name, stream).await });
        };
        let events = self.events.clone();
        let on_refused = Arc::new(move |address: SocketAddr, why: String| {
            events.emit(EventKind::Peer {
                peer: address.to_string(),
                what: format!("refused: {why}"),
            });
        });
        peer::accept(self.book, listener, shutdown, on_peer, on_refused).await;
    }

    fn tell(&self, peer: String, what: String) {
        self.events.emit(EventKind::Peer { peer, what });
    }
}

fn info(peer: Peer) -> PeerInfo {
    PeerInfo {
        name: peer.name,
        address: peer.address.to_string(),
        fingerprint: peer.fingerprint.to_string(),
    }
}

/// The address to give to peers: as configured, or the one listened at, or, where that is every address, the
/// one this host would talk to strangers from.
pub fn advertised(section: &PeerSection) -> Address {
    if let Some(address) = &section.advertise {
        return address.clone();
    }
    let listen = section.listen;
    if !listen.ip().is_unspecified() {
        return listen.into();
    }
    // Connecting a datagram socket sends nothing; it asks the kernel for a route (to a documentation address).
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    let ip = routed.map_or_else(
        |_| {
            let why = "no route leads out of this host; peers are told the loopback address";
            tracing::warn!("{why}: set peer.advertise");
            Ipv4Addr::LOCALHOST.into()
        },
        |address| address.ip(),
    );
    SocketAddr::new(ip, listen.port()).into()
}
