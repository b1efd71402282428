//! What a process sets for itself before it becomes another program.

use std::io;

/// Gives every signal its default meaning and unblocks all: what a program may expect at its start.
///
/// The Rust runtime ignores SIGPIPE, and whoever started us may have ignored or blocked more; all of that
/// would be inherited through exec.
pub fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition for every signal and installs no handler that could run.
        // It fails for SIGKILL, SIGSTOP and the two that libc keeps for itself, which have no other
        // disposition than the default one here.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unblock_signals();
}

/// Unblocks all signals, which whoever started us may have blocked.
pub fn unblock_signals() {
    // Emptying a mask that is ours cannot fail.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Marks every descriptor from `first` on to be closed at exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no pointers; the flag only marks descriptors, none is closed under its owner.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the calling thread nicer to others: what it does can wait.
pub fn be_nicer(niceness: i32) -> io::Result<()> {
    // SAFETY: no pointers. The id 0 is the calling thread, as Linux counts priorities by thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, niceness) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the calling process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Becomes root of the user namespace that the calling process has entered, in no group but root's. It keeps the
/// capabilities that it has there.
pub fn become_root() -> io::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    Ok(setresuid(user, user, user)?)
}

/// Sets the execution domain of the calling process.
pub fn personality(domain: u64) -> io::Result<()> {
    // SAFETY: no pointers.
    check(i64::from(unsafe { libc::personality(domain) }))
}

/// Sets the NIS domain name of the calling process's uts namespace.
pub fn domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the kernel reads the given number of bytes of a string that lives until the call returns.
    check(i64::from(unsafe {
        libc::setdomainname(name.as_ptr().cast(), name.len())
    }))
}

/// Gives the calling process a new session keyring of this name, as it must not have that of its creator.
pub fn new_session_keyring(name: &std::ffi::CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a C string that lives until the call returns.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Sets from which memory nodes the calling process gets its pages: a mode with its flags, and a set of nodes.
pub fn memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    let (set, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        // The kernel takes one bit less than it is told.
        nodes => (nodes.as_ptr(), nodes.len() * 64 + 1),
    };
    // SAFETY: no set, or one of that many bits rounded up to whole words less one, which lives until the call returns.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, set, bits) })
}

/// Ends the calling process at once: nothing that its parent has prepared for its own end is done by the copy.
pub fn leave(code: i32) -> ! {
    // SAFETY: it does not return and runs no code of this program.
    unsafe { libc::_exit(code) }
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
