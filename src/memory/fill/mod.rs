//! The fill: brings a container's memory out of the destination's page store while it already runs.
//!
//! CRIU restores the container without its lazy pages (see [`link_images`](super::link_images)) and hands a
//! userfaultfd of every task over. A process of its own, `godwit fill`, answers each fault at once, and fills
//! everything else in between; then it lets go, and what was never placed is zero because it *is* zero.
//!
//! ```text
//! shim ─ Guard ─────starts────▶ godwit fill ◀── lazy-pages.socket ── CRIU
//!          ▲                        │ ▲              (tasks' userfaultfds, then "finished")
//!          └─ a duplicate of each ──┘ │
//!             userfaultfd             └── faults, forks, moved and unmapped mappings ── tasks
//! images/parent/pages-N.img ── read ──┘
//! images/fill/N.{state,layout,log}     what is done, moved, gone: survives the filler
//! ```
//!
//! # Nobody waits for who does not run
//!
//! One thread answers faults, reads events and places pages. It runs as soon as somebody waits, whoever else wants its
//! processor, and rests as long as it works. What nobody waits for it places a few pages at a time, and looks for
//! faults in between. Others only help it, and it never waits for them: they read ahead, or it reads itself; they give
//! back, or nothing more is placed that nobody has asked for. A lock that both sides took would be held, sooner or
//! later, by a thread that has just been put off its processor by the very container that waits.
//!
//! ```text
//!  store ── read ahead ──▶ ahead ──┐                  ┌──▶ used ── give back ──▶ store
//!           (helpers)              ├─▶ the one thread ─┤          (helpers)
//!  store ── a page that is asked ──┘                  └──▶ tasks
//! ```
//!
//! # No page is ever a guess
//!
//! A userfaultfd whose last descriptor is closed while pages are missing turns them silently into zeros, and a page
//! that is placed after the container has given it up is stale. Neither happens, whoever is killed when:
//!
//! - **Nothing runs before its guard has a duplicate.** [`Guard::sync`] comes between CRIU's last notification before
//!   the tasks run and the answer to it. A filler that dies before that takes the restore with it. A child is in the
//!   guard's hands before the filler does anything else with it.
//! - **A filler that dies is replaced** by one that gets the same userfaultfds and finds in `fill/` exactly how far
//!   the other was. A bit "done" is set after its page was placed; one that was not set any more costs a second try,
//!   which the kernel answers with "exists". An event counts as read in the same system call that leaves it in
//!   shared memory (`progress`), so the successor applies what the dead one had read. The descriptor of a child that was born
//!   in that very system call stays open in the filler's `keeper`, which shares all its descriptors: only where that
//!   is killed as well, the container is.
//! - **Placing and reading events exclude each other** (`member`), and the kernel refuses to place anything
//!   while an event waits to be read.
//! - **What was read ahead is true while its page is missing.** The store never changes any more, but for what is
//!   given back of it; and that happens when nobody misses any page of it, child or parent, and a child misses only
//!   what its parent has missed. A page that is missing when it is placed was there when it was read.
//! - **Where nobody can go on the container dies**, and its userfaultfds are closed after it: a page of the store
//!   that cannot be read, state that makes no sense, a filler that cannot be started.
//! - **A shim that dies** takes its duplicates with it and nothing else: the filler goes on. Should it be killed as
//!   well, its keeper finds that nobody is left, and kills the container before it lets go. Should that be killed, too,
//!   [`fill_state`] says [`FillState::Lost`] to the daemon, which kills the container.
//! - **What is not in the store yet is waited for** (`later`): a page that was left on the source is placed after it has
//!   come, and not before. Where it cannot come any more the daemon kills the container, while its userfaultfds are open.
//! - **The store is kept until the container runs** ([`Guard::release`]): what was held can be restored again.
//!   [`fill_is_spent`] tells when that is over.
//!
//! What the kernel does not tell cannot be followed: `shmat` with `SHM_REMAP` over private memory; `MADV_WIPEONFORK`
//! and guard regions (`MADV_GUARD_INSTALL`, removed again) of pages that nobody has touched since the restore, both
//! within the time of the fill. And the order in which threads of one process change its mappings is told as far as they
//! wait for each other: what one thread unmaps in the very moment in which another forks may be missing in the child.

mod guard;
mod index;
mod keeper;
mod later;
mod layout;
mod member;
mod place;
mod progress;
mod restorer;
mod serve;
mod source;
mod wire;
mod work;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use guard::{FillPlan, Guard};
pub(super) use later::note as note_later;
pub use later::{Incoming, Listening, Run};
pub use place::{
    FillState, is_spent as fill_is_spent, kill_all as kill_container, state as fill_state,
};

use self::keeper::{Keeper, Started};
use self::serve::{Filler, Place, said};
use self::wire::ToGuard;
use self::work::Work;
use super::MemoryError;
use crate::sys::{process, scheduling};

/// Where CRIU looks for whom it is to tell, in its work directory.
const SOCKET: &str = "lazy-pages.socket";
/// The most threads that help to fill.
const MOST_THREADS: usize = 4;

/// `godwit fill …`: called by `main` before any thread exists.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some((place, successor)) = parse(arguments) else {
        eprintln!("a filler is started by godwit itself");
        return ExitCode::FAILURE;
    };
    let guard = match take_stdin() {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("a filler without a guard: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(error) = fill(&place, successor, &guard) else {
        return ExitCode::SUCCESS;
    };
    let mut why = error.to_string();
    if let Some(cause) = std::error::Error::source(&error) {
        why.push_str(": ");
        why.push_str(&cause.to_string());
    }
    // Who guards this decides: another filler, or the end of the container.
    if let Ok(true) = said(&guard, &ToGuard::Refused { why: why.clone() }, None) {
        return ExitCode::FAILURE;
    }
    eprintln!("the fill gives up, and kills the container: {why}");
    // While this process still has the userfaultfds.
    if let Err(error) = place::kill_all(&place.cgroup) {
        eprintln!("the container could not be killed: {error}");
    }
    ExitCode::FAILURE
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<(Place, bool)> {
    let (mut images, mut cgroup, mut successor) = (PathBuf::new(), PathBuf::new(), false);
    while let Some(word) = arguments.next() {
        match word.to_str()? {
            "--images" => images = arguments.next()?.into(),
            "--cgroup" => cgroup = arguments.next()?.into(),
            "--successor" => successor = true,
            _ => return None,
        }
    }
    let directory = place::directory(&images);
    let place = Place {
        images,
        directory,
        cgroup,
    };
    let absolute = place.images.is_absolute() && place.cgroup.is_absolute();
    absolute.then_some((place, successor))
}

fn fill(place: &Place, successor: bool, guard: &OwnedFd) -> Result<(), MemoryError> {
    let failed = |operation| failed(place, operation);
    // A descriptor and three files of each task and child.
    let limited = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    limited.map_err(|e| failed("raise its limits in")(e.into()))?;
    if !successor {
        place::make(&place.images).map_err(failed("make its place in"))?;
    }
    let here = place::be_here(&place.directory).map_err(failed("be in"))?;
    let keeper = match Keeper::start().map_err(failed("keep what it has open in"))? {
        Started::Filler(keeper) => keeper,
        Started::Keeper { filler } => {
            let kept = keeper::keep(place, &filler, here);
            if let Err(error) = &kept {
                eprintln!("what a filler had open is not kept any more: {error}");
            }
            // What both have is closed already, if the filler has ended in good order.
            process::leave(kept.is_err().into());
        }
    };
    // A guard that is gone keeps nothing; the filler goes on without it.
    said(guard, &ToGuard::Keeper, Some(keeper.as_fd()))?;
    let work = Work::default();
    let filled = thread::scope(|scope| {
        // Half of the processors are for whom all this is done.
        let threads = scheduling::processors() / 2;
        for _ in 0..threads.clamp(1, MOST_THREADS) {
            scope.spawn(|| work.run());
        }
        let served = serve(place, successor, guard, &work);
        work.end();
        served
    });
    if filled.is_ok() {
        keeper.end();
    }
    filled
}

fn serve(place: &Place, successor: bool, guard: &OwnedFd, work: &Work) -> Result<(), MemoryError> {
    let failed = |operation| failed(place, operation);
    let guard = guard
        .try_clone()
        .map_err(failed("duplicate its guard in"))?;
    let mut filler = if successor {
        Filler::resuming(place.clone(), guard, work)?
    } else {
        // Relative, as CRIU names it: an absolute path may be longer than a socket's may be.
        std::env::set_current_dir(&place.images).map_err(failed("enter"))?;
        let _ = std::fs::remove_file(SOCKET);
        let listener = UnixListener::bind(SOCKET).map_err(failed("listen in"))?;
        let unblocked = listener.set_nonblocking(true);
        unblocked.map_err(failed("listen in"))?;
        place::mark(&place.directory, "begun").map_err(failed("begin in"))?;
        Filler::listening(place.clone(), guard, listener, work)?
    };
    let served = filler.serve().and_then(|()| filler.farewell());
    if served.is_err() {
        // What it has open may be all there is: it stays open until others have it, or the container is dead.
        std::mem::forget(filler);
    }
    served
}

fn failed(place: &Place, operation: &'static str) -> impl FnOnce(io::Error) -> MemoryError + use<> {
    let path = place.images.clone();
    move |source| MemoryError::Fill {
        operation,
        path,
        source,
    }
}

/// The socket of the guard, which is this process's standard input; from now on that is empty.
fn take_stdin() -> io::Result<OwnedFd> {
    let guard = io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&nothing)?;
    Ok(guard)
}

#[cfg(test)]
mod test;
