//! Looking at one tree: what is there, with which attributes, in how many bytes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{AtFlags, OFlag};
use nix::libc;
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::digest::HOST_BOUND_XATTRS;
use super::error::{StorageError, failed, shown};
use super::snapshot::{Hash, Stamp};
use super::wire::{FileTime, MAX_PATH};
use crate::model::Bytes;
use crate::sys::beneath::{self, Root};
use crate::sys::tree;
use crate::sys::xattr::{self, Of};

/// Opens the tree at `root`.
pub(super) fn open(root: &Path) -> Result<Root, StorageError> {
    Root::open(root).map_err(failed("open the directory", root.as_os_str().as_bytes()))
}

/// The present moment on the clock that stamps files, or a little later.
pub(super) fn now() -> FileTime {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => FileTime {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        // Before 1970: no stamp is then clearly older, and everything is sent again.
        Err(_) => FileTime {
            secs: i64::MIN,
            nanos: 0,
        },
    }
}

/// The names in a directory, sorted.
pub(super) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<Box<[u8]>>> {
    let names = tree::names(directory)?.into_iter();
    Ok(names
        .map(|name| name.into_vec().into_boxed_slice())
        .collect())
}

/// The stamp of `name` in a directory.
pub(super) fn stamp_at(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<(Stamp, bool)> {
    Ok(split(&fstatat(
        directory,
        name,
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?))
}

/// The stamp of what a descriptor holds, and whether it has more than one name.
pub(super) fn stamp_of(held: BorrowedFd<'_>) -> io::Result<(Stamp, bool)> {
    Ok(split(&fstat(held)?))
}

fn split(stat: &FileStat) -> (Stamp, bool) {
    let time = |secs, nanos: i64| FileTime {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    };
    let stamp = Stamp {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    };
    (stamp, stat.st_nlink > 1)
}

/// One extended attribute.
#[derive(Debug)]
pub(super) struct Xattr {
    pub name: OsString,
    pub value: Vec<u8>,
}

/// Whether an attribute belongs to the host: it is neither sent, nor removed from what the destination
/// has.
pub(super) fn belongs_to_the_host(name: &OsStr) -> bool {
    HOST_BOUND_XATTRS.iter().any(|bound| name == *bound)
}

/// What `stat` does not say of an object.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// Sorted by name.
    pub xattrs: Vec<Xattr>,
    /// The text of a symbolic link.
    pub target: Vec<u8>,
}

impl Extra {
    /// Reads it from a held object.
    pub fn read(held: BorrowedFd<'_>, stamp: &Stamp) -> io::Result<Self> {
        let target = match stamp.kind() {
            libc::S_IFLNK => nix::fcntl::readlinkat(held, "")?.into_vec(),
            _ => Vec::new(),
        };
        let of = Of::Held(held);
        let mut xattrs = Vec::new();
        for name in xattr::list(of)? {
            // One that vanishes while we read is left out.
            if !belongs_to_the_host(&name)
                && let Some(value) = xattr::get(of, &name)?
            {
                xattrs.push(Xattr { name, value });
            }
        }
        Ok(Self { xattrs, target })
    }

    /// A hash of all of it; zero if there is nothing.
    pub fn hash(&self) -> Hash {
        if self.xattrs.is_empty() && self.target.is_empty() {
            return Hash::default();
        }
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(&self.target);
        for one in &self.xattrs {
            add(one.name.as_bytes());
            add(&one.value);
        }
        truncated(hasher.finalize())
    }
}

/// The first 16 bytes of a hash.
pub(super) fn truncated(hash: blake3::Hash) -> Hash {
    let mut short = Hash::default();
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}

/// Whether the object is not, or no longer, there as what it was: in a tree that is in use, this
/// may happen to any step.
pub(super) fn vanished(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE)
    )
}

/// How much room the tree takes on its filesystem: holes take none, hard links count once.
///
/// Exact if nobody writes; otherwise what a walk happened to see.
pub fn tree_bytes(root: &Path) -> Result<Bytes, StorageError> {
    let root = open(root)?;
    let mut linked = HashSet::new();
    let mut total = Bytes(0);
    let mut ahead = vec![Vec::new()];
    while let Some(path) = ahead.pop() {
        let listed = root
            .directory(&path)
            .and_then(|held| names(held.as_fd()).map(|names| (held, names)));
        let (held, names) = match listed {
            Err(error) if vanished(&error) && !path.is_empty() => continue,
            listed => listed.map_err(failed("list the directory", &path))?,
        };
        for name in names {
            let stat = match fstatat(&held, &*name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(error) if vanished(&error.into()) => continue,
                stat => stat.map_err(failed("look at", &joined(&path, &name)?))?,
            };
            let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if directory {
                ahead.push(joined(&path, &name)?);
            } else if stat.st_nlink > 1 && !linked.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            total += Bytes(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        }
    }
    Ok(total)
}

/// The path of `name` in the directory `path`, if a record can carry it.
pub(super) fn joined(path: &[u8], name: &[u8]) -> Result<Vec<u8>, StorageError> {
    let mut whole = Vec::with_capacity(path.len() + 1 + name.len());
    whole.extend_from_slice(path);
    if !path.is_empty() {
        whole.push(b'/');
    }
    whole.extend_from_slice(name);
    if whole.len() > MAX_PATH {
        return Err(StorageError::TooDeep {
            path: shown(&whole),
            length: whole.len(),
            limit: MAX_PATH,
        });
    }
    Ok(whole)
}

/// Opens a regular file that is held for reading, and leaves its access time alone.
pub(super) fn reader(held: BorrowedFd<'_>) -> io::Result<std::fs::File> {
    match beneath::reopen(held, OFlag::O_RDONLY | OFlag::O_NOATIME) {
        // Only the owner and root may ask for that.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            beneath::reopen(held, OFlag::O_RDONLY)
        }
        file => file,
    }
}
