//! The code that runs on the way into a container: single-threaded, started anew for each.
//!
//! **Invariant:** nothing of the host leaks in. The program itself is executed through a read-only mount of its
//! own (see [`crate::sys::mount::open_read_only`]) and is not dumpable, so that no process inside can open it by
//! `/proc/PID/exe` and write to it.
//!
//! Two roads, both of the hidden command `godwit init`: `init --plan FILE` is started by the shim and becomes the
//! first process of a container (see [`sync`]); `init --exec` is started by [`super::exec()`] and runs one more
//! command in a container, waits for it and ends as it ended.

pub mod steps;
pub mod sync;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::error::in_one_line;
use crate::model::User;
use crate::namespace;
use crate::sys::clone::{self, Clone, Forked};
use crate::sys::pidfd;
use steps::{FIRST, LATER, StepError, StepFailed};
use sync::FromInit;

/// The environment variable in which the plan of an `init --exec` travels: unlike an argument, the
/// environment of a process is nobody else's to read.
pub const EXEC_VARIABLE: &str = "GODWIT_EXEC";

/// What a process needs to know to enter a container and to become a command there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The container's name.
    pub hostname: String,
    /// The mounted root, on the host.
    pub root: PathBuf,
    /// The pinned user namespace, if it has one.
    #[serde(default)]
    pub userns: Option<PathBuf>,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// The cgroup's directory.
    pub cgroup: PathBuf,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: PathBuf,
    /// Whom it runs as.
    pub user: User,
}

/// The plan of an `init --exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The id of the container's first process.
    pub init: i32,
    /// What to do.
    pub entry: Entry,
}

/// `godwit init …`: called by `main` before any thread exists.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let words: Vec<&str> = arguments.iter().filter_map(|a| a.to_str()).collect();
    // Otherwise a process in the container could look into this one, and get hold of its program.
    if let Err(errno) = nix::sys::prctl::set_dumpable(false) {
        eprintln!("godwit init: cannot hide from the container: {errno}");
        return ExitCode::from(125);
    }
    match words.as_slice() {
        ["--plan", plan] => first(plan),
        ["--exec"] => later(),
        _ => {
            eprintln!("godwit init is started by godwit itself; use `godwit run` or `godwit exec`");
            ExitCode::from(125)
        }
    }
}

/// The road of the first process; both stages of it come through here.
fn first(plan: &str) -> ExitCode {
    let control = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(control) => control,
        Err(error) => {
            eprintln!("godwit init: no control socket: {error}");
            return ExitCode::from(125);
        }
    };
    let failed = |step: &str, why: String| {
        let step = step.to_owned();
        // Without a listener there is nobody to tell.
        let _ = sync::say(control.as_fd(), &FromInit::Failed { step, why });
        ExitCode::from(125)
    };
    let (entry, forked) = match born(plan) {
        Ok(born) => born,
        Err(error) => return failed("make the first process", in_one_line(&*error)),
    };
    if let Forked::Parent(pid) = forked {
        return match sync::say(control.as_fd(), &FromInit::Born { pid }) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(125),
        };
    }
    if let Err(StepFailed { step, source }) = steps::take(FIRST, &entry) {
        return failed(step, in_one_line(&*source));
    }
    let go = sync::say(control.as_fd(), &FromInit::Ready)
        .and_then(|()| sync::wait_for_go(control.as_fd()));
    if go.is_err() {
        return ExitCode::from(125);
    }
    let error = steps::become_command(&entry);
    failed("run the command", in_one_line(&*error))
}

/// Reads the plan, joins the network and forks the first process.
fn born(plan: &str) -> Result<(Entry, Forked), StepError> {
    let entry: Entry = serde_json::from_slice(&std::fs::read(plan)?)?;
    be_killable()?;
    let user = entry.userns.as_ref().map(File::open).transpose()?;
    let net = File::open(&entry.netns)?;
    let cgroup = File::open(&entry.cgroup)?;
    let user = user.as_ref().map(AsFd::as_fd);
    let forked = namespace::make_first(user, net.as_fd(), cgroup.as_fd())?;
    Ok((entry, forked))
}

/// The road of a later process. Three come through here:
///
/// ```text
/// caller ── the child it knows ── the keeper ──(into the container)── the command
/// ```
///
/// When the caller kills its child, the keeper notices, kills the command and reaps it. Without a keeper the
/// command would pass to a stranger, and a container cannot end while a process of it is not reaped.
fn later() -> ExitCode {
    let kept = pidfd::open(std::process::id() as i32)
        .and_then(|known| Ok((known, clone::clone(&Clone::default())?)));
    match kept {
        Ok((_, Forked::Parent(keeper))) => wait_for(keeper),
        Ok((known, Forked::Child)) => keep(known.as_fd()),
        Err(error) => complain(&error.to_string(), 125),
    }
}

fn complain(what: &str, code: u8) -> ExitCode {
    eprintln!("godwit exec: {what}");
    ExitCode::from(code)
}

/// Brings the command into the container, and ends as it ends, or ends it when `known` has ended.
fn keep(known: BorrowedFd<'_>) -> ExitCode {
    let (entry, forked) = match entered() {
        Ok(entered) => entered,
        Err(error) => return complain(&in_one_line(&*error), 125),
    };
    if let Forked::Parent(pid) = forked {
        if let Ok(command) = pidfd::open(pid) {
            let ends = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = [ends(command.as_fd()), ends(known)];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            // It has ended already, or must.
            let _ = pidfd::signal(command.as_fd(), libc::SIGKILL);
        }
        return wait_for(pid);
    }
    if let Err(error) = steps::take(LATER, &entry) {
        return complain(&in_one_line(&error), 125);
    }
    let error = steps::become_command(&entry);
    complain(&in_one_line(&*error), steps::exit_code_of(&error))
}

/// Reads the plan, enters the container and forks.
fn entered() -> Result<(Entry, Forked), StepError> {
    let plan = std::env::var(EXEC_VARIABLE)?;
    let ExecPlan { init, entry } = serde_json::from_str(&plan)?;
    let cgroup = File::open(&entry.cgroup)?;
    let first: OwnedFd = pidfd::open(init)?;
    // Only now the number cannot be given to another process any more: is it still the one that was meant?
    let procs = std::fs::read_to_string(entry.cgroup.join("cgroup.procs"))?;
    if !procs.lines().any(|line| line.parse() == Ok(init)) {
        return Err("the container has just ended".into());
    }
    be_killable()?;
    let forked = namespace::make_another(first.as_fd(), entry.userns.is_some(), cgroup.as_fd())?;
    Ok((entry, forked))
}

/// Whoever started us may be protected from a lack of memory; the container, which inherits what we have, is not. In a
/// user namespace nobody may say that of himself any more.
fn be_killable() -> Result<(), StepError> {
    Ok(std::fs::write("/proc/self/oom_score_adj", "0")?)
}

/// Waits for the child and ends as it ended.
fn wait_for(pid: i32) -> ExitCode {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return ExitCode::from(code as u8),
            Ok(WaitStatus::Signaled(_, signal, _)) => return ExitCode::from(128 + signal as u8),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return ExitCode::from(125),
        }
    }
}
