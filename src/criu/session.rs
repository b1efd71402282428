//! One `criu swrk`: started, asked once, and gone.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use prost::Message;

use super::place::Place;
use super::rpc::{FeatureFlags, Kind, Options, Request, Response};
use super::spawn::open_procs;
use super::stats::{DumpStats, RestoreStats, dump_stats, restore_stats};
use super::{Criu, CriuError, DumpRequest, LogTail, Notify, RestoreRequest, Spawn, Verdict};
use crate::sys::{packet, pidfd};

/// The longest message CRIU may send.
const LONGEST: usize = 1 << 20;
/// How long CRIU may take to end once it has answered.
const FAREWELL: Duration = Duration::from_secs(10);

/// A dump that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpDone {
    /// What it cost, as CRIU tells it.
    pub stats: Option<DumpStats>,
}

/// A restore that is done: the tasks run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreDone {
    /// The root task's host process id.
    pub pid: i32,
    /// What it cost, as CRIU tells it.
    pub stats: Option<RestoreStats>,
}

/// One running `criu swrk`, good for one request.
///
/// It may be started long before its request and costs next to nothing until then: CRIU waits in a system call.
/// What a request needs of file descriptors has to be [passed](Spawn::pass) at the start; everything else, the
/// directories included, is said in the request. Two callers gain by more than the start itself: a dump may be
/// asked for before the tasks are frozen, as CRIU does nothing to them until [`Notify::PreDump`] is answered; and a
/// restore's CRIU, which has to start in the container's cgroup for the sake of its cgroup namespace, may wait
/// outside of it ([`enter_cgroup`](Self::enter_cgroup)).
///
/// Dropping it, by a panic in a notification for instance, hangs up: CRIU notices at its next step and undoes
/// its work. Once it was asked it is never killed: in the middle of a dump the tasks have CRIU's code inside them.
#[derive(Debug)]
pub struct Session {
    child: Option<Child>,
    /// Whether it may have work in its hands.
    asked: bool,
    process: Option<OwnedFd>,
    socket: OwnedFd,
    stderr: File,
    program: PathBuf,
}

/// Ends a session's conversation from another thread.
#[derive(Debug)]
pub struct Canceller(OwnedFd);

impl Canceller {
    /// Hangs up. CRIU notices at its next notification, before the tasks' fate is decided, and undoes its work;
    /// the session's owner gets an error. To stop a dump while it sends memory, stop the page server too.
    pub fn cancel(&self) -> io::Result<()> {
        packet::hang_up(&self.0)
    }
}

impl Session {
    /// Starts CRIU. It waits for its request, and has done nothing yet.
    pub fn start(criu: &Criu, spawn: Spawn) -> Result<Self, CriuError> {
        let program = criu.program();
        let failed = |operation| {
            move |source| CriuError::Start {
                operation,
                program: program.to_owned(),
                source,
            }
        };
        let (socket, theirs) = packet::pair().map_err(failed("make its socket"))?;
        let kept = memfd_create("criu-stderr", MFdFlags::MFD_CLOEXEC);
        let kept = kept.map_err(|e| failed("make a file for its errors")(e.into()))?;
        let kept = File::from(kept);
        let child = spawn.start(program, theirs, &kept)?;
        let process = pidfd::open(child.id().cast_signed()).map_err(failed("watch it"));
        Ok(Self {
            child: Some(child),
            asked: false,
            process: Some(process?),
            socket,
            stderr: kept,
            program: program.to_owned(),
        })
    }

    /// A session with something that speaks like CRIU and is no process.
    #[cfg(test)]
    pub(super) fn over(socket: OwnedFd) -> Self {
        Self {
            child: None,
            asked: false,
            process: None,
            socket,
            stderr: tempfile::tempfile().unwrap(),
            program: PathBuf::from("fake"),
        }
    }

    /// CRIU's own process id.
    pub fn pid(&self) -> i32 {
        // Process ids are positive and far below 2^31.
        self.child
            .as_ref()
            .map_or(0, |child| child.id().cast_signed())
    }

    /// Whether CRIU is still there. One that ended while it waited is noticed by its request too; this tells in time
    /// to start another.
    pub fn waits(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Moves CRIU into a cgroup. What it restores is born there; the root of its cgroup namespace stays where
    /// [`Spawn::new_cgroup_namespace`] has put it.
    ///
    /// So that a waiting CRIU is not counted among a container's processes, nor frozen or killed with them: start
    /// it in the container's cgroup, move it out into another one at once, and back before the restore.
    ///
    /// # Errors
    /// When the cgroup cannot be joined.
    pub fn enter_cgroup(&self, cgroup: &Path) -> Result<(), CriuError> {
        let moved = open_procs(cgroup).and_then(|mut procs| write!(procs, "{}", self.pid()));
        moved.map_err(|source| CriuError::Start {
            operation: "move it into another cgroup",
            program: self.program.clone(),
            source,
        })
    }

    /// A way to end this session from another thread.
    pub fn canceller(&self) -> io::Result<Canceller> {
        self.socket.try_clone().map(Canceller)
    }

    /// Dumps a process tree; `on` answers CRIU's steps.
    ///
    /// On success the tasks are what [`DumpRequest::leave`] says. On failure, a refusal included, they run as
    /// before, unless their cgroup is frozen: CRIU leaves a frozen cgroup frozen.
    pub fn dump(
        mut self,
        request: &DumpRequest,
        on: &mut dyn FnMut(Notify) -> Verdict,
    ) -> Result<DumpDone, CriuError> {
        let place = Place::open(&request.images, request.work.as_deref())?;
        let options = request.options(place.directories())?;
        self.ask("dump", Kind::Dump, options, &place, &request.log_file, on)?;
        let stats = place.read("stats-dump").and_then(|b| dump_stats(&b));
        Ok(DumpDone { stats })
    }

    /// Dumps memory alone and lets the tasks run on. Asks for [`DumpRequest::track_mem`], and for a kernel with
    /// soft-dirty bits: on others CRIU aborts instead of refusing, so ask [`Features::mem_track`] first.
    ///
    /// Every round's images directory is the parent of the next; the last parent is the final dump's.
    ///
    /// [`Features::mem_track`]: super::Features::mem_track
    pub fn pre_dump(
        mut self,
        request: &DumpRequest,
        on: &mut dyn FnMut(Notify) -> Verdict,
    ) -> Result<DumpDone, CriuError> {
        let place = Place::open(&request.images, request.work.as_deref())?;
        let options = request.options(place.directories())?;
        let kind = Kind::SinglePreDump;
        self.ask("pre-dump", kind, options, &place, &request.log_file, on)?;
        let stats = place.read("stats-dump").and_then(|b| dump_stats(&b));
        Ok(DumpDone { stats })
    }

    /// Restores a process tree; `on` answers CRIU's steps.
    ///
    /// On success the tasks run. On failure, a refusal included, none of them is left.
    pub fn restore(
        mut self,
        request: &RestoreRequest,
        on: &mut dyn FnMut(Notify) -> Verdict,
    ) -> Result<RestoreDone, CriuError> {
        let place = Place::open(&request.images, request.work.as_deref())?;
        let options = request.options(place.directories())?;
        let kind = Kind::Restore;
        let answer = self.ask("restore", kind, options, &place, &request.log_file, on)?;
        let pid = answer.restore.map_or(-1, |restored| restored.pid);
        if pid <= 0 {
            return Err(CriuError::Unexpected {
                request: "restore",
                got: format!("the process id {pid}"),
            });
        }
        let stats = place.read("stats-restore").and_then(|b| restore_stats(&b));
        Ok(RestoreDone { pid, stats })
    }

    /// Asks whether CRIU can work here at all. Up to 4.1.1 it wants to be told where to log, and fails without a
    /// word when it is not.
    pub(super) fn check(mut self, scratch: &Path) -> Result<(), CriuError> {
        let place = Place::open(scratch, None)?;
        let log_file = "check.log";
        let options = Options {
            images_dir_fd: place.directories().images,
            log_file: Some(log_file.to_owned()),
            log_level: Some(2),
            ..Options::default()
        };
        let mut none = |_| Verdict::Refuse;
        let answer = self.ask("check", Kind::Check, options, &place, log_file, &mut none);
        // Nobody reads the log of a check that went well.
        let _ = std::fs::remove_file(place.path(log_file));
        answer.map(drop)
    }

    /// A request without images and notifications.
    pub(super) fn simple(
        mut self,
        name: &'static str,
        kind: Kind,
        features: Option<FeatureFlags>,
    ) -> Result<Response, CriuError> {
        let request = Request {
            kind: kind as i32,
            features,
            ..Request::default()
        };
        self.send(name, &request)?;
        let mut none = |_| Verdict::Refuse;
        self.conversation(name, kind, &mut none, &|| LogTail::default())
    }

    fn ask(
        &mut self,
        name: &'static str,
        kind: Kind,
        options: Options,
        place: &Place,
        log_file: &str,
        on: &mut dyn FnMut(Notify) -> Verdict,
    ) -> Result<Response, CriuError> {
        let request = Request {
            kind: kind as i32,
            opts: Some(options),
            ..Request::default()
        };
        self.send(name, &request)?;
        self.conversation(name, kind, on, &|| place.log(log_file))
    }

    fn send(&mut self, name: &'static str, request: &Request) -> Result<(), CriuError> {
        self.asked = true;
        packet::send_packet(self.socket.as_fd(), &request.encode_to_vec()).map_err(|source| {
            CriuError::Connection {
                operation: "send",
                request: name,
                source,
            }
        })
    }

    /// Answers notifications until the answer to the request comes, and sees CRIU off.
    fn conversation(
        &mut self,
        name: &'static str,
        kind: Kind,
        on: &mut dyn FnMut(Notify) -> Verdict,
        log: &dyn Fn() -> LogTail,
    ) -> Result<Response, CriuError> {
        // What made us refuse; CRIU's own words for it would only be "script error".
        let mut refused: Option<CriuError> = None;
        loop {
            if !self.speaks() {
                return Err(refused.unwrap_or_else(|| self.ended(name, log)));
            }
            let received = packet::receive_packet(self.socket.as_fd(), LONGEST);
            let message = received.map_err(|source| CriuError::Connection {
                operation: "read the answer to",
                request: name,
                source,
            })?;
            if message.bytes.is_empty() {
                return Err(refused.unwrap_or_else(|| self.ended(name, log)));
            }
            let response = Response::decode(&message.bytes[..]);
            let response = response.map_err(|source| CriuError::Garbled {
                request: name,
                source,
            })?;
            if response.kind == Kind::Notify as i32 {
                let verdict = judge(name, &response, message.fd, on, &mut refused);
                self.send(
                    name,
                    &Request {
                        kind: Kind::Notify as i32,
                        notify_success: Some(verdict == Verdict::Continue),
                        ..Request::default()
                    },
                )?;
                continue;
            }
            self.see_off(FAREWELL);
            return if !response.success {
                Err(refused.unwrap_or_else(|| failed(name, &response, self.all_said(log))))
            } else if response.kind != kind as i32 {
                Err(CriuError::Unexpected {
                    request: name,
                    got: format!("an answer of kind {}", response.kind),
                })
            } else {
                Ok(response)
            };
        }
    }

    /// Waits until CRIU has something to say: false when it has ended without. The end of the connection does not
    /// tell, as tasks that a killed CRIU was restoring hold copies of its end.
    fn speaks(&self) -> bool {
        let Some(process) = &self.process else {
            return true;
        };
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                // The read tells what is wrong.
                Err(_) => return true,
                Ok(_) => return fds[0].any().unwrap_or(true),
            }
        }
    }

    /// What to say when the connection ended too early.
    fn ended(&mut self, request: &'static str, log: &dyn Fn() -> LogTail) -> CriuError {
        let status = self.see_off(FAREWELL);
        CriuError::Ended {
            request,
            status: status.unwrap_or_else(|| "still running".to_owned()),
            log: self.all_said(log),
        }
    }

    /// The log, and what came by way of standard error: what was preloaded speaks there.
    fn all_said(&mut self, log: &dyn Fn() -> LogTail) -> LogTail {
        let mut all = log();
        let others = LogTail::read(&mut self.stderr).unwrap_or_default();
        all.lines.extend(others.lines);
        all
    }

    /// Waits for CRIU to end, and reaps it; how it ended, if it did in time. One that does not is left to a
    /// thread that reaps it whenever it ends: killing it could leave its code inside the tasks.
    fn see_off(&mut self, patience: Duration) -> Option<String> {
        let mut child = self.child.take()?;
        let end = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(status.to_string()),
                Err(error) => return Some(error.to_string()),
                Ok(None) if Instant::now() >= end => {
                    let program = self.program.clone();
                    thread::spawn(move || {
                        let status = child.wait();
                        tracing::warn!(program = %program.display(), ?status, "CRIU ended late");
                    });
                    return None;
                }
                Ok(None) => {}
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let (false, Some(child)) = (self.asked, &mut self.child) {
            // It holds nothing. In a frozen cgroup it would not notice anything else.
            if let Err(error) = child.kill() {
                tracing::debug!(%error, "a waiting CRIU could not be killed");
            }
        }
        // Every copy of our end, a canceller's too: CRIU must see the end of the conversation.
        if packet::hang_up(&self.socket).is_err() {
            tracing::debug!("the connection to CRIU was gone already");
        }
        self.see_off(FAREWELL);
    }
}

/// Asks the callback about a notification; remembers why the answer is no.
fn judge(
    request: &'static str,
    response: &Response,
    fd: Option<OwnedFd>,
    on: &mut dyn FnMut(Notify) -> Verdict,
    refused: &mut Option<CriuError>,
) -> Verdict {
    let (script, pid) = match &response.notify {
        Some(notify) => (notify.script.as_deref().unwrap_or(""), notify.pid),
        None => ("", None),
    };
    let (verdict, why) = match Notify::parse(script, pid, fd) {
        Ok(notify) => {
            let step = script.to_owned();
            (on(notify), CriuError::Refused { request, step })
        }
        Err(error) => (Verdict::Refuse, error),
    };
    if verdict == Verdict::Refuse && refused.is_none() {
        *refused = Some(why);
    }
    verdict
}

fn failed(request: &'static str, response: &Response, mut log: LogTail) -> CriuError {
    let errno = response.cr_errno.map(|number| {
        let error = io::Error::from_raw_os_error(number);
        format!("error {number} ({error})")
    });
    let message = log.headline(response.cr_errmsg.as_deref()).or(errno);
    CriuError::Failed {
        request,
        message: message.unwrap_or_else(|| "it does not say why".to_owned()),
        log,
    }
}
