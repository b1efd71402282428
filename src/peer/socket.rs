//! How the TCP connection under a link behaves.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;

/// How long the other host may be silent, with data on its way or without, until the connection counts as cut. The
/// kernel counts a host that takes no byte out of a full buffer for that long as silent, too.
const SILENCE: Duration = Duration::from_secs(10);

/// Bytes read from the kernel at once. TLS asks for them in morsels of 4 KiB, each of which would be a system call:
/// without this a stream moves about a third less.
const BUFFER: usize = 64 << 10;

/// What TLS runs over.
pub(super) type Socket = BufReader<Tcp>;

/// A TCP connection that can change the runtime that wakes whoever waits for it.
#[derive(Debug)]
pub(super) struct Tcp(
    /// None where changing it has failed.
    Option<TcpStream>,
);

impl Tcp {
    /// From now on it is the runtime of this thread.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let tcp = self.0.take().ok_or(io::ErrorKind::NotConnected)?;
        self.0 = Some(TcpStream::from_std(tcp.into_std()?)?);
        Ok(())
    }

    /// The other end's address.
    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        let tcp = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        tcp.peer_addr()
    }

    fn now(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let tcp = self.0.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(tcp))
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.now()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.now()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.now()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.now()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.now()?.poll_shutdown(cx)
    }
}

/// Sends at once what is written, and notices within about [`SILENCE`] when the link is cut: with data on its way
/// by `TCP_USER_TIMEOUT`, without by keep-alive probes.
pub(super) fn tune(tcp: TcpStream) -> io::Result<Socket> {
    tcp.set_nodelay(true)?;
    setsockopt(&tcp, sockopt::KeepAlive, &true)?;
    setsockopt(&tcp, sockopt::TcpKeepIdle, &4)?;
    setsockopt(&tcp, sockopt::TcpKeepInterval, &2)?;
    setsockopt(&tcp, sockopt::TcpKeepCount, &3)?;
    let millis = u32::try_from(SILENCE.as_millis()).expect("ten seconds");
    setsockopt(&tcp, sockopt::TcpUserTimeout, &millis)?;
    Ok(BufReader::with_capacity(BUFFER, Tcp(Some(tcp))))
}

#[cfg(test)]
mod test {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::runtime::{Builder, Runtime};

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_io().build().unwrap()
    }

    #[test]
    fn a_connection_goes_on_in_another_runtime_with_what_was_read_ahead() {
        let first = runtime();
        let (mut near, mut far) = first.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let far = TcpStream::connect(listener.local_addr().unwrap());
            let (near, far) = tokio::join!(listener.accept(), far);
            (tune(near.unwrap().0).unwrap(), far.unwrap())
        });
        first.block_on(async {
            far.write_all(b"here and there").await.unwrap();
            let mut read = [0; 4];
            near.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"here");
        });
        std::thread::spawn(move || {
            let second = runtime();
            second.block_on(async {
                near.get_mut().settle().unwrap();
                let mut read = [0; 10];
                near.read_exact(&mut read).await.unwrap();
                assert_eq!(&read, b" and there");
                // Nobody drives the first runtime any more: only this one can have woken it.
                let late = std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    first.block_on(far.write_all(b"late")).unwrap();
                    first.block_on(far.read_u8()).unwrap()
                });
                near.read_exact(&mut read[..4]).await.unwrap();
                assert_eq!(&read[..4], b"late");
                near.write_all(b"!").await.unwrap();
                near.flush().await.unwrap();
                assert_eq!(late.join().unwrap(), b'!');
            });
        })
        .join()
        .unwrap();
    }
}
