//! Pages over several connections at once, which may break.
//!
//! ```text
//! source                                                       destination
//! Outbox ─ numbers frames ─▶ Queue ─┬─▶ stream 0 ── frames ──▶ thread ─┬▶ Intake ─▶ page store
//!                              ▲    └─▶ stream 1 ── frames ──▶ thread ─┘    │
//!                              │        │  ▲◀──── Taken(n) ────┘            │ counts
//!                              └────────┘  │                                ▼
//!              unconfirmed, when it breaks;│              RoundEnd(frames): waits for so many ─▶ RoundAck
//!              then it is dialled again ───┘
//! ```
//!
//! The first connection of a migration says everything but pages. The destination tells a token over it, and whoever
//! opens another connection must be the same peer and know the token.
//!
//! **Invariant:** a round, and the dump, is acknowledged only when every one of its frames is in the store, whichever
//! stream it came by: frames of pages are numbered throughout the migration, and the marks tell how many there are.
//!
//! **Invariant:** a frame is applied once. What was sent over a stream that broke, and was not confirmed, is sent
//! again; the destination knows the numbers it has begun to apply, and does not apply one twice, so that a copy that
//! arrives late, in a later round, harms nothing.
//!
//! **Invariant:** memory is bounded on both sides: the queue, what is unconfirmed (`window`), and how far a number
//! may be ahead of the last one that all before have arrived of.

mod carry;
mod door;
mod intake;
mod queue;
mod window;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys::scheduling;

pub(super) use carry::Streams;
pub(super) use carry::{PATIENCE, Way};
pub use door::{Door, NotExpected};
pub use intake::{Intake, TakePages};
pub(super) use queue::{Page, Queue};

/// The most streams of one migration.
pub const MOST_STREAMS: u8 = 8;

/// How many streams a host opens where nobody says otherwise: what packs and encrypts is the processor, and beyond
/// four streams the reader of the memory is the slowest.
pub fn usual() -> u8 {
    scheduling::processors().min(4) as u8
}

/// What whoever opens another stream of a migration must know. Told over its first connection, and never shown.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct StreamToken([u8; 16]);

impl StreamToken {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl PartialEq for StreamToken {
    /// Takes the same time wherever they differ.
    fn eq(&self, other: &Self) -> bool {
        let differences = self.0.iter().zip(&other.0).map(|(a, b)| a ^ b);
        differences.fold(0, |all, one| all | one) == 0
    }
}

impl Eq for StreamToken {}

impl fmt::Debug for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamToken")
    }
}

impl From<StreamToken> for String {
    fn from(token: StreamToken) -> Self {
        format!("{:032x}", u128::from_be_bytes(token.0))
    }
}

impl TryFrom<String> for StreamToken {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(&text, 16).ok());
        let number = number.flatten().ok_or("not a stream's token")?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// What a destination tells its source of more streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOffer {
    /// What each of them must show.
    pub token: StreamToken,
    /// How many it takes.
    pub most: u8,
}

#[cfg(test)]
mod test;
