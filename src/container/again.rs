//! A container is stopped for good, or its command, which has ended, is started again.

use std::time::Duration;

use super::state::{Verb, allow};
use super::{ContainerError, Host, Record, kill, policy, start, status};
use crate::model::{ContainerState, Name};

/// From now on its command is to have ended: nothing starts it again but a person. Where it runs it is asked to end
/// (SIGTERM); whether it does is not waited for.
pub fn stop(host: &Host, name: &Name) -> Result<(), ContainerError> {
    let (mut record, seen) = status::look(host, name)?;
    if seen.state != ContainerState::Stopped {
        allow(name, seen.state, Verb::Kill)?;
    }
    // First: it may end at once, and somebody else is watching.
    record.life.wanted = false;
    record.save(host)?;
    if seen.state == ContainerState::Stopped {
        return Ok(());
    }
    kill(host, name, libc::SIGTERM, false)
}

/// After which pause the command of a container that has ended is to be started again, if it is.
pub fn restart_after(host: &Host, name: &Name) -> Result<Option<Duration>, ContainerError> {
    let record = Record::load(host, name)?;
    if record.state != ContainerState::Stopped {
        return Ok(None);
    }
    let restart = record.spec.restart;
    Ok(policy::pause(restart, &record.life, record.exit_code))
}

/// Starts it again. That is counted first, so that a command which cannot even be started is not tried without a
/// pause, nor more often than its spec says.
pub fn restart(host: &Host, name: &Name) -> Result<i32, ContainerError> {
    let mut record = Record::load(host, name)?;
    record.life = policy::next(&record.life, start::now());
    record.save(host)?;
    start::start_again(host, name)
}
