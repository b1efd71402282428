//! Counting who was refused.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many have been refused since the daemon began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusals {
    /// Handshakes that failed: strangers, and what is no godwit at all.
    pub strangers: u64,
    /// Bearers of a bad token, or with a name that cannot be.
    pub tokens: u64,
    /// Connections turned away because too many were open.
    pub crowded: u64,
}

/// The counters behind [`Refusals`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) strangers: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) crowded: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> Refusals {
        Refusals {
            strangers: self.strangers.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
            crowded: self.crowded.load(Ordering::Relaxed),
        }
    }
}
