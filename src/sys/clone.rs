//! New processes by clone3(2): into a cgroup, into new namespaces, as a sibling.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Which of the two processes goes on after [`clone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The caller; the new process has this id, seen from the caller's pid namespace.
    Parent(i32),
    /// The new process.
    Child,
}

/// How the new process comes to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clone<'a> {
    /// Namespaces it gets new: `CLONE_NEW…` flags.
    pub namespaces: i32,
    /// Whether it is the child of the caller's parent instead of the caller's.
    pub sibling: bool,
    /// The cgroup v2 directory it is born in; none: the caller's cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether the two have one table of descriptors from now on, and not each its own: what one opens or closes is
    /// open or closed for both, and what is open stays so until both have ended. Only one may drop what owns one.
    pub shares_descriptors: bool,
}

/// Makes a copy of the calling process, as fork(2) does, and returns in both.
///
/// It refuses when the process has more than one thread: the copy would have only this one, and whatever
/// locks the others held would stay locked in it for ever.
pub fn clone(how: &Clone<'_>) -> io::Result<Forked> {
    single_threaded()?;
    let mut flags = how.namespaces as u64;
    let mut args = ClArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..ClArgs::default()
    };
    if how.sibling {
        // A sibling inherits the exit signal too; clone3 refuses to be given one.
        flags |= libc::CLONE_PARENT as u64;
        args.exit_signal = 0;
    }
    if how.shares_descriptors {
        flags |= libc::CLONE_FILES as u64;
    }
    if let Some(cgroup) = how.cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.flags = flags;
    // SAFETY: the argument is a live `clone_args` of the size given, without CLONE_VM, without a stack and
    // without pointers to be written to: this is fork(2). The process has one thread (checked above), so no
    // lock is held by a thread that the copy would miss.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<ClArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as i32)),
    }
}

/// Fails when the calling process has more than one thread.
fn single_threaded() -> io::Result<()> {
    // Unsharing the thread group is nothing to do for a lonely thread and impossible for others. Unlike a
    // look at /proc it works in every mount namespace.
    // SAFETY: no pointers, and no effect beyond the answer.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        Ok(())
    } else {
        Err(io::Error::other("the process has more than one thread"))
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, version 2 (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct ClArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
