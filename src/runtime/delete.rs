//! `delete`: the end of a container, and of everything that was made for it.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::in_one_line;
use super::hooks::Hooks;
use super::resctrl::Classes;
use super::state::{self, Id, Record, Status};
use super::store::{self, Root};
use super::{RuntimeError, kill, list_of, manage};
use crate::sys::pidfd;

/// How long the kernel may take to end a killed process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Deletes a container that has stopped, or was never started; with `force` any, and none is no error.
///
/// When it fails, the container's record is still there, and deleting it can be tried again.
pub fn delete(root: &Root, id: &Id, force: bool) -> Result<(), RuntimeError> {
    let (home, record) = match root.open(id) {
        Ok(found) => found,
        Err(RuntimeError::Missing { .. }) if force && root.has(id) => {
            // Whoever was creating it has been killed before there was anything but its directory.
            return root.open_remains(id)?.remove();
        }
        Err(RuntimeError::Missing { .. }) if force => return Ok(()),
        Err(error) => return Err(error),
    };
    let status = root.status(&record);
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        return Err(RuntimeError::Status {
            verb: "delete",
            id: id.to_string(),
            status,
            remedy: "it is not stopped: kill it, or use --force",
        });
    }
    end(&record)?;
    poststop(&record);
    home.remove()
}

/// Ends what is left of the container's processes, and removes its cgroup.
pub(super) fn end(record: &Record) -> Result<(), RuntimeError> {
    let held = pidfd::open(record.init.pid).ok();
    // Not there any more is what is wanted.
    let _ = kill::send(record.init, libc::SIGKILL);
    if let Some(held) = held.filter(|_| store::is_alive(record.init)) {
        let mut ended = [PollFd::new(held.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut ended, patience);
    }
    manage::group(record).remove()?;
    record.classes.as_ref().map_or(Ok(()), Classes::remove)
}

/// Runs the poststop hooks. The container has gone whatever they say, so their failures are told and change nothing.
pub(super) fn poststop(record: &Record) {
    let state = state::for_hooks(record, Status::Stopped);
    let list = list_of(record.spec.hooks().as_ref(), "poststop");
    let failed = match Hooks::of("poststop", list) {
        Ok(hooks) => hooks.run_all(state.to_string().as_bytes()),
        Err(error) => vec![error],
    };
    for error in failed {
        tracing::warn!("{}", in_one_line(&error));
    }
}
