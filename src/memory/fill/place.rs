//! Where a fill is kept, whether it still goes on, and how a container ends whose fill cannot.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the processes of a container may take to die.
const DIES_WITHIN: Duration = Duration::from_secs(20);

/// How far the memory of a container is that was restored from some images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillState {
    /// It was never restored lazily.
    None,
    /// It is being filled.
    Filling,
    /// All of it is there.
    Filled,
    /// It was being filled, and everybody who did that is gone: what it reads is not what it wrote.
    Lost,
}

/// How far the fill of the container in `images` is.
pub fn state(images: &Path) -> io::Result<FillState> {
    let directory = directory(images);
    if !directory.join("begun").exists() {
        return Ok(FillState::None);
    }
    let alive = match Flock::lock(open_lock(&directory)?, FlockArg::LockExclusiveNonblock) {
        Ok(_) => false,
        Err((_, Errno::EWOULDBLOCK)) => true,
        Err((_, error)) => return Err(error.into()),
    };
    // Asked after the lock: who ends says so first.
    Ok(match (directory.join("filled").exists(), alive) {
        (true, _) => FillState::Filled,
        (false, true) => FillState::Filling,
        (false, false) => FillState::Lost,
    })
}

/// Whether all is filled; whoever has waited for that may have taken the place away already, as a whole.
pub(super) fn is_over(images: &Path) -> bool {
    let directory = directory(images);
    !directory.exists() || directory.join("filled").exists()
}

/// Whether pages of the store may have been given back: then nothing can be restored from these images again.
pub fn is_spent(images: &Path) -> bool {
    directory(images).join("spent").exists()
}

/// Where the state of a fill is kept.
pub(super) fn directory(images: &Path) -> PathBuf {
    images.join("fill")
}

/// Makes an empty place. What another restore from the same images has left goes.
pub(super) fn make(images: &Path) -> io::Result<PathBuf> {
    let directory = directory(images);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&directory)?;
    Ok(directory)
}

/// Notes something for whoever asks later.
pub(super) fn mark(directory: &Path, what: &str) -> io::Result<()> {
    File::create(directory.join(what)).map(drop)
}

/// Says "somebody is here" for as long as it is held, by any process it is inherited by.
pub(super) fn be_here(directory: &Path) -> io::Result<Flock<File>> {
    Flock::lock(open_lock(directory)?, FlockArg::LockSharedNonblock).map_err(|(_, e)| e.into())
}

fn open_lock(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join("lock"))
}

/// Kills every process of a container and waits until none is left: before its userfaultfds are closed, so that none
/// of them ever reads zeros.
pub fn kill_all(cgroup: &Path) -> io::Result<()> {
    let deadline = Instant::now() + DIES_WITHIN;
    while is_populated(cgroup)? {
        if fs::write(cgroup.join("cgroup.kill"), "1").is_err() {
            let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| line.parse().ok()) {
                // Between the two it may have ended.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether a living process is in a cgroup; in one that is gone there is none.
fn is_populated(cgroup: &Path) -> io::Result<bool> {
    match fs::read_to_string(cgroup.join("cgroup.events")) {
        Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
