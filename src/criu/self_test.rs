//! Whether CRIU works here: it dumps and restores a task made for it, and is told not to find part of its memory, and
//! what the mappings of that are.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::dumped::dumped;
use super::spared::{self, NotSparing};
use super::{
    Criu, CriuError, DumpRequest, Hidden, HideTable, Leave, RestoreRequest, Session, SmapsTable,
    Spawn, Verdict,
};
use crate::model::Pages;
use crate::sys::before_exec::{BeforeExec, before_exec};

/// What the self-test measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfTest {
    /// Dumping a tiny task, from the start of CRIU to its answer.
    pub dump: Duration,
    /// Restoring it.
    pub restore: Duration,
    /// Whether memory that CRIU is not to find is not in the dump; the same that [`Criu::hides_pages`] says from
    /// now on.
    pub hides_pages: Result<(), NotHiding>,
    /// Whether it need not ask for the flags of mappings; the same that [`Criu::mapping_flags`] says from now on.
    pub spares_smaps: Result<(), NotSparing>,
}

/// Why memory cannot be hidden from CRIU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHiding {
    /// The self-test was not done.
    #[error("whether memory can be hidden from CRIU was not tested in this process")]
    Untested,
    /// A dump without hiding has nothing that could be hidden.
    #[error("the task of CRIU's self-test has no page that could be hidden")]
    NothingToHide,
    /// A dump with hiding did not succeed.
    #[error("a dump with hidden memory failed: {why}")]
    Failed {
        /// Why not.
        why: String,
    },
    /// It is of no effect.
    #[error(
        "CRIU found {found} pages that were hidden: it scans with PAGEMAP_SCAN only from Linux 6.7 on"
    )]
    NoEffect {
        /// How many it found.
        found: Pages,
    },
    /// It is of too much effect.
    #[error("CRIU found no page at all where only a part of the memory was hidden")]
    HidesAll,
}

impl Criu {
    /// Dumps and restores a task of its own, `task`, in a new directory beneath `scratch`, which is best on a
    /// tmpfs. The task must do nothing but wait: `sleep 1000` is one.
    ///
    /// Leaves neither the task nor the directory behind.
    pub fn self_test(&self, scratch: &Path, task: Command) -> Result<SelfTest, CriuError> {
        let images = scratch.join(format!("criu-self-test-{}", std::process::id()));
        let _ = fs::remove_dir_all(&images);
        fs::create_dir_all(images.join(HIDING)).map_err(failed("make its directory"))?;
        let result = self.round_trip(&images, task);
        let removed = fs::remove_dir_all(&images).map_err(failed("remove its directory"));
        let test = result?;
        removed?;
        Ok(test)
    }

    fn round_trip(&self, images: &Path, mut task: Command) -> Result<SelfTest, CriuError> {
        task.current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Not the leader of a session, it would need the session of a leader that is not dumped.
        let steps = BeforeExec {
            new_session: true,
            ..BeforeExec::default()
        };
        before_exec(&mut task, steps);
        let mut task = Task(task.spawn().map_err(failed("start its task"))?);
        let pid = task.0.id().cast_signed();
        let stack = stack(pid).map_err(failed("look for its task's stack"))?;
        let hiding = images.join(HIDING);
        let told = spared::tell(pid);
        let table = told.as_ref().ok().map(|(_, table)| table.clone());
        let without = match self.dump_without(pid, &hiding, &stack, table.clone()) {
            // What one of the two does is not the other's fault.
            Err(_) if table.is_some() => self.dump_without(pid, &hiding, &stack, None),
            done => done,
        };
        let mut agree = |_| Verdict::Continue;
        let begin = Instant::now();
        let request = DumpRequest::new(pid, images);
        Session::start(self, Spawn::default())?.dump(&request, &mut agree)?;
        let dump = begin.elapsed();
        let with = pages(images, pid, &stack).map_err(failed("read the list of dumped pages"))?;
        let spared = told.and_then(|(flags, table)| {
            let image = |images: &Path| fs::read(images.join(format!("mm-{pid}.img")));
            spared::judge(&table, image(&hiding), image(images)).map(|()| flags)
        });
        // Until it is reaped, its process id is taken.
        task.0.wait().map_err(failed("reap its dumped task"))?;
        let begin = Instant::now();
        let request = RestoreRequest::new(images);
        let restored = Session::start(self, Spawn::default())?.restore(&request, &mut agree)?;
        let restore = begin.elapsed();
        let state = state(restored.pid).map_err(failed("look at its restored task"));
        let pid = Pid::from_raw(restored.pid);
        let ended = kill(pid, Signal::SIGKILL).and_then(|()| waitpid(pid, None));
        ended.map_err(|error| failed("end its restored task")(error.into()))?;
        match state? {
            'S' | 'R' => Ok(SelfTest {
                dump,
                restore,
                hides_pages: self.remember_hiding(without.and_then(|found| judge(found, with))),
                spares_smaps: self.remember_sparing(spared).map(drop),
            }),
            state => Err(CriuError::NotRestored {
                state: state.to_string(),
            }),
        }
    }

    /// Dumps the task without its stack, and lets it run on: how many pages of the stack were dumped, and of
    /// everything else. That it fails is a finding and not an error.
    fn dump_without(
        &self,
        pid: i32,
        images: &Path,
        stack: &Range<u64>,
        smaps: Option<SmapsTable>,
    ) -> Result<(Pages, Pages), NotHiding> {
        let dump = || {
            let table = HideTable::new()?;
            let spawn = Spawn {
                hide: Some(table.clone()),
                smaps: smaps.clone(),
                ..Spawn::default()
            };
            let session = Session::start(self, spawn)?;
            table.set(&[Hidden {
                pid,
                range: stack.clone(),
                guards: false,
            }])?;
            let request = DumpRequest {
                leave: Leave::Running,
                ..DumpRequest::new(pid, images)
            };
            session.dump(&request, &mut |_| Verdict::Continue)?;
            pages(images, pid, stack).map_err(failed("read the list of dumped pages"))
        };
        dump().map_err(|error| NotHiding::Failed {
            why: match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            },
        })
    }
}

/// The directory of the dump in which the stack is hidden.
const HIDING: &str = "hiding";

/// What two dumps prove: pages that were hidden and pages that were not, in the one and in the other.
fn judge(without: (Pages, Pages), with: (Pages, Pages)) -> Result<(), NotHiding> {
    match (without, with) {
        (_, (Pages(0), _)) => Err(NotHiding::NothingToHide),
        ((Pages(0), Pages(0)), _) => Err(NotHiding::HidesAll),
        ((Pages(0), _), _) => Ok(()),
        ((found, _), _) => Err(NotHiding::NoEffect { found }),
    }
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> CriuError {
    move |source| CriuError::SelfTest { operation, source }
}

/// How many pages of a dumped task are inside of `range` and how many outside.
fn pages(images: &Path, pid: i32, range: &Range<u64>) -> io::Result<(Pages, Pages)> {
    let image = fs::read(images.join(format!("pagemap-{pid}.img")))?;
    dumped(&image, range).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The memory that every task has and that nothing but itself writes to.
fn stack(pid: i32) -> io::Result<Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let range = maps.lines().find_map(|line| {
        let addresses = line.strip_suffix("[stack]")?.split(' ').next()?;
        let (start, end) = addresses.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(start)?..number(end)?)
    });
    range.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A task that does not outlive its test.
struct Task(Child);

impl Drop for Task {
    fn drop(&mut self) {
        // Both fail only where it is gone and reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state letter of a process.
fn state(pid: i32) -> io::Result<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything, a parenthesis too.
    let after = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    after.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hiding_is_proven_by_two_dumps_and_not_by_one() {
        let judge = |a, b, c, d| judge((Pages(a), Pages(b)), (Pages(c), Pages(d)));
        assert_eq!(judge(0, 60, 9, 60), Ok(()));
        assert_eq!(judge(0, 60, 0, 60), Err(NotHiding::NothingToHide));
        assert_eq!(judge(0, 0, 9, 60), Err(NotHiding::HidesAll));
        let found = Pages(3);
        assert_eq!(judge(3, 60, 9, 60), Err(NotHiding::NoEffect { found }));
    }

    #[test]
    fn this_process_has_a_stack() {
        let here = 0u8;
        let stack = stack(std::process::id().cast_signed()).unwrap();
        // The test's own thread has another one, the main thread's is what is named.
        assert!(!stack.is_empty() && !stack.contains(&(std::ptr::from_ref(&here).addr() as u64)));
    }
}
