//! What a filler and its guard say to each other, one JSON message per packet, and what CRIU says to a filler. Pure.
//!
//! ```text
//! guard                                  filler
//!   │ ◀──────────────────── Keeper, Ready │  CRIU may come
//!   │ ◀─── Connection, Hold … (with fds) │  as CRIU comes and tells of its tasks; later, of children
//!   │ Sync ────────────────────────────▶ │  everything is restored, nothing runs
//!   │ ◀──────────────── Synced, Refused  │  the guard has a duplicate of everything
//!   │ Release ─────────────────────────▶ │  the container runs: all may be filled, the store may go
//!   │ ◀───────── Drop …, Left …, Filled  │
//!
//! guard                               successor
//!   │ ◀────────────────── Keeper (pidfd) │
//!   │ Uffd …, Connection, Keeper, Go ──▶ │  with descriptors; the keeper of whom it follows
//!   │ ◀─────────────────────────── Ready │
//! ```

use serde::{Deserialize, Serialize};

/// What a filler says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "tell")]
pub enum ToGuard {
    /// This process keeps what the filler has open, should it die.
    Keeper,
    /// It listens, or goes on.
    Ready,
    /// Keep this userfaultfd.
    Hold {
        /// The number of its progress.
        number: u64,
    },
    /// Keep the connection with CRIU, which is told nothing on it but must not lose it.
    Connection,
    /// This userfaultfd is needed no more.
    Drop {
        /// The number of its progress.
        number: u64,
    },
    /// Everything that CRIU has told of so far is held.
    Synced,
    /// Something is not as it must be: the filler cannot go on, and a container that does not run yet must not.
    Refused {
        /// Why.
        why: String,
    },
    /// So much is still to come.
    Left {
        /// In pages.
        pages: u64,
    },
    /// All is there.
    Filled,
}

/// What a guard says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum ToFiller {
    /// Here is a userfaultfd of a filler that died.
    Uffd {
        /// The number of its progress.
        number: u64,
    },
    /// Here is its connection with CRIU.
    Connection,
    /// Here is its keeper.
    Keeper,
    /// That was all; go on.
    Go {
        /// Whether the container runs.
        released: bool,
    },
    /// Take what CRIU has told of and hand it over, then say so.
    Sync,
    /// The container runs.
    Release,
}

/// What CRIU says at the end of a restore (`LAZY_PAGES_RESTORE_FINISHED`).
const FINISHED: i32 = 0x5253_5446;

/// What CRIU says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromCriu {
    /// The userfaultfd of this process follows, with one byte.
    Task(u32),
    /// A process that is dead and has no memory.
    Zombie,
    /// Every task stands at its first instruction.
    Finished,
}

impl FromCriu {
    /// Reads CRIU's word; none where it is none of these.
    pub fn of(word: [u8; 4]) -> Option<Self> {
        match i32::from_ne_bytes(word) {
            FINISHED => Some(Self::Finished),
            0 => None,
            pid if pid < 0 => Some(Self::Zombie),
            pid => u32::try_from(pid).ok().map(Self::Task),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn criu_says_one_of_three_things() {
        let of = |word: i32| FromCriu::of(word.to_ne_bytes());
        assert_eq!(of(7), Some(FromCriu::Task(7)));
        assert_eq!(of(-7), Some(FromCriu::Zombie));
        assert_eq!(of(i32::MIN), Some(FromCriu::Zombie));
        assert_eq!(of(FINISHED), Some(FromCriu::Finished));
        assert_eq!(of(0), None);
    }

    #[test]
    fn messages_survive_their_text_form() {
        for message in [ToGuard::Ready, ToGuard::Hold { number: 7 }, ToGuard::Filled] {
            let text = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<ToGuard>(&text).unwrap(), message);
        }
        let go = ToFiller::Go { released: true };
        let text = serde_json::to_vec(&go).unwrap();
        assert_eq!(serde_json::from_slice::<ToFiller>(&text).unwrap(), go);
        assert!(serde_json::from_str::<ToGuard>(r#"{"tell":"all"}"#).is_err());
    }
}
