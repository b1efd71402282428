//! How much a socket may hold that its reader has not read.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

/// Lets `socket` hold `bytes` in each direction; less where the process may not exceed the system's limit.
pub fn enlarge(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    match setsockopt(socket, sockopt::SndBufForce, &bytes) {
        Err(Errno::EPERM) => setsockopt(socket, sockopt::SndBuf, &bytes)?,
        other => other?,
    }
    match setsockopt(socket, sockopt::RcvBufForce, &bytes) {
        Err(Errno::EPERM) => setsockopt(socket, sockopt::RcvBuf, &bytes)?,
        other => other?,
    }
    Ok(())
}
