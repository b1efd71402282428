//! The shim: one small process per container, which owns what must outlive the daemon.
//!
//! It is the parent of the container's first process (and, as the subreaper, of a restored one), holds the read
//! ends of its output and writes them to the log (see [`mod@line`] for the format), keeps its exit status, and starts
//! CRIU for a restore. The daemon talks to it over a socket (see [`wire`]) and may come and go.
//!
//! **Invariant:** the container does not depend on the shim either. When a shim is killed, the container runs on
//! (its parent is then the daemon, or the host's init); with the pipes and the pidfd, which [`Client::pipes`]
//! hands out in good time, `shim --adopt` takes its place.
//!
//! **Invariant:** a restored container runs only after a `Verdict` said so. Without a client the shim waits, for
//! ever if need be; when it dies, what it held dies with it.
//!
//! ```text
//! Idle ──Create──▶ Created ──Start──▶ Running ───▶ Exited (exit.json written; the shim leaves)
//!  │ │                                 ▲  ▲
//!  │ └──Adopt──────────────────────────┘  │
//!  └───Restore──▶ Restoring ──▶ Held ──go─┘        any of these ───▶ Failed (nothing is left; waits for Leave)
//! ```

mod client;
pub mod line;
mod log;
mod process;
mod restore;
mod serve;
mod start;
pub mod wire;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::fcntl::OFlag;
use nix::unistd::{Uid, fchown, pipe2};

pub use client::{Client, ShimError, exit_of};
pub use start::{Start, start};
pub use wire::{Exit, Preparation, RestoreRequest, ShimState};

/// The name of the control socket in the container's run directory.
pub const SOCKET: &str = "shim.sock";
/// The name of the file with the exit status, beside it.
pub const EXIT_FILE: &str = "exit.json";

/// Brings a container back from images; what the shim knows of CRIU is this.
pub trait Restorer: Sync {
    /// Does what can be done before the images are there, with duplicates of the `stdio` of the restore. A restore that
    /// was not prepared for does it itself.
    fn prepare(&self, _preparation: &Preparation, _stdio: &ShimStdio) -> Result<(), String> {
        Ok(())
    }

    /// Restores, and returns the id of the first process, a child of the calling process.
    ///
    /// `stdio` has the write ends that become the container's output; they are to be duplicated into it. `reached`
    /// is called at each [`Reached`], and returns, perhaps much later, whether to go on from there.
    ///
    /// An error means that it has executed nothing of its own and that all of it is gone, whatever the verdict
    /// was; an id means that it runs, even where the restorer was not content with the rest of its work.
    fn restore(
        &self,
        request: &RestoreRequest,
        stdio: &ShimStdio,
        reached: &mut dyn FnMut(Reached) -> bool,
    ) -> Result<i32, String>;
}

/// How far a restore has come, with the id of the first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Everything is there and stands still.
    Held(i32),
    /// It is being let go, and nothing stops that any more: the answer does not count. The restorer has still to
    /// clean up, for which nobody who waits for the container has to wait.
    Running(i32),
}

/// The write ends of the output pipes of a container.
#[derive(Debug)]
pub struct ShimStdio {
    /// Of its standard output.
    pub stdout: OwnedFd,
    /// Of its standard error.
    pub stderr: OwnedFd,
}

/// A pipe, read end first, whose inode belongs to this user: `/dev/stdout` is opened anew by some programs,
/// and that takes permission.
fn pipe_of(owner: u32) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fchown(&write, Some(Uid::from_raw(owner)), None)?;
    Ok((read, write))
}

/// `godwit shim …`: called by `main` before any thread exists. It returns in the starting process, once the
/// shim listens, and in the shim, when that has ended.
pub fn run(arguments: impl Iterator<Item = OsString>, restorer: &dyn Restorer) -> ExitCode {
    match start::detach(arguments) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(shim)) => match shim.serve(restorer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("the shim gives up: {error}");
                ExitCode::FAILURE
            }
        },
        Err(why) => {
            // Read by whoever started it.
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The control socket of the shim with this run directory.
pub fn socket(directory: &std::path::Path) -> PathBuf {
    directory.join(SOCKET)
}

#[cfg(test)]
mod test;
