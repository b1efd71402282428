//! The first process of a container, as its shim sees it: made, watched, reaped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::ShimStdio;
use super::wire::Exit;
use crate::container::init::sync::{self, FromInit};
use crate::sys::{fdpass, mount, pidfd};

/// How long the first process may take to get ready.
const PATIENCE: i64 = 30;
/// How long the parent of an adopted process may take to reap it, before its exit code is given up.
const REAPED_WITHIN: Duration = Duration::from_secs(15);

/// The first process of a container.
pub struct Process {
    /// Its id on the host.
    pub pid: i32,
    /// It, whatever happens to the number.
    pub pidfd: OwnedFd,
    /// Whether it is a child of the shim; an adopted one is somebody else's.
    pub ours: bool,
}

/// A first process that waits for the word, and the line on which it waits.
pub struct Waiting {
    /// The process.
    pub process: Process,
    control: OwnedFd,
}

impl Process {
    /// Takes hold of a process that exists.
    pub fn hold(pid: i32, ours: bool) -> io::Result<Self> {
        Ok(Self {
            pid,
            pidfd: pidfd::open(pid)?,
            ours,
        })
    }

    /// Kills it and waits for its end.
    pub fn destroy(self) -> Exit {
        // It fails when the process has ended already.
        let _ = pidfd::signal(self.pidfd.as_fd(), libc::SIGKILL);
        self.end()
    }

    /// Waits for its end and says how it ended.
    pub fn end(self) -> Exit {
        let code = if self.ours {
            reap(self.pid)
        } else {
            exit_of_anothers(&self.pidfd)
        };
        Exit { code }
    }
}

fn reap(pid: i32) -> Option<i32> {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// The exit code of a process that is nobody's child here. The kernel tells it once the parent has reaped it.
fn exit_of_anothers(process: &OwnedFd) -> Option<i32> {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::empty())];
    let millis = u16::try_from(REAPED_WITHIN.as_millis()).unwrap_or(u16::MAX);
    // Whatever comes of the waiting, the question below has the answer. The hang-up means "reaped".
    let _ = poll(&mut fds, PollTimeout::from(millis));
    let status = pidfd::exit_status(process.as_fd()).ok()??;
    let (signal, code) = (libc::WTERMSIG(status), libc::WEXITSTATUS(status));
    Some(if signal == 0 { code } else { 128 + signal })
}

/// Reaps children of the shim that nobody waits for: orphans that came to it as to their subreaper. The
/// process with the id `but` is left alone, and so are the children of other threads: orphans come to the first
/// thread, which is the one that serves.
pub fn reap_strays(but: Option<i32>) {
    let peek = WaitPidFlag::WEXITED
        | WaitPidFlag::WNOHANG
        | WaitPidFlag::WNOWAIT
        | WaitPidFlag::__WNOTHREAD;
    while let Ok(status) = waitid(Id::All, peek) {
        match status.pid() {
            Some(pid) if Some(pid.as_raw()) != but => drop(waitpid(pid, None)),
            _ => break,
        }
    }
}

/// Makes the first process by the plan in a file, up to the moment before it becomes the command.
pub fn make(plan: &Path, stdio: &ShimStdio) -> Result<Waiting, String> {
    let (control, theirs) = fdpass::pair().map_err(said("make a control socket"))?;
    setsockopt(&control, ReceiveTimeout, &TimeVal::new(PATIENCE, 0))
        .map_err(|errno| format!("cannot bound the waiting for init: {errno}"))?;
    let mut stage = start_init(plan, theirs, stdio).map_err(said("start init"))?;
    let made = get_ready(control);
    if made.is_err() {
        // It has ended by itself, or hangs.
        let _ = stage.kill();
    }
    // It is only the first stage, which ends as soon as it has forked.
    let _ = stage.wait();
    made
}

fn said(what: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

fn start_init(plan: &Path, control: OwnedFd, stdio: &ShimStdio) -> io::Result<Child> {
    // Closed at exec, which is late enough: the kernel has opened the program by then.
    let program: File = mount::open_read_only(Path::new("/proc/self/exe"))?;
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .args(["init", "--plan"])
        .arg(plan)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(control))
        .stdout(Stdio::from(stdio.stdout.try_clone()?))
        .stderr(Stdio::from(stdio.stderr.try_clone()?))
        .spawn()
}

/// Hears both stages of init, which speak in no order: the first process may be ready, or have failed, before it
/// is heard that it was born.
fn get_ready(control: OwnedFd) -> Result<Waiting, String> {
    let mut process = None;
    let mut outcome = None;
    while process.is_none() || outcome.is_none() {
        match sync::hear(control.as_fd()) {
            Ok(Some(FromInit::Born { pid })) => match Process::hold(pid, true) {
                Ok(held) => process = Some(held),
                Err(error) => {
                    outcome = Some(Err(format!("cannot hold the process {pid}: {error}")));
                    break;
                }
            },
            Ok(Some(FromInit::Ready)) => outcome = Some(Ok(())),
            Ok(Some(FromInit::Failed { step, why })) => {
                outcome = Some(Err(format!("cannot {step}: {why}")));
            }
            Ok(None) => break,
            Err(error) => {
                let why = if error.kind() == io::ErrorKind::WouldBlock {
                    format!("init is not ready after {PATIENCE} s")
                } else {
                    format!("cannot hear init: {error}")
                };
                outcome = Some(Err(why));
                break;
            }
        }
    }
    match (process, outcome) {
        (Some(process), Some(Ok(()))) => Ok(Waiting { process, control }),
        (process, outcome) => {
            process.map(Process::destroy);
            let why = "init has ended without a word".to_owned();
            Err(outcome.and_then(Result::err).unwrap_or(why))
        }
    }
}

impl Waiting {
    /// Lets it become the command. When it cannot, the process is gone.
    pub fn start(self) -> Result<Process, String> {
        let why = match sync::let_go(self.control.as_fd())
            .and_then(|()| sync::hear(self.control.as_fd()))
        {
            // The line is closed by exec.
            Ok(None) => return Ok(self.process),
            Ok(Some(FromInit::Failed { step, why })) => format!("cannot {step}: {why}"),
            Ok(Some(_)) => "init talks out of turn".to_owned(),
            Err(error) => format!("cannot hear init: {error}"),
        };
        self.process.destroy();
        Err(why)
    }
}
