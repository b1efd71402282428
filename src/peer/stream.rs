//! The stream to a peer.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::model::{Digest, Name};

use super::socket::Socket;
use super::state::Peer;

/// Encrypted bytes to and from a peer whose certificate was pinned when the stream began. A stream that ends without
/// the peer's close (a cut link, an attacker's FIN) gives `UnexpectedEof`, never a silent end.
#[derive(Debug)]
pub struct PeerStream {
    name: Name,
    fingerprint: Digest,
    address: SocketAddr,
    /// Boxed, because it is large and streams are handed around.
    tls: Box<TlsStream<Socket>>,
}

impl PeerStream {
    pub(super) fn new(peer: &Peer, address: SocketAddr, tls: TlsStream<Socket>) -> Self {
        Self {
            name: peer.name.clone(),
            fingerprint: peer.fingerprint,
            address,
            tls: Box::new(tls),
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Name {
        &self.name
    }

    /// The certificate at the other end.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// The other end's TCP address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the runtime of this thread wakes whoever waits for this stream: for a thread of its own, which another
    /// one's would have to wake each time.
    ///
    /// # Errors
    /// When the runtime cannot take it; the stream is broken then.
    pub fn settle(&mut self) -> io::Result<()> {
        self.tls.get_mut().0.get_mut().settle()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls).poll_shutdown(cx)
    }
}
