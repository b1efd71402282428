//! Walking, reading and removing directory trees by descriptors. No link is followed out of a tree and no
//! mount is crossed: a tree that a stranger filled can be looked at and removed without touching anything
//! else.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// A directory deeper than this is removed in pieces, so that neither descriptors nor the stack run out.
const DEEP: usize = 100;

/// Opens the directory at `path`. A link at its end is refused.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Opens the directory `name` in `parent`: no link, no mount.
pub fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
    open_plainly(parent, name, flags)
}

/// Opens the regular file `name` in `parent` for reading: no link, no mount, and no waiting on what turns
/// out to be a pipe.
pub fn open_file(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    open_plainly(
        parent,
        name,
        OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY,
    )
}

fn open_plainly(parent: BorrowedFd<'_>, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    Ok(openat2(parent, name, how)?)
}

/// Opens `path` as a process whose root directory is `root` would: links are followed, but never out.
pub fn open_within(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

/// Opens `path` beneath `root`: an absolute path, and one that leaves `root`, by `..` or by a link, is refused.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

/// The names in an open directory, sorted by their bytes, without `.` and `..`.
pub fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    // A descriptor of its own: reading moves the position that a duplicate would share.
    let own = open_directory(directory, OsStr::new("."))?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(own)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether `name` in `parent` is a directory (and no link to one); none where it is not there.
pub fn is_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<bool>> {
    match fstatat(parent, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(kind(stat.st_mode) == SFlag::S_IFDIR)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The file type in a mode.
pub fn kind(mode: libc::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

/// Removes `name` in `parent` and everything beneath it. What is not there is no error.
///
/// Where something beneath is a mount, nothing on the other side of it is touched: the removal stops there
/// with `EXDEV`.
pub fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match is_directory(parent, name)? {
        None => Ok(()),
        Some(false) => unlink(parent, name, UnlinkatFlags::NoRemoveDir),
        Some(true) => {
            let top = open_directory(parent, name)?;
            // What lies very deep is first moved up to the top, then removed from there.
            while empty(top.as_fd(), top.as_fd(), 0)? {}
            unlink(parent, name, UnlinkatFlags::RemoveDir)
        }
    }
}

/// Removes what is in `directory`; true where something was moved to `top` that is still to be removed.
fn empty(directory: BorrowedFd<'_>, top: BorrowedFd<'_>, depth: usize) -> io::Result<bool> {
    let mut moved = false;
    for name in names(directory)? {
        if is_directory(directory, &name)? != Some(true) {
            unlink(directory, &name, UnlinkatFlags::NoRemoveDir)?;
        } else if depth < DEEP {
            let inner = open_directory(directory, &name)?;
            moved |= empty(inner.as_fd(), top, depth + 1)?;
            unlink(directory, &name, UnlinkatFlags::RemoveDir)?;
        } else {
            move_up(directory, &name, top)?;
            moved = true;
        }
    }
    Ok(moved)
}

fn move_up(directory: BorrowedFd<'_>, name: &OsStr, top: BorrowedFd<'_>) -> io::Result<()> {
    for number in 0_u64.. {
        let fresh = OsString::from(format!(".deep-{number}"));
        if is_directory(top, &fresh)?.is_none() {
            return Ok(renameat(directory, name, top, fresh.as_os_str())?);
        }
    }
    Ok(())
}

fn unlink(parent: BorrowedFd<'_>, name: &OsStr, flag: UnlinkatFlags) -> io::Result<()> {
    match unlinkat(parent, name, flag) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_removed_tree_takes_nothing_else_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/file"), "x").unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        let parent = open_root(dir.path()).unwrap();
        remove(parent.as_fd(), OsStr::new("tree")).unwrap();
        remove(parent.as_fd(), OsStr::new("tree")).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        assert_eq!(names(parent.as_fd()).unwrap(), ["outside"]);
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let parent = open_root(dir.path()).unwrap();
        let mut inner = parent.try_clone().unwrap();
        let name = OsStr::new("a-name-of-thirty-two-bytes-or-so");
        for _ in 0..5 * DEEP {
            nix::sys::stat::mkdirat(&inner, name, Mode::S_IRWXU).unwrap();
            inner = open_directory(inner.as_fd(), name).unwrap();
        }
        remove(parent.as_fd(), name).unwrap();
        assert!(names(parent.as_fd()).unwrap().is_empty());
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        fs::write(dir.path().join("root/etc/real"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        symlink("/etc/real", dir.path().join("root/link")).unwrap();
        symlink("../../secret", dir.path().join("root/etc/out")).unwrap();
        let root = open_root(&dir.path().join("root")).unwrap();
        let read = |path: &str| open_within(root.as_fd(), Path::new(path), OFlag::O_RDONLY);
        assert!(read("link").is_ok());
        assert!(read("etc/out").is_err());
        assert!(open_file(root.as_fd(), OsStr::new("link")).is_err());
        assert!(open_directory(root.as_fd(), OsStr::new("../root")).is_err());
    }
}
