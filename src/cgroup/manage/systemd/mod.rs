//! Cgroups that systemd makes: scopes, which hold processes that somebody else has started.
//!
//! A scope exists while there is a process in it, and it is made with one. A container's process is to be *born* in its
//! cgroup, so another one holds the place until then: the [`Anchor`], a copy of the creator, which also speaks with
//! systemd (the creator must not have threads, which a D-Bus connection brings along).
//!
//! ```text
//! creator ──clone──▶ anchor ──StartTransientUnit(anchor's pid)──▶ systemd: slice/prefix-name.scope
//!    │ ◀──────────────── the scope's cgroup
//!    ├──clone3 into it──▶ the container's process
//!    └── kills ─────────▶ the anchor, which also ends with its creator
//! ```

mod bus;
pub mod unit;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::cgroup::CgroupError;
use crate::sys::clone::{Clone, Forked, clone};
use crate::sys::{fdpass, process};
use unit::{Property, Unit};

/// How long systemd may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where systemd is when it runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Holds a scope's place until the container's process is in it. It ends when this is dropped.
#[derive(Debug)]
pub struct Anchor {
    pid: i32,
    socket: OwnedFd,
}

/// That systemd runs here.
///
/// # Errors
/// That it does not.
pub fn check() -> Result<(), CgroupError> {
    match Path::new(BOOTED).is_dir() {
        true => Ok(()),
        false => Err(CgroupError::Resource {
            field: "--systemd-cgroup".to_owned(),
            reason: "systemd does not run here; leave the flag out".to_owned(),
        }),
    }
}

/// Starts a scope, and returns what holds it and the path of its cgroup below the root of systemd's hierarchy. The
/// calling process has one thread.
///
/// # Errors
/// With systemd's reason; no scope is left then.
pub fn start(unit: &Unit, limits: &[Property]) -> Result<(Arc<Anchor>, String), CgroupError> {
    let failed = |why: String| CgroupError::Systemd {
        operation: "start",
        unit: unit.name.clone(),
        why,
    };
    let (ours, theirs) = fdpass::pair().map_err(|e| failed(e.to_string()))?;
    let creator = nix::unistd::getpid();
    match clone(&Clone::default()).map_err(|e| failed(e.to_string()))? {
        Forked::Child => {
            drop(ours);
            hold(unit, limits, &theirs, creator);
            process::leave(0)
        }
        Forked::Parent(pid) => {
            drop(theirs);
            // systemd takes the scope away with its last process.
            let anchor = Anchor { pid, socket: ours };
            let path = anchor.hear().map_err(failed)?;
            Ok((Arc::new(anchor), path))
        }
    }
}

/// Tells systemd of new limits of the unit with this name.
pub fn update(name: &str, limits: &[Property]) -> Result<(), CgroupError> {
    bus::update(name, limits).map_err(failed("change the limits of", name))
}

/// Ends the unit with this name, if there is one.
pub fn stop(name: &str) -> Result<(), CgroupError> {
    bus::stop(name).map_err(failed("end", name))
}

fn failed(operation: &'static str, unit: &str) -> impl FnOnce(zbus::Error) -> CgroupError {
    let unit = unit.to_owned();
    move |error| CgroupError::Systemd {
        operation,
        unit,
        why: error.to_string(),
    }
}

/// What an anchor does. A first byte says whether the rest is the cgroup's path, or why there is none.
fn hold(unit: &Unit, limits: &[Property], creator: &OwnedFd, parent: Pid) {
    // The socket does not tell: a process that waits for its start has a copy of the creator's end.
    let dies = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_ok();
    // Asked after that: who has died before is not told of.
    if !dies || nix::unistd::getppid() != parent {
        return;
    }
    let (first, text) = match bus::start(unit, std::process::id(), limits) {
        Ok(path) => (b'+', path),
        Err(error) => (b'-', error.to_string()),
    };
    let word = [&[first], text.as_bytes()].concat();
    if fdpass::send(creator.as_fd(), &word, &[], true).is_ok() && first == b'+' {
        // It says nothing.
        let _ = fdpass::receive(creator.as_fd());
    }
}

impl Anchor {
    fn hear(&self) -> Result<String, String> {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, patience) {
            Ok(0) => return Err(format!("it has not answered for {PATIENCE:?}")),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        let said = fdpass::receive(self.socket.as_fd()).map_err(|e| e.to_string())?;
        let (said, _) = said.ok_or("who speaks with it has died")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match said.split_first() {
            Some((b'+', path)) => Ok(text(path)),
            Some((_, why)) => Err(text(why)),
            None => Err("it has said nothing".to_owned()),
        }
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // It is our child and not reaped, so the number is still its own.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(self.pid), None);
    }
}
