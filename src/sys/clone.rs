//! New processes by clone3(2): into a cgroup, into new namespaces, as a sibling.
//!
//! Kernels since 6.14, and the stable ones that have "cgroup: fix race between fork and cgroup.kill", compare at the
//! birth in another cgroup how often `cgroup.kill` was written of *two* cgroups, the caller's and the new one. Where
//! that differs the new process is killed before its first instruction: nobody in a cgroup that was once killed whole,
//! and is in use again, can have a child in a new one. So a child that is born elsewhere says that it lives, and one
//! that does not is made once more, in the caller's cgroup, and moves by itself (slower, and nothing else).

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

/// Which of the two processes goes on after [`clone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The caller; the new process has this id, seen from the caller's pid namespace.
    Parent(i32),
    /// The new process.
    Child,
}

/// How the new process comes to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clone<'a> {
    /// Namespaces it gets new: `CLONE_NEW…` flags.
    pub namespaces: i32,
    /// Whether it is the child of the caller's parent instead of the caller's.
    pub sibling: bool,
    /// The cgroup v2 directory it is born in; none: the caller's cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether the two have one table of descriptors from now on, and not each its own: what one opens or closes is
    /// open or closed for both, and what is open stays so until both have ended. Only one may drop what owns one.
    pub shares_descriptors: bool,
}

/// Makes a copy of the calling process, as fork(2) does, and returns in both.
///
/// It refuses when the process has more than one thread: the copy would have only this one, and whatever
/// locks the others held would stay locked in it for ever.
pub fn clone(how: &Clone<'_>) -> io::Result<Forked> {
    single_threaded()?;
    let Some(cgroup) = how.cgroup else {
        return Ok(clone3(how, None)?.forked());
    };
    let (hears, says) = io::pipe()?;
    let born = match clone3(how, Some(cgroup))? {
        Born::Child => {
            say(how, hears, says, 0);
            return Ok(Forked::Child);
        }
        Born::Parent { pid, process } => match listen(&hears, &process)? {
            Some(_) => return Ok(Forked::Parent(pid)),
            None => process,
        },
    };
    reap(how, &born);
    drop((hears, says));
    clone_and_move(how, cgroup)
}

/// The way around: the new process is born in the caller's cgroup and moves before it does anything else.
fn clone_and_move(how: &Clone<'_>, cgroup: BorrowedFd<'_>) -> io::Result<Forked> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut procs = File::from(openat(cgroup, "cgroup.procs", flags, Mode::empty())?);
    let (hears, says) = io::pipe()?;
    match clone3(how, None)? {
        Born::Child => {
            let moved = procs.write_all(b"0");
            let errno = moved
                .err()
                .map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
            if how.shares_descriptors {
                std::mem::forget(procs);
            }
            say(how, hears, says, errno);
            if errno != 0 {
                super::process::leave(1);
            }
            Ok(Forked::Child)
        }
        Born::Parent { pid, process } => match listen(&hears, &process)? {
            Some(0) => Ok(Forked::Parent(pid)),
            Some(errno) => {
                reap(how, &process);
                Err(io::Error::from_raw_os_error(errno))
            }
            None => {
                reap(how, &process);
                Err(io::Error::other("it was killed as soon as it was born"))
            }
        },
    }
}

/// What clone3 has made, as either of the two sees it.
enum Born {
    Parent { pid: i32, process: OwnedFd },
    Child,
}

impl Born {
    fn forked(self) -> Forked {
        match self {
            Self::Parent { pid, .. } => Forked::Parent(pid),
            Self::Child => Forked::Child,
        }
    }
}

/// The call itself; `cgroup` is where the new process is born.
fn clone3(how: &Clone<'_>, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Born> {
    let mut process: libc::c_int = -1;
    let mut flags = how.namespaces as u64 | libc::CLONE_PIDFD as u64;
    let mut args = ClArgs {
        pidfd: (&raw mut process) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..ClArgs::default()
    };
    if how.sibling {
        // A sibling inherits the exit signal too; clone3 refuses to be given one.
        flags |= libc::CLONE_PARENT as u64;
        args.exit_signal = 0;
    }
    if how.shares_descriptors {
        flags |= libc::CLONE_FILES as u64;
    }
    if let Some(cgroup) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.flags = flags;
    // SAFETY: the argument is a live `clone_args` of the size given, without CLONE_VM and without a stack: this is
    // fork(2). The one pointer in it is to a live integer, to which the kernel writes the descriptor of the new process
    // before it returns. The process has one thread (whoever calls this has checked it), so no lock is held by a
    // thread that the copy would miss.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<ClArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Born::Child),
        pid => Ok(Born::Parent {
            pid: pid as i32,
            // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
            process: unsafe { OwnedFd::from_raw_fd(process) },
        }),
    }
}

/// The child's word: 0, or why it is not where it should be.
fn say(how: &Clone<'_>, hears: PipeReader, mut says: PipeWriter, errno: i32) {
    // A parent that is gone need not know.
    let _ = says.write_all(&errno.to_ne_bytes());
    if how.shares_descriptors {
        // They are the parent's to close.
        std::mem::forget((hears, says));
    }
}

/// How long a living child may keep silent, in milliseconds: in a cgroup that is frozen it does, and one that was
/// killed at birth is gone at once even there.
const SILENT: u16 = 1000;

/// Waits for the word of the child; none when it has ended without.
fn listen(mut hears: &PipeReader, process: &OwnedFd) -> io::Result<Option<i32>> {
    let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds = [readable(hears.as_fd()), readable(process.as_fd())];
    let heard = loop {
        match poll(&mut fds, PollTimeout::from(SILENT)) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let said = fds[0].any().unwrap_or(false);
    if heard == 0 {
        return Ok(Some(0));
    }
    if !said {
        return Ok(None);
    }
    let mut word = [0; 4];
    hears.read_exact(&mut word)?;
    Ok(Some(i32::from_ne_bytes(word)))
}

/// Reaps the dead child, if it is the caller's.
fn reap(how: &Clone<'_>, process: &OwnedFd) {
    if !how.sibling {
        // Whatever comes of it, it is dead.
        let _ = waitid(Id::PIDFd(process.as_fd()), WaitPidFlag::WEXITED);
    }
}

/// Fails when the calling process has more than one thread.
/// Fails when the calling process has more than one thread.
pub(super) fn single_threaded() -> io::Result<()> {
    // Unsharing the thread group is nothing to do for a lonely thread and impossible for others. Unlike a
    // look at /proc it works in every mount namespace.
    // SAFETY: no pointers, and no effect beyond the answer.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        Ok(())
    } else {
        Err(io::Error::other("the process has more than one thread"))
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, version 2 (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct ClArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sys::process;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;
    use std::fs;
    use std::path::{Path, PathBuf};

    struct Cgroup(PathBuf);

    impl Cgroup {
        fn new(name: &str) -> Self {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
            let root = mount.and_then(|line| line.split(' ').nth(4)).unwrap();
            let path = format!("{root}/godwit-test-clone-{name}-{}", std::process::id());
            fs::create_dir(&path).unwrap();
            Self(path.into())
        }

        fn kill(&self) {
            fs::write(self.0.join("cgroup.kill"), "1").unwrap();
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// A child of a child in `from` that is born into `into` and sees whether it is there, by its exit code.
    fn child_into(from: &Path, into: &Path) -> i32 {
        let directory = File::open(into).unwrap();
        let name = into.file_name().unwrap().to_str().unwrap().to_owned();
        // SAFETY: the copy of a process with several threads; it allocates, and is a test's.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let _ = fs::write(from.join("cgroup.procs"), "0");
            let how = Clone {
                cgroup: Some(directory.as_fd()),
                ..Clone::default()
            };
            match clone(&how) {
                Ok(Forked::Child) => {
                    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                    process::leave(if own.contains(&name) { 7 } else { 8 })
                }
                Ok(Forked::Parent(pid)) => match waitpid(Pid::from_raw(pid), None) {
                    Ok(WaitStatus::Exited(_, code)) => process::leave(code),
                    _ => process::leave(9),
                },
                Err(_) => process::leave(10),
            }
        }
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_is_in_a_cgroup_that_was_killed_once_has_children_elsewhere() {
        if !process::is_root() {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some();
            assert!(!required, "births in cgroups: needs root");
            println!("SKIP births in cgroups: needs root");
            return;
        }
        let (killed, fresh) = (Cgroup::new("killed"), Cgroup::new("fresh"));
        assert_eq!(child_into(&fresh.0, &killed.0), 7);
        killed.kill();
        assert_eq!(
            child_into(&killed.0, &fresh.0),
            7,
            "out of one that was killed"
        );
        assert_eq!(
            child_into(&fresh.0, &killed.0),
            7,
            "into one that was killed"
        );
        assert_eq!(child_into(&killed.0, &killed.0), 7);
    }
}
