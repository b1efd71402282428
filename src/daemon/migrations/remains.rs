//! What a migration leaves lying about while it lasts, and how it is taken away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::container::shim::RestoreRequest;
use crate::daemon::Context;
use crate::memory::fill::{self, FillState};
use crate::model::{MigrationId, Name};

/// How often it is looked whether a fill has ended.
const LOOK: Duration = Duration::from_millis(20);

/// The directory of a migration's images and pages, on a tmpfs.
pub fn directory(context: &Context, id: MigrationId) -> PathBuf {
    context
        .config
        .run_dir
        .join("migrations")
        .join(id.to_string())
}

/// What the name of a directory ends with that is being removed.
const GONE: &str = "gone";

/// Removes a directory; one that is not there is no failure. It is gone as a whole: nobody who looks into it
/// meanwhile finds a part of it.
pub fn remove_directory(path: &Path) -> io::Result<()> {
    let gone = path.with_extension(GONE);
    absent(fs::remove_dir_all(&gone))?;
    absent(fs::rename(path, &gone))?;
    absent(fs::remove_dir_all(&gone))
}

/// Whether a directory was being removed by a daemon that has died.
pub fn is_gone(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == GONE)
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits until all memory of the container that was restored from `images` is there, however long that takes: its
/// images are what it is brought from. Where nobody brings it any more the container is killed, for what it reads is
/// not what it wrote.
pub fn wait_until_filled(images: &Path, cgroup: &Path) -> io::Result<()> {
    loop {
        match fill::fill_state(images)? {
            FillState::None | FillState::Filled => return Ok(()),
            FillState::Filling => thread::sleep(LOOK),
            FillState::Lost => {
                fill::kill_container(cgroup)?;
                tracing::error!(cgroup = %cgroup.display(), "the container was killed: everybody who brought its memory behind it is gone");
                return Ok(());
            }
        }
    }
}

/// The name, in a migration's directory, of what its shim was asked to restore.
pub const REQUEST: &str = "request.json";

/// What was asked to be restored from a migration's directory; none where it did not come to that.
pub fn request(directory: &Path) -> Option<RestoreRequest> {
    serde_json::from_slice(&fs::read(directory.join(REQUEST)).ok()?).ok()
}

/// Waits until all memory of a container is there, whichever migration brought it: before that its page tables do
/// not tell what it has. What becomes of a fill that is lost is for those to see to who wait for its end.
pub fn wait_until_whole(context: &Context, name: &Name) -> io::Result<()> {
    let cgroup = context.host.cgroup(name);
    for directory in directories(context)? {
        if let Some(request) = request(&directory)
            && request.cgroup == cgroup.path()
        {
            while fill::fill_state(&request.images)? == FillState::Filling {
                thread::sleep(LOOK);
            }
        }
    }
    Ok(())
}

/// The directories of all migrations that have left something on this host.
pub fn directories(context: &Context) -> io::Result<Vec<PathBuf>> {
    let all = fs::read_dir(context.config.run_dir.join("migrations"))?;
    all.map(|entry| Ok(entry?.path())).collect()
}

/// Waits until no process of a cgroup is held by a tracer: a CRIU that has lost its client lets go at its next
/// step, and one that was killed has let go already.
pub fn wait_until_untraced(cgroup: &Cgroup, patience: Duration) {
    let deadline = Instant::now() + patience;
    while cgroup
        .procs()
        .unwrap_or_default()
        .into_iter()
        .any(is_traced)
    {
        if Instant::now() > deadline {
            tracing::warn!(cgroup = %cgroup.path().display(), "its tasks are still held by a tracer");
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until no CRIU is left in a cgroup it restores into.
pub fn wait_until_criu_has_left(cgroup: &Cgroup, patience: Duration) {
    let deadline = Instant::now() + patience;
    let is_criu = |pid: i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        // A dead one that nobody has reaped yet does nothing any more.
        let dead = fs::read_link(format!("/proc/{pid}/exe")).is_err();
        name.is_ok_and(|name| name.trim() == "criu") && !dead
    };
    while cgroup.procs().unwrap_or_default().into_iter().any(is_criu) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether somebody traces a process (`TracerPid`, proc_pid_status(5)).
fn is_traced(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}
