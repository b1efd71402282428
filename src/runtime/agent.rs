//! Who answers the system calls of which a filter notifies gets the descriptor on which it does.

use std::os::fd::AsFd;

use super::RuntimeError;
use super::error::{refused, system};
use super::state::{self, Record, Status};
use crate::security::seccomp;
use crate::sys::pidfd;

/// Takes the descriptor of this number out of the process `pid` and passes it on.
pub(super) fn pass(record: &Record, pid: i32, number: i32) -> Result<(), RuntimeError> {
    let linux = record.spec.linux().as_ref();
    let profile = linux.and_then(|l| l.seccomp().as_ref());
    let listener = match profile {
        Some(profile) => seccomp::Plan::of(profile)?.listener().cloned(),
        None => None,
    };
    let Some(listener) = listener else {
        return Err(refused("linux.seccomp.listenerPath", "is missing"));
    };
    let descriptor = pidfd::open(pid)
        .and_then(|process| pidfd::descriptor(process.as_fd(), number))
        .map_err(system("take over the listener of the container's filter"))?;
    let status = match pid == record.init.pid {
        true => Status::Created,
        false => Status::Running,
    };
    let state = state::for_hooks(record, status);
    Ok(listener.hand_over(descriptor.as_fd(), pid, &state)?)
}
