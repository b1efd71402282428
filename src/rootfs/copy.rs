//! A file tree once more: into the store, and from one store to another.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::store_error::StoreError;
use crate::storage::{DigestError, HOST_BOUND_XATTRS};
use crate::sys::tree;
use crate::sys::xattr::{self, Of};

/// What becomes of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// It is copied.
    Copied,
    /// Both trees name the same file; where the file system cannot, it is copied. Only for trees that
    /// nobody writes to.
    Shared,
}

/// Makes the empty directory `to` what the tree `from` is: content, types, modes, owners, attributes, times, and which
/// names are hard links to one file. It follows no link and crosses no mount.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), StoreError> {
    copy(from, to, Content::Copied)
}

/// The same, with a choice.
pub(super) fn copy(from: &Path, to: &Path, content: Content) -> Result<(), StoreError> {
    let source = tree::open_root(from).map_err(StoreError::io("open", from))?;
    let target = tree::open_root(to).map_err(StoreError::io("open", to))?;
    let stat = fstat(&source)
        .map_err(io::Error::from)
        .map_err(StoreError::io("stat", from))?;
    let mut copier = Copier {
        content,
        from,
        path: PathBuf::new(),
        top: target.as_fd(),
        seen: HashMap::new(),
    };
    copier.beneath(source.as_fd(), target.as_fd())?;
    let here = |result: io::Result<()>| result.map_err(StoreError::io("copy", from));
    here(xattrs(Of::Open(source.as_fd()), Of::Open(target.as_fd())))?;
    here(attributes(target.as_fd(), OsStr::new("."), &stat))
}

struct Copier<'a> {
    content: Content,
    from: &'a Path,
    /// Where we are, relative to both roots.
    path: PathBuf,
    top: BorrowedFd<'a>,
    /// Files with several names, and the first of them in the copy.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl Copier<'_> {
    fn beneath(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), StoreError> {
        for name in tree::names(from).map_err(|e| self.fail("list", e))? {
            self.path.push(&name);
            let stat = fstatat(from, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|e| self.fail("stat", e.into()))?;
            match tree::kind(stat.st_mode) {
                SFlag::S_IFDIR => self.directory(from, to, &name, &stat)?,
                SFlag::S_IFREG => self
                    .file(from, to, &name, &stat)
                    .map_err(|e| self.fail("copy", e))?,
                SFlag::S_IFSOCK => return Err(self.socket()),
                _ => special(from, to, &name, &stat).map_err(|e| self.fail("copy", e))?,
            }
            self.path.pop();
        }
        Ok(())
    }

    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        stat: &FileStat,
    ) -> Result<(), StoreError> {
        let opened = tree::open_directory(from, name).and_then(|inner| {
            mkdirat(to, name, Mode::S_IRWXU)?;
            Ok((inner, tree::open_directory(to, name)?))
        });
        let (inner, outer) = opened.map_err(|e| self.fail("copy", e))?;
        self.beneath(inner.as_fd(), outer.as_fd())?;
        xattrs(Of::Open(inner.as_fd()), Of::Open(outer.as_fd()))
            .and_then(|()| attributes(to, name, stat))
            .map_err(|e| self.fail("copy", e))
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        stat: &FileStat,
    ) -> io::Result<()> {
        if self.content == Content::Shared {
            match linkat(from, name, to, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::EXDEV | Errno::EMLINK | Errno::EPERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if stat.st_nlink > 1 {
            let first = self.seen.entry((stat.st_dev, stat.st_ino));
            match first {
                std::collections::hash_map::Entry::Occupied(first) => {
                    let first = first.get().as_path();
                    return Ok(linkat(self.top, first, to, name, AtFlags::empty())?);
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(self.path.clone());
                }
            }
        }
        let source = tree::open_file(from, name)?;
        let target = create(to, name)?;
        let (mut source, mut target) = (File::from(source), File::from(target));
        io::copy(&mut source, &mut target)?;
        attributes(to, name, stat)?;
        xattrs(Of::Open(source.as_fd()), Of::Open(target.as_fd()))?;
        times(to, name, stat)
    }

    fn socket(&self) -> StoreError {
        let source = DigestError::NotStorable {
            path: self.from.join(&self.path),
            what: "a socket",
        };
        StoreError::Digest { source }
    }

    fn fail(&self, operation: &'static str, source: io::Error) -> StoreError {
        StoreError::io(operation, self.from.join(&self.path))(source)
    }
}

/// A new file that was not there before, private until its attributes are set.
pub(super) fn create(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags =
        OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    Ok(openat(
        directory,
        name,
        flags,
        Mode::S_IRUSR | Mode::S_IWUSR,
    )?)
}

fn special(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
) -> io::Result<()> {
    let kind = tree::kind(stat.st_mode);
    if kind == SFlag::S_IFLNK {
        symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
    } else {
        mknodat(to, name, kind, Mode::S_IRUSR, stat.st_rdev)?;
    }
    attributes(to, name, stat)?;
    let (from, to_path) = (xattr::path_in(from, name), xattr::path_in(to, name));
    xattrs(Of::At(&from), Of::At(&to_path))?;
    times(to, name, stat)
}

/// Owner first: changing it clears set-uid bits and capabilities.
fn attributes(directory: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> io::Result<()> {
    let now = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchownat(
            directory,
            name,
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
    }
    if tree::kind(stat.st_mode) != SFlag::S_IFLNK {
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        fchmodat(directory, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    times(directory, name, stat)
}

fn times(directory: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> io::Result<()> {
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    let flag = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(directory, name, &modified, &modified, flag)?)
}

fn xattrs(from: Of<'_>, to: Of<'_>) -> io::Result<()> {
    for name in xattr::list(from)? {
        if HOST_BOUND_XATTRS.iter().any(|bound| name == *bound) {
            continue;
        }
        if let Some(value) = xattr::get(from, &name)? {
            xattr::set(to, &name, &value)?;
        }
    }
    Ok(())
}
