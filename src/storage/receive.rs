//! The destination: applies records beneath a root, as they come.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate};
use nix::libc;
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::Totals;
use super::error::{StorageError, failed, shown};
use super::scan::{self, stamp_at, stamp_of};
use super::wire::{self, Attributes, NodeKind, Record, TreePath};
use crate::sys::beneath::{self, Root, held_path, open_at};
use crate::sys::tree;
use crate::sys::xattr::{self, Of};

/// Makes the tree below a root what the source says.
///
/// The records of one pass are applied in the order in which they were sent. They are not trusted: a
/// record can do harm to the tree below the root, which is the sender's own, and to nothing else. No
/// step follows a symbolic link, and nothing but a regular file is ever opened for writing.
#[derive(Debug)]
pub struct Receiver {
    root: Root,
    /// The directory of the last record: the next one is often in it too.
    directory: Option<(Vec<u8>, Arc<OwnedFd>)>,
    /// The file of the last record with contents.
    file: Option<(Vec<u8>, Arc<File>)>,
    totals: Totals,
}

impl Receiver {
    /// A receiver into the directory `root`, which exists: empty, or with what the passes before have
    /// left in it.
    pub fn new(root: &Path) -> Result<Self, StorageError> {
        Ok(Self {
            root: scan::open(root)?,
            directory: None,
            file: None,
            totals: Totals::default(),
        })
    }

    /// Applies one batch, as a sink was given it. Of a batch that is not valid, nothing is applied.
    pub fn apply(&mut self, batch: &[u8]) -> Result<(), StorageError> {
        let records = wire::decode(batch).map_err(|source| StorageError::Batch {
            length: batch.len(),
            source,
        })?;
        for record in &records {
            self.record(record)?;
            self.totals.count(record);
        }
        Ok(())
    }

    /// The pass is over. Times of directories need no work now: each came after what is in it.
    pub fn finish(self) -> Result<Totals, StorageError> {
        Ok(self.totals)
    }

    /// Waits until the filesystem has everything on the disk.
    ///
    /// Once the source has let go, a loss of power must not lose what the container had synced
    /// there: call it after the last pass, and after the first, so that little is left for the last.
    pub fn sync(&self) -> Result<(), StorageError> {
        let held = self.root.directory(b"");
        let held = held.map_err(failed("open the directory", b""))?;
        nix::unistd::syncfs(held).map_err(failed("sync the filesystem of", b""))
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), StorageError> {
        match *record {
            Record::Directory { path } => self.make_directory(path),
            Record::File { path, size } => self.make_file(path, size),
            Record::Resize { path, size } => self
                .file(path)?
                .set_len(size)
                .map_err(failed("resize", path.bytes())),
            Record::Data {
                path,
                offset,
                bytes,
            } => self
                .file(path)?
                .write_all_at(bytes, offset)
                .map_err(failed("write to", path.bytes())),
            Record::Hole {
                path,
                offset,
                length,
            } => punch(&*self.file(path)?, offset, length)
                .map_err(failed("make a hole in", path.bytes())),
            Record::Symlink { path, target } => self.make(path, "make the link", |at, name| {
                symlinkat(target, at, name)
            }),
            Record::Node { path, kind, rdev } => {
                let kind = match kind {
                    NodeKind::Fifo => SFlag::S_IFIFO,
                    NodeKind::Character => SFlag::S_IFCHR,
                    NodeKind::Block => SFlag::S_IFBLK,
                    NodeKind::Socket => SFlag::S_IFSOCK,
                };
                self.make(path, "make the special file", |at, name| {
                    mknodat(at, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, rdev)
                })
            }
            Record::Link { path, to } => self.make_link(path, to),
            Record::Attributes {
                path,
                ref attributes,
            } => set_attributes(self.hold(path)?.as_fd(), path, attributes),
            Record::Xattr { path, name, value } => {
                set_xattr(self.hold(path)?.as_fd(), path, name, value)
            }
            Record::Delete { path } => self.delete(path),
        }
    }

    /// The directory in which `path` has its last name, and this name.
    fn place<'p>(&mut self, path: TreePath<'p>) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        let (above, name) = path.split().ok_or(Errno::EBUSY)?;
        if let Some((known, held)) = &self.directory
            && known == above.bytes()
        {
            return Ok((held.clone(), name));
        }
        let held = Arc::new(self.root.directory(above.bytes())?);
        self.directory = Some((above.bytes().to_vec(), held.clone()));
        Ok((held, name))
    }

    /// Holds what is at `path`.
    fn hold(&mut self, path: TreePath<'_>) -> Result<OwnedFd, StorageError> {
        let held = match path.bytes() {
            b"" => self.root.directory(b""),
            _ => self.place(path).and_then(|(at, name)| {
                open_at(at.as_fd(), name, OFlag::O_PATH | OFlag::O_NOFOLLOW)
            }),
        };
        held.map_err(failed("find", path.bytes()))
    }

    /// The regular file at `path`, to be written to. Its type is known before it is opened: a device
    /// or a pipe is never opened, whoever put it there.
    fn file(&mut self, path: TreePath<'_>) -> Result<Arc<File>, StorageError> {
        if let Some((known, file)) = &self.file
            && known == path.bytes()
        {
            return Ok(file.clone());
        }
        let held = self.hold(path)?;
        let look = stamp_of(held.as_fd()).map_err(failed("look at", path.bytes()))?;
        if !look.0.is_file() {
            return Err(StorageError::NotAFile {
                path: shown(path.bytes()),
            });
        }
        let file = beneath::reopen(held.as_fd(), OFlag::O_WRONLY);
        let file = Arc::new(file.map_err(failed("open", path.bytes()))?);
        self.file = Some((path.bytes().to_vec(), file.clone()));
        Ok(file)
    }

    /// Makes something new at `path`, in the place of what is there.
    fn make<T>(
        &mut self,
        path: TreePath<'_>,
        operation: &'static str,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> nix::Result<T>,
    ) -> Result<T, StorageError> {
        self.file = None;
        let mut attempt = || {
            let (at, name) = self.place(path)?;
            match make(at.as_fd(), name) {
                Err(Errno::EEXIST) => {}
                answer => return Ok(answer?),
            }
            // What goes may be the directory we know, or above it.
            self.directory = None;
            tree::remove(at.as_fd(), OsStr::from_bytes(name))?;
            Ok(make(at.as_fd(), name)?)
        };
        attempt().map_err(|error: io::Error| failed(operation, path.bytes())(error))
    }

    fn make_directory(&mut self, path: TreePath<'_>) -> Result<(), StorageError> {
        self.make(path, "make the directory", |at, name| {
            match mkdirat(at, name, Mode::S_IRWXU) {
                Err(Errno::EEXIST) if is_directory(at, name) => Ok(()),
                answer => answer,
            }
        })
    }

    fn make_file(&mut self, path: TreePath<'_>, size: u64) -> Result<(), StorageError> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let made = self.make(path, "make the file", |at, name| {
            nix::fcntl::openat(at, name, flags | OFlag::O_NOFOLLOW, mode)
        })?;
        let file = File::from(made);
        file.set_len(size).map_err(failed("resize", path.bytes()))?;
        self.file = Some((path.bytes().to_vec(), Arc::new(file)));
        Ok(())
    }

    fn make_link(&mut self, path: TreePath<'_>, to: TreePath<'_>) -> Result<(), StorageError> {
        let (above, other) = to
            .split()
            .ok_or(Errno::EISDIR)
            .map_err(failed("link to", to.bytes()))?;
        let from = self.root.directory(above.bytes());
        let from = from.map_err(failed("find", to.bytes()))?;
        self.make(path, "make the hard link", |at, name| {
            match linkat(&from, other, at, name, AtFlags::empty()) {
                Err(Errno::EEXIST) if same_inode((from.as_fd(), other), (at, name)) => Ok(()),
                answer => answer,
            }
        })
    }

    fn delete(&mut self, path: TreePath<'_>) -> Result<(), StorageError> {
        self.file = None;
        self.directory = None;
        let removed = match path.bytes() {
            b"" => self.empty(),
            _ => match self.place(path) {
                Ok((at, name)) => tree::remove(at.as_fd(), OsStr::from_bytes(name)),
                Err(error) if scan::vanished(&error) => Ok(()),
                Err(error) => Err(error),
            },
        };
        removed.map_err(failed("remove", path.bytes()))
    }

    fn empty(&self) -> io::Result<()> {
        let held = self.root.directory(b"")?;
        let mut names = tree::names(held.as_fd())?.into_iter();
        names.try_for_each(|name| tree::remove(held.as_fd(), &name))
    }
}

fn is_directory(at: BorrowedFd<'_>, name: &[u8]) -> bool {
    matches!(stamp_at(at, name), Ok((stamp, _)) if stamp.is_directory())
}

fn same_inode(one: (BorrowedFd<'_>, &[u8]), other: (BorrowedFd<'_>, &[u8])) -> bool {
    match (stamp_at(one.0, one.1), stamp_at(other.0, other.1)) {
        (Ok((one, _)), Ok((other, _))) => one.inode() == other.inode(),
        _ => false,
    }
}

fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let number = |value| i64::try_from(value).map_err(|_| Errno::EFBIG);
    if length > 0 {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, number(offset)?, number(length)?)?;
    }
    Ok(())
}

/// Sets everything, in the one order that works: a change of the owner clears set-id bits and
/// capabilities, and an access list changes the mode.
fn set_attributes(
    held: BorrowedFd<'_>,
    path: TreePath<'_>,
    wished: &Attributes<'_>,
) -> Result<(), StorageError> {
    let (stamp, _) = stamp_of(held).map_err(failed("look at", path.bytes()))?;
    let (uid, gid) = (Uid::from_raw(wished.uid), Gid::from_raw(wished.gid));
    fchownat(held, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
        .map_err(failed("change the owner of", path.bytes()))?;
    let names =
        xattr::list(Of::Held(held)).map_err(failed("list the attributes of", path.bytes()))?;
    for name in names {
        let stays = wished
            .xattrs
            .iter()
            .any(|(kept, _)| *kept == name.as_bytes());
        if !stays && !scan::belongs_to_the_host(&name) {
            xattr::remove(Of::Held(held), &name)
                .map_err(|source| StorageError::xattr("remove", name.as_bytes(), path, source))?;
        }
    }
    for (name, value) in &wished.xattrs {
        set_xattr(held, path, name, value)?;
    }
    let place = held_path(held);
    if stamp.kind() != libc::S_IFLNK {
        let mode = Mode::from_bits_truncate(wished.mode);
        fchmodat(AT_FDCWD, &*place, mode, FchmodatFlags::FollowSymlink)
            .map_err(failed("change the mode of", path.bytes()))?;
    }
    let mtime = TimeSpec::new(wished.mtime.secs, i64::from(wished.mtime.nanos));
    utimensat(
        AT_FDCWD,
        &*place,
        &TimeSpec::UTIME_OMIT,
        &mtime,
        UtimensatFlags::FollowSymlink,
    )
    .map_err(failed("set the time of", path.bytes()))
}

fn set_xattr(
    held: BorrowedFd<'_>,
    path: TreePath<'_>,
    name: &[u8],
    value: &[u8],
) -> Result<(), StorageError> {
    if scan::belongs_to_the_host(OsStr::from_bytes(name)) {
        return Ok(());
    }
    xattr::set(Of::Held(held), OsStr::from_bytes(name), value)
        .map_err(|source| StorageError::xattr("set", name, path, source))
}
