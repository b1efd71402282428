//! The files that a template brings along, laid over a finished tree.
//!
//! They come out of somebody's checkout, so their owner and most of their mode mean nothing: in the image
//! they belong to root, and are `0755` where they can be executed and `0644` where not, which is all that a
//! version control system keeps.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use blake3::Hasher;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat};
use nix::unistd::symlinkat;

use super::copy::create;
use super::store_error::StoreError;
use crate::storage::DigestError;
use crate::sys::tree;

/// One thing that a template brings along.
enum Found {
    Directory,
    File { content: OwnedFd, program: bool },
    Link(std::ffi::OsString),
}

/// Feeds `hasher` with all that [`lay`] would write, and nothing else.
pub(super) fn hash(files: &Path, hasher: &mut Hasher) -> Result<(), StoreError> {
    walk(files, &mut |path, found| {
        let path = path.as_os_str().as_bytes();
        hasher.update(&(path.len() as u64).to_le_bytes());
        hasher.update(path);
        match found {
            Found::Directory => hasher.update(&[1]),
            Found::File { content, program } => {
                hasher.update(&[2, u8::from(program)]);
                let mut inner = Hasher::new();
                inner.update_reader(File::from(content))?;
                hasher.update(inner.finalize().as_bytes())
            }
            Found::Link(to) => {
                hasher.update(&[3]);
                hasher.update(&(to.len() as u64).to_le_bytes());
                hasher.update(to.as_bytes())
            }
        };
        Ok(())
    })
}

/// Lays `files` over the tree `root`: directories are joined, everything else is replaced. Where the tree
/// has a link in the way to a directory (`/bin`), it is followed as a process inside would.
pub(super) fn lay(files: &Path, root: &Path) -> Result<(), StoreError> {
    let tree = tree::open_root(root).map_err(StoreError::io("open", root))?;
    walk(files, &mut |path, found| place(tree.as_fd(), path, found))
}

fn place(root: BorrowedFd<'_>, path: &Path, found: Found) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let parent = open_parent(root, parent)?;
    let parent = parent.as_fd();
    match found {
        Found::Directory => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            match tree::open_within(root, path, flags) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return result.map(drop),
            }
            mkdirat(parent, name, Mode::S_IRWXU)?;
            set_mode(parent, name, 0o755)
        }
        Found::File { content, program } => {
            tree::remove(parent, name)?;
            let mut target = File::from(create(parent, name)?);
            io::copy(&mut File::from(content), &mut target)?;
            target.set_permissions(Permissions::from_mode(if program { 0o755 } else { 0o644 }))
        }
        Found::Link(to) => {
            tree::remove(parent, name)?;
            Ok(symlinkat(to.as_os_str(), parent, name)?)
        }
    }
}

/// Opens a directory of an image, as a process inside would.
pub(super) fn open_parent(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    tree::open_within(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// Sets a mode as it is, whatever the umask of the daemon.
pub(super) fn set_mode(parent: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(mode);
    Ok(fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?)
}

type Visitor<'a> = dyn FnMut(&Path, Found) -> io::Result<()> + 'a;

/// Visits everything in `files`, sorted, directories before what is in them.
fn walk(files: &Path, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
    let root = tree::open_root(files).map_err(StoreError::io("open", files))?;
    beneath(files, root.as_fd(), &PathBuf::new(), visit)
}

fn beneath(
    files: &Path,
    directory: BorrowedFd<'_>,
    path: &Path,
    visit: &mut Visitor<'_>,
) -> Result<(), StoreError> {
    let names = tree::names(directory).map_err(StoreError::io("list", files.join(path)))?;
    for name in names {
        let path = path.join(&name);
        let fail = |operation| StoreError::io(operation, files.join(&path));
        let stat = fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| fail("stat")(errno.into()))?;
        let mut inner = None;
        let found = match tree::kind(stat.st_mode) {
            SFlag::S_IFDIR => {
                inner = Some(tree::open_directory(directory, &name).map_err(fail("open"))?);
                Found::Directory
            }
            SFlag::S_IFREG => Found::File {
                content: tree::open_file(directory, &name).map_err(fail("open"))?,
                program: stat.st_mode & 0o100 != 0,
            },
            SFlag::S_IFLNK => Found::Link(
                readlinkat(directory, name.as_os_str())
                    .map_err(|errno| fail("read")(errno.into()))?,
            ),
            _ => {
                let source = DigestError::NotStorable {
                    path: files.join(&path),
                    what: "neither a file, a directory nor a link",
                };
                return Err(StoreError::Digest { source });
            }
        };
        visit(&path, found).map_err(fail("add to the image"))?;
        if let Some(inner) = inner {
            beneath(files, inner.as_fd(), &path, visit)?;
        }
    }
    Ok(())
}

/// Writes a small file of root's into an image, in the place of whatever is there. Its directory must exist.
pub(super) fn write(root: BorrowedFd<'_>, path: &str, text: &str) -> io::Result<()> {
    let path = Path::new(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = open_parent(root, parent)?;
    tree::remove(parent.as_fd(), name)?;
    let file = create(parent.as_fd(), name)?;
    io::copy(&mut text.as_bytes(), &mut File::from(file))?;
    set_mode(parent.as_fd(), name, 0o644)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn hash_of(files: &Path) -> [u8; 32] {
        let mut hasher = Hasher::new();
        hash(files, &mut hasher).unwrap();
        *hasher.finalize().as_bytes()
    }

    #[test]
    fn files_replace_what_is_there_and_join_directories() {
        let (files, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(files.path().join("bin")).unwrap();
        fs::create_dir_all(files.path().join("etc/new")).unwrap();
        fs::write(files.path().join("bin/tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(files.path().join("bin/tool"), Permissions::from_mode(0o700)).unwrap();
        fs::write(files.path().join("etc/conf"), "new").unwrap();
        symlink("conf", files.path().join("etc/link")).unwrap();
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink("usr/bin", root.path().join("bin")).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), root.path().join("etc/conf")).unwrap();
        fs::write(root.path().join("etc/kept"), "old").unwrap();

        lay(files.path(), root.path()).unwrap();
        let mode = |path: &str| {
            let meta = fs::symlink_metadata(root.path().join(path)).unwrap();
            assert!(meta.is_file(), "{path}");
            meta.permissions().mode() & 0o7777
        };
        assert_eq!((mode("usr/bin/tool"), mode("etc/conf")), (0o755, 0o644));
        assert_eq!(
            fs::read_to_string(root.path().join("etc/link")).unwrap(),
            "new"
        );
        assert_eq!(
            fs::read_to_string(root.path().join("etc/kept")).unwrap(),
            "old"
        );
        assert!(root.path().join("etc/new").is_dir());
        assert_eq!(
            fs::read_to_string(outside.path()).unwrap(),
            "",
            "a link was followed out"
        );
    }

    #[test]
    fn only_what_is_written_counts() {
        let files = tempfile::tempdir().unwrap();
        let file = files.path().join("f");
        fs::write(&file, "x").unwrap();
        let mode = |mode| {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            hash_of(files.path())
        };
        assert_eq!(mode(0o600), mode(0o664));
        assert_ne!(mode(0o644), mode(0o755));
        let before = mode(0o644);
        fs::write(&file, "y").unwrap();
        assert_ne!(before, hash_of(files.path()));
    }
}
