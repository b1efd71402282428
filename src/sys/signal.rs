//! How this process takes signals.

use nix::sys::signal::{SigHandler, Signal, signal};

/// Gives SIGPIPE its default effect again, which Rust's runtime takes away: a program whose reader has gone
/// ends.
pub fn restore_sigpipe() {
    // SAFETY: no handler is installed, so nothing of ours ever runs in a signal's context.
    let set = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // It can fail for signals that do not exist only.
    debug_assert!(set.is_ok(), "SIGPIPE exists");
}
