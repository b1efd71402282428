//! The shim's loop: it waits for clients, for the process and for a restore, and takes one event at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread::{Scope, scope};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::log::Pump;
use super::process::{self, Process, Waiting};
use super::restore::{Restoring, Step};
use super::wire::{Exit, Report, Request, ShimState};
use super::{EXIT_FILE, Restorer, ShimStdio};
use crate::sys::{fdpass, file, pidfd};

/// How long the last output of a container may take to reach the log.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Everything a shim has.
pub struct Shim {
    directory: PathBuf,
    log: PathBuf,
    listener: OwnedFd,
    clients: Vec<OwnedFd>,
    state: ShimState,
    /// The read ends of the output pipes, and who empties them.
    pipes: Option<([OwnedFd; 2], Pump)>,
    /// Their write ends, until the container has them.
    stdio: Option<ShimStdio>,
    task: Task,
    leaving: bool,
}

/// What the shim has of the container.
enum Task {
    None,
    Waiting(Waiting),
    Running(Process),
    Restoring(Restoring),
}

/// What an event was about.
enum Event {
    Connection,
    Client(usize),
    End,
    Restore,
}

impl Shim {
    /// A shim that listens, with pipes whose write ends belong to this user, or without any if it will adopt a
    /// container.
    pub fn new(directory: PathBuf, log: PathBuf, owner: Option<u32>) -> io::Result<Self> {
        let listener = fdpass::listen_at(&directory.join(super::SOCKET))?;
        let mut shim = Self {
            directory,
            log,
            listener,
            clients: Vec::new(),
            state: ShimState::Idle,
            pipes: None,
            stdio: None,
            task: Task::None,
            leaving: false,
        };
        if let Some(owner) = owner {
            let (out, stdout) = super::pipe_of(owner)?;
            let (err, stderr) = super::pipe_of(owner)?;
            shim.stdio = Some(ShimStdio { stdout, stderr });
            shim.empty([out, err])?;
        }
        Ok(shim)
    }

    fn empty(&mut self, pipes: [OwnedFd; 2]) -> io::Result<()> {
        let copies = [pipes[0].try_clone()?, pipes[1].try_clone()?];
        let pump = Pump::start(copies, &self.log);
        self.pipes = Some((pipes, pump));
        Ok(())
    }

    /// Serves until it may leave.
    pub fn serve(mut self, restorer: &dyn Restorer) -> io::Result<()> {
        scope(|scope| {
            while !self.leaving {
                for event in self.wait()? {
                    match event {
                        Event::Connection => self.welcome(),
                        Event::Client(index) => self.hear(index, scope, restorer),
                        Event::End => self.end(),
                        Event::Restore => self.restored(),
                    }
                }
                self.clients
                    .retain(|client| client_is_there(client.as_fd()));
                self.reap();
            }
            // A restore that still waits for a verdict is undone by the loss of the one who would give it.
            self.task = Task::None;
            Ok(())
        })
    }

    /// Waits for events. Those of clients come in the order of the highest index first.
    fn wait(&self) -> io::Result<Vec<Event>> {
        let (watched, what) = match &self.task {
            Task::Running(process) => (Some(process.pidfd.as_fd()), Event::End),
            Task::Waiting(waiting) => (Some(waiting.process.pidfd.as_fd()), Event::End),
            Task::Restoring(restoring) => (Some(restoring.wake.as_fd()), Event::Restore),
            Task::None => (None, Event::End),
        };
        let all = std::iter::once(self.listener.as_fd())
            .chain(self.clients.iter().map(AsFd::as_fd))
            .chain(watched);
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let clients = self.clients.len();
        let mut events = Vec::new();
        if ready.get(clients + 1) == Some(&true) {
            events.push(what);
        }
        events.extend(
            (0..clients)
                .rev()
                .filter(|i| ready[i + 1])
                .map(Event::Client),
        );
        if ready[0] {
            events.push(Event::Connection);
        }
        Ok(events)
    }

    fn welcome(&mut self) {
        if let Ok(client) = fdpass::accept(self.listener.as_fd()) {
            tell(client.as_fd(), &self.report(), &[]);
            self.clients.push(client);
        }
    }

    fn report(&self) -> Report {
        Report::State {
            state: self.state.clone(),
        }
    }

    /// Comes into a state, and tells everybody.
    fn become_state(&mut self, state: ShimState) {
        self.state = state;
        let report = self.report();
        self.clients
            .iter()
            .for_each(|client| tell(client.as_fd(), &report, &[]));
    }

    fn hear<'scope>(
        &mut self,
        index: usize,
        scope: &'scope Scope<'scope, '_>,
        restorer: &'scope dyn Restorer,
    ) {
        let Some(Ok(client)) = self.clients.get(index).map(OwnedFd::try_clone) else {
            return;
        };
        let Ok(Some((bytes, fds))) = fdpass::receive(client.as_fd()) else {
            // Closed: it is dropped by its index, which the later ones have been handled for already.
            self.clients.remove(index);
            return;
        };
        let answer = match serde_json::from_slice(&bytes) {
            Ok(request) => self.fulfil(request, fds, scope, restorer),
            Err(error) => Err(format!("not a request: {error}")),
        };
        match answer {
            Ok(fds) => {
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                tell(client.as_fd(), &Report::Done, &fds);
            }
            Err(why) => tell(client.as_fd(), &Report::Refused { why }, &[]),
        }
    }

    fn fulfil<'scope>(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        scope: &'scope Scope<'scope, '_>,
        restorer: &'scope dyn Restorer,
    ) -> Result<Vec<OwnedFd>, String> {
        match request {
            Request::Create { plan } => self.create(&plan)?,
            Request::Start => self.start()?,
            Request::Signal { signal } => self.signal(signal)?,
            Request::Pipes => return self.hand_out().map_err(|e| format!("no duplicates: {e}")),
            Request::Adopt { pid } => self.adopt(pid, fds)?,
            Request::Prepare(preparation) => {
                self.must_be_idle()?;
                let stdio = self.stdio.as_ref();
                let stdio = stdio.ok_or("this shim has no pipes to give")?;
                restorer.prepare(&preparation, stdio)?;
            }
            Request::Restore(request) => {
                self.must_be_idle()?;
                let stdio = self.stdio.take().ok_or("this shim has no pipes to give")?;
                let restoring = Restoring::begin(scope, restorer, *request, stdio)
                    .map_err(|e| format!("cannot begin to restore: {e}"))?;
                self.task = Task::Restoring(restoring);
                self.become_state(ShimState::Restoring);
            }
            Request::Verdict { go } => match (&mut self.task, &self.state) {
                (Task::Restoring(restoring), ShimState::Held { .. }) => restoring.decide(go),
                _ => return Err(format!("nothing waits for a verdict: {}", self.place())),
            },
            Request::Leave => self.leave()?,
        }
        Ok(Vec::new())
    }

    /// Where the shim is, in words.
    fn place(&self) -> &'static str {
        match self.state {
            ShimState::Idle => "it has no process yet",
            ShimState::Created { .. } => "it is created and not started",
            ShimState::Running { .. } => "it runs",
            ShimState::Restoring => "it is being restored",
            ShimState::Held { .. } => "it is restored and waits for the verdict",
            ShimState::Exited { .. } => "it has ended",
            ShimState::Failed { .. } => "it has failed",
        }
    }

    fn must_be_idle(&self) -> Result<(), String> {
        match self.state {
            ShimState::Idle => Ok(()),
            _ => Err(format!(
                "this shim has a container already: {}",
                self.place()
            )),
        }
    }

    fn create(&mut self, plan: &std::path::Path) -> Result<(), String> {
        self.must_be_idle()?;
        let stdio = self.stdio.take().ok_or("this shim has no pipes to give")?;
        match process::make(plan, &stdio) {
            Ok(waiting) => {
                let pid = waiting.process.pid;
                self.task = Task::Waiting(waiting);
                self.become_state(ShimState::Created { pid });
                Ok(())
            }
            Err(why) => self.fail(why),
        }
    }

    fn start(&mut self) -> Result<(), String> {
        let waiting = match std::mem::replace(&mut self.task, Task::None) {
            Task::Waiting(waiting) => waiting,
            other => {
                self.task = other;
                return Err(format!("nothing waits to be started: {}", self.place()));
            }
        };
        match waiting.start() {
            Ok(process) => {
                let pid = process.pid;
                self.task = Task::Running(process);
                self.become_state(ShimState::Running { pid });
                Ok(())
            }
            Err(why) => self.fail(why),
        }
    }

    fn fail(&mut self, why: String) -> Result<(), String> {
        self.become_state(ShimState::Failed { why: why.clone() });
        Err(why)
    }

    fn process(&self) -> Option<&Process> {
        match &self.task {
            Task::Running(process) => Some(process),
            Task::Waiting(waiting) => Some(&waiting.process),
            Task::Restoring(restoring) => restoring.process.as_ref(),
            Task::None => None,
        }
    }

    fn signal(&self, signal: i32) -> Result<(), String> {
        let process = self
            .process()
            .ok_or_else(|| format!("there is no process to signal: {}", self.place()))?;
        pidfd::signal(process.pidfd.as_fd(), signal)
            .map_err(|error| format!("cannot send the signal {signal}: {error}"))
    }

    fn hand_out(&self) -> io::Result<Vec<OwnedFd>> {
        let pipes = self.pipes.iter().flat_map(|(pipes, _)| pipes);
        let process = self.process().map(|process| &process.pidfd);
        pipes.chain(process).map(OwnedFd::try_clone).collect()
    }

    fn adopt(&mut self, pid: i32, mut fds: Vec<OwnedFd>) -> Result<(), String> {
        self.must_be_idle()?;
        let mut held = Process::hold(pid, false)
            .map_err(|error| format!("cannot hold the process {pid}: {error}"))?;
        if fds.len() == 3 {
            held.pidfd = fds.remove(2);
        }
        if let Ok(pipes) = <[OwnedFd; 2]>::try_from(fds) {
            self.empty(pipes)
                .map_err(|error| format!("cannot take the pipes: {error}"))?;
        }
        self.task = Task::Running(held);
        self.become_state(ShimState::Running { pid });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), String> {
        match std::mem::replace(&mut self.task, Task::None) {
            // It has not begun to live: nobody loses anything.
            Task::Waiting(waiting) => drop(waiting.process.destroy()),
            Task::None => {}
            other => {
                self.task = other;
                return Err(format!(
                    "a shim does not leave its container: {}",
                    self.place()
                ));
            }
        }
        self.leaving = true;
        Ok(())
    }

    /// The first process has ended, and with it the container.
    fn end(&mut self) {
        let exit = match std::mem::replace(&mut self.task, Task::None) {
            Task::Running(process) => process.end(),
            Task::Waiting(waiting) => waiting.process.end(),
            other => {
                self.task = other;
                return;
            }
        };
        self.ended(exit);
    }

    /// Everything is said and done: the exit status is kept where it is found without the shim, which leaves.
    fn ended(&mut self, exit: Exit) {
        if let Some((_, pump)) = &self.pipes {
            pump.finish(LAST_WORDS);
        }
        let text = serde_json::to_vec(&exit).unwrap_or_default();
        if let Err(error) = file::replace(&self.directory.join(EXIT_FILE), &text) {
            eprintln!("cannot keep the exit status {exit:?}: {error}");
        }
        self.become_state(ShimState::Exited { exit });
        self.leaving = true;
    }

    /// A step of the restore.
    fn restored(&mut self) {
        let Task::Restoring(restoring) = &self.task else {
            return;
        };
        restoring.acknowledge();
        while let Task::Restoring(restoring) = &mut self.task
            && let Some(step) = restoring.next()
        {
            match step {
                Step::Held(pid) => self.become_state(ShimState::Held { pid }),
                Step::Running(pid) => {
                    // One that is gone already is found to be so when the restore is over.
                    restoring.process = Process::hold(pid, true).ok();
                    self.become_state(ShimState::Running { pid });
                }
                Step::Over(result) => self.restore_is_over(result),
            }
        }
    }

    fn restore_is_over(&mut self, result: Result<i32, String>) {
        let held = match std::mem::replace(&mut self.task, Task::None) {
            Task::Restoring(restoring) => restoring.process,
            _ => None,
        };
        let pid = match result {
            Ok(pid) => pid,
            Err(why) => return self.become_state(ShimState::Failed { why }),
        };
        match held.map_or_else(|| Process::hold(pid, true), Ok) {
            Ok(process) => {
                self.task = Task::Running(process);
                if self.state != (ShimState::Running { pid }) {
                    self.become_state(ShimState::Running { pid });
                }
            }
            Err(error) => {
                eprintln!("the restored process {pid} is gone: {error}");
                self.ended(Exit { code: None });
            }
        }
    }

    /// Reaps what nobody waits for. During a restore the restorer has children of its own to wait for.
    fn reap(&self) {
        if !matches!(self.task, Task::Restoring(_)) {
            process::reap_strays(self.process().map(|process| process.pid));
        }
    }
}

/// Tells a client something. One that does not listen is not waited for.
fn tell(client: BorrowedFd<'_>, report: &Report, fds: &[BorrowedFd<'_>]) {
    let text = serde_json::to_vec(report).unwrap_or_default();
    // It has gone, or does not read: its own trouble, which it notices by the missing answer.
    let _ = fdpass::send(client, &text, fds, false);
}

fn client_is_there(client: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO) != Ok(1)
}
