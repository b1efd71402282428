//! Places beneath a container's root, found and made without ever leaving it.
//!
//! The tree may be an attacker's: an image with links for directories, or a volume in which another container
//! renames things while we look. So a path is resolved by the kernel as inside the root (`RESOLVE_IN_ROOT`: `..`
//! and absolute links end there), the answer is a descriptor, and whatever is done is done to the descriptor.
//!
//! Beneath the root there is one part that must be what it says: `/proc`. A mount that lands in it, by whatever
//! detour, could let a process believe that it writes to the kernel and write elsewhere; [`guard`] refuses it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys::tree;

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    Directory,
    File,
}

/// Which links are followed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// All, inside the root.
    Inside,
    /// None: a link in the way is an error.
    None,
}

/// A place that is there now.
pub(super) struct Place {
    pub fd: OwnedFd,
    /// Whether it was made just now.
    pub made: bool,
}

/// How often a path is tried again in which somebody keeps renaming things.
const ATTEMPTS: usize = 128;
/// How many links and missing directories one path may lead through.
const DEPTH: usize = 255;

/// Holds what is at `path`, relative to the root; nothing happens to it.
pub(super) fn find(root: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<OwnedFd> {
    open(root, path, OFlag::O_PATH, links)
}

/// Opens what is at `path`, relative to the root. Devices and pipes are opened, too: see that they are not, or
/// give `O_PATH`.
pub(super) fn open(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    links: Links,
) -> io::Result<OwnedFd> {
    let mut resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if links == Links::None {
        resolve |= ResolveFlag::RESOLVE_NO_SYMLINKS;
    }
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(resolve);
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let mut attempt = 0;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EINTR) => {}
            // The kernel could not prove that `..` stayed inside, because of a rename.
            Err(Errno::EAGAIN) if attempt < ATTEMPTS => attempt += 1,
            answer => return Ok(answer?),
        }
    }
}

/// Holds what is at `path`, and makes it and its parents where they are missing. A link that leads nowhere leads
/// to what is made, inside the root, as it would for a process there.
pub(super) fn ensure(
    root: BorrowedFd<'_>,
    path: &Path,
    make: Make,
    links: Links,
) -> io::Result<Place> {
    ensure_at(root, path, make, links, DEPTH)
}

fn ensure_at(
    root: BorrowedFd<'_>,
    path: &Path,
    make: Make,
    links: Links,
    depth: usize,
) -> io::Result<Place> {
    match find(root, path, links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        answer => return answer.map(|fd| Place { fd, made: false }),
    }
    let (Some(deeper), Some(parent)) = (depth.checked_sub(1), path.parent()) else {
        return Err(Errno::ELOOP.into());
    };
    let up = ensure_at(root, parent, Make::Directory, links, deeper)?.fd;
    if let Some(name) = path.file_name() {
        if let Ok(link) = readlinkat(&up, name) {
            if links == Links::None {
                return Err(Errno::ELOOP.into());
            }
            let to = PathBuf::from(link);
            let to = match to.strip_prefix("/") {
                Ok(inside) => inside.to_owned(),
                // Not shortened: the directories named may be links themselves.
                Err(_) => parent.join(to),
            };
            return ensure_at(root, &to, make, links, deeper);
        }
        match make {
            Make::Directory => mkdirat(&up, name, Mode::from_bits_truncate(0o755)),
            Make::File => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&up, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
            }
        }
        .or_else(|errno| {
            if errno == Errno::EEXIST {
                Ok(())
            } else {
                Err(errno)
            }
        })?;
    }
    // Once more from the root: what was made is looked for where the path leads now.
    let fd = find(root, path, links)?;
    Ok(Place { fd, made: true })
}

/// Files in `/proc` on which something may be mounted: numbers of the host that are commonly replaced.
const REPLACEABLE: [&str; 11] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/net/dev",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/sys/crypto/fips_enabled",
    "proc/sys/kernel/ns_last_pid",
    "proc/uptime",
];

/// Refuses a mount that would make `/proc` something else than it says, whatever path led there.
///
/// `target`: what is to be mounted on; `destination`: by which path; `mount`: what is to be mounted.
pub(super) fn guard(
    target: BorrowedFd<'_>,
    destination: &Path,
    mount: BorrowedFd<'_>,
) -> io::Result<()> {
    let is_proc = |fd| Ok::<bool, io::Error>(fstatfs(fd)?.filesystem_type() == PROC_SUPER_MAGIC);
    let at_proc = destination == Path::new("proc");
    if at_proc && is_proc(mount)? {
        return Ok(());
    }
    let replaceable = REPLACEABLE
        .iter()
        .any(|path| destination == Path::new(path));
    if at_proc || (is_proc(target)? && !replaceable) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the place is in /proc, which must stay the kernel's own",
        ));
    }
    Ok(())
}

/// Whether `fd` holds a directory.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(tree::kind(fstat(fd)?.st_mode) == SFlag::S_IFDIR)
}

/// Holds a directory of the host, which is trusted: links on the way are followed.
pub(super) fn hold(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// The directory in which `path` is or is to be, made where missing, and the name in it.
pub(super) fn parent<'a>(
    root: BorrowedFd<'_>,
    path: &'a Path,
) -> io::Result<(OwnedFd, &'a std::ffi::OsStr)> {
    let (Some(up), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let up = ensure(root, up, Make::Directory, Links::Inside)?.fd;
    if !is_directory(up.as_fd())? {
        return Err(Errno::ENOTDIR.into());
    }
    Ok((up, name))
}
