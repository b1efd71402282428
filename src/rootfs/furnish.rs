//! What every image has, whatever it was made from; and what a package build leaves that no container needs.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, mkdirat};

use super::files::{open_parent, set_mode, write};
use super::store_error::StoreError;
use crate::sys::tree;

/// Where the runtime mounts something in every container, with the mode that shows where it does not.
const MOUNT_POINTS: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];

/// What a program may rely on, and what must not be the building host's. The container's own name, neighbours
/// and name servers come to it when it starts.
const FILES: [(&str, &str); 4] = [
    ("etc/hostname", "localhost\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
    ("etc/resolv.conf", ""),
    // Empty means "not yet known" (machine-id(5)). A copied one would make all containers the same machine.
    ("etc/machine-id", ""),
];

/// Directories that a build fills, or that nobody reads in a container; emptied.
const EMPTIED: [&str; 15] = [
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr/share/bash-completion",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt",
    "var/log/apt",
    "var/tmp",
];

/// Files that tell of the build: its time, its machine, the state before the last change. Removed, and with
/// them what makes two builds of one recipe differ.
const REMOVED: [&str; 18] = [
    "etc/.pwd.lock",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old",
    "var/lib/systemd/random-seed",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
];

/// After a package build: documentation (but for the copyright files, whose licences ask to be kept),
/// caches and logs go; host-neutral system files and the mount points come.
pub(super) fn after_packages(path: &Path) -> Result<(), StoreError> {
    within(path, |root| {
        for directory in EMPTIED {
            empty(root, directory)?;
        }
        for file in REMOVED {
            remove(root, file)?;
        }
        thin_documentation(root)?;
        if !exists(root, "usr/bin/apt-get")? {
            remove(root, "etc/apt")?;
        }
        make_directory(root, "etc", 0o755)?;
        for (file, text) in FILES {
            write(root, file, text)?;
        }
        Ok(())
    })?;
    mount_points(path, true)
}

/// After a directory was copied: what is missing comes, everything else stays as it is.
pub(super) fn after_directory(path: &Path) -> Result<(), StoreError> {
    within(path, |root| {
        make_directory(root, "etc", 0o755)?;
        for (file, text) in FILES {
            if !exists(root, file)? {
                write(root, file, text)?;
            }
        }
        Ok(())
    })?;
    mount_points(path, false)
}

fn within(
    path: &Path,
    act: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<(), StoreError> {
    tree::open_root(path)
        .and_then(|root| act(root.as_fd()))
        .map_err(StoreError::io("finish the image in", path))
}

fn mount_points(path: &Path, set_modes: bool) -> Result<(), StoreError> {
    let root = tree::open_root(path).map_err(StoreError::io("open", path))?;
    let root = root.as_fd();
    for (name, mode) in MOUNT_POINTS {
        let fail = |operation| StoreError::io(operation, path.join(name));
        match tree::is_directory(root, OsStr::new(name)).map_err(fail("stat"))? {
            Some(false) => return Err(StoreError::NoMountPoint { name }),
            Some(true) if set_modes => {
                set_mode(root, OsStr::new(name), mode).map_err(fail("set the mode of"))?;
            }
            Some(true) => {}
            None => make_directory(root, name, mode).map_err(fail("create"))?,
        }
    }
    Ok(())
}

fn make_directory(root: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<()> {
    match mkdirat(root, name, Mode::S_IRWXU) {
        Ok(()) => set_mode(root, OsStr::new(name), mode),
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens the directory at `path` in the image, if there is one.
fn directory(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<std::os::fd::OwnedFd>> {
    match open_parent(root, path) {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

fn empty(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let Some(found) = directory(root, Path::new(path))? else {
        return Ok(());
    };
    let found = found.as_fd();
    for name in tree::names(found)? {
        tree::remove(found, &name)?;
    }
    Ok(())
}

fn remove(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let path = Path::new(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    match directory(root, parent)? {
        Some(parent) => tree::remove(parent.as_fd(), name),
        None => Ok(()),
    }
}

fn exists(root: BorrowedFd<'_>, path: &str) -> io::Result<bool> {
    // A link is there even where it leads nowhere.
    match tree::open_within(root, Path::new(path), OFlag::O_PATH | OFlag::O_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Of each package's documentation the file `copyright` stays (often a link to another package's).
fn thin_documentation(root: BorrowedFd<'_>) -> io::Result<()> {
    let Some(documentation) = directory(root, Path::new("usr/share/doc"))? else {
        return Ok(());
    };
    let documentation = documentation.as_fd();
    for package in tree::names(documentation)? {
        if tree::is_directory(documentation, &package)? != Some(true) {
            continue;
        }
        let inner = tree::open_directory(documentation, &package)?;
        for name in tree::names(inner.as_fd())? {
            if name != "copyright" {
                tree::remove(inner.as_fd(), &name)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_package_build_is_thinned_and_completed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in [
            "etc/apt",
            "usr/share/doc/a",
            "usr/share/man/man1",
            "var/log",
            "run/lock",
            "dev",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for file in [
            "etc/passwd",
            "etc/passwd-",
            "usr/share/doc/a/copyright",
            "dev/null",
        ] {
            fs::write(at(file), "x").unwrap();
        }
        fs::write(at("usr/share/doc/a/README"), "x").unwrap();
        fs::write(at("var/log/dpkg.log"), "x").unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), at("etc/resolv.conf")).unwrap();
        after_packages(dir.path()).unwrap();
        for gone in [
            "etc/apt",
            "etc/passwd-",
            "usr/share/doc/a/README",
            "var/log/dpkg.log",
        ] {
            assert!(!at(gone).exists(), "{gone}");
        }
        for kept in [
            "etc/passwd",
            "usr/share/doc/a/copyright",
            "var/log",
            "proc",
            "sys",
        ] {
            assert!(at(kept).exists(), "{kept}");
        }
        for (file, text) in FILES {
            assert_eq!(fs::read_to_string(at(file)).unwrap(), text, "{file}");
        }
        for empty in ["dev", "run", "usr/share/man"] {
            assert_eq!(fs::read_dir(at(empty)).unwrap().count(), 0, "{empty}");
        }
        let mode = fs::metadata(at("tmp")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        assert!(
            fs::symlink_metadata(at("etc/resolv.conf"))
                .unwrap()
                .is_file()
        );
    }

    #[test]
    fn a_directory_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hosts"), "mine").unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        let mode = Permissions::from_mode(0o700);
        fs::set_permissions(dir.path().join("tmp"), mode.clone()).unwrap();
        after_directory(dir.path()).unwrap();
        let hosts = fs::read_to_string(dir.path().join("etc/hosts")).unwrap();
        assert_eq!(hosts, "mine");
        let kept = fs::metadata(dir.path().join("tmp")).unwrap().permissions();
        assert_eq!(kept.mode() & 0o7777, mode.mode());
        assert!(dir.path().join("etc/hostname").exists() && dir.path().join("run").is_dir());
    }

    #[test]
    fn a_file_in_the_place_of_a_mount_point_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("usr", dir.path().join("proc")).unwrap();
        let error = after_directory(dir.path()).unwrap_err().to_string();
        assert!(error.contains("/proc"), "{error}");
    }
}
