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
