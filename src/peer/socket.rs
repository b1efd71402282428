//! How the TCP connection under a link behaves.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::BufReader;
use tokio::net::TcpStream;

/// How long the other host may be silent, with data on its way or without, until the connection counts as cut. The
/// kernel counts a host that takes no byte out of a full buffer for that long as silent, too.
const SILENCE: Duration = Duration::from_secs(10);

/// Bytes read from the kernel at once. TLS asks for them in morsels of 4 KiB, each of which would be a system call:
/// without this a stream moves about a third less.
const BUFFER: usize = 64 << 10;

/// What TLS runs over.
pub(super) type Socket = BufReader<TcpStream>;

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
    Ok(BufReader::with_capacity(BUFFER, tcp))
}
