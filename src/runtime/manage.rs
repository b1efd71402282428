//! `pause`, `resume`, `update`, `ps`, `events`: what is asked of a container's cgroup.

use std::fs;
use std::io::Read;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::RuntimeError;
use super::error::file;
use super::state::{Id, Record, Status};
use super::store::{self, Root};
use crate::cgroup::manage::{Driver, Group, Stats};

/// The container's cgroup.
pub(super) fn group(record: &Record) -> Group {
    let driver = match record.systemd {
        true => Driver::Systemd,
        false => Driver::CgroupFs,
    };
    Group::at(record.cgroup.clone(), driver)
}

/// Freezes the container's processes.
pub fn pause(root: &Root, id: &Id) -> Result<(), RuntimeError> {
    let (_home, record) = root.open(id)?;
    match root.status(&record) {
        Status::Running | Status::Created => Ok(group(&record).freeze()?),
        Status::Paused => Ok(()),
        status => Err(RuntimeError::NotRunning {
            id: id.to_string(),
            status,
        }),
    }
}

/// Lets the container's processes go on.
pub fn resume(root: &Root, id: &Id) -> Result<(), RuntimeError> {
    let (_home, record) = root.open(id)?;
    match root.status(&record) {
        Status::Paused => Ok(group(&record).thaw()?),
        status => Err(RuntimeError::Status {
            verb: "resume",
            id: id.to_string(),
            status,
            remedy: "container not paused",
        }),
    }
}

/// Changes the container's limits; those that are not named stay.
pub fn update(root: &Root, id: &Id, resources: &LinuxResources) -> Result<(), RuntimeError> {
    let (_home, record) = root.open(id)?;
    match root.status(&record) {
        Status::Stopped => Err(RuntimeError::NotRunning {
            id: id.to_string(),
            status: Status::Stopped,
        }),
        _ => Ok(group(&record).update(resources)?),
    }
}

/// Reads resources from a file, or from the standard input for `-`.
pub fn read_resources(path: &Path) -> Result<LinuxResources, RuntimeError> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map(|_| bytes)
            .map_err(file("read", path))?
    } else {
        fs::read(path).map_err(file("read", path))?
    };
    store::parse(path, &bytes)
}

/// The host's ids of the container's processes.
pub fn processes(root: &Root, id: &Id) -> Result<Vec<i32>, RuntimeError> {
    let record = root.read(id)?;
    match root.status(&record) {
        Status::Stopped => Ok(Vec::new()),
        _ => Ok(group(&record).processes()?),
    }
}

/// What the container uses.
pub fn stats(record: &Record) -> Stats {
    group(record).stats()
}
