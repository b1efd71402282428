//! What a filler and its guard say to each other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Filler, failed, stuck};
use crate::memory::MemoryError;
use crate::memory::fill::wire::{ToFiller, ToGuard};
use crate::sys::fdpass;

impl Filler<'_> {
    pub(super) fn tell(
        &mut self,
        message: &ToGuard,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), MemoryError> {
        if let Some(guard) = &self.guard
            && !said(guard, message, fd)?
        {
            self.orphaned();
        }
        Ok(())
    }

    /// The guard's next word; none when it has said nothing, or is gone.
    pub(super) fn hear(
        &mut self,
        wait: bool,
    ) -> Result<Option<(ToFiller, Option<OwnedFd>)>, MemoryError> {
        let Some(guard) = &self.guard else {
            return Ok(None);
        };
        if !wait && !readable(guard) {
            return Ok(None);
        }
        match fdpass::receive(guard.as_fd()) {
            Ok(Some((bytes, mut fds))) => {
                let message = serde_json::from_slice(&bytes);
                let message = message.map_err(|_| stuck("its guard is of another version"))?;
                Ok(Some((message, fds.pop())))
            }
            Ok(None) => {
                self.orphaned();
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.orphaned();
                Ok(None)
            }
            Err(error) => Err(failed("hear", "its guard")(error)),
        }
    }
}

/// Says something to a guard; false when it is gone.
pub fn said(
    guard: &OwnedFd,
    message: &ToGuard,
    fd: Option<BorrowedFd<'_>>,
) -> Result<bool, MemoryError> {
    let text = serde_json::to_vec(message).unwrap_or_default();
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    match fdpass::send(guard.as_fd(), &text, &fds, true) {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(failed("tell", "its guard")(error)),
    }
}

fn readable(fd: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
