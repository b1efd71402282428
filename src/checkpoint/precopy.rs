//! Memory on its way while the container runs, and which of its files it may write without a trace.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mappings::Mappings;
use super::predump::PreDumps;
use super::{CheckpointError, Standby, Subject};
use crate::cgroup::Cgroup;
use crate::criu::{Criu, Hidden, HiddenFile, MappingFlags, SmapsTable};
use crate::memory::{
    MemoryError, OwnedSpace, Pool, PreDumped, Residual, RoundStats, Sender, SentPages, Target,
    Tracker,
};
use crate::model::Compress;

/// Where frames go, from several threads at once. An error ends the round or the dump that makes them.
pub type SharedOut<'a> = dyn Fn(Vec<u8>) -> io::Result<()> + Send + Sync + 'a;

/// Who finds what has changed.
enum Way {
    Tracker(Box<dyn Tracker>),
    Criu(Box<PreDumps>),
}

/// The rounds of one migration.
pub struct Precopy {
    way: Way,
    cgroup: Cgroup,
    pool: Pool,
    mappings: Option<Mappings>,
    residual: Option<Residual>,
    /// Whether [`Self::look`] has been called.
    looked: bool,
}

impl Precopy {
    /// Rounds over the processes of a cgroup.
    ///
    /// # Errors
    /// When the threads that pack pages cannot be started.
    pub fn new(
        cgroup: Cgroup,
        tracker: Box<dyn Tracker>,
        compress: Compress,
    ) -> Result<Self, CheckpointError> {
        Self::by(Way::Tracker(tracker), cgroup, compress)
    }

    /// Rounds by CRIU's own pre-dumps, which needs a kernel with soft-dirty bits.
    ///
    /// # Errors
    /// As of [`Self::new`], and when there is no place for its images.
    pub fn by_criu(
        criu: &Criu,
        subject: &Subject,
        compress: Compress,
    ) -> Result<Self, CheckpointError> {
        let dumps = PreDumps::new(criu, subject)?;
        Self::by(Way::Criu(Box::new(dumps)), subject.cgroup.clone(), compress)
    }

    fn by(way: Way, cgroup: Cgroup, compress: Compress) -> Result<Self, CheckpointError> {
        Ok(Self {
            way,
            cgroup,
            pool: Pool::new(compress).map_err(memory)?,
            mappings: None,
            residual: None,
            looked: false,
        })
    }

    /// The same, with what CRIU can be told of mappings ([`Criu::mapping_flags`](crate::criu::Criu::mapping_flags)).
    #[must_use]
    pub fn with_flags(self, flags: Option<MappingFlags>) -> Self {
        let mappings = flags.map(Mappings::new);
        Self { mappings, ..self }
    }

    /// One round: the pages that are new or changed go through `out` as frames. The destination must have acknowledged
    /// the round before.
    ///
    /// # Errors
    /// When the processes cannot be listed, or `out` fails.
    pub fn round(&mut self, out: &SharedOut<'_>) -> Result<RoundStats, CheckpointError> {
        self.pool.next_round();
        let tracker = match &mut self.way {
            Way::Tracker(tracker) => tracker,
            Way::Criu(dumps) => return dumps.round(&self.pool, out),
        };
        let targets = targets(&self.cgroup)?;
        if let Some(mappings) = &mut self.mappings {
            mappings.learn(&targets);
        }
        let mut piece = |frame| out(frame);
        let mut sender = Sender::new(&self.pool, &mut piece);
        tracker.round(&targets, &mut sender).map_err(memory)
    }

    /// The last look, at frozen tasks, after all that was sent in rounds has been acknowledged: what they have, and
    /// what of it is unsent, is known for the dump, and CRIU is told not to see it, where that is possible. What must
    /// be sent before CRIU begins goes through `out`.
    ///
    /// Tasks that have run again for a moment are looked at again; what went through `out` before is not to be sent then.
    ///
    /// # Errors
    /// When the processes cannot be listed or looked at, or `out` fails.
    pub fn look(&mut self, standby: &Standby, out: &SharedOut<'_>) -> Result<(), CheckpointError> {
        // What is looked at twice is of one round: the destination has nothing of it yet that a page could be told by.
        if !std::mem::replace(&mut self.looked, true) {
            self.pool.next_round();
        }
        self.tell_mappings(standby.smaps.as_ref());
        let (Some(table), Way::Tracker(tracker)) = (&standby.hide, &mut self.way) else {
            return Ok(());
        };
        let targets = targets(&self.cgroup)?;
        let mut piece = |frame| out(frame);
        let mut sender = Sender::new(&self.pool, &mut piece);
        let residual = tracker.last(&targets, &mut sender).map_err(memory)?;
        let hidden: Vec<Hidden> = residual.spaces.iter().flat_map(hidden).collect();
        let files = residual.segments.iter().map(|segment| HiddenFile {
            device: segment.device,
            inode: segment.inode,
        });
        let files: Vec<HiddenFile> = files.collect();
        let set = table.set_with_files(&hidden, &files);
        set.map_err(|source| CheckpointError::Criu {
            operation: "dump",
            source,
        })?;
        self.residual = Some(residual);
        Ok(())
    }

    /// What [`Self::look`] has found unsent.
    pub(super) fn take_residual(&mut self) -> Option<Residual> {
        self.residual.take()
    }

    /// Takes every trace of the rounds out of the tasks. That takes time, the more memory they have: it is done, here
    /// or by dropping this, when they are dead, or before they go on.
    pub fn release(&mut self) {
        if let Way::Tracker(tracker) = &mut self.way {
            tracker.release();
        }
    }

    /// The last look at mappings, of tasks that are frozen: CRIU is told about them.
    fn tell_mappings(&self, table: Option<&SmapsTable>) {
        if let (Some(mappings), Some(table), Ok(targets)) =
            (&self.mappings, table, targets(&self.cgroup))
        {
            mappings.tell(&targets, table);
        }
    }

    /// What has been sent so far, for what CRIU dumps.
    pub(super) fn sent(&self) -> &SentPages {
        match &self.way {
            Way::Tracker(tracker) => tracker.sent(),
            Way::Criu(dumps) => &dumps.sent,
        }
    }

    /// The spaces of which CRIU knows what the rounds have sent, where it was CRIU that sent it.
    pub(super) fn pre_dumped(&self) -> Option<&PreDumped> {
        match &self.way {
            Way::Tracker(_) => None,
            Way::Criu(dumps) => Some(&dumps.spaces),
        }
    }

    /// What CRIU's last round will be, as seen from the images of the final dump, where the rounds are CRIU's.
    pub fn parent(&self) -> Option<PathBuf> {
        match &self.way {
            Way::Tracker(_) => None,
            Way::Criu(dumps) => Some(dumps.parent()),
        }
    }

    /// What packs pages.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }
}

/// What CRIU is not to see of an address space.
fn hidden(space: &OwnedSpace) -> impl Iterator<Item = Hidden> + '_ {
    space.ranges.iter().map(|owned| Hidden {
        pid: space.pid,
        range: owned.range.clone(),
        guards: owned.guards,
    })
}

pub(super) fn memory(source: MemoryError) -> CheckpointError {
    CheckpointError::Memory {
        operation: "sent",
        source,
    }
}

/// The processes of a cgroup, each with its id inside the container. One that ends meanwhile is left out.
pub(super) fn targets(cgroup: &Cgroup) -> Result<Vec<Target>, CheckpointError> {
    let procs = cgroup.procs().map_err(|source| CheckpointError::Cgroup {
        operation: "read",
        source,
    })?;
    let target = |pid: i32| {
        Some(Target {
            pid,
            vpid: inner_pid(pid)?,
        })
    };
    Ok(procs.into_iter().filter_map(target).collect())
}

/// The id of a process in its innermost pid namespace (`NSpid`, proc_pid_status(5)).
fn inner_pid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

/// The files that processes of a cgroup have mapped shared and writable, relative to the container's root.
///
/// A store through such a mapping changes no time stamp until the page is written back and made read-only
/// again (`file_update_time` is called from `page_mkwrite`, mm/filemap.c), so their times prove nothing.
///
/// # Errors
/// When the processes cannot be listed.
pub fn mapped_files(cgroup: &Cgroup) -> Result<HashSet<PathBuf>, CheckpointError> {
    let procs = cgroup.procs().map_err(|source| CheckpointError::Cgroup {
        operation: "read",
        source,
    })?;
    let maps = procs
        .into_iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).ok());
    Ok(maps
        .flat_map(|maps| maps.lines().filter_map(shared_file).collect::<Vec<_>>())
        .collect())
}

/// The file of a line of /proc/PID/maps, where it is mapped shared and writable.
fn shared_file(line: &str) -> Option<PathBuf> {
    // address perms offset dev inode path, the path after blanks for the eye; it may contain blanks itself.
    let mut fields = line.splitn(6, ' ').skip(1);
    let permissions = fields.next()?;
    let path = fields.nth(3)?.trim_start();
    let shared = permissions.contains('w') && permissions.ends_with('s');
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let relative = Path::new(path).strip_prefix("/").ok()?;
    (shared && !relative.as_os_str().is_empty()).then(|| relative.to_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_shared_and_writable_files_are_suspects() {
        let line = |permissions: &str, path: &str| {
            shared_file(&format!(
                "7f00000-7f01000 {permissions} 00000000 00:2a 1234      {path}"
            ))
        };
        assert_eq!(line("rw-s", "/var/lib/db"), Some("var/lib/db".into()));
        assert_eq!(line("rw-s", "/a file"), Some("a file".into()));
        assert_eq!(line("rw-s", "/gone (deleted)"), Some("gone".into()));
        assert_eq!(line("r--s", "/var/lib/db"), None);
        assert_eq!(line("rw-p", "/var/lib/db"), None);
        assert_eq!(line("rw-s", ""), None);
        assert_eq!(shared_file("garbage"), None);
    }

    #[test]
    fn a_process_knows_its_own_id() {
        let own = std::process::id();
        assert!(inner_pid(own.cast_signed()).is_some_and(|vpid| vpid > 0));
        assert_eq!(inner_pid(i32::MAX), None);
    }
}
