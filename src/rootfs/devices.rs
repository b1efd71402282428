//! Mounts and devices inside the new root.

use std::fs::{DirBuilder, File, Permissions, set_permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::MountError;
use super::pivot::pivot;
use super::plan::{DEVICES, EMPTY, FIRST, LINKS, Mount, NOTHING, SECOND};
use crate::sys::mount::{
    Change, Filesystem, NO_DEVICES, NO_EXEC, NO_SUID, READ_ONLY, attach, change_mount, clone_at,
};
use crate::sys::process;

/// Changes the root, and makes all mounts and devices of the plan; `own_users`: in a user namespace of its own, which
/// the caller is in.
pub fn move_in(root: &Path, own_users: bool) -> Result<(), MountError> {
    let brought = own_users.then(Brought::take).transpose()?;
    pivot(root, own_users)?;
    if own_users {
        // Root of the host, to whom alone the way to the root was open, is nobody in there: what he made would be nobody's.
        process::become_root().map_err(|source| MountError::Root {
            operation: "become the owner of",
            source,
        })?;
    }
    furnish(brought.as_ref())
}

/// What can only be had while the host's tree is there, and is mounted in the container's.
struct Brought {
    /// Of these the kernel makes a new one in a user namespace only where one can be seen whole already
    /// (`fs/namespace.c`, `mount_too_revealing`).
    filesystems: Vec<(&'static str, OwnedFd)>,
    devices: Vec<OwnedFd>,
}

impl Brought {
    fn take() -> Result<Self, MountError> {
        let plan = FIRST.iter().chain(&SECOND);
        let guarded = plan.filter_map(|step| Some((step, step.filesystem?)));
        let guarded = guarded.filter(|(_, kind)| ["proc", "sysfs"].contains(kind));
        let filesystems = guarded.map(|(step, kind)| {
            let made = Filesystem::open(kind).and_then(|new| {
                new.set("source", kind)?;
                new.mount(attributes(step.flags))
            });
            Ok((
                step.target,
                made.map_err(failed("make a file system for", step.target))?,
            ))
        });
        let devices = DEVICES.iter().map(|(path, ..)| {
            let bound = clone_at(Path::new(path), false).and_then(|device| {
                let change = Change {
                    set: NO_SUID | NO_EXEC,
                    ..Change::default()
                };
                change_mount(device.as_fd(), &change, false)?;
                Ok(device)
            });
            bound.map_err(failed("bring the host's", path))
        });
        Ok(Self {
            filesystems: filesystems.collect::<Result<_, MountError>>()?,
            devices: devices.collect::<Result<_, MountError>>()?,
        })
    }

    fn filesystem(&self, target: &str) -> Option<&OwnedFd> {
        let found = self.filesystems.iter().find(|(at, _)| *at == target);
        found.map(|(_, filesystem)| filesystem)
    }
}

/// Flags of mount(2) as those of fsmount(2).
fn attributes(flags: MsFlags) -> u64 {
    let pairs = [
        (MsFlags::MS_NOSUID, NO_SUID),
        (MsFlags::MS_NOEXEC, NO_EXEC),
        (MsFlags::MS_NODEV, NO_DEVICES),
        (MsFlags::MS_RDONLY, READ_ONLY),
    ];
    let set = pairs.iter().filter(|(flag, _)| flags.contains(*flag));
    set.fold(0, |all, (_, attribute)| all | attribute)
}

/// Makes all mounts and devices of the plan. The root has been changed already.
fn furnish(brought: Option<&Brought>) -> Result<(), MountError> {
    // Modes are meant as they are written.
    nix::sys::stat::umask(Mode::empty());
    for step in &FIRST {
        make_mount(step, brought)?;
    }
    match brought {
        None => {
            for (path, major, minor) in DEVICES {
                make_device(path, major, minor)?;
            }
        }
        Some(brought) => {
            for ((path, ..), device) in DEVICES.iter().zip(&brought.devices) {
                bind_device(path, device)?;
            }
        }
    }
    for (path, content) in LINKS {
        symlink(content, path).map_err(failed("make the link", path))?;
    }
    make_directory(EMPTY, 0o555)?;
    make_file(NOTHING, 0o444)?;
    for step in &SECOND {
        make_mount(step, brought)?;
    }
    Ok(())
}

pub(super) fn failed(
    operation: &'static str,
    target: &str,
) -> impl FnOnce(io::Error) -> MountError {
    let target = target.to_owned();
    move |source| MountError::Inside {
        operation,
        target,
        source,
    }
}

/// Opens a path for mounting over it. An image in which a link stands in its place is refused: the mount would
/// land elsewhere, and with it what must be covered later.
pub(super) fn open_target(target: &str) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let root = File::open("/")?;
    Ok(openat2(&root, target, how)?.into())
}

/// The name under which an open file can be mounted on.
pub(super) fn name_of(file: &File) -> PathBuf {
    // Before /proc is mounted there is no such name, and the plain path is used instead.
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn make_mount(step: &Mount, brought: Option<&Brought>) -> Result<(), MountError> {
    make_directory(step.target, step.mode)?;
    let at = open_target(step.target).map_err(failed("open", step.target))?;
    if let Some(filesystem) = brought.and_then(|brought| brought.filesystem(step.target)) {
        return attach(filesystem.as_fd(), at.as_fd()).map_err(failed("mount", step.target));
    }
    let plain = Path::new(step.target);
    let named = name_of(&at);
    let target: &Path = if named.exists() { &named } else { plain };
    match step.filesystem {
        Some(filesystem) => mount(
            Some(filesystem),
            target,
            Some(filesystem),
            step.flags,
            Some(step.options),
        ),
        None => bind(plain, target, step.flags),
    }
    .map_err(|errno| failed("mount", step.target)(errno.into()))
}

/// Binds `source` at `target`, with flags of its own.
pub(super) fn bind(source: &Path, target: &Path, flags: MsFlags) -> nix::Result<()> {
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)?;
    // Flags need a second call, on the new mount: the descriptor still means the place below it.
    let place = std::fs::read_link(target).unwrap_or_else(|_| target.to_owned());
    let change = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    mount(none, &place, none, change, none)
}

fn make_directory(path: &str, mode: u32) -> Result<(), MountError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Ok(())
        }
        other => other.map_err(failed("make the directory", path)),
    }
}

fn make_device(path: &str, major: u64, minor: u64) -> Result<(), MountError> {
    let all = Mode::from_bits_truncate(0o666);
    mknod(path, SFlag::S_IFCHR, all, makedev(major, minor))
        .map_err(|errno| failed("make the device", path)(errno.into()))?;
    set_permissions(path, Permissions::from_mode(0o666)).map_err(failed("open up", path))
}

fn make_file(path: &str, mode: u32) -> Result<(), MountError> {
    let mut options = File::options();
    let made = options.write(true).create_new(true).mode(mode).open(path);
    made.map(drop).map_err(failed("make the file", path))
}

fn bind_device(path: &str, device: &OwnedFd) -> Result<(), MountError> {
    make_file(path, 0o666)?;
    let at = open_target(path).map_err(failed("open", path))?;
    attach(device.as_fd(), at.as_fd()).map_err(failed("mount the host's", path))
}
