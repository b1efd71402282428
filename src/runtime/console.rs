//! Terminals: who holds the master of a container's terminal, and how a person's own terminal is joined to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::Process;

use super::RuntimeError;
use crate::rootfs::bundle::Console;
use crate::sys::{fdpass, terminal};

/// Refuses a terminal without anybody to hold its master, and a holder without a terminal.
pub(super) fn check(process: &Process, holder: bool) -> Result<(), RuntimeError> {
    let why = match (process.terminal().unwrap_or(false), holder) {
        (true, false) => {
            "cannot allocate tty if it will be detached without setting console socket"
        }
        (false, true) => "cannot use console socket if it will not detach or allocate tty",
        _ => return Ok(()),
    };
    Err(RuntimeError::Option {
        option: "--console-socket",
        why: why.to_owned(),
    })
}

/// The size that is asked for: rows and columns.
pub(super) fn size(process: &Process) -> Option<(u16, u16)> {
    let asked = process.console_size()?;
    let number = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let (rows, columns) = (number(asked.height()), number(asked.width()));
    (rows > 0 && columns > 0).then_some((rows, columns))
}

/// Receives a master.
pub(super) fn take_over(from: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let received = fdpass::receive(from)?;
    received
        .and_then(|(_, mut descriptors)| descriptors.pop())
        .ok_or_else(|| io::Error::other("the terminal's master did not come"))
}

/// Makes a new terminal the calling process's own, which leads a session, and hands its master over.
pub(super) fn take(terminal: Console, holder: BorrowedFd<'_>) -> io::Result<()> {
    // With a name, as those who wait for it expect.
    fdpass::send(holder, b"/dev/ptmx", &[terminal.master.as_fd()], true)?;
    terminal::control(terminal.slave.as_fd())?;
    terminal::become_stdio(&terminal.slave)
}
