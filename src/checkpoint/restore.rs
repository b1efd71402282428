//! A restore that stops at the last moment: every task exists, none has executed an instruction.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::CheckpointError;
use super::dump::NETNS_KEY;
use crate::criu::{Criu, Notify, RestoreRequest, Session, Spawn, Verdict};

/// What is restored, and into what.
#[derive(Debug)]
pub struct Plan {
    /// The directory of the images, memory included.
    pub images: PathBuf,
    /// The mounted root of the container.
    pub root: PathBuf,
    /// The network namespace, with the container's address and its gate closed.
    pub netns: PathBuf,
    /// The cgroup that the tasks are born in.
    pub cgroup: PathBuf,
    /// The pipes for standard output and error: the inode number the images name, and the end to write to.
    pub stdio: Vec<(u64, OwnedFd)>,
}

/// Restores a container as a child of this process. `hold` is called once, with the host process id of its
/// first process, when everything is restored and nothing runs; it returns whether it may run. When this
/// returns an error nothing runs and nothing is left but the images.
///
/// CRIU starts inside the container's cgroup and a cgroup namespace rooted there, because it does not restore
/// either when cgroups are none of its business (`manage_cgroups: ignore`).
///
/// # Errors
/// When CRIU refuses, with the reason out of its log, or `hold` says no.
pub fn restore(
    criu: &Criu,
    plan: Plan,
    hold: &mut dyn FnMut(i32) -> bool,
) -> Result<i32, CheckpointError> {
    let open = |what: &PathBuf| {
        File::open(what).map_err(|source| CheckpointError::Open {
            what: what.display().to_string(),
            source,
        })
    };
    let mut spawn = Spawn {
        cgroup: Some(plan.cgroup),
        new_cgroup_namespace: true,
        ..Spawn::default()
    };
    let mut inherit = vec![(NETNS_KEY.to_owned(), spawn.pass(open(&plan.netns)?.into()))];
    for (inode, pipe) in plan.stdio {
        inherit.push((format!("pipe:[{inode}]"), spawn.pass(pipe)));
    }
    let request = RestoreRequest {
        root: Some(plan.root),
        inherit,
        ..RestoreRequest::new(plan.images)
    };
    let failed = |source| CheckpointError::Criu {
        operation: "restore",
        source,
    };
    let session = Session::start(criu, spawn).map_err(failed)?;
    let mut unwanted = false;
    let mut judge = |step| match step {
        Notify::PostRestore { pid } if !hold(pid) => {
            unwanted = true;
            Verdict::Refuse
        }
        _ => Verdict::Continue,
    };
    let restored = session.restore(&request, &mut judge);
    if unwanted {
        return Err(CheckpointError::Unwanted);
    }
    Ok(restored.map_err(failed)?.pid)
}
