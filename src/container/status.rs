//! What is true about a container now.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::ps::inner_pid;
use super::shim::{Client, Exit, ShimError, ShimState, exit_of};
use super::{ContainerError, Host, Record, create, place, start};
use crate::cgroup::Cgroup;
use crate::model::{ContainerState, ContainerStatus, Name};

/// What was seen of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Where it is in its life.
    pub state: ContainerState,
    /// Its first process.
    pub pid: Option<i32>,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// Reads the record, and looks at what is really there.
pub(super) fn look(host: &Host, name: &Name) -> Result<(Record, Seen), ContainerError> {
    let record = Record::load(host, name)?;
    let seen = see(host, &record)?;
    Ok((record, seen))
}

fn see(host: &Host, record: &Record) -> Result<Seen, ContainerError> {
    let as_recorded = |pid| Seen {
        state: record.state,
        pid,
        exit: record.exit_code.map(|code| Exit { code: Some(code) }),
    };
    match record.state {
        // Migrating: it runs here until it is handed over.
        ContainerState::Created | ContainerState::Running | ContainerState::Migrating => {}
        // The migration knows, nobody else.
        ContainerState::Creating
        | ContainerState::Arriving
        | ContainerState::InDoubt
        | ContainerState::Stopped => return Ok(as_recorded(None)),
    }
    let name = &record.spec.name;
    let stopped = |exit| Seen {
        state: ContainerState::Stopped,
        pid: None,
        exit: Some(exit),
    };
    let state = match Client::connect(&host.run(name)) {
        Ok(shim) => Some(shim.state().clone()),
        Err(ShimError::Gone { .. }) => None,
        Err(error) => return Err(ContainerError::shim("ask the shim of", name)(error)),
    };
    Ok(match state {
        Some(ShimState::Exited { exit }) => stopped(exit),
        Some(ShimState::Failed { .. }) => stopped(Exit { code: None }),
        Some(ShimState::Running { pid }) if record.state == ContainerState::Created => Seen {
            // The daemon ended between the start and the record of it.
            state: ContainerState::Running,
            ..as_recorded(Some(pid))
        },
        Some(state) => as_recorded(state.pid()),
        None => match (exit_of(&host.run(name)), first_process(&host.cgroup(name))) {
            (Some(exit), _) => stopped(exit),
            (None, None) => stopped(Exit { code: None }),
            // Its shim was killed. A command that had not been started never will be, its shim had the word.
            (None, Some(_)) if record.state == ContainerState::Created => {
                stopped(Exit { code: None })
            }
            (None, pid) => as_recorded(pid),
        },
    })
}

/// The first process of a container, as its cgroup and the kernel know it: the one that is number 1 inside.
pub(super) fn first_process(cgroup: &Cgroup) -> Option<i32> {
    cgroup.procs().ok()?.into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| inner_pid(&status) == Some(1))
    })
}

/// What is true about a container now. Nothing is changed.
pub fn status(host: &Host, name: &Name) -> Result<ContainerStatus, ContainerError> {
    let (record, seen) = look(host, name)?;
    Ok(ContainerStatus {
        spec: record.spec,
        state: seen.state,
        generation: record.generation,
        pid: seen.pid,
        created_at: record.created_at,
        exit_code: seen.exit.and_then(|exit| exit.code),
        why: record.why,
        restarts: record.life.restarts,
        migration: record.migration,
    })
}

/// All containers of this host, by name.
pub fn list(host: &Host) -> Result<Vec<ContainerStatus>, ContainerError> {
    let containers = host.containers();
    let entries = match fs::read_dir(&containers) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(ContainerError::file("list", &containers))?,
    };
    let mut names: Vec<Name> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    let mut all = Vec::new();
    for name in names {
        match status(host, &name) {
            Ok(status) => all.push(status),
            // Deleted meanwhile, or not yet recorded.
            Err(ContainerError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Waits until the command of a container has ended, but not for longer than `wait`: how it ended, or none when
/// it has not.
pub fn wait(host: &Host, name: &Name, wait: Duration) -> Result<Option<Exit>, ContainerError> {
    /// How often a container without a shim is looked at.
    const LOOK: Duration = Duration::from_millis(200);
    let deadline = Instant::now() + wait;
    loop {
        let (_, seen) = look(host, name)?;
        if seen.state == ContainerState::Stopped {
            return Ok(Some(seen.exit.unwrap_or(Exit { code: None })));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        match Client::connect(&host.run(name)).and_then(|mut s| s.wait_for_exit(Some(left))) {
            // Whatever it says, the next look decides.
            Ok(_) | Err(ShimError::Silent { .. }) => {}
            Err(ShimError::Gone { .. }) => std::thread::sleep(LOOK.min(left)),
            Err(error) => return Err(ContainerError::shim("wait for", name)(error)),
        }
    }
}

/// Draws the conclusion when a container has ended: that is recorded, and its network, mounts and cgroup are
/// given back; its files and its log stay. It changes nothing about one that has not ended.
pub fn settle(host: &Host, name: &Name) -> Result<ContainerStatus, ContainerError> {
    let (mut record, seen) = look(host, name)?;
    if seen.state == ContainerState::Stopped {
        if record.state != ContainerState::Stopped {
            record.life.ended_at = start::now();
        }
        record.state = ContainerState::Stopped;
        record.exit_code = seen.exit.and_then(|exit| exit.code);
        record.save(host)?;
        place::remove_runtime(host, name)?;
    }
    status(host, name)
}

/// Gives a container that runs without a shim a new one. `pipes` is what [`Client::pipes`] of the old one gave; if
/// they are lost, the container's further output is lost, too. Whether there was something to do is told.
pub fn adopt(host: &Host, name: &Name, pipes: &[OwnedFd]) -> Result<bool, ContainerError> {
    let (record, seen) = look(host, name)?;
    let alive = matches!(
        seen.state,
        ContainerState::Running | ContainerState::Migrating
    );
    let (true, Some(pid)) = (alive, seen.pid) else {
        return Ok(false);
    };
    match Client::connect(&host.run(name)) {
        Err(ShimError::Gone { .. }) => {}
        Ok(_) => return Ok(false),
        Err(error) => return Err(ContainerError::shim("ask the shim of", name)(error)),
    }
    let mut shim = create::new_shim(host, &record.spec, false)?;
    shim.adopt(pid, pipes)
        .map_err(ContainerError::shim("adopt", name))?;
    Ok(true)
}
