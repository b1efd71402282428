//! Paths that are covered, and paths that become read-only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::place::{self, Links};
use super::{RootfsError, device, path_error};
use crate::sys::mount::{
    Change, Filesystem, NO_DEVICES, NO_EXEC, NO_SUID, READ_ONLY, attach, change_mount, clone_of,
};

/// Covers files by `/dev/null` and directories by an empty one; what is not there is left out.
pub(super) fn mask<'a>(
    root: BorrowedFd<'_>,
    paths: impl Iterator<Item = &'a Path>,
) -> Result<(), RootfsError> {
    let mut covers = Covers::default();
    for path in paths {
        let failed = path_error("cover", path);
        with(root, path, |target| covers.cover(target)).map_err(failed)?;
    }
    Ok(())
}

/// Makes what is there read-only; what is not there is left out.
pub(super) fn protect<'a>(
    root: BorrowedFd<'_>,
    paths: impl Iterator<Item = &'a Path>,
) -> Result<(), RootfsError> {
    for path in paths {
        let failed = path_error("make read-only", path);
        with(root, path, |target| {
            let tree = clone_of(target, true)?;
            read_only(tree.as_fd())?;
            attach(tree.as_fd(), target)
        })
        .map_err(failed)?;
    }
    Ok(())
}

/// Makes one mount read-only.
pub(super) fn read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let change = Change {
        set: READ_ONLY,
        ..Change::default()
    };
    change_mount(mount, &change, false)
}

fn with(
    root: BorrowedFd<'_>,
    path: &Path,
    act: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    match place::find(root, path, Links::Inside) {
        Ok(target) => act(target.as_fd()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(()),
            _ => Err(error),
        },
    }
}

/// What things are covered with: the host's `/dev/null`, and one file system for all directories.
#[derive(Default)]
struct Covers {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl Covers {
    fn cover(&mut self, target: BorrowedFd<'_>) -> io::Result<()> {
        let (kept, make): (_, fn() -> io::Result<OwnedFd>) = match place::is_directory(target)? {
            true => (&mut self.empty, empty),
            false => (&mut self.null, device::null),
        };
        let Some(cover) = kept else {
            // It is put there itself, and no copy of it: who closes a mount that is nowhere waits until no processor
            // can be looking at it (a grace period of RCU).
            let first = make()?;
            attach(first.as_fd(), target)?;
            *kept = Some(first);
            return Ok(());
        };
        let another = clone_of(cover.as_fd(), false)?;
        attach(another.as_fd(), target)
    }
}

/// An empty directory in which nothing can be made.
fn empty() -> io::Result<OwnedFd> {
    let fs = Filesystem::open("tmpfs")?;
    fs.set("source", "tmpfs")?;
    fs.set("mode", "755")?;
    fs.set("nr_inodes", "1")?;
    fs.mount(READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC)
}
