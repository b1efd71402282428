//! The name of a file tree: BLAKE3 over everything in it that a program could tell apart.
//!
//! **The canonical form.** What is hashed is the line `godwit tree 1\n`, then one entry for the root and
//! for everything beneath it. The root comes first; the entries of a directory come sorted by the bytes of
//! their names, each followed at once by what lies beneath it. All numbers are little-endian.
//!
//! ```text
//! entry := path     u32 length, bytes         relative to the root, '/' between names; the root's is empty
//!          kind     u8                        1 directory  2 file  3 link  4 character device
//!                                             5 block device  6 named pipe
//!          mode     u32                       the twelve permission bits; of a link always 0777
//!          uid gid  u32 u32
//!          xattrs   u32 count, then of each, sorted by name: u32 length, name, u32 length, value
//!          body     file: u64 length, content · link: u32 length, destination · device: u32 major, u32 minor
//! ```
//!
//! Every field has a fixed or a stated length, so two different trees never give the same bytes.
//!
//! Not part of it: times (two builds of one recipe differ in nothing else), inode numbers, the size of
//! directories, holes in files, and which names are hard links to one file. Not part of it either are the
//! attributes in [`HOST_BOUND_XATTRS`], which a host's own security modules set. A socket has no meaning
//! apart from the process that listens on it, and is refused.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blake3::Hasher;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat, major, minor};

use crate::model::Digest;
use crate::sys::tree;
use crate::sys::xattr::{self, Of};

/// Extended attributes that belong to the host a file lies on, not to the file.
pub const HOST_BOUND_XATTRS: [&str; 3] = ["security.selinux", "security.ima", "security.evm"];

/// No tree is deeper. Real ones stay under thirty; each level costs a descriptor.
const DEEPEST: usize = 256;

/// Why a tree has no digest.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// Something could not be read.
    #[error("cannot {operation} {path:?} to take its digest")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody wrote while we read.
    #[error(
        "{path:?} changed while its digest was taken: stop whatever writes to it and try again"
    )]
    Changed {
        /// What changed.
        path: PathBuf,
    },
    /// There is something that cannot be in an image.
    #[error("{path:?} is {what}, which cannot be in an image: remove it and try again")]
    NotStorable {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Directories in directories in directories.
    #[error("{path:?} lies more than {DEEPEST} directories deep: no image may be that deep")]
    TooDeep {
        /// The directory that is too deep.
        path: PathBuf,
    },
}

/// The digest of the tree at `root`, as the head of this file defines it. It reads everything and writes
/// nothing; it follows no link and crosses no mount.
pub fn digest(root: &Path) -> Result<Digest, DigestError> {
    let fail = |operation, source| DigestError::Io {
        operation,
        path: root.to_owned(),
        source,
    };
    let directory = tree::open_root(root).map_err(|e| fail("open", e))?;
    let stat = fstat(&directory).map_err(|e| fail("stat", e.into()))?;
    let mut taker = Taker {
        hasher: Hasher::new(),
        root,
        path: PathBuf::new(),
        buffer: vec![0; 256 * 1024],
    };
    taker.hasher.update(b"godwit tree 1\n");
    taker.head(1, &stat, Of::Open(directory.as_fd()))?;
    taker.beneath(directory.as_fd(), 0)?;
    Ok(Digest(*taker.hasher.finalize().as_bytes()))
}

struct Taker<'a> {
    hasher: Hasher,
    root: &'a Path,
    /// Where we are, relative to the root.
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Taker<'_> {
    fn beneath(&mut self, directory: BorrowedFd<'_>, depth: usize) -> Result<(), DigestError> {
        if depth > DEEPEST {
            let path = self.here();
            return Err(DigestError::TooDeep { path });
        }
        for name in tree::names(directory).map_err(|e| self.io("list", e))? {
            self.path.push(&name);
            self.entry(directory, &name, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        depth: usize,
    ) -> Result<(), DigestError> {
        let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|e| self.io("stat", e.into()))?;
        let outside = || xattr::path_in(parent, name);
        match tree::kind(stat.st_mode) {
            SFlag::S_IFDIR => {
                let inner = tree::open_directory(parent, name).map_err(|e| self.io("open", e))?;
                self.same(&stat, &inner)?;
                self.head(1, &stat, Of::Open(inner.as_fd()))?;
                self.beneath(inner.as_fd(), depth + 1)
            }
            SFlag::S_IFREG => {
                let file = tree::open_file(parent, name).map_err(|e| self.io("open", e))?;
                self.same(&stat, &file)?;
                self.head(2, &stat, Of::Open(file.as_fd()))?;
                self.content(file, stat.st_size)
            }
            SFlag::S_IFLNK => {
                self.head(3, &stat, Of::At(&outside()))?;
                let to = readlinkat(parent, name).map_err(|e| self.io("read", e.into()))?;
                self.bytes(to.as_bytes());
                Ok(())
            }
            kind @ (SFlag::S_IFCHR | SFlag::S_IFBLK) => {
                let tag = if kind == SFlag::S_IFCHR { 4 } else { 5 };
                self.head(tag, &stat, Of::At(&outside()))?;
                self.number(major(stat.st_rdev));
                self.number(minor(stat.st_rdev));
                Ok(())
            }
            SFlag::S_IFIFO => self.head(6, &stat, Of::At(&outside())),
            _ => Err(DigestError::NotStorable {
                path: self.here(),
                what: "a socket",
            }),
        }
    }

    /// Everything of an entry but its body.
    fn head(&mut self, kind: u8, stat: &FileStat, of: Of<'_>) -> Result<(), DigestError> {
        let path = std::mem::take(&mut self.path);
        self.bytes(path.as_os_str().as_bytes());
        self.path = path;
        self.hasher.update(&[kind]);
        let is_link = tree::kind(stat.st_mode) == SFlag::S_IFLNK;
        self.number(u64::from(if is_link {
            0o777
        } else {
            stat.st_mode & 0o7777
        }));
        self.number(u64::from(stat.st_uid));
        self.number(u64::from(stat.st_gid));
        let mut names = xattr::list(of).map_err(|e| self.io("list the attributes of", e))?;
        names.retain(|name| !HOST_BOUND_XATTRS.iter().any(|bound| name == bound));
        self.number(names.len() as u64);
        for name in names {
            let value = xattr::get(of, &name).map_err(|e| self.io("read an attribute of", e))?;
            let value = value.ok_or_else(|| DigestError::Changed { path: self.here() })?;
            self.bytes(name.as_bytes());
            self.bytes(&value);
        }
        Ok(())
    }

    fn content(&mut self, file: OwnedFd, size: i64) -> Result<(), DigestError> {
        let size = u64::try_from(size).unwrap_or(0);
        self.hasher.update(&size.to_le_bytes());
        let mut file = File::from(file);
        let mut left = size;
        loop {
            let got = match file.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|e| self.io("read", e))?,
            };
            if got as u64 > left || (got == 0 && left > 0) {
                return Err(DigestError::Changed { path: self.here() });
            }
            if got == 0 {
                return Ok(());
            }
            left -= got as u64;
            self.hasher.update(&self.buffer[..got]);
        }
    }

    /// What was opened must be what was looked at.
    fn same(&self, seen: &FileStat, opened: &OwnedFd) -> Result<(), DigestError> {
        let now = fstat(opened).map_err(|e| self.io("stat", e.into()))?;
        if (now.st_dev, now.st_ino, now.st_mode) == (seen.st_dev, seen.st_ino, seen.st_mode) {
            Ok(())
        } else {
            Err(DigestError::Changed { path: self.here() })
        }
    }

    /// A number of 32 bits. Lengths of paths, attributes and links, ids and device numbers all fit.
    fn number(&mut self, number: u64) {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.hasher.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.hasher.update(bytes);
    }

    fn here(&self) -> PathBuf {
        self.root.join(&self.path)
    }

    fn io(&self, operation: &'static str, source: io::Error) -> DigestError {
        DigestError::Io {
            operation,
            path: self.here(),
            source,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use nix::sys::stat::{Mode, mknod};
    use nix::unistd::{Gid, Uid, chown, mkfifo};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::SystemTime;

    /// A small tree with one of everything that needs no privilege.
    fn given_tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir_in(".").unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(at("etc")).unwrap();
        fs::write(at("etc/hostname"), "host\n").unwrap();
        fs::write(at("empty"), "").unwrap();
        symlink("etc/hostname", at("link")).unwrap();
        mkfifo(&at("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        for (name, mode) in [("etc", 0o755), ("etc/hostname", 0o644), ("empty", 0o600)] {
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    #[track_caller]
    fn check_change(what: &str, change: impl FnOnce(&Path)) {
        let dir = given_tree();
        let before = digest(dir.path()).unwrap();
        assert_eq!(before, digest(given_tree().path()).unwrap(), "not stable");
        change(dir.path());
        assert_ne!(before, digest(dir.path()).unwrap(), "{what} does not count");
    }

    #[track_caller]
    fn check_no_change(what: &str, change: impl FnOnce(&Path)) {
        let dir = given_tree();
        let before = digest(dir.path()).unwrap();
        change(dir.path());
        assert_eq!(before, digest(dir.path()).unwrap(), "{what} counts");
    }

    #[test]
    fn every_attribute_changes_the_digest() {
        check_change("a name", |d| {
            fs::rename(d.join("empty"), d.join("empti")).unwrap()
        });
        check_change("a file more", |d| fs::write(d.join("new"), "").unwrap());
        check_change("a file less", |d| fs::remove_file(d.join("empty")).unwrap());
        check_change("a directory more", |d| {
            fs::create_dir(d.join("etc/d")).unwrap()
        });
        check_change("content", |d| {
            fs::write(d.join("etc/hostname"), "hosT\n").unwrap()
        });
        check_change("length", |d| {
            fs::write(d.join("etc/hostname"), "host\n\0").unwrap()
        });
        check_change("where a link leads", |d| {
            fs::remove_file(d.join("link")).unwrap();
            symlink("etc/hostnamE", d.join("link")).unwrap();
        });
        check_change("the type", |d| {
            fs::remove_file(d.join("empty")).unwrap();
            mkfifo(&d.join("empty"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        });
        for (name, mode) in [
            ("", 0o700),
            ("etc", 0o1755),
            ("etc/hostname", 0o4644),
            ("pipe", 0o640),
        ] {
            check_change(&format!("the mode of {name:?}"), |d| {
                fs::set_permissions(d.join(name), Permissions::from_mode(mode)).unwrap();
            });
        }
    }

    #[test]
    fn a_moved_border_between_name_and_content_changes_the_digest() {
        let tree = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (name, content) in files {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            digest(dir.path()).unwrap()
        };
        assert_ne!(tree(&[("ab", "c")]), tree(&[("a", "bc")]));
        assert_ne!(tree(&[("a/b", "")]), tree(&[("a/x", ""), ("b", "")]));
        // Sorted by name within a directory, and not by whole paths: '-' sorts before '/'.
        assert_eq!(
            tree(&[("a/b", "1"), ("a-b", "2")]),
            tree(&[("a-b", "2"), ("a/b", "1")])
        );
    }

    #[test]
    fn times_and_hard_links_do_not_count() {
        check_no_change("a time", |d| {
            let file = File::options().write(true).open(d.join("empty")).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        });
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &two] {
            fs::write(dir.path().join("a"), "same").unwrap();
        }
        fs::hard_link(one.path().join("a"), one.path().join("b")).unwrap();
        fs::write(two.path().join("b"), "same").unwrap();
        assert_eq!(digest(one.path()).unwrap(), digest(two.path()).unwrap());
    }

    #[test]
    fn an_attribute_counts_by_name_and_by_value() {
        let set = |d: &Path, name: &str, value: &[u8]| {
            xattr::set(Of::At(&d.join("empty")), OsStr::new(name), value)
        };
        let probe = given_tree();
        if set(probe.path(), "user.x", b"1").is_err() {
            println!("SKIP an_attribute_counts_by_name_and_by_value: no user attributes here");
            return;
        }
        let with = |name: &str, value: &[u8]| {
            let dir = given_tree();
            set(dir.path(), name, value).unwrap();
            digest(dir.path()).unwrap()
        };
        let plain = digest(given_tree().path()).unwrap();
        let all = [
            plain,
            with("user.x", b"1"),
            with("user.x", b"2"),
            with("user.y", b"1"),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one), "number {i} equals an earlier one");
        }
    }

    #[test]
    fn owners_and_device_numbers_count() {
        if !Uid::effective().is_root() {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
            assert!(!required, "owners_and_device_numbers_count needs root");
            println!("SKIP owners_and_device_numbers_count: needs root");
            return;
        }
        let own = |d: &Path, uid, gid| {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            chown(&d.join("empty"), uid, gid).unwrap();
        };
        check_change("the owner", |d| own(d, 7, 0));
        check_change("the group", |d| own(d, 0, 7));
        let device = |kind, number| {
            let dir = given_tree();
            mknod(&dir.path().join("dev"), kind, Mode::S_IRUSR, number).unwrap();
            digest(dir.path()).unwrap()
        };
        let makedev = nix::sys::stat::makedev;
        let first = device(SFlag::S_IFCHR, makedev(1, 3));
        assert_ne!(first, device(SFlag::S_IFCHR, makedev(1, 5)));
        assert_ne!(first, device(SFlag::S_IFCHR, makedev(5, 3)));
        assert_ne!(first, device(SFlag::S_IFBLK, makedev(1, 3)));
    }

    #[test]
    fn a_socket_is_refused_by_name() {
        let dir = given_tree();
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
        let error = digest(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("sock") && error.contains("socket"),
            "{error}"
        );
    }

    #[test]
    fn the_form_is_the_one_that_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "hi").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        mode(dir.path(), 0o755).unwrap();
        mode(&dir.path().join("f"), 0o644).unwrap();
        let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
        let mut form = b"godwit tree 1\n".to_vec();
        let mut entry = |path: &str, kind: u8, mode: u32| {
            form.extend((path.len() as u32).to_le_bytes());
            form.extend(path.bytes());
            form.push(kind);
            for number in [mode, uid, gid, 0] {
                form.extend(number.to_le_bytes());
            }
        };
        entry("", 1, 0o755);
        entry("f", 2, 0o644);
        form.extend(2_u64.to_le_bytes());
        form.extend(b"hi");
        let expected = Digest(*blake3::hash(&form).as_bytes());
        assert_eq!(digest(dir.path()).unwrap(), expected);
    }
}
