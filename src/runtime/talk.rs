//! Saying and hearing the messages of [`super::wire`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::wire::{self, FromProcess, ToProcess};
use crate::sys::fdpass;

/// Says something.
pub(super) fn say(to: BorrowedFd<'_>, message: &impl Serialize) -> io::Result<()> {
    fdpass::send(to, &wire::encode(message), &[], true)
}

/// Hears the next message; none when the other side has closed.
pub(super) fn hear<T: for<'a> Deserialize<'a>>(from: BorrowedFd<'_>) -> io::Result<Option<T>> {
    let received = loop {
        match fdpass::receive(from) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The other side is gone and has left unread what we said. That is told once and before what it has said.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => break other?,
        }
    };
    let Some((bytes, _)) = received else {
        return Ok(None);
    };
    Ok(Some(wire::decode(&bytes)?))
}

/// Tells by write(2) alone, and what to do next is told by read(2) alone: a filter of system calls that is in
/// force already may allow nothing else.
pub(super) fn tell_listener(to: BorrowedFd<'_>, listener: &OwnedFd) -> io::Result<()> {
    let number = listener.as_raw_fd();
    nix::unistd::write(to, &wire::encode(&FromProcess::Listener { number }))?;
    let mut bytes = [0; 256];
    match nix::unistd::read(to, &mut bytes)? {
        0 => Err(nobody()),
        length => wire::decode::<ToProcess>(&bytes[..length])
            .map(drop)
            .map_err(Into::into),
    }
}

fn nobody() -> io::Error {
    let why = "who waited for this process has ended";
    io::Error::new(io::ErrorKind::UnexpectedEof, why)
}

/// Waits to be told to go on: what this process is called on the host.
pub(super) fn wait_for_go(from: BorrowedFd<'_>) -> io::Result<i32> {
    match hear::<ToProcess>(from)? {
        Some(ToProcess::Go { pid }) => Ok(pid),
        None => Err(nobody()),
    }
}

/// Tells why this process cannot go on. When nobody listens, there is nobody to tell.
pub(super) fn say_failed(to: BorrowedFd<'_>, why: &str) {
    let why = why.chars().take(4000).collect();
    let _ = nix::unistd::write(to, &wire::encode(&FromProcess::Failed { why }));
}
