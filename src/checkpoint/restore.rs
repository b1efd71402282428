//! A restore that stops at the last moment: every task exists, none has executed an instruction.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::dump::NETNS_KEY;
use super::{CheckpointError, StandbyRestore};
use crate::container::shim::Reached;
use crate::criu::{Notify, RestoreRequest, Verdict};
use crate::memory::MemoryError;
use crate::memory::fill::Guard;

/// What is restored, and into what.
#[derive(Debug)]
pub struct Plan {
    /// The directory of the images, memory included.
    pub images: PathBuf,
    /// The mounted root of the container.
    pub root: PathBuf,
    /// The inode numbers by which the images name the pipes of standard output and error.
    pub stdio_inodes: [u64; 2],
    /// What of the host is mounted in it, by its path here and there.
    pub bound: Vec<PathBuf>,
    /// What else is mounted in it that is not in the images: by the name that they have for it, and where it is here.
    pub copies: Vec<(PathBuf, PathBuf)>,
    /// How the images name a `/dev/null` that is in no mount of the container's.
    pub null: Option<String>,
    /// Who brings the memory that the images leave out; none where they leave out none.
    pub fill: Option<Arc<Guard>>,
}

/// How long the fill may take to have everything in safe hands.
const SYNCED_WITHIN: Duration = Duration::from_secs(30);

/// Restores a container as a child of this process. `reached` is called when everything is restored and nothing
/// runs, and says whether it may run; and again when it is being let go. When this returns an error nothing has run
/// and nothing is left but the images; when it returns the process id, the container runs, even if CRIU was killed
/// at the very end.
///
/// # Errors
/// When CRIU refuses, with the reason out of its log, or `hold` says no.
pub fn restore(
    standby: StandbyRestore,
    plan: Plan,
    reached: &mut dyn FnMut(Reached) -> bool,
) -> Result<i32, CheckpointError> {
    let StandbyRestore {
        session,
        netns,
        stdio,
        null,
    } = standby;
    let mut inherit = vec![(NETNS_KEY.to_owned(), netns)];
    for (inode, pipe) in plan.stdio_inodes.into_iter().zip(stdio) {
        inherit.push((format!("pipe:[{inode}]"), pipe));
    }
    inherit.extend(plan.null.map(|name| (name, null)));
    let bound = plan.bound.iter().map(|path| (path, path));
    let copies = plan.copies.iter().map(|(name, place)| (name, place));
    let mount = |(name, place): (&PathBuf, &PathBuf)| {
        format!("mnt[{}]:{}", name.display(), place.display())
    };
    let request = RestoreRequest {
        external: bound.chain(copies).map(mount).collect(),
        root: Some(plan.root),
        inherit,
        lazy_pages: plan.fill.is_some(),
        ..RestoreRequest::new(plan.images)
    };
    let failed = |source| CheckpointError::Criu {
        operation: "restore",
        source,
    };
    let mut how_far = HowFar::new(plan.fill.clone());
    let mut judge = |step| how_far.judge(&step, reached);
    let error = match session.restore(&request, &mut judge) {
        Ok(restored) => {
            how_far.runs();
            return Ok(restored.pid);
        }
        Err(source) => failed(source),
    };
    if let (Some(pid), true) = (how_far.pid, how_far.let_go) {
        // They were let go before CRIU failed, or was killed: what was restored runs, and is the only copy.
        tracing::warn!(
            pid,
            "the tasks run, although CRIU did not end well: {error}"
        );
        how_far.runs();
        return Ok(pid);
    }
    let remains = how_far.pid.map(end).transpose();
    remains.map_err(|source| CheckpointError::Remains { source })?;
    Err(match how_far.unfilled {
        Some(source) => CheckpointError::Memory {
            operation: "brought behind it",
            source,
        },
        None if how_far.unwanted => CheckpointError::Unwanted,
        None => error,
    })
}

/// How far a restore has come. Its tasks execute nothing of their own before the step `pre-resume`: until then
/// they wait in CRIU's restorer, for ever if CRIU is killed (`cr-restore.c`, `restore_root_task`).
#[derive(Debug, Default)]
struct HowFar {
    fill: Option<Arc<Guard>>,
    pid: Option<i32>,
    unwanted: bool,
    unfilled: Option<MemoryError>,
    let_go: bool,
}

impl HowFar {
    fn new(fill: Option<Arc<Guard>>) -> Self {
        Self {
            fill,
            ..Self::default()
        }
    }

    /// The tasks run: what they have read of the store is not needed for another restore.
    fn runs(&self) {
        if let Some(fill) = &self.fill {
            fill.release();
        }
    }

    fn judge(&mut self, step: &Notify, reached: &mut dyn FnMut(Reached) -> bool) -> Verdict {
        match step {
            Notify::PostRestore { pid } => {
                self.pid = Some(*pid);
                // Nothing runs before everything is in two hands.
                let synced = self.fill.as_ref().map(|fill| fill.sync(SYNCED_WITHIN));
                self.unfilled = synced.and_then(Result::err);
                self.unwanted = self.unfilled.is_some() || !reached(Reached::Held(*pid));
                if self.unwanted {
                    Verdict::Refuse
                } else {
                    Verdict::Continue
                }
            }
            Notify::PreResume => {
                self.let_go = true;
                if let Some(pid) = self.pid {
                    reached(Reached::Running(pid));
                }
                Verdict::Continue
            }
            _ => Verdict::Continue,
        }
    }
}

/// Ends tasks that a CRIU that was killed has left waiting: with the first process of its pid namespace all of
/// them go. It is a child of this process, so its id is nobody else's.
fn end(pid: i32) -> nix::Result<()> {
    let pid = Pid::from_raw(pid);
    match kill(pid, Signal::SIGKILL) {
        // CRIU has ended, and reaped, it.
        Err(Errno::ESRCH) => return Ok(()),
        other => other?,
    }
    match waitpid(pid, None) {
        Ok(_) | Err(Errno::ECHILD) => Ok(()),
        Err(error) => Err(error),
    }
}
