//! Memory on its way while the container runs, and which of its files it may write without a trace.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CheckpointError;
use crate::cgroup::Cgroup;
use crate::memory::{
    HashTracker, MemoryError, Out, Pool, RoundStats, Sender, SentPages, Target, Tracker,
};
use crate::model::Compress;

/// The rounds of one migration.
pub struct Precopy {
    tracker: Box<dyn Tracker>,
    cgroup: Cgroup,
    compress: Compress,
    /// From the first round on.
    pool: Option<Arc<Pool>>,
}

impl Precopy {
    /// Rounds over the processes of a cgroup, by content hashes: right on every kernel.
    pub fn new(cgroup: Cgroup, compress: Compress) -> Self {
        Self {
            tracker: Box::new(HashTracker::new()),
            cgroup,
            compress,
            pool: None,
        }
    }

    /// One round: the pages that are new or changed go through `out` as frames.
    ///
    /// # Errors
    /// When the processes cannot be listed, or `out` fails.
    pub fn round(&mut self, out: &mut Out<'_>) -> Result<RoundStats, CheckpointError> {
        let targets = targets(&self.cgroup)?;
        let pool = self.pool()?;
        let mut sender = Sender::new(&pool, out);
        self.tracker.round(&targets, &mut sender).map_err(unsent)
    }

    /// What packs the pages of the rounds and of the dump.
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub fn pool(&mut self) -> Result<Arc<Pool>, CheckpointError> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => Arc::new(Pool::new(self.compress).map_err(unsent)?),
        };
        Ok(Arc::clone(self.pool.insert(pool)))
    }

    /// What has been sent so far, for the final dump.
    pub fn sent(&self) -> &SentPages {
        self.tracker.sent()
    }
}

fn unsent(source: MemoryError) -> CheckpointError {
    CheckpointError::Memory {
        operation: "sent",
        source,
    }
}

/// The processes of a cgroup, each with its id inside the container. One that ends meanwhile is left out.
fn targets(cgroup: &Cgroup) -> Result<Vec<Target>, CheckpointError> {
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
