//! Device nodes, and the links in `/dev` that programs expect.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, makedev, mknodat,
};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::plan::{Device, NodeKind, Plan};
use super::{RootfsError, path_error, place};
use crate::sys::mount::{attach, clone_of};
use crate::sys::tree;

/// Links in `/dev`: where to, and name.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

impl Device {
    /// Whether it has a device number, which a process in a user namespace may not give to a node.
    pub(super) fn has_number(&self) -> bool {
        self.kind != NodeKind::Pipe
    }

    fn flag(&self) -> SFlag {
        match self.kind {
            NodeKind::Character(..) => SFlag::S_IFCHR,
            NodeKind::Block(..) => SFlag::S_IFBLK,
            NodeKind::Pipe => SFlag::S_IFIFO,
        }
    }

    fn number(&self) -> u64 {
        match self.kind {
            NodeKind::Character(major, minor) | NodeKind::Block(major, minor) => {
                makedev(major, minor)
            }
            NodeKind::Pipe => 0,
        }
    }

    fn is(&self, stat: &FileStat) -> bool {
        let number = !self.has_number() || stat.st_rdev == self.number();
        tree::kind(stat.st_mode) == self.flag() && number
    }
}

/// Makes the devices and links of `/dev`, and the devices that are listed elsewhere.
pub(super) fn furnish(
    plan: &Plan,
    root: BorrowedFd<'_>,
    sources: &[OwnedFd],
) -> Result<(), RootfsError> {
    let mut sources = sources.iter();
    for device in &plan.devices {
        let result = if plan.user_namespace && device.has_number() {
            let source = sources.next().ok_or_else(|| Errno::ENODEV.into());
            source.and_then(|source: &OwnedFd| bind(root, device, source.as_fd()))
        } else {
            make(root, device)
        };
        result.map_err(path_error("make the device", &device.path))?;
    }
    links(root)
}

fn links(root: BorrowedFd<'_>) -> Result<(), RootfsError> {
    let failed = |name: &str| path_error("make the link", &Path::new("dev").join(name));
    let (dev, _) = place::parent(root, Path::new("dev/ptmx")).map_err(failed("ptmx"))?;
    let link = |to: &str, name: &str| match symlinkat(to, &dev, name) {
        // What an image has there it has for itself.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(failed(name)(errno.into())),
    };
    for (to, name) in LINKS {
        link(to, name)?;
    }
    if Path::new("/proc/kcore").exists() {
        link("/proc/kcore", "core")?;
    }
    // A terminal belongs to the container's own devpts, never to an image's node, which is the host's.
    match unlinkat(&dev, "ptmx", UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => link("pts/ptmx", "ptmx"),
        Err(errno) => Err(failed("ptmx")(errno.into())),
    }
}

fn make(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let (directory, name) = place::parent(root, &device.path)?;
    let mode = Mode::from_bits_truncate(device.mode);
    match mknodat(&directory, name, device.flag(), mode, device.number()) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let stat = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if !device.is(&stat) {
                let problem = "something else is there already, in the image or by a mount";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
            }
            fchmodat(&directory, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        Err(errno) => return Err(errno.into()),
    }
    let (uid, gid) = (Uid::from_raw(device.owner.0), Gid::from_raw(device.owner.1));
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    Ok(fchownat(&directory, name, Some(uid), Some(gid), flags)?)
}

/// A mount of the host's node of this device. It must be that device: a path alone says nothing.
pub(super) fn open_source(device: &Device) -> io::Result<OwnedFd> {
    let node = place::hold(&Path::new("/").join(&device.path))?;
    if !device.is(&fstat(&node)?) {
        let problem = "the host has another device under this path";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    clone_of(node.as_fd(), false)
}

/// Mounts the host's node on an empty file.
fn bind(root: BorrowedFd<'_>, device: &Device, source: BorrowedFd<'_>) -> io::Result<()> {
    let (directory, name) = place::parent(root, &device.path)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(&directory, name, flags, Mode::from_bits_truncate(0o644)) {
        Ok(_) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // A link is held itself, and nothing can be mounted on one.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let target = openat(&directory, name, flags, Mode::empty())?;
    attach(source, target.as_fd())
}

/// A mount of the host's `/dev/null`, made sure to be it.
pub(super) fn null() -> io::Result<OwnedFd> {
    open_source(&Device {
        path: "dev/null".into(),
        kind: NodeKind::Character(1, 3),
        mode: 0,
        owner: (0, 0),
    })
}
