//! Opening beneath a root: `openat2` that follows no link and crosses no mount.
//!
//! A path that comes from a peer or from inside a container is never given to the kernel as it is.
//! It is resolved below a directory that we hold open, so that neither `..`, nor an absolute path,
//! nor a symbolic link planted half-way can lead outside. Paths may be longer than the kernel's
//! `PATH_MAX`: they are walked in pieces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// The longest piece of a path given to the kernel at once, in bytes: below `PATH_MAX`, which
/// counts the closing zero.
const PIECE: usize = 4000;

/// How often a resolution is tried again that the kernel could not prove safe, because something
/// was renamed meanwhile.
const ATTEMPTS: usize = 16;

/// A directory held open, below which everything is resolved.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Holds the directory `path`, which is trusted: links in it are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Opens `path`, relative to the root, with `flags`; the empty path is the root itself.
    pub fn open_beneath(&self, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
        let mut held: Option<OwnedFd> = None;
        let mut rest = if path.is_empty() { b"." } else { path };
        while let Some(end) = first_piece(rest)? {
            let from = held.as_ref().map_or(self.fd.as_fd(), |fd| fd.as_fd());
            let next = open_at(from, &rest[..end], OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            held = Some(next);
            rest = &rest[end + 1..];
        }
        let from = held.as_ref().map_or(self.fd.as_fd(), |fd| fd.as_fd());
        open_at(from, rest, flags)
    }

    /// The object at `path`, whatever it is, not opened for reading or writing: nothing happens to
    /// a device or a pipe. A symbolic link is itself, not what it names.
    pub fn handle(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_beneath(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)
    }

    /// The directory at `path`, to be read and worked in.
    pub fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_beneath(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }
}

/// Where the first piece of a too long path ends (at a slash); nothing for a path that fits.
fn first_piece(path: &[u8]) -> io::Result<Option<usize>> {
    if path.len() <= PIECE {
        return Ok(None);
    }
    let slash = path[..PIECE].iter().rposition(|&c| c == b'/');
    slash.map(Some).ok_or_else(|| Errno::ENAMETOOLONG.into())
}

/// Opens `path` below the directory `at`, following no link and crossing no mount.
pub fn open_at(at: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    );
    let mut attempt = 0;
    loop {
        match openat2(at, path, how) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if attempt < ATTEMPTS => attempt += 1,
            answer => return Ok(answer?),
        }
    }
}

/// The path under which this process finds what `fd` holds; it works for handles too, and follows
/// nothing further.
pub fn held_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens what a handle holds once more, with `flags`. The caller has made sure of its type.
pub fn reopen(handle: BorrowedFd<'_>, flags: OFlag) -> io::Result<File> {
    let path = held_path(handle);
    let fd = nix::fcntl::open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(File::from(fd))
}

/// `bytes` as a path of this system, where any byte but zero may stand.
pub fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Read;

    fn given_a_tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
        std::fs::write(dir.path().join("tree/a/b/file"), "inside").unwrap();
        std::fs::write(dir.path().join("outside"), "outside").unwrap();
        let root = Root::open(&dir.path().join("tree")).unwrap();
        (dir, root)
    }

    #[test]
    fn a_file_beneath_is_opened() {
        let (_dir, root) = given_a_tree();
        let handle = root.handle(b"a/b/file").unwrap();
        let mut text = String::new();
        reopen(handle.as_fd(), OFlag::O_RDONLY)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "inside");
        assert!(root.directory(b"").is_ok());
    }

    #[test]
    fn no_way_leads_outside() {
        let (dir, root) = given_a_tree();
        let tree = dir.path().join("tree");
        std::os::unix::fs::symlink("..", tree.join("up")).unwrap();
        std::os::unix::fs::symlink(dir.path(), tree.join("away")).unwrap();
        let absolute = dir.path().join("outside");
        for path in [
            &b"../outside"[..],
            b"a/../../outside",
            b"up/outside",
            b"away/outside",
            absolute.as_os_str().as_bytes(),
        ] {
            assert!(root.handle(path).is_err(), "{}", as_path(path).display());
        }
        assert!(root.directory(b"up").is_err());
        // The link itself can be held.
        assert!(root.handle(b"up").is_ok());
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_walked() {
        let (dir, root) = given_a_tree();
        let name = [b'n'; 200];
        let mut path = Vec::new();
        let mut at = root.directory(b"").unwrap();
        for _ in 0..40 {
            nix::sys::stat::mkdirat(&at, &name[..], Mode::S_IRWXU).unwrap();
            at = open_at(at.as_fd(), &name, OFlag::O_RDONLY | OFlag::O_DIRECTORY).unwrap();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
        }
        assert!(path.len() > 8000);
        assert!(root.directory(&path).is_ok());
        path.extend_from_slice(b"/missing");
        let error = root.directory(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOENT));
        drop(dir);
    }
}
