//! Everything of a container that is not a process: network, cgroup, root, directories.
//!
//! A container that is created here and one that arrives from elsewhere live in the same kind of place.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::in_one_line;
use super::shim::{Client, ShimError, ShimState};
use super::undo::Undo;
use super::{ContainerError, Host, Record, ids};
use crate::cgroup::Cgroup;
use crate::model::{ContainerSpec, Name, Userns};
use crate::namespace::{self, IdRange};
use crate::rootfs::overlay::{Layers, Shown, mount_overlay, unmount, unshow};
use crate::sys::netns::{self, NetNs, set_parameter};
use crate::sys::userns;

/// How long a shim may take to notice that its container is gone.
const SHIM_LEAVES_WITHIN: Duration = Duration::from_secs(10);

/// Settings of the container's own network that root would otherwise be needed for: ports below 1024 for every
/// user, and ping without raw sockets.
const OPEN_TO_USERS: [(&str, &str); 2] = [
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
];

/// A place that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose it is.
    pub name: Name,
    /// Where its root is, or will be, mounted.
    pub root: PathBuf,
    /// Where its user namespace is pinned, if it has one.
    pub userns: PathBuf,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// Its cgroup.
    pub cgroup: Cgroup,
}

impl Place {
    /// The place of this container, which need not exist.
    pub fn of(host: &Host, name: &Name) -> Self {
        Self {
            name: name.clone(),
            root: host.rootfs(name),
            userns: host.userns(name),
            netns: host.netns(name),
            cgroup: host.cgroup(name),
        }
    }
}

/// Makes the whole place: [`reserve`], then [`mount_root`]. On failure nothing of it is left.
pub fn make(host: &Host, spec: &ContainerSpec) -> Result<Place, ContainerError> {
    let place = reserve(host, spec)?;
    let mounted = id_map(host, spec).and_then(|id_map| mount_root(host, spec, id_map.as_ref()));
    if let Err(error) = mounted {
        let mut undo = Undo::default();
        undo.push(|| remove_runtime(host, &spec.name));
        return Err(undo.unwind(error));
    }
    Ok(place)
}

/// Makes the place but for the root, whose layer may still be written to from outside. The gate of its network
/// is closed. On failure nothing is left; what was there before is not touched and is an error.
pub fn reserve(host: &Host, spec: &ContainerSpec) -> Result<Place, ContainerError> {
    let mut undo = Undo::default();
    match reserve_steps(host, spec, &mut undo) {
        Ok(()) => Ok(Place::of(host, &spec.name)),
        Err(error) => Err(undo.unwind(error)),
    }
}

fn reserve_steps<'a>(
    host: &'a Host,
    spec: &'a ContainerSpec,
    undo: &mut Undo<'a>,
) -> Result<(), ContainerError> {
    let name = &spec.name;
    let run = host.run(name);
    make_parent(&run)?;
    make_parent(&host.netns(name))?;
    make_private(&host.state(name), false)?;
    make_private(&run, true)?;
    undo.push(move || remove_directory(&host.run(name)));
    // The layer is entered by the container's users: its root directory is as open as roots are.
    for layer in [host.upper(name), host.work(name)] {
        make_layer(&layer)?;
    }

    if spec.userns == Userns::Auto {
        let ids = ids::claim(host, name)?;
        undo.push(move || ids::release(host, name));
        make_users(host, name, ids)?;
        undo.push(move || unpin_users(host, name));
    }
    let pin = host.netns(name);
    let network = || ContainerError::network(name);
    let made = match spec.userns {
        Userns::Auto => host.network.make_port_in(name, &spec.lease, &pin),
        Userns::Host => host.network.make_port(name, &spec.lease, &pin),
    };
    made.map_err(network())?;
    undo.push(move || {
        let removed = host.network.remove_port(name, &host.netns(name));
        removed.map_err(ContainerError::network(name))
    });
    open_to_users(&pin).map_err(ContainerError::file("set up the network namespace", &pin))?;

    let cgroup = host.cgroup(name);
    cgroup.create().map_err(ContainerError::cgroup(name))?;
    undo.push(move || {
        host.cgroup(name)
            .remove()
            .map_err(ContainerError::cgroup(name))
    });
    cgroup
        .apply(&spec.limits)
        .map_err(ContainerError::cgroup(name))
}

/// Makes the container's user namespace, with these ids of this host, and its network namespace, which must belong to it.
fn make_users(host: &Host, name: &Name, ids: IdRange) -> Result<(), ContainerError> {
    let pin = host.userns(name);
    make_parent(&pin)?;
    namespace::pin_users(ids, &pin, &host.netns(name)).map_err(|source| ContainerError::Users {
        name: name.clone(),
        source,
    })
}

fn unpin_users(host: &Host, name: &Name) -> Result<(), ContainerError> {
    for pin in [host.netns(name), host.userns(name)] {
        netns::unpin(&pin).map_err(ContainerError::file("unpin the namespace at", &pin))?;
    }
    Ok(())
}

/// Whom of this host a user of the container is.
pub fn owner(host: &Host, spec: &ContainerSpec, inside: u32) -> Result<u32, ContainerError> {
    if spec.userns.is_host() {
        return Ok(inside);
    }
    let ids = users_of(host, &spec.name)?;
    ids.host_id(inside).ok_or_else(|| ContainerError::Wish {
        field: "the user",
        value: inside.to_string(),
        remedy: "a user namespace has the ids up to 65535: take one of these, or --userns host",
    })
}

fn users_of(host: &Host, name: &Name) -> Result<IdRange, ContainerError> {
    ids::of(host, name)?.ok_or_else(|| ContainerError::Users {
        name: name.clone(),
        source: io::Error::other("it has no ids on this host"),
    })
}

/// Whom of this host the users of a layer are in the container: a user namespace in which nobody is. None where they are
/// the same. To make one, this process is copied for a moment, which takes the longer the more memory it has.
pub fn id_map(host: &Host, spec: &ContainerSpec) -> Result<Option<File>, ContainerError> {
    if spec.userns.is_host() {
        return Ok(None);
    }
    let name = &spec.name;
    let maps = users_of(host, name)?.layer_maps();
    let opened = userns::make(0, &maps, &maps, 0, |process| {
        File::open(process.join("ns/user"))
    });
    opened.map(Some).map_err(|source| ContainerError::Users {
        name: name.clone(),
        source,
    })
}

/// Mounts the root, with its [`id_map`]. From now on its layer must not be written to from outside.
pub fn mount_root(
    host: &Host,
    spec: &ContainerSpec,
    id_map: Option<&File>,
) -> Result<(), ContainerError> {
    let name = &spec.name;
    if !host.images.has(spec.image) {
        return Err(ContainerError::NoImage { image: spec.image });
    }
    let at = host.shown_layers(name);
    let layers = Layers {
        lower: &host.images.lower(spec.image),
        upper: &host.upper(name),
        work: &host.work(name),
        shown: id_map.map(|id_map| Shown {
            id_map: id_map.as_fd(),
            at: &at,
        }),
    };
    mount_overlay(&layers, &host.rootfs(name)).map_err(ContainerError::mount(name))
}

/// Removes the container from this host: its processes, everything [`make`] makes, its layer, log and record. It
/// does as much as it can; what is not there is no failure.
pub fn remove(host: &Host, name: &Name) -> Result<(), ContainerError> {
    let mut failures = Vec::new();
    let mut note = |result: Result<(), ContainerError>| {
        failures.extend(result.err().map(|error| in_one_line(&error)));
    };
    note(remove_runtime(host, name));
    // A layer that is still mounted belongs to somebody.
    if unmount(&host.rootfs(name)).is_ok() {
        note(remove_state(host, name));
    }
    told(name, failures)
}

/// Makes the state directory of a container that has no record. What a crash has left of an earlier one, between
/// its directory and its record, is nobody's.
pub(super) fn make_state(host: &Host, name: &Name) -> Result<(), ContainerError> {
    remove_state(host, name)?;
    make_private(&host.state(name), true)
}

/// Removes what survives a restart of the host. The record goes last of what matters: until then it can be
/// tried again.
pub(super) fn remove_state(host: &Host, name: &Name) -> Result<(), ContainerError> {
    for layer in [host.upper(name), host.work(name)] {
        remove_directory(&layer)?;
    }
    Record::remove(host, name)?;
    remove_directory(&host.state(name))
}

/// Removes what does not survive a restart of the host: processes, mounts, network, cgroup, the run directory.
/// Layer, log and record stay. It does as much as it can; what is not there is no failure.
pub fn remove_runtime(host: &Host, name: &Name) -> Result<(), ContainerError> {
    let mut failures = Vec::new();
    let mut note = |result: Result<(), ContainerError>| {
        failures.extend(result.err().map(|error| in_one_line(&error)));
    };
    // The shim is asked for its connection before its container is taken from it.
    let shim = Client::connect(&host.run(name));
    note(
        host.cgroup(name)
            .remove()
            .map_err(ContainerError::cgroup(name)),
    );
    note(end_shim(shim).map_err(ContainerError::shim("end the shim of", name)));
    for unmounted in [
        unmount(&host.rootfs(name)),
        unshow(&host.shown_layers(name)),
    ] {
        note(unmounted.map_err(ContainerError::mount(name)));
    }
    let removed = host.network.remove_port(name, &host.netns(name));
    note(removed.map_err(ContainerError::network(name)));
    note(unpin_users(host, name).and_then(|()| ids::release(host, name)));
    note(remove_directory(&host.run(name)));
    told(name, failures)
}

fn told(name: &Name, failures: Vec<String>) -> Result<(), ContainerError> {
    if failures.is_empty() {
        return Ok(());
    }
    Err(ContainerError::Remains {
        name: name.clone(),
        failures,
    })
}

/// Ends a shim whose container has no process any more.
fn end_shim(shim: Result<Client, ShimError>) -> Result<(), ShimError> {
    let mut shim = match shim {
        Err(ShimError::Gone { .. }) => return Ok(()),
        other => other?,
    };
    // It leaves by itself when it notices the end; one that never had a container, or failed, is told to.
    let waited = shim.wait_until(SHIM_LEAVES_WITHIN, |state| {
        !matches!(
            state,
            ShimState::Running { .. } | ShimState::Held { .. } | ShimState::Restoring
        )
    });
    match waited {
        Ok(()) => {}
        Err(ShimError::Gone { .. }) => return Ok(()),
        Err(ShimError::Silent { .. }) => return shim.destroy(),
        Err(error) => return Err(error),
    }
    match shim.state() {
        ShimState::Exited { .. } => Ok(()),
        _ => shim.leave(),
    }
}

fn open_to_users(pin: &Path) -> io::Result<()> {
    NetNs::open(pin)?.run(|| {
        OPEN_TO_USERS
            .iter()
            .try_for_each(|(key, value)| set_parameter(key, value).map(drop))
    })?
}

fn make_parent(path: &Path) -> Result<(), ContainerError> {
    let parent = path.parent().unwrap_or(path);
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(ContainerError::file("make", parent))
}

/// Makes a directory that is nobody else's business; `fresh`: it must not be there yet.
fn make_private(path: &Path, fresh: bool) -> Result<(), ContainerError> {
    make_parent(path)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !fresh => Ok(()),
        other => other.map_err(ContainerError::file("make", path)),
    }
}

fn make_layer(path: &Path) -> Result<(), ContainerError> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(ContainerError::file("make", path)),
    }
}

fn remove_directory(path: &Path) -> Result<(), ContainerError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(ContainerError::file("remove", path)),
    }
}
