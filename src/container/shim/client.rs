//! The daemon's end of a shim's control socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::fstat;

use super::EXIT_FILE;
use super::wire::{Exit, Preparation, Report, Request, RestoreRequest, ShimState};
use crate::sys::{fdpass, pidfd};

/// How long a shim may take to answer. A restore is not waited for with this.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// What went wrong between a client and a shim.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It did not start.
    #[error("the shim did not start: {why}")]
    Start {
        /// What it said.
        why: String,
    },
    /// There is none: it has left after the end of its container, or was killed.
    #[error("no shim answers in {directory}")]
    Gone {
        /// Where it should be.
        directory: PathBuf,
    },
    /// It said no.
    #[error("{why}")]
    Refused {
        /// Why.
        why: String,
    },
    /// It does not answer.
    #[error("the shim in {directory} does not answer: end it with SIGKILL, its container runs on")]
    Silent {
        /// Where it is.
        directory: PathBuf,
    },
    /// It said something that makes no sense.
    #[error("the shim in {directory} speaks another language: it was started by another version")]
    Language {
        /// Where it is.
        directory: PathBuf,
        /// What cannot be understood.
        #[source]
        source: serde_json::Error,
    },
    /// Something failed on the way.
    #[error("cannot {operation} {directory}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Where.
        directory: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl ShimError {
    pub(super) fn io(operation: &'static str, directory: &Path) -> impl FnOnce(io::Error) -> Self {
        let directory = directory.to_owned();
        move |source| Self::Io {
            operation,
            directory,
            source,
        }
    }
}

/// A connection to a shim.
#[derive(Debug)]
pub struct Client {
    directory: PathBuf,
    socket: OwnedFd,
    state: ShimState,
}

impl Client {
    /// Connects to the shim with this run directory.
    pub fn connect(directory: &Path) -> Result<Self, ShimError> {
        let socket =
            fdpass::connect_to(&super::socket(directory)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ShimError::Gone {
                    directory: directory.to_owned(),
                },
                _ => ShimError::io("connect to the shim in", directory)(error),
            })?;
        let mut client = Self {
            directory: directory.to_owned(),
            socket,
            state: ShimState::Idle,
        };
        // The first thing a shim says is where it is.
        client.next(Some(ANSWER_WITHIN))?;
        Ok(client)
    }

    /// Where the shim is, as far as it has told.
    pub fn state(&self) -> &ShimState {
        &self.state
    }

    /// Makes the first process; see [`Request::Create`].
    pub fn create(&mut self, plan: &Path) -> Result<i32, ShimError> {
        let plan = plan.to_owned();
        self.ask(&Request::Create { plan }, &[])?;
        self.pid()
    }

    /// Lets the command run.
    pub fn start(&mut self) -> Result<i32, ShimError> {
        self.ask(&Request::Start, &[])?;
        self.pid()
    }

    /// Sends a signal to the first process.
    pub fn signal(&mut self, signal: i32) -> Result<(), ShimError> {
        self.ask(&Request::Signal { signal }, &[]).map(drop)
    }

    /// Duplicates of the read ends of the output, and the pidfd: see [`Request::Pipes`].
    pub fn pipes(&mut self) -> Result<Vec<OwnedFd>, ShimError> {
        self.ask(&Request::Pipes, &[])
    }

    /// The inode numbers of the pipes of standard output and standard error: by these CRIU knows them in a dump.
    /// None, when the shim has adopted a container whose pipes were lost.
    pub fn stdio_inodes(&mut self) -> Result<Option<[u64; 2]>, ShimError> {
        let fds = self.pipes()?;
        let [out, err, ..] = fds.as_slice() else {
            return Ok(None);
        };
        let inode = |fd: &OwnedFd| {
            let failed = ShimError::io("look at the pipes of", &self.directory);
            fstat(fd)
                .map(|stat| stat.st_ino)
                .map_err(|errno| failed(errno.into()))
        };
        Ok(Some([inode(out)?, inode(err)?]))
    }

    /// Takes over a container that runs, with what [`Client::pipes`] of the shim before gave.
    pub fn adopt(&mut self, pid: i32, pipes: &[OwnedFd]) -> Result<(), ShimError> {
        let fds: Vec<BorrowedFd<'_>> = pipes.iter().map(AsFd::as_fd).collect();
        self.ask(&Request::Adopt { pid }, &fds).map(drop)
    }

    /// Gets ready for a restore; see [`Request::Prepare`].
    pub fn prepare(&mut self, preparation: Preparation) -> Result<(), ShimError> {
        let request = Request::Prepare(Box::new(preparation));
        self.ask(&request, &[]).map(drop)
    }

    /// Restores, up to the moment when the processes stand still and wait for the verdict. When the connection
    /// is lost, the next client finds the shim in that state, or in the one after.
    pub fn restore(&mut self, request: RestoreRequest) -> Result<i32, ShimError> {
        self.ask(&Request::Restore(Box::new(request)), &[])?;
        self.wait_for(None, |state| *state != ShimState::Restoring)?;
        self.pid()
    }

    /// Gives the verdict on what [`Client::restore`] has made: it runs, or is gone, when this returns.
    pub fn verdict(&mut self, go: bool) -> Result<(), ShimError> {
        self.ask(&Request::Verdict { go }, &[])?;
        self.wait_for(None, |state| !matches!(state, ShimState::Held { .. }))?;
        match (&self.state, go) {
            (ShimState::Failed { why }, true) => Err(ShimError::Refused { why: why.clone() }),
            _ => Ok(()),
        }
    }

    /// Tells the shim to end. Refused while a command runs.
    pub fn leave(mut self) -> Result<(), ShimError> {
        match self.ask(&Request::Leave, &[]) {
            Ok(_) | Err(ShimError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the command has ended; none when it has not after `wait`.
    pub fn wait_for_exit(&mut self, wait: Option<Duration>) -> Result<Option<Exit>, ShimError> {
        let over = |state: &ShimState| {
            matches!(state, ShimState::Exited { .. } | ShimState::Failed { .. })
        };
        match self.wait_for(wait, over) {
            Ok(()) => {}
            Err(ShimError::Silent { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(match self.state {
            ShimState::Exited { exit } => Some(exit),
            _ => Some(Exit { code: None }),
        })
    }

    /// Waits until the shim is where it should be, but not for longer than `wait`.
    pub fn wait_until(
        &mut self,
        wait: Duration,
        there: impl Fn(&ShimState) -> bool,
    ) -> Result<(), ShimError> {
        self.wait_for(Some(wait), there)
    }

    /// Kills the shim, which does not answer. Its container runs on, if it has one.
    pub fn destroy(self) -> Result<(), ShimError> {
        let failed = || ShimError::io("kill the shim of", &self.directory);
        let peer = getsockopt(&self.socket, PeerCredentials).map_err(|e| failed()(e.into()))?;
        pidfd::open(peer.pid())
            .and_then(|process| pidfd::signal(process.as_fd(), libc::SIGKILL))
            .or_else(|error| match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(()),
                _ => Err(failed()(error)),
            })
    }

    fn pid(&self) -> Result<i32, ShimError> {
        match &self.state {
            ShimState::Failed { why } => Err(ShimError::Refused { why: why.clone() }),
            state => state.pid().ok_or_else(|| ShimError::Refused {
                why: "the process has already ended".to_owned(),
            }),
        }
    }

    /// Waits until the shim is where it should be.
    fn wait_for(
        &mut self,
        wait: Option<Duration>,
        there: impl Fn(&ShimState) -> bool,
    ) -> Result<(), ShimError> {
        let deadline = wait.map(|wait| Instant::now() + wait);
        while !there(&self.state) {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            self.next(left)?;
        }
        Ok(())
    }

    /// Asks, and waits for the answer.
    fn ask(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, ShimError> {
        let language = |source| ShimError::Language {
            directory: self.directory.clone(),
            source,
        };
        let text = serde_json::to_vec(request).map_err(language)?;
        fdpass::send(self.socket.as_fd(), &text, fds, true).map_err(|e| self.lost(e))?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(Some(left))? {
                (Report::Done, fds) => return Ok(fds),
                (Report::Refused { why }, _) => return Err(ShimError::Refused { why }),
                (Report::State { .. }, _) => {}
            }
        }
    }

    fn lost(&self, error: io::Error) -> ShimError {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => ShimError::Gone {
                directory: self.directory.clone(),
            },
            _ => ShimError::io("talk to the shim in", &self.directory)(error),
        }
    }

    /// The next thing the shim says; a state is taken note of.
    fn next(&mut self, wait: Option<Duration>) -> Result<(Report, Vec<OwnedFd>), ShimError> {
        if !readable(self.socket.as_fd(), wait).map_err(|e| self.lost(e))? {
            return Err(ShimError::Silent {
                directory: self.directory.clone(),
            });
        }
        let received = fdpass::receive(self.socket.as_fd()).map_err(|e| self.lost(e))?;
        let (bytes, fds) = received.ok_or_else(|| ShimError::Gone {
            directory: self.directory.clone(),
        })?;
        let report = serde_json::from_slice(&bytes).map_err(|source| ShimError::Language {
            directory: self.directory.clone(),
            source,
        })?;
        if let Report::State { state } = &report {
            self.state = state.clone();
        }
        Ok((report, fds))
    }
}

impl AsFd for Client {
    /// Readable when the shim has something to tell.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn readable(socket: BorrowedFd<'_>, wait: Option<Duration>) -> io::Result<bool> {
    let deadline = wait.map(|wait| Instant::now() + wait);
    loop {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            let millis = left.as_millis() + u128::from(left.subsec_nanos() % 1_000_000 > 0);
            PollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
        });
        match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], timeout) {
            Ok(0) if deadline.is_some_and(|d| Instant::now() >= d) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How the container with this run directory ended, where its shim has kept that.
pub fn exit_of(directory: &Path) -> Option<Exit> {
    let text = std::fs::read(directory.join(EXIT_FILE)).ok()?;
    // A file that makes no sense still says that it has ended.
    Some(serde_json::from_slice(&text).unwrap_or(Exit { code: None }))
}
