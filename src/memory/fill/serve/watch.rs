//! What a filler waits for.

use std::os::fd::BorrowedFd;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Filler, failed};
use crate::memory::MemoryError;

impl Filler<'_> {
    /// Before it is closed: what the guard or a shim has a duplicate of would be watched on, and what has hung up is
    /// ready for ever. This thread would never rest again, before which nobody else runs.
    pub(super) fn unwatch(&self, fd: BorrowedFd<'_>) -> Result<(), MemoryError> {
        let removed = self.epoll.delete(fd);
        removed.map_err(|e| failed("let go of", "a descriptor")(e.into()))
    }

    pub(super) fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> Result<(), MemoryError> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        let added = self.epoll.add(fd, event);
        added.map_err(|e| failed("watch", "a descriptor")(e.into()))
    }
}
