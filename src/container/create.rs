//! A spec becomes a container whose command waits to be started.

use super::init::Entry;
use super::shim::{Client, Start, start as start_shim};
use super::undo::Undo;
use super::{ContainerError, Host, Record, identity, place};
use crate::model::{ContainerSpec, ContainerState, Userns};
use crate::sys::file;

/// Makes a container. On success it has everything but a running command, and its network gate is closed. On
/// failure nothing of it is left.
pub fn create(host: &Host, spec: &ContainerSpec) -> Result<Record, ContainerError> {
    let name = &spec.name;
    match Record::load(host, name) {
        Err(ContainerError::NotFound { .. }) => {}
        Ok(_) => return Err(ContainerError::Exists { name: name.clone() }),
        Err(error) => return Err(error),
    }
    if !host.images.has(spec.image) {
        return Err(ContainerError::NoImage { image: spec.image });
    }
    let mut undo = Undo::default();
    steps(host, spec, &mut undo).map_err(|error| undo.unwind(error))
}

fn steps<'a>(
    host: &'a Host,
    spec: &'a ContainerSpec,
    undo: &mut Undo<'a>,
) -> Result<Record, ContainerError> {
    let mut record = Record::new(spec);
    place::make_state(host, &spec.name)?;
    undo.push(move || place::remove_state(host, &spec.name));
    record.save(host)?;
    place::make(host, spec)?;
    undo.push(move || place::remove_runtime(host, &spec.name));
    let owner = place::owner(host, spec, 0)?;
    identity::write(&host.rootfs(&spec.name), spec, owner)?;
    prepare(host, spec)?;
    record.state = ContainerState::Created;
    record.save(host)?;
    Ok(record)
}

/// Starts a shim in a place that is made, and has it make the first process, up to the moment before its
/// command runs. What is left after a failure goes with the place.
pub(super) fn prepare(host: &Host, spec: &ContainerSpec) -> Result<Client, ContainerError> {
    let plan = host.run(&spec.name).join("plan.json");
    let entry = entry_of(host, spec);
    let text = serde_json::to_vec(&entry).map_err(|source| ContainerError::Record {
        path: plan.clone(),
        source,
    })?;
    file::replace(&plan, &text).map_err(ContainerError::file("write", &plan))?;
    let mut shim = new_shim(host, spec, true)?;
    shim.create(&plan)
        .map_err(ContainerError::shim("create", &spec.name))?;
    Ok(shim)
}

/// Starts the shim of a container: with `pipes` for its output, which belong to the container's user; or without them,
/// to adopt one that runs.
pub fn new_shim(host: &Host, spec: &ContainerSpec, pipes: bool) -> Result<Client, ContainerError> {
    let name = &spec.name;
    let owner = pipes.then(|| place::owner(host, spec, spec.user.uid));
    let owner = owner.transpose()?;
    let shims = host.cgroups.shims();
    shims.create().map_err(ContainerError::cgroup(name))?;
    start_shim(&Start {
        program: &host.exe,
        directory: &host.run(name),
        log: &host.log(name),
        cgroup: shims.path(),
        owner,
    })
    .map_err(ContainerError::shim("start the shim of", name))
}

/// What its first process must know.
pub(super) fn entry_of(host: &Host, spec: &ContainerSpec) -> Entry {
    Entry {
        hostname: spec.name.to_string(),
        root: host.rootfs(&spec.name),
        userns: (spec.userns == Userns::Auto).then(|| host.userns(&spec.name)),
        netns: host.netns(&spec.name),
        cgroup: host.cgroup(&spec.name).path().to_owned(),
        command: spec.command.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
    }
}
