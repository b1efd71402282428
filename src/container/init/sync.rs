//! What a shim and the first process of a container say to each other until its command runs.
//!
//! ```text
//! shim                       init (first stage)          init (first process, pid 1 inside)
//!  │  start, socket as stdin ─────▶│
//!  │                               │  clone3 ──────────────────────▶│
//!  │◀──────────────────── Born{pid}│                                │
//!  │                               ✕                                │ steps …
//!  │◀───────────────────────────────────────────────── Ready        │
//!  │  Go ──────────────────────────────────────────────────────────▶│ exec
//!  │◀─────────────── (closed: the command runs) ─────────────────────
//! ```
//!
//! At any time either stage may say `Failed` instead, and end.

use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::sys::fdpass;

/// What init says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
pub enum FromInit {
    /// The first process exists.
    Born {
        /// Its id on the host.
        pid: i32,
    },
    /// Everything is set up but the command itself.
    Ready,
    /// A step failed; the process ends.
    Failed {
        /// What it tried.
        step: String,
        /// Why it failed.
        why: String,
    },
}

/// What init is told: the one message is that the command may run.
const GO: &[u8] = b"go";

/// Says something to the shim.
pub fn say(to: BorrowedFd<'_>, what: &FromInit) -> io::Result<()> {
    fdpass::send(to, &serde_json::to_vec(what)?, &[], true)
}

/// Hears what init says next; none when it has nothing more to say.
pub fn hear(from: BorrowedFd<'_>) -> io::Result<Option<FromInit>> {
    let Some((bytes, _)) = fdpass::receive(from)? else {
        return Ok(None);
    };
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Lets the command run.
pub fn let_go(to: BorrowedFd<'_>) -> io::Result<()> {
    fdpass::send(to, GO, &[], true)
}

/// Waits until the command may run. When the shim is gone it never may.
pub fn wait_for_go(from: BorrowedFd<'_>) -> io::Result<()> {
    match fdpass::receive(from)? {
        Some((bytes, _)) if bytes == GO => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}
