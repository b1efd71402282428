//! Writes tracked by a userfaultfd that write-protects asynchronously (6.7).
//!
//! ```text
//! task, first seen ─▶ userfaultfd made in it (inject), taken out, handshake
//! each round, each private mapping:
//!   PAGEMAP_SCAN: written, and protected again in the same step ─────────────▶ sent
//!   pages that are not tracked? register, unprotect, scan again: all of them ─▶ sent
//! ```
//!
//! **Invariant:** a page of a tracked mapping that is write-protected is, in the destination, what it is here. It is
//! protected before it is read, so that what is written afterwards is found; a mapping is tracked only from our
//! registering it on, which is when all of it is sent; whatever moves, replaces or forks a mapping leaves one that
//! is not tracked. What the kernel leaves protected in such a mapping (mremap did before 6.13, and its merging of
//! neighbours does) is unprotected first. What was protected and could not be read is remembered as owed.
//!
//! The kernel sees no writes that go past the page table: a device, or direct I/O, into a page it was handed
//! before. Tasks with files open for direct I/O, or with an AIO ring, are compared by content.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::RoundStats;
use super::inject::{self, Refusal};
use super::maps::Private;
use super::own::{Found, Kind, Look, Looked, scan};
use super::read::{self, Judge};
use super::residual::extend;
use super::task::{FileSystems, Task};
use crate::sys::pagemap::{Categories, Query, Run};
use crate::sys::userfaultfd::{FEATURE_WP_ASYNC, FEATURE_WP_UNPOPULATED, MODE_WP, Userfaultfd};

/// An address space whose writes are tracked, for as long as this lives.
#[derive(Debug)]
pub struct Watch {
    uffd: Userfaultfd,
    /// Pages that were protected and could not be read, ascending.
    owed: Vec<Range<u64>>,
}

/// Why an address space cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum Untracked {
    /// A userfaultfd cannot be made.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This kernel's userfaultfds cannot.
    #[error("this kernel's userfaultfd cannot protect asynchronously (that needs Linux 6.7)")]
    Handshake {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody tracks it already.
    #[error("its memory has a userfaultfd, or is that of another process")]
    Taken,
    /// Its memory is written by devices.
    #[error("it has files open for direct I/O, whose writes to its memory are not seen")]
    Direct,
    /// The address space is another than it was, or is gone.
    #[error("it has another address space now")]
    Gone,
}

const TRACKED_WRITTEN: Categories = Categories::union(Categories::TRACKED, Categories::WRITTEN);

impl Watch {
    /// Begins to track a task. Nothing is protected yet.
    pub fn new(task: &Task, file_systems: &mut FileSystems) -> Result<Self, Untracked> {
        for mapping in task.private(file_systems) {
            let tracked = Query {
                all: Categories::TRACKED,
                ..mapping.own()
            };
            if !matches!(task.any(&mapping.range, tracked), Ok(false)) {
                return Err(Untracked::Taken);
            }
        }
        let uffd = inject::userfaultfd(task.pid)?;
        let features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED;
        let handshake = uffd.handshake(features);
        handshake.map_err(|source| Untracked::Handshake { source })?;
        Ok(Self {
            uffd,
            owed: Vec::new(),
        })
    }

    /// One round over a mapping. The inner error says that the task cannot be tracked any more; some of the
    /// mapping may have been sent then.
    pub fn round(
        &mut self,
        task: &Task,
        space: Space,
        mapping: &Private,
        sender: &mut Sender<'_>,
        stats: &mut RoundStats,
    ) -> Result<Result<(), Untracked>, MemoryError> {
        let mut runs = self.written(task, mapping)?;
        if has_untracked(task, mapping)? {
            // It may have grown, or become one with its neighbour, since the mappings were read: to register a part of
            // a mapping makes two of it, and `mremap` moves only one. What is more than was asked for has no
            // protection, and so is sent next time.
            let whole = task.whole(&mapping.range);
            match self.uffd.register(whole.clone(), MODE_WP) {
                Ok(_) => {
                    self.unprotect(task, mapping, &whole)?;
                    runs = self.written(task, mapping)?;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::ESRCH) => return Ok(Err(Untracked::Gone)),
                    Some(libc::EBUSY) => return Ok(Err(Untracked::Taken)),
                    // Memory that the kernel may drop is never tracked; and it may have been unmapped.
                    _ => {
                        self.unprotect(task, mapping, &mapping.range)?;
                        runs = task.own(mapping)?;
                    }
                },
            }
        }
        let owed = self.owed.iter();
        let mut owed: Vec<_> = owed
            .filter_map(|owed| overlap(owed, &mapping.range))
            .collect();
        if !owed.is_empty() {
            owed.append(&mut runs);
            runs = joined(owed);
        }
        let mut judge = |_, page: &[u8]| read::tracked(page);
        let runs = runs.into_iter();
        let unread = read::send(&task.memory, space, runs, &mut judge, sender, stats)?;
        self.owe(unread, &mapping.range);
        Ok(Ok(()))
    }

    /// The runs of pages that were written since they were last protected, and now are again.
    fn written(&self, task: &Task, mapping: &Private) -> Result<Vec<Range<u64>>, MemoryError> {
        let query = Query {
            all: TRACKED_WRITTEN,
            none: mapping.own().none.union(Categories::GUARD),
            protect: true,
            ..mapping.own()
        };
        let mut runs = Vec::new();
        task.pages(&mapping.range, query, &mut |run| {
            extend(&mut runs, run.start..run.end);
        })?;
        Ok(runs)
    }

    /// Takes away what protection there is in a mapping, or more than it, so that all of it counts as written.
    fn unprotect(
        &mut self,
        task: &Task,
        mapping: &Private,
        range: &Range<u64>,
    ) -> Result<(), MemoryError> {
        let query = Query {
            all: Categories::TRACKED,
            none: mapping
                .own()
                .none
                .union(Categories::GUARD)
                .union(Categories::WRITTEN),
            ..mapping.own()
        };
        let mut stale = Vec::new();
        task.pages(range, query, &mut |run| {
            extend(&mut stale, run.start..run.end);
        })?;
        for run in stale {
            if self.uffd.write_protect(run.clone(), false).is_err() {
                self.owe(vec![run], &(0..0));
            }
        }
        Ok(())
    }

    /// These are owed, and what was owed of `settled` is not any more.
    fn owe(&mut self, unread: Vec<Range<u64>>, settled: &Range<u64>) {
        if unread.is_empty() && self.owed.is_empty() {
            return;
        }
        let before = std::mem::take(&mut self.owed).into_iter();
        let mut all: Vec<_> = before.flat_map(|owed| outside(&owed, settled)).collect();
        all.extend(unread);
        self.owed = joined(all);
    }

    /// Whether a task has pages that are tracked: after an exec it has none.
    pub fn knows(&self, task: &Task, file_systems: &mut FileSystems) -> Result<bool, MemoryError> {
        for mapping in task.private(file_systems) {
            let query = Query {
                all: Categories::TRACKED,
                ..mapping.own()
            };
            if task.any(&mapping.range, query)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Look for Watch {
    fn judge(&self) -> Judge {
        Judge::Tracked
    }

    fn pages(&self, task: &Task, mapping: &Private) -> Result<Looked, MemoryError> {
        let tell = TRACKED_WRITTEN.union(Categories::SWAPPED);
        let (mut notes, mut untracked) = (false, false);
        let mut kind = |run: &Run| {
            let is = |categories| run.categories.contains(categories);
            untracked |= !is(Categories::TRACKED);
            let sent = is(Categories::TRACKED) && !is(Categories::WRITTEN);
            notes |= sent && is(Categories::SWAPPED) && mapping.file.is_some();
            let owed = |owed: &Range<u64>| owed.start < run.end && run.start < owed.end;
            if sent && !self.owed.iter().any(owed) {
                Kind::Sent
            } else {
                Kind::Unsent
            }
        };
        let found = scan(task, mapping, tell, &mut kind)?;
        if !notes {
            return Ok(Looked { found, untracked });
        }
        // In a file's mapping, a page that was protected and then dropped leaves a note that looks like a page
        // which is swapped out, until nobody tracks the mapping any more.
        self.uffd.unregister(mapping.range.clone()).ok();
        let exist = scan(task, mapping, Categories::NONE, &mut |_| Kind::Unsent)?;
        let mut left = Vec::new();
        for Found { pages, kind } in found {
            for page in exist
                .iter()
                .filter_map(|exists| overlap(&exists.pages, &pages))
            {
                left.push(Found { pages: page, kind });
            }
        }
        // Its registration has just been taken away.
        Ok(Looked {
            found: left,
            untracked: true,
        })
    }

    fn lazy(&self, mapping: &Private, untracked: bool) -> Option<bool> {
        if !untracked {
            return Some(true);
        }
        // Memory that the kernel may drop can never be registered, and not be filled in later either.
        match self.uffd.register(mapping.range.clone(), MODE_WP) {
            Ok(_) => Some(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Some(false),
            Err(_) => None,
        }
    }
}

/// Whether a mapping has pages that nobody tracks.
fn has_untracked(task: &Task, mapping: &Private) -> Result<bool, MemoryError> {
    let query = Query {
        none: mapping
            .own()
            .none
            .union(Categories::GUARD)
            .union(Categories::TRACKED),
        ..mapping.own()
    };
    task.any(&mapping.range, query)
}

/// The same pages, ascending and each once.
fn joined(mut runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> Option<Range<u64>> {
    let both = one.start.max(other.start)..one.end.min(other.end);
    (both.start < both.end).then_some(both)
}

/// What of `one` is not in `other`.
fn outside(one: &Range<u64>, other: &Range<u64>) -> Vec<Range<u64>> {
    let before = one.start..one.end.min(other.start.max(one.start));
    let behind = one.start.max(other.end.min(one.end))..one.end;
    if overlap(one, other).is_none() {
        return vec![one.clone()];
    }
    let parts = [before, behind];
    parts
        .into_iter()
        .filter(|part| part.start < part.end)
        .collect()
}

/// Whether memory of a process is written by something that does not go through its page table: it has files open
/// for direct I/O, or an AIO ring.
pub fn is_written_directly(pid: i32) -> bool {
    let ring = fs::read_to_string(format!("/proc/{pid}/maps"))
        .is_ok_and(|maps| maps.lines().any(|line| line.contains(" /[aio]")));
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return ring;
    };
    let direct = |number: &OsStr| {
        let info = Path::new("fdinfo").join(number);
        let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(info)).ok()?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        if flags & libc::O_DIRECT == 0 {
            return None;
        }
        // A pipe has the flag too, and means something else by it.
        let link = Path::new("/proc")
            .join(pid.to_string())
            .join("fd")
            .join(number);
        Some(fs::read_link(link).is_ok_and(|file| file.has_root()))
    };
    let mut numbers = descriptors.filter_map(|entry| Some(entry.ok()?.file_name()));
    ring || numbers.any(|number| direct(&number) == Some(true))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod test {
    use super::*;

    #[test]
    fn runs_are_joined_where_they_meet() {
        assert_eq!(joined(vec![7..9, 1..3, 2..4, 4..5]), [1..5, 7..9]);
    }

    #[test]
    fn what_is_outside_is_before_or_behind() {
        assert_eq!(outside(&(1..9), &(3..5)), [1..3, 5..9]);
        assert_eq!(outside(&(1..9), &(0..5)), [5..9]);
        assert_eq!(outside(&(1..9), &(5..9)), [1..5]);
        assert_eq!(outside(&(1..9), &(0..10)), [] as [Range<u64>; 0]);
        assert_eq!(outside(&(1..9), &(0..0)), [1..9]);
        assert_eq!(outside(&(1..9), &(9..10)), [1..9]);
    }
}
