//! Mounts and devices inside the new root.

use std::fs::{DirBuilder, File, Permissions, set_permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::MountError;
use super::plan::{DEVICES, EMPTY, FIRST, LINKS, Mount, SECOND};

/// Makes all mounts and devices of the plan. The root has been changed already.
pub fn furnish() -> Result<(), MountError> {
    // Modes are meant as they are written.
    nix::sys::stat::umask(Mode::empty());
    for step in &FIRST {
        make_mount(step)?;
    }
    for (path, major, minor) in DEVICES {
        make_device(path, major, minor)?;
    }
    for (path, content) in LINKS {
        symlink(content, path).map_err(failed("make the link", path))?;
    }
    make_directory(EMPTY, 0o555)?;
    for step in &SECOND {
        make_mount(step)?;
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

fn make_mount(step: &Mount) -> Result<(), MountError> {
    make_directory(step.target, step.mode)?;
    let at = open_target(step.target).map_err(failed("open", step.target))?;
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
