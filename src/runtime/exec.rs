//! `exec`: one more process in a container that runs.
//!
//! ```text
//! caller ──fork──▶ helper ── joins the namespaces of the first process
//!    └──────────────┴─clone3 (as a sibling, into the cgroup)──▶ the process
//! ```

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::Process;

use super::command::{Command, StepError, lower};
use super::error::{file, in_one_line, system};
use super::plan::check_process;
use super::state::{Id, Record, Status};
use super::store::{self, Root};
use super::talk::{hear, say, say_failed, tell_listener, wait_for_go};
use super::wire::{FromProcess, ToProcess};
use super::{RuntimeError, affinity, agent, console, create, init, limits, unknown};
use crate::rootfs::bundle;
use crate::sys::clone::{self, Clone, Forked};
use crate::sys::{fdpass, namespace, pidfd, process};

/// What `exec` is asked.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// The container.
    pub id: Id,
    /// The process.
    pub process: Process,
    /// The socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// The socket that gets a pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// The file that gets the process's id.
    pub pid_file: Option<PathBuf>,
    /// A cgroup below the container's, where the process is to be.
    pub cgroup: Option<PathBuf>,
    /// How many descriptors after the first three pass to it.
    pub preserve_fds: u32,
    /// Even when the container is frozen; the process then waits with the others.
    pub ignore_paused: bool,
}

/// Runs a process in the container. It is a child of the caller; returns its id.
pub fn exec(root: &Root, request: &ExecRequest) -> Result<i32, RuntimeError> {
    let socket = request.console_socket.as_deref();
    let console = socket.map(create::connect).transpose()?;
    exec_with(root, request, console.map(OwnedFd::from))
}

/// As [`exec`], with the socket that gets the terminal's master.
pub(super) fn exec_with(
    root: &Root,
    request: &ExecRequest,
    console: Option<OwnedFd>,
) -> Result<i32, RuntimeError> {
    let record = root.read(&request.id)?;
    may_exec(root, &record, request)?;
    check_process(&request.process, "process", create::facts())?;
    console::check(&request.process, console.is_some())?;
    let linux = record.spec.linux().as_ref();
    let seccomp = linux.and_then(|l| l.seccomp().as_ref());
    let command = Command::of(request.process.clone(), seccomp, request.preserve_fds)?;
    let entry = Entry {
        first: hold(&record)?,
        foreign: foreign_namespaces(record.init.pid)?,
        cgroup: open_cgroup(&record, request)?,
        command,
        console,
    };
    affinity::before(&request.process)?;
    let (ours, theirs) = fdpass::pair().map_err(system("make a socket"))?;
    let pid = entry.born(&ours, theirs)?;
    let done = launch(&record, request, pid, &ours);
    if done.is_err() {
        let _ = pidfd::open(pid).and_then(|p| pidfd::signal(p.as_fd(), libc::SIGKILL));
        let _ = waitpid(Pid::from_raw(pid), None);
    }
    done.map(|()| pid)
}

fn may_exec(root: &Root, record: &Record, request: &ExecRequest) -> Result<(), RuntimeError> {
    root.check_stays(&record.id)?;
    let status = root.status(record);
    let refused = |remedy| RuntimeError::Status {
        verb: "exec in",
        id: record.id.to_string(),
        status,
        remedy,
    };
    match status {
        Status::Paused if !request.ignore_paused => {
            Err(refused("resume it, or use --ignore-paused"))
        }
        Status::Stopped => Err(RuntimeError::NotRunning {
            id: record.id.to_string(),
            status,
        }),
        Status::Creating => Err(refused("wait until its creation has ended")),
        _ => Ok(()),
    }
}

/// Holds the container's first process, and makes sure that it is the one.
fn hold(record: &Record) -> Result<OwnedFd, RuntimeError> {
    let gone = || RuntimeError::NotRunning {
        id: record.id.to_string(),
        status: Status::Stopped,
    };
    let held = pidfd::open(record.init.pid).map_err(|_| gone())?;
    store::is_alive(record.init)
        .then_some(held)
        .ok_or_else(gone)
}

const KINDS: [(&str, i32); 8] = [
    ("user", namespace::USER),
    ("mnt", namespace::MOUNT),
    ("uts", namespace::UTS),
    ("ipc", namespace::IPC),
    ("net", namespace::NET),
    ("pid", namespace::PID),
    ("time", namespace::TIME),
    ("cgroup", namespace::CGROUP),
];

/// The kinds of which the process has another namespace than we: joining one's own is refused by the kernel.
fn foreign_namespaces(pid: i32) -> Result<i32, RuntimeError> {
    let mut foreign = 0;
    for (name, kind) in KINDS {
        let number = |who: String| {
            let path = PathBuf::from(format!("/proc/{who}/ns/{name}"));
            match std::fs::metadata(&path) {
                Ok(meta) => Ok(Some(meta.ino())),
                // A kernel without this kind.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(file("look at", &path)(e)),
            }
        };
        if number(pid.to_string())? != number("self".to_owned())? {
            foreign |= kind;
        }
    }
    Ok(foreign)
}

fn open_cgroup(record: &Record, request: &ExecRequest) -> Result<File, RuntimeError> {
    let mut path = record.cgroup.clone();
    if let Some(below) = &request.cgroup {
        let inside = below.strip_prefix("/").unwrap_or(below);
        let plain = |part| matches!(part, std::path::Component::Normal(_));
        if !inside.components().all(plain) {
            return Err(RuntimeError::Option {
                option: "--cgroup",
                why: format!(
                    "{} is not a path below the container's cgroup",
                    below.display()
                ),
            });
        }
        path.push(inside);
    }
    File::open(&path).map_err(file("open the cgroup", &path))
}

/// What the process needs on its way.
struct Entry {
    first: OwnedFd,
    foreign: i32,
    cgroup: File,
    command: Command,
    console: Option<OwnedFd>,
}

impl Entry {
    /// Makes the process; what it is called on the host.
    fn born(self, ours: &OwnedFd, theirs: OwnedFd) -> Result<i32, RuntimeError> {
        match clone::clone(&Clone::default()).map_err(system("make a process"))? {
            Forked::Parent(helper) => {
                drop(theirs);
                let heard = hear::<FromProcess>(ours.as_fd());
                let _ = waitpid(Pid::from_raw(helper), None);
                match heard.map_err(system("hear the helper"))? {
                    Some(FromProcess::Born { pid }) => Ok(pid),
                    Some(FromProcess::Failed { why }) => Err(RuntimeError::Child { why }),
                    _ => Err(RuntimeError::Child {
                        why: "its helper has ended".to_owned(),
                    }),
                }
            }
            Forked::Child => self.help(theirs),
        }
    }

    /// The helper, and after it the process.
    fn help(self, theirs: OwnedFd) -> ! {
        let all = std::panic::AssertUnwindSafe(|| {
            let entered = namespace::enter(self.first.as_fd(), self.foreign & !namespace::CGROUP);
            let forked = entered.and_then(|()| {
                clone::clone(&Clone {
                    namespaces: 0,
                    sibling: true,
                    cgroup: Some(self.cgroup.as_fd()),
                    ..Clone::default()
                })
            });
            match forked {
                Ok(Forked::Parent(pid)) => {
                    let _ = say(theirs.as_fd(), &FromProcess::Born { pid });
                }
                Ok(Forked::Child) => {
                    let error = self.become_it(theirs.as_fd());
                    say_failed(theirs.as_fd(), &in_one_line(&*error));
                }
                Err(error) => {
                    say_failed(theirs.as_fd(), &format!("enter the container: {error}"));
                }
            }
        });
        let _ = std::panic::catch_unwind(all);
        process::leave(255)
    }

    /// The process's way. It returns only if the command cannot be become.
    fn become_it(&self, caller: BorrowedFd<'_>) -> StepError {
        match self.prepare(caller) {
            Ok(()) => self.command.become_it(),
            Err(error) => error,
        }
    }

    fn prepare(&self, caller: BorrowedFd<'_>) -> Result<(), StepError> {
        wait_for_go(caller)?;
        process::unblock_signals();
        if self.foreign & namespace::USER != 0 {
            init::become_root()?;
        }
        if self.foreign & namespace::CGROUP != 0 {
            namespace::enter(self.first.as_fd(), namespace::CGROUP)?;
        }
        nix::unistd::setsid().map_err(|e| format!("start a session: {}", lower(e)))?;
        if let Some(holder) = &self.console {
            let root = File::open("/")?;
            let size = console::size(self.command.process());
            console::take(bundle::console::open(root.as_fd(), size)?, holder.as_fd())?;
        }
        self.command.look_for()?;
        self.command
            .settle(|listener| Ok(tell_listener(caller, listener)?))
    }
}

/// The caller's side: sets what is set from outside, lets it go, and hears how that went.
fn launch(
    record: &Record,
    request: &ExecRequest,
    pid: i32,
    ours: &OwnedFd,
) -> Result<(), RuntimeError> {
    limits::set(pid, &request.process)?;
    affinity::after(pid, &request.process)?;
    if let Some(classes) = &record.classes {
        classes.join(pid)?;
    }
    say(ours.as_fd(), &ToProcess::Go { pid }).map_err(system("speak to the process"))?;
    loop {
        let heard = hear::<FromProcess>(ours.as_fd());
        match heard.map_err(system("hear the process"))? {
            Some(FromProcess::Listener { number }) => {
                agent::pass(record, pid, number)?;
                say(ours.as_fd(), &ToProcess::Go { pid })
                    .map_err(system("speak to the process"))?;
            }
            Some(FromProcess::Failed { why }) => return Err(RuntimeError::Child { why }),
            Some(word) => {
                let why = format!("it has said {word:?}");
                return Err(RuntimeError::Child { why });
            }
            None => break,
        }
    }
    if let Some(path) = &request.pid_file {
        create::write_pid(path, pid)?;
    }
    if let Some(path) = &request.pidfd_socket {
        create::send_pidfd(path, pid)?;
    }
    Ok(())
}

/// The process of a container's configuration, from which a command in it starts.
pub fn template(root: &Root, id: &Id) -> Result<Process, RuntimeError> {
    let record = root.read(id)?;
    Ok(record.spec.process().clone().unwrap_or_default())
}

/// Reads a process from a file.
pub fn read_process(path: &Path) -> Result<Process, RuntimeError> {
    let bytes = std::fs::read(path).map_err(file("read", path))?;
    unknown::parse(path, &bytes, "")
}
