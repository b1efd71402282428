//! What a new process does between fork and exec.
//!
//! **Invariant:** everything in the child is one system call after another, without allocation, locks or
//! panics: the parent has threads, and the child has a copy of whatever they were in the middle of.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{setsid, write};

/// The steps, in the order in which they are done.
#[derive(Debug, Default)]
pub struct BeforeExec {
    /// The open `cgroup.procs` of the cgroup to join.
    pub cgroup: Option<File>,
    /// Whether the cgroup joined becomes the root of a cgroup namespace of its own.
    pub new_cgroup_namespace: bool,
    /// The network namespace to enter.
    pub network: Option<OwnedFd>,
    /// The mount namespace to enter; what is executed is found there.
    pub mounts: Option<OwnedFd>,
    /// Whether it becomes the leader of a session of its own.
    pub new_session: bool,
    /// File descriptors that stay open across exec, under the numbers they have here.
    pub pass: Vec<OwnedFd>,
}

/// Makes `command` do these steps. The command owns the file descriptors from now on; dropping it closes
/// them in this process.
pub fn before_exec(command: &mut Command, steps: BeforeExec) {
    let run = move || -> io::Result<()> {
        if let Some(procs) = &steps.cgroup {
            write(procs, b"0")?;
        }
        if steps.new_cgroup_namespace {
            unshare(CloneFlags::CLONE_NEWCGROUP)?;
        }
        if let Some(network) = &steps.network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(mounts) = &steps.mounts {
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
        }
        if steps.new_session {
            setsid()?;
        }
        steps.pass.iter().try_for_each(|fd| stay_open(fd.as_fd()))
    };
    // SAFETY: the closure makes system calls only (write, unshare, setns, setsid, fcntl); nix's wrappers of
    // these neither allocate nor lock, and their errors are plain numbers.
    unsafe { command.pre_exec(run) };
}

fn stay_open(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// The number under which a passed file descriptor is known in the child.
pub fn number(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_passed_descriptor_keeps_its_number_and_others_are_closed() {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let theirs = OwnedFd::from(theirs);
        let at = number(&theirs);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo hello >&{at}")]);
        before_exec(
            &mut command,
            BeforeExec {
                pass: vec![theirs],
                ..BeforeExec::default()
            },
        );
        assert!(command.status().unwrap().success());
        drop(command);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
    }
}
