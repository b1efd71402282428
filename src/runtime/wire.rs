//! What the creator and the container's process say to each other, before the process waits for its start. Pure.
//!
//! ```text
//! creator                                the process
//!    │  writes the id maps                    │
//!    │ ──────────────── Go ─────────────────▶ │ only with a new user namespace; becomes its root
//!    │  sets limits, writes the record        │ makes the mounts
//!    │ ◀──────────── NeedsSources ─────────── │ only with a user namespace or id-mapped mounts
//!    │ ───── what is mounted, held open ────▶ │
//!    │ ◀────────────── Mounted ────────────── │ only with hooks of these kinds:
//!    │  runs prestart and createRuntime       │
//!    │ ──────────────── Go ─────────────────▶ │ runs createContainer, changes the root, opens the terminal
//!    │ ◀─────────────── Ready ─────────────── │
//!    │  writes the record, ends               │ waits for a connection to its start socket
//!
//! start                                  the process
//!    │ ──────────── (connects) ─────────────▶ │ becomes the user, gives up capabilities, filters system calls
//!    │ ◀────────────── Listener ───────────── │ only if the filter notifies: the number of a descriptor
//!    │  takes it out of the process           │
//!    │ ──────────────── Go ─────────────────▶ │
//!    │ ◀──────── Failed, or (closed) ──────── │ runs startContainer; exec
//! ```
//!
//! The two work at the same time where they can. Nothing is done by the process that would outlive it before the
//! record of it is written: before the second Go it has changed its own namespaces only, and if the creator dies, it
//! hears that instead of the Go, and ends.

use serde::{Deserialize, Serialize};

/// To the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToProcess {
    /// Go on.
    Go {
        /// What the process is called on the host.
        pid: i32,
    },
}

/// From the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromProcess {
    /// A helper has made it, and it is called this on the host.
    Born {
        /// Its id.
        pid: i32,
    },
    /// It may not open on the host what is to be mounted, and asks the creator for it.
    NeedsSources,
    /// The mounts are made, and the root is not changed yet.
    Mounted,
    /// Everything is prepared.
    Ready,
    /// Its filter notifies, on this descriptor of it.
    Listener {
        /// The number.
        number: i32,
    },
    /// It cannot go on.
    Failed {
        /// Why, on one line.
        why: String,
    },
}

/// A message as bytes.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // These types have no map and nothing that can fail.
    serde_json::to_vec(message).unwrap_or_default()
}

/// A message from bytes.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let failed = FromProcess::Failed {
            why: "no \"sh\"".to_owned(),
        };
        for message in [FromProcess::Mounted, FromProcess::Born { pid: 7 }, failed] {
            assert_eq!(decode::<FromProcess>(&encode(&message)).unwrap(), message);
        }
        assert!(decode::<ToProcess>(b"\"go\"").is_err());
    }
}
