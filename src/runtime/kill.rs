//! `kill`: a signal for the first process of a container, or for all.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::RuntimeError;
use super::error::system;
use super::manage;
use super::state::{Id, Identity, Record, Status};
use super::store::{self, Root};
use crate::sys::pidfd;

/// Sends a signal.
pub fn kill(root: &Root, id: &Id, signal: i32, all: bool) -> Result<(), RuntimeError> {
    let record = root.read(id)?;
    root.check_stays(id)?;
    let status = root.status(&record);
    if all {
        return kill_all(&record, signal);
    }
    if status == Status::Stopped {
        return Err(RuntimeError::NotRunning {
            id: id.to_string(),
            status,
        });
    }
    match send(record.init, signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(RuntimeError::NotRunning {
            id: id.to_string(),
            status: Status::Stopped,
        }),
        other => other.map_err(system("signal the container's process")),
    }
}

/// To every process of the container. That there is none is no error.
fn kill_all(record: &Record, signal: i32) -> Result<(), RuntimeError> {
    let group = manage::group(record);
    if signal == libc::SIGKILL {
        return Ok(group.kill()?);
    }
    for pid in group.processes()? {
        let sent = pidfd::open(pid).and_then(|process| pidfd::signal(process.as_fd(), signal));
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other.map_err(system("signal a process of the container"))?,
        }
    }
    Ok(())
}

/// Signals exactly this process, and not a later one of its number.
pub(super) fn send(process: Identity, signal: i32) -> std::io::Result<()> {
    let held = pidfd::open(process.pid)?;
    if !store::is_alive(process) {
        return Err(Errno::ESRCH.into());
    }
    pidfd::signal(held.as_fd(), signal)
}

/// The number of a signal: `9`, `KILL`, `SIGKILL`, `RTMIN+3`.
pub fn signal(text: &str) -> Result<i32, RuntimeError> {
    let bad = || RuntimeError::Option {
        option: "signal",
        why: format!("unknown signal {text:?}; give a number from 1 to 64, or a name like TERM"),
    };
    if let Ok(number) = text.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number).ok_or_else(bad);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = match offset.strip_prefix('+') {
            Some(number) => number.parse().map_err(|_| bad())?,
            None if offset.is_empty() => 0,
            None => return Err(bad()),
        };
        let number = libc::SIGRTMIN() + offset;
        return (number <= 64 && offset >= 0)
            .then_some(number)
            .ok_or_else(bad);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| bad())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigterm", 15),
            ("RTMIN+3", libc::SIGRTMIN() + 3),
        ] {
            assert_eq!(signal(text).unwrap(), number);
        }
        for bad in ["", "65", "-1", "NOPE", "RTMIN+99", "RTMIN-1"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
