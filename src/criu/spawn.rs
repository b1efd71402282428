//! How a CRIU worker is started.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use caps::{CapSet, Capability};

use super::preload::Asked;
use super::{CriuError, HideTable, SmapsTable};
use crate::sys::before_exec::{self, BeforeExec, before_exec};
use crate::sys::scheduling::{self, Attributes};

/// How nice a CRIU is that others wait for.
const URGENT: i32 = -15;

/// Where and with what CRIU runs.
#[derive(Debug, Default)]
pub struct Spawn {
    /// The cgroup CRIU is in from its first instruction, and so everything it restores.
    pub cgroup: Option<PathBuf>,
    /// Whether that cgroup becomes the root of a cgroup namespace of its own, for everything restored.
    pub new_cgroup_namespace: bool,
    /// The network namespace CRIU runs in.
    pub network: Option<OwnedFd>,
    /// The mount namespace CRIU runs in: where it finds the root of what it restores, and what is bound from outside.
    pub mounts: Option<OwnedFd>,
    /// Where CRIU's own standard error goes; none: kept, and told when it fails.
    pub stderr: Option<File>,
    /// Whether CRIU is to learn the limits of tasks from `/proc` where the kernel tells them to nobody without
    /// CAP_SYS_RESOURCE; see `preload.c`.
    pub limits_from_proc: bool,
    /// The memory that CRIU is not to find; see `preload.c`. Keep a copy of the table to fill it in.
    pub hide: Option<HideTable>,
    /// The mappings of the tasks, which CRIU need not ask the kernel for; see `preload_smaps.c`. Keep a copy of the
    /// table to fill it in.
    pub smaps: Option<SmapsTable>,
    /// Whether the kernel is spared the search of its table of connections where that is empty: it walks every
    /// bucket of the whole host's table, twice, with the tasks stopped; see `preload.c`.
    pub spare_conntrack: bool,
    /// Whether CRIU packs and unpacks the little there is in a container's tmpfs itself, instead of starting tar and
    /// gzip, 6 to 12 ms on either side with the tasks stopped; see `preload_tar.c`. Images are good with and without.
    pub spare_tar: bool,
    /// Whether CRIU is given segments of shared memory by whoever has them and listens beside the images; see
    /// `preload_segments.c`.
    pub hand_segments: bool,
    /// The user namespace that the first process is restored into, and all its other namespaces with it, instead of one
    /// that CRIU makes; see `preload_userns.c`. That process is born by a helper, and passes to the nearest subreaper.
    pub user_namespace: Option<OwnedFd>,
    /// Whether CRIU goes before other processes, where that is allowed: somebody stands still until it is through. What
    /// it restores has the priorities of its images.
    pub urgent: bool,
    /// File descriptors CRIU is given; see [`pass`](Self::pass).
    pub passed: Vec<OwnedFd>,
}

impl Spawn {
    /// Gives CRIU a file descriptor, for a page server or for `inherit_fd`, and tells the number to name in the
    /// request. This process's copy is closed as soon as CRIU has been started.
    pub fn pass(&mut self, fd: OwnedFd) -> i32 {
        let number = before_exec::number(&fd);
        self.passed.push(fd);
        number
    }

    /// Starts `program` as a worker that speaks on `socket`. Its errors go to `kept` where no place was named.
    pub(super) fn start(
        self,
        program: &Path,
        socket: OwnedFd,
        kept: &File,
    ) -> Result<Child, CriuError> {
        let failed = |operation| {
            move |source| CriuError::Start {
                operation,
                program: program.to_owned(),
                source,
            }
        };
        let stderr = match self.stderr {
            Some(file) => Ok(file),
            None => kept.try_clone(),
        };
        let cgroup = self.cgroup.map(|cgroup| open_procs(&cgroup)).transpose();
        let mut command = Command::new(program);
        command
            .arg("swrk")
            .arg(before_exec::number(&socket).to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.map_err(failed("share the file for its errors"))?);
        let mut pass = self.passed;
        pass.push(socket);
        let asked = Asked {
            limits: self.limits_from_proc,
            conntrack: self.spare_conntrack,
            tar: self.spare_tar,
            segments: self.hand_segments,
            hide: self.hide.as_ref(),
            smaps: self.smaps.as_ref(),
            users: self.user_namespace.as_ref(),
        };
        let preloaded = asked.preload(&mut command);
        pass.extend(self.user_namespace);
        pass.extend(preloaded.map_err(failed("make what it preloads"))?);
        let urgent = self.urgent;
        let steps = BeforeExec {
            cgroup: cgroup.map_err(failed("open its cgroup"))?,
            new_cgroup_namespace: self.new_cgroup_namespace,
            network: self.network,
            mounts: self.mounts,
            new_session: false,
            pass,
        };
        before_exec(&mut command, steps);
        let child = command
            .spawn()
            .map_err(failed("join its cgroup and namespaces and execute it"))?;
        if urgent {
            // Where that is not allowed it takes its turn.
            let _ = scheduling::schedule(
                child.id().cast_signed(),
                Attributes {
                    policy: libc::SCHED_OTHER as u32,
                    nice: URGENT,
                    ..Attributes::default()
                },
            );
        }
        Ok(child)
    }
}

/// Whether the kernel tells this process the limits of other users' tasks; if not, see
/// [`Spawn::limits_from_proc`]. Where that cannot be found out it is taken for granted, as it is for root nearly
/// everywhere.
pub fn may_read_limits() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap_or(true)
}

/// The file that moves whoever is written into it.
pub(super) fn open_procs(cgroup: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
}
