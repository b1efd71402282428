//! What comes from the host: the root, the sources of bind mounts, and devices where they cannot be made.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::unistd::fchdir;

use super::idmap::Namespaces;
use super::plan::{Device, Kind, Plan, Planned};
use super::{RootfsError, device, path_error, place, root_error};
use crate::sys::mount::{Change, change_mount, clone_at, clone_of};
use crate::sys::{fdpass, namespace};

/// Mounts of the host's things that are in no tree yet; they belong to the container's mount namespace.
#[derive(Debug)]
pub struct Sources {
    /// Where the root is, in the container's mount namespace.
    pub(super) place: OwnedFd,
    /// The root, with all that is mounted beneath.
    pub(super) root: OwnedFd,
    /// One for every bind mount, in their order.
    pub(super) binds: Vec<OwnedFd>,
    /// One for every device but the pipes, in a container with a user namespace.
    pub(super) devices: Vec<OwnedFd>,
}

impl Plan {
    /// Opens the sources, from inside the container's mount namespace. Only where the parent is not needed.
    pub fn sources(&self) -> Result<Sources, RootfsError> {
        open(self, &Namespaces::default())
    }

    /// Opens the sources for the container whose mount namespace `child` is or has (a descriptor of either). The
    /// caller goes there and comes back: it must have one thread.
    ///
    /// When it fails the caller may still be there; it should end soon.
    pub fn sources_in(&self, child: BorrowedFd<'_>) -> Result<Sources, RootfsError> {
        let id_maps = Namespaces::make(self)?;
        let failed = |operation| root_error(operation, &self.root);
        let (own, cwd) = File::open("/proc/self/ns/mnt")
            .and_then(|own| Ok((own, place::hold(Path::new("."))?)))
            .map_err(failed(
                "remember the mounts of the host before those around",
            ))?;
        namespace::enter(child, namespace::MOUNT)
            .map_err(failed("enter the mount namespace for"))?;
        let sources = open(self, &id_maps);
        namespace::enter(own.as_fd(), namespace::MOUNT)
            .and_then(|()| Ok(fchdir(&cwd)?))
            .map_err(failed("come back from the mount namespace of"))?;
        sources
    }

    /// Receives what [`Sources::send`] has sent.
    pub fn receive_sources(&self, from: BorrowedFd<'_>) -> Result<Sources, RootfsError> {
        let receive = || -> Result<OwnedFd, RootfsError> {
            let received = fdpass::receive(from).and_then(|message| {
                let fd = message.and_then(|(_, fds)| fds.into_iter().next());
                fd.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            });
            received.map_err(root_error(
                "receive the sources of the mounts in",
                &self.root,
            ))
        };
        let many = |count| (0..count).map(|_| receive()).collect::<Result<_, _>>();
        Ok(Sources {
            place: receive()?,
            root: receive()?,
            binds: many(self.binds().count())?,
            devices: many(self.bound_devices().count())?,
        })
    }

    fn binds(&self) -> impl Iterator<Item = &Planned> {
        let bind = |mount: &&Planned| matches!(mount.kind, Kind::Bind { .. });
        self.mounts.iter().filter(bind)
    }

    /// The devices that are bound from the host.
    pub(super) fn bound_devices(&self) -> impl Iterator<Item = &Device> {
        let bound = self.user_namespace && self.furnish;
        let devices = self.devices.iter();
        devices.filter(move |device| bound && device.has_number())
    }
}

impl Sources {
    /// Sends them to the child, as many messages as there are.
    pub fn send(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        let first = [&self.place, &self.root].into_iter();
        for fd in first.chain(&self.binds).chain(&self.devices) {
            fdpass::send(to, b"source", &[fd.as_fd()], true)?;
        }
        Ok(())
    }
}

fn open(plan: &Plan, id_maps: &Namespaces) -> Result<Sources, RootfsError> {
    let failed = || root_error("open", &plan.root);
    let place = place::hold(&plan.root).map_err(failed())?;
    let root = clone_of(place.as_fd(), true).map_err(failed())?;
    let bind = |mount| open_bind(mount, id_maps);
    let device = |device: &Device| {
        device::open_source(device).map_err(path_error("find on the host the device", &device.path))
    };
    Ok(Sources {
        place,
        root,
        binds: plan.binds().map(bind).collect::<Result<_, _>>()?,
        devices: plan.bound_devices().map(device).collect::<Result<_, _>>()?,
    })
}

fn open_bind(mount: &Planned, id_maps: &Namespaces) -> Result<OwnedFd, RootfsError> {
    let Kind::Bind { source, id_map } = &mount.kind else {
        return Err(mount.failed("open the source of")(
            io::ErrorKind::InvalidInput.into(),
        ));
    };
    let recursive = mount.asked.bind.unwrap_or(false);
    let tree = clone_at(source, recursive).map_err(mount.failed("open the source of"))?;
    if let Some(id_map) = id_map {
        let change = Change {
            id_map: id_maps.of(id_map),
            ..Change::default()
        };
        let beneath = recursive && mount.asked.id_map == Some(true);
        change_mount(tree.as_fd(), &change, beneath)
            .map_err(mount.failed("map the owners of files (not every file system can) for"))?;
    }
    Ok(tree)
}
