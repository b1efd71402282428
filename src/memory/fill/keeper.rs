//! Keeps a filler's descriptors open when the filler is killed, those that nobody else has heard of among them.
//!
//! The kernel makes the userfaultfd of a child in the very system call that tells the filler of its birth. Killed right
//! behind that call, the filler has told nobody; were the descriptor closed with it, what the child misses would
//! turn into zeros. A keeper is a copy of the filler that shares its *table* of descriptors (`CLONE_FILES`,
//! clone(2)), and does nothing: whatever is in that table stays open when the filler is gone. A successor finds the
//! number of the descriptor in what the dead one has left (`progress`), and takes it from the keeper.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::Flock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::place::{self, FillState};
use super::serve::Place;
use crate::sys::clone::{Clone, Forked, clone};
use crate::sys::pidfd;

/// How often a keeper whose filler is dead looks whether somebody else goes on.
const LOOKS_EVERY: Duration = Duration::from_millis(500);

/// A keeper, as its filler has it.
#[derive(Debug)]
pub struct Keeper {
    pid: i32,
    process: OwnedFd,
}

/// Which of the two processes goes on after [`Keeper::start`].
#[derive(Debug)]
pub enum Started {
    /// The filler, with its keeper.
    Filler(Keeper),
    /// The keeper, which is to [`keep`].
    Keeper {
        /// The filler.
        filler: OwnedFd,
    },
}

impl Keeper {
    /// Makes a keeper of the calling process, which has one thread, and returns in both.
    pub fn start() -> io::Result<Started> {
        // Made before there are two: a parent that is asked for by its number may be another by then.
        let filler = pidfd::open(std::process::id().cast_signed())?;
        let how = Clone {
            shares_descriptors: true,
            ..Clone::default()
        };
        match clone(&how)? {
            // What one closes is closed for the other, too: each descriptor has one owner of the two.
            Forked::Child => Ok(Started::Keeper { filler }),
            Forked::Parent(pid) => {
                std::mem::forget(filler);
                let process = pidfd::open(pid)?;
                Ok(Started::Filler(Self { pid, process }))
            }
        }
    }

    /// Ends it: nothing is left that it could keep.
    pub fn end(self) {
        // It may have been killed.
        let _ = pidfd::signal(self.process.as_fd(), libc::SIGKILL);
        let _ = waitpid(Pid::from_raw(self.pid), None);
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

/// What a keeper does: nothing while its filler lives, nor while anybody else cares for the fill. Whoever takes over
/// ends it. If nobody is left it kills the container, while it still has the userfaultfds.
///
/// `here` is the filler's sign that it is there.
pub fn keep(place: &Place, filler: &OwnedFd, here: Flock<File>) -> io::Result<()> {
    // A name of its own, for people who look.
    nix::sys::prctl::set_name(c"godwit-keeper")?;
    while !has_ended(filler.as_fd())? {}
    drop(here);
    while place::state(&place.images).is_ok_and(|state| state == FillState::Filling) {
        thread::sleep(LOOKS_EVERY);
    }
    if is_lost(&place.images) {
        eprintln!("nobody is left to fill the container's memory: it is killed");
        place::kill_all(&place.cgroup)?;
    }
    Ok(())
}

fn is_lost(images: &Path) -> bool {
    !place::is_over(images) && place::state(images).is_ok_and(|state| state == FillState::Lost)
}

fn has_ended(process: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::new(process, PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(count) => Ok(count > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
