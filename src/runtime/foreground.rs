//! A container's process in the foreground: its signals, its terminal, its end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, isatty};

use super::RuntimeError;
use super::error::system;
use crate::sys::{pty, terminal};

/// Signals that come to us while we attend to a process. It is made before the process, whose end then cannot be
/// missed.
#[derive(Debug)]
pub struct Attention {
    signals: SignalFd,
}

impl Attention {
    /// From now on signals are noted, and change nothing.
    pub fn start() -> Result<Self, RuntimeError> {
        let failed = |errno: Errno| system("watch for signals")(errno.into());
        let mut all = SigSet::all();
        for own in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
        ] {
            all.remove(own);
        }
        all.thread_block().map_err(failed)?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(failed)?;
        Ok(Self { signals })
    }

    /// Waits for the end of our child `pid`, passing on to it the signals that come to us, and joining our own
    /// terminal to its one: the exit code as a shell tells it.
    pub fn until_it_ends(&self, pid: i32, master: Option<OwnedFd>) -> Result<u8, RuntimeError> {
        let failed = |error: io::Error| system("attend to the process")(error);
        let mut joint = master.map(Joint::make).transpose().map_err(failed)?;
        loop {
            if let Some(code) = ended(pid).map_err(failed)? {
                if let Some(joint) = &mut joint {
                    joint.drain();
                }
                return Ok(code);
            }
            self.wait(&mut joint, pid).map_err(failed)?;
        }
    }

    fn wait(&self, joint: &mut Option<Joint>, pid: i32) -> io::Result<()> {
        let stdin = io::stdin();
        let ready = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![ready(self.signals.as_fd())];
        if let Some(joint) = joint {
            fds.push(ready(joint.master.as_fd()));
            if joint.reads {
                fds.push(ready(stdin.as_fd()));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(()),
            other => other?,
        };
        let heard = |at: usize| {
            let fd: Option<&PollFd<'_>> = fds.get(at);
            fd.is_some_and(|fd| fd.any().unwrap_or(false))
        };
        let (signalled, from_master, from_stdin) = (heard(0), heard(1), heard(2));
        if let Some(joint) = joint {
            if from_master {
                joint.out();
            }
            if from_stdin {
                joint.take_in();
            }
        }
        if signalled {
            self.pass_on(joint.as_ref(), pid)?;
        }
        Ok(())
    }

    fn pass_on(&self, joint: Option<&Joint>, pid: i32) -> io::Result<()> {
        while let Some(noted) = self.signals.read_signal()? {
            let number = noted.ssi_signo.cast_signed();
            match (Signal::try_from(number), joint) {
                (Ok(Signal::SIGCHLD | Signal::SIGPIPE), _) => {}
                (Ok(Signal::SIGWINCH), Some(joint)) => joint.resize(),
                (Ok(signal), _) => {
                    // It may have ended meanwhile.
                    let _ = kill(Pid::from_raw(pid), signal);
                }
                (Err(_), _) => {}
            }
        }
        Ok(())
    }
}

/// The exit code, once the child has ended.
fn ended(pid: i32) -> io::Result<Option<u8>> {
    loop {
        return match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(code as u8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(128 + signal as u8)),
            Ok(_) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}

/// Our terminal and the container's, joined; ours gets its manners back in the end.
#[derive(Debug)]
struct Joint {
    master: File,
    /// Whether there may still be something on our standard input.
    reads: bool,
    before: Option<Termios>,
}

impl Joint {
    fn make(master: OwnedFd) -> io::Result<Self> {
        let stdin = io::stdin();
        let mut before = None;
        if isatty(&stdin).unwrap_or(false) {
            let manners = tcgetattr(&stdin)?;
            let mut raw = manners.clone();
            cfmakeraw(&mut raw);
            tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
            before = Some(manners);
        }
        let joint = Self {
            master: master.into(),
            reads: true,
            before,
        };
        joint.resize();
        Ok(joint)
    }

    /// Gives the container's terminal the size of ours, where ours has one.
    fn resize(&self) {
        if let Ok((rows, columns)) = terminal::size(io::stdin().as_fd())
            && rows > 0
        {
            let _ = pty::resize(self.master.as_fd(), rows, columns);
        }
    }

    /// What the container has printed. False: nothing, and nothing will come.
    fn out(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.master.read(&mut bytes) {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                let mut out = io::stdout();
                // Who reads our output may have gone; the container goes on.
                let _ = out.write_all(&bytes[..length]).and_then(|()| out.flush());
                true
            }
        }
    }

    fn take_in(&mut self) {
        let mut bytes = [0; 4096];
        match nix::unistd::read(io::stdin(), &mut bytes) {
            Ok(0) | Err(_) => {
                self.reads = false;
                // The end of the input, as a terminal says it.
                let _ = self.master.write_all(&[4]);
            }
            Ok(length) => {
                let _ = self.master.write_all(&bytes[..length]);
            }
        }
    }

    /// What was printed last.
    fn drain(&mut self) {
        loop {
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let some = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
            if !some || !self.out() {
                return;
            }
        }
    }
}

impl Drop for Joint {
    fn drop(&mut self) {
        if let Some(manners) = &self.before {
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, manners);
        }
    }
}
