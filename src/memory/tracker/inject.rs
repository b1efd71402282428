//! A userfaultfd of somebody else's address space: the kernel makes one for the caller alone, so a thread of the
//! task is made to call, and the descriptor is taken out of it.
//!
//! ```text
//! us                                      the thread
//! SEIZE, INTERRUPT                        stops, out of whatever it was doing          ─┐
//! set registers                           userfaultfd(…) at a `syscall` of its own      │ some 100 µs
//! pidfd_getfd, set registers              close(…)                                      │
//! registers as they were, DETACH          goes on; an interrupted call begins anew     ─┘
//! ```
//!
//! **Invariant:** no byte of the task is changed, and no signal of it is lost or made up. Its registers are changed
//! between the two lines of the picture alone; a signal that comes then is delivered with the thread's own
//! registers, and what was begun is begun again. A stopped process stays stopped.
//!
//! **If we die in the middle**, the kernel lets go of the thread. With its own registers in place that is all: what
//! may be left is a userfaultfd that is registered for nothing. With ours in place (two stretches of some 20 µs per
//! address space, none of which can wait for anything but the scheduler), the syscall is still made, and the thread
//! goes on behind it as if that had been the answer to its own call, or, if it was not in a call, at a wrong place:
//! only a SIGKILL of just this process within those microseconds does that. A panic does not: the registers are
//! put back first.
//!
//! A thread that cannot be stopped within its time (it waits for a disk) is let go by ending ours. One that was
//! stopped and then does not get to run (its cgroup was frozen) is stopped again, which always works, put back and
//! let go.

#[cfg(target_arch = "x86_64")]
mod stopped;
#[cfg(not(target_arch = "x86_64"))]
mod stopped {
    //! Not on this architecture yet.

    use std::time::Instant;

    use super::Refusal;
    use crate::sys::userfaultfd::Userfaultfd;

    pub struct Stopped;

    impl Stopped {
        pub fn run<T>(
            _: i32,
            _: i32,
            _: Instant,
            _: impl Fn(&mut Self) -> Result<T, Refusal>,
        ) -> Result<T, Refusal> {
            Err(Refusal::Architecture)
        }

        pub fn make(&mut self) -> Result<(Userfaultfd, i32), Refusal> {
            Err(Refusal::Architecture)
        }

        pub fn close(&mut self, _: i32) -> Result<(), Refusal> {
            Err(Refusal::Architecture)
        }
    }
}

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::kcmp;
use crate::sys::userfaultfd::Userfaultfd;
use stopped::Stopped;

/// How long all threads of a task together may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Why a task has no userfaultfd of ours.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It has ended.
    #[error("it has ended")]
    Ended,
    /// The kernel does not let us stop a thread of it.
    #[error("none of its threads can be traced")]
    Trace {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It has a seccomp filter, which cannot be suspended.
    #[error("its seccomp filter cannot be suspended")]
    Seccomp {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It could not be stopped, or could not run, in time.
    #[error(
        "none of its threads stopped, or got to run, in time: it waits for a disk, or is frozen"
    )]
    Busy,
    /// It is of another kind than this build handles.
    #[error("a task of this architecture cannot be made to call the kernel yet")]
    Architecture,
    /// There is no syscall instruction to be found in it.
    #[error("it has no syscall instruction of its own")]
    NoSyscall,
    /// The syscall failed.
    #[error("userfaultfd failed in it")]
    Userfaultfd {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The descriptor could not be taken out.
    #[error("its userfaultfd cannot be taken out of it")]
    Take {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It could not be closed in the task, which was frozen, or killed, in the middle. [`close`] tries again, and has
    /// nothing to do where the task has ended.
    #[error("process {pid} has a userfaultfd of ours as its descriptor {number}")]
    Left {
        /// Which process.
        pid: i32,
        /// The descriptor's number in it.
        number: i32,
        /// The same one here.
        uffd: Userfaultfd,
    },
}

/// Makes a userfaultfd of a process's address space, fit for asynchronous write protection, before its handshake.
/// The process does not have it any more, nor has a child that it has forked in between.
///
/// # Errors
/// [`Refusal::Left`] says that the process has it still; otherwise it is as it was before.
pub fn userfaultfd(pid: i32) -> Result<Userfaultfd, Refusal> {
    let (uffd, number) = by_some_thread(pid, Stopped::make)?;
    wait_for_forks(pid);
    close_in_children(pid, number, &uffd)?;
    Ok(uffd)
}

/// Waits until all forks that had begun have ended, so that their children can be seen: until each thread was seen
/// doing something else.
fn wait_for_forks(pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    for tid in all_threads(pid) {
        let mut turns = 0;
        while may_be_forking(pid, tid) && Instant::now() < deadline {
            turns += 1;
            if turns < 20 {
                thread::sleep(Duration::from_micros(200));
                continue;
            }
            // It is busy without end. Where it can be stopped, it is not in a call.
            let stopped = thread::spawn(move || Stopped::run(pid, tid, deadline, |_| Ok(())));
            if matches!(stopped.join(), Ok(Ok(()))) {
                break;
            }
        }
    }
}

/// Whether a thread is in a call that forks, or runs, so that nobody knows.
fn may_be_forking(pid: i32, tid: i32) -> bool {
    let forks = [
        libc::SYS_clone,
        libc::SYS_clone3,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
    ];
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) else {
        // It has ended.
        return false;
    };
    let call = text.split_ascii_whitespace().next().unwrap_or_default();
    call.parse().map_or(true, |call: i64| forks.contains(&call))
}

/// Closes a descriptor in all children of a process where it is this userfaultfd, and in theirs.
fn close_in_children(pid: i32, number: i32, uffd: &Userfaultfd) -> Result<(), Refusal> {
    for child in children(pid) {
        if has(child, number, uffd) {
            let closed = close(child, number, uffd);
            wait_for_forks(child);
            close_in_children(child, number, uffd)?;
            closed?;
        }
    }
    Ok(())
}

fn has(pid: i32, number: i32, uffd: &Userfaultfd) -> bool {
    kcmp::same_file(pid, number, uffd.as_fd()).unwrap_or(false)
}

/// Closes a descriptor of a process, if it is this userfaultfd.
pub fn close(pid: i32, number: i32, uffd: &Userfaultfd) -> Result<(), Refusal> {
    if !has(pid, number, uffd) {
        return Ok(());
    }
    by_some_thread(pid, move |injection| injection.close(number)).or_else(|refusal| {
        tracing::warn!(pid, number, %refusal, "a userfaultfd was left in a process");
        if has(pid, number, uffd) {
            let uffd = uffd.try_clone().map_err(traced)?;
            Err(Refusal::Left { pid, number, uffd })
        } else {
            Ok(())
        }
    })
}

/// Lets the first thread of a process that can be stopped do something.
fn by_some_thread<T: Send + 'static>(
    pid: i32,
    act: impl Fn(&mut Stopped) -> Result<T, Refusal> + Send + Copy + 'static,
) -> Result<T, Refusal> {
    let deadline = Instant::now() + PATIENCE;
    let mut refusal = Refusal::Ended;
    for tid in threads(pid) {
        let (report, result) = mpsc::sync_channel(1);
        // A thread of its own: that it ends is what lets go of a thread that cannot be stopped. It outlives this
        // call if it has to put back registers and has to wait for that.
        let thread = thread::Builder::new().name("inject".to_owned());
        let spawned = thread.spawn(move || {
            report.send(Stopped::run(pid, tid, deadline, act)).ok();
        });
        spawned.map_err(traced)?;
        let patience = deadline.saturating_duration_since(Instant::now()) + PATIENCE / 4;
        match result.recv_timeout(patience) {
            Ok(Ok(done)) => return Ok(done),
            // What one thread cannot do another may; but not twice what was done.
            Ok(Err(left @ Refusal::Left { .. })) => return Err(left),
            Ok(Err(error)) => refusal = error,
            Err(_) => refusal = Refusal::Busy,
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Err(refusal)
}

/// The children of a process, by all of its threads.
fn children(pid: i32) -> Vec<i32> {
    let lists = all_threads(pid)
        .into_iter()
        .filter_map(|tid| fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).ok());
    lists
        .flat_map(|list| {
            let numbers = list.split_ascii_whitespace().map(str::parse);
            numbers.filter_map(Result::ok).collect::<Vec<i32>>()
        })
        .collect()
}

fn all_threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    names.collect()
}

/// The threads of a process: first those that wait where they can be interrupted, the leader before others.
fn threads(pid: i32) -> Vec<i32> {
    let mut threads: Vec<(u8, i32)> = all_threads(pid)
        .into_iter()
        .filter_map(|tid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
            let state = stat.rsplit_once(") ")?.1.chars().next()?;
            let rank = match state {
                'S' | 'T' => 0,
                'R' => 1,
                'D' | 't' | 'I' => 2,
                // Dead.
                _ => return None,
            };
            Some((rank, tid))
        })
        .collect();
    threads.sort_unstable_by_key(|(rank, tid)| (*rank, *tid != pid, *tid));
    threads.into_iter().take(8).map(|(_, tid)| tid).collect()
}

fn traced(source: io::Error) -> Refusal {
    match source.raw_os_error() {
        Some(libc::ESRCH) => Refusal::Ended,
        _ => Refusal::Trace { source },
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod test;
