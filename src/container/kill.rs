//! Signals.

use std::io;
use std::os::fd::AsFd;

use super::shim::{Client, ShimError};
use super::state::{Verb, allow};
use super::{ContainerError, Host, status};
use crate::model::Name;
use crate::sys::pidfd;

/// Sends a signal to the first process of a container, or to all of its processes.
///
/// The first process has the number 1 inside and is treated by the kernel as an init: from a signal that it has
/// not asked for, only SIGKILL and SIGSTOP reach it.
pub fn kill(host: &Host, name: &Name, signal: i32, all: bool) -> Result<(), ContainerError> {
    if !(1..=libc::SIGRTMAX()).contains(&signal) {
        return Err(ContainerError::Wish {
            field: "the signal",
            value: signal.to_string(),
            remedy: "give a number from 1 to 64, or a name like TERM",
        });
    }
    let (_, seen) = status::look(host, name)?;
    allow(name, seen.state, Verb::Kill)?;
    if all {
        return kill_all(host, name, signal);
    }
    let gone = || ContainerError::NoProcess { name: name.clone() };
    match Client::connect(&host.run(name)).and_then(|mut shim| shim.signal(signal)) {
        Err(ShimError::Gone { .. }) => {
            // Without its shim the container runs on, and is found by its cgroup.
            let pid = status::first_process(&host.cgroup(name)).ok_or_else(gone)?;
            send(host, name, pid, signal)
        }
        other => other.map_err(ContainerError::shim("signal", name)),
    }
}

fn kill_all(host: &Host, name: &Name, signal: i32) -> Result<(), ContainerError> {
    let cgroup = host.cgroup(name);
    if signal == libc::SIGKILL {
        // In one step: no process can fork its way out.
        return cgroup.kill().map_err(ContainerError::cgroup(name));
    }
    let processes = cgroup.procs().map_err(ContainerError::cgroup(name))?;
    processes
        .into_iter()
        .try_for_each(|pid| send(host, name, pid, signal))
}

/// Signals a process if it is, still, one of the container's. One that has ended needs no signal.
fn send(host: &Host, name: &Name, pid: i32, signal: i32) -> Result<(), ContainerError> {
    let failed = || ContainerError::file("signal", format!("/proc/{pid}"));
    let process = match pidfd::open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        other => other.map_err(failed())?,
    };
    // Held now, its number cannot pass to a stranger any more.
    let processes = host
        .cgroup(name)
        .procs()
        .map_err(ContainerError::cgroup(name))?;
    if !processes.contains(&pid) {
        return Ok(());
    }
    match pidfd::signal(process.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map_err(failed()),
    }
}

/// The number of a signal by its name or number: `TERM`, `SIGTERM`, `15`.
pub fn signal_number(text: &str) -> Result<i32, ContainerError> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    let number = text
        .parse()
        .or_else(|_| name.parse::<nix::sys::signal::Signal>().map(|s| s as i32))
        .map_err(|_| io::ErrorKind::InvalidInput);
    match number {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err(ContainerError::Wish {
            field: "the signal",
            value: format!("{text:?}"),
            remedy: "give a number from 1 to 64, or a name like TERM",
        }),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_signal_has_a_name_and_a_number() {
        for text in ["15", "TERM", "term", "SIGTERM", "sigTerm"] {
            assert_eq!(signal_number(text).unwrap(), 15, "{text}");
        }
        for text in ["", "0", "65", "-9", "NOTHING", "SIG", "9 "] {
            assert!(signal_number(text).is_err(), "{text:?}");
        }
    }
}
