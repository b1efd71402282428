//! `run`: `create` and `start` in one, in the foreground or not; and the foreground of `exec`.

use std::os::fd::{AsFd, OwnedFd};

use super::RuntimeError;
use super::console;
use super::create::{self, Request};
use super::delete::delete;
use super::error::system;
use super::exec::{self, ExecRequest};
use super::foreground::Attention;
use super::start::start;
use super::store::Root;
use crate::sys::fdpass;

/// How a process in the foreground ended, or that it runs on in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this code, as a shell tells it.
    With(u8),
    /// It has not.
    RunsOn,
}

/// Makes a container and starts it. In the foreground it is deleted after its end, unless it is to be kept; in the
/// background it stays. When it cannot be started nothing is left.
pub fn run(
    root: &Root,
    request: &Request,
    detach: bool,
    keep: bool,
) -> Result<Ended, RuntimeError> {
    let spec = create::read_config(&request.bundle)?;
    let terminal = spec.process().as_ref().and_then(|p| p.terminal()) == Some(true);
    let (record, master) = if detach || !terminal || request.console_socket.is_some() {
        (create::create(root, request)?, None)
    } else {
        with_master(|console| create::create_with(root, request, console))?
    };
    let started = start(root, &request.id);
    if started.is_err() {
        delete(root, &request.id, true)?;
    }
    started?;
    if detach {
        return Ok(Ended::RunsOn);
    }
    let attention = Attention::start()?;
    let code = attention.until_it_ends(record.init.pid, master);
    if !keep {
        delete(root, &request.id, true)?;
    }
    Ok(Ended::With(code?))
}

/// Runs a process in a container, in the foreground or not.
pub fn run_in(root: &Root, request: &ExecRequest, detach: bool) -> Result<Ended, RuntimeError> {
    if detach {
        exec::exec(root, request)?;
        return Ok(Ended::RunsOn);
    }
    let terminal = request.process.terminal() == Some(true);
    let (pid, master) = if terminal && request.console_socket.is_none() {
        with_master(|console| exec::exec_with(root, request, console))?
    } else {
        (exec::exec(root, request)?, None)
    };
    let attention = Attention::start()?;
    Ok(Ended::With(attention.until_it_ends(pid, master)?))
}

/// Makes a process that hands the master of its terminal to us.
fn with_master<T>(
    make: impl FnOnce(Option<OwnedFd>) -> Result<T, RuntimeError>,
) -> Result<(T, Option<OwnedFd>), RuntimeError> {
    let (ours, theirs) = fdpass::pair().map_err(system("make a socket"))?;
    let made = make(Some(theirs))?;
    let master = console::take_over(ours.as_fd()).map_err(system("take over the terminal"))?;
    Ok((made, Some(master)))
}
