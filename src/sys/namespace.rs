//! Namespaces of the calling thread.

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns, unshare};

/// A new time namespace, entered by children of the calling process, not by itself.
pub const TIME: i32 = libc::CLONE_NEWTIME;
/// The other kinds, as the kernel numbers them.
pub const MOUNT: i32 = libc::CLONE_NEWNS;
/// Host and domain name.
pub const UTS: i32 = libc::CLONE_NEWUTS;
/// System V and POSIX queues, semaphores, shared memory.
pub const IPC: i32 = libc::CLONE_NEWIPC;
/// Process ids.
pub const PID: i32 = libc::CLONE_NEWPID;
/// Network.
pub const NET: i32 = libc::CLONE_NEWNET;
/// User and group ids, and what root may do.
pub const USER: i32 = libc::CLONE_NEWUSER;
/// The root of the visible cgroup tree.
pub const CGROUP: i32 = libc::CLONE_NEWCGROUP;

/// Leaves the namespaces of these kinds for new ones.
pub fn leave(kinds: i32) -> io::Result<()> {
    Ok(unshare(CloneFlags::from_bits_retain(kinds))?)
}

/// Enters the namespaces of these kinds that `of` has or is: a pidfd, or a namespace descriptor.
pub fn enter(of: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    Ok(setns(of, CloneFlags::from_bits_retain(kinds))?)
}
