//! What a container watches for changes (inotify), and the names it has: images tell of it by path.
//!
//! The kernel remembers an inode and no path. CRIU finds the path by opening the inode's file handle (`fsnotify.c`,
//! `alloc_openable`), which the overlay of a container's root does not allow (it has no index, so that its layers mean
//! the same on every host); else it looks below the paths it is given (`irmap.c`, `irmap_lookup`). So those are looked
//! for here, while the container runs, and CRIU has nothing to search in the blackout.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, fstatat, major, minor};

use crate::sys::beneath::Root;
use crate::sys::tree;

/// One watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// The process, and the number of its inotify descriptor.
    pub pid: i32,
    pub number: i32,
    /// What is watched: the kernel's number of the file system, and the inode's.
    device: u64,
    inode: u64,
}

/// The watches of these processes.
pub fn watches(procs: &[i32]) -> Vec<Watch> {
    procs.iter().flat_map(|&pid| of_process(pid)).collect()
}

fn of_process(pid: i32) -> Vec<Watch> {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in open.flatten() {
        let inotify =
            fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("anon_inode:inotify"));
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let (true, Some(number)) = (inotify, number) else {
            continue;
        };
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        found.extend(info.lines().filter_map(|line| {
            let (inode, device) = parse(line)?;
            Some(Watch {
                pid,
                number,
                device,
                inode,
            })
        }));
    }
    found
}

/// `inotify wd:1 ino:9e7e sdev:800013 mask:…`, all in hexadecimal (proc_pid_fdinfo(5)).
fn parse(line: &str) -> Option<(u64, u64)> {
    let line = line.strip_prefix("inotify ")?;
    let value = |key: &str| {
        let text = line.split(' ').find_map(|word| word.strip_prefix(key))?;
        u64::from_str_radix(text, 16).ok()
    };
    Some((value("ino:")?, value("sdev:")?))
}

/// The paths of what is watched in the file system of this root, as CRIU wants them; and the watches that have none.
///
/// # Errors
/// When the root cannot be looked at.
pub fn names(root: &Path, watches: &[Watch]) -> io::Result<(Vec<PathBuf>, Vec<Watch>)> {
    let top = Root::open(root)?;
    let stat = fstatat(top.directory(b"")?, ".", AtFlags::empty())?;
    // As the kernel writes a device for itself (linux/kdev_t.h).
    let device = major(stat.st_dev) << 20 | minor(stat.st_dev);
    let here: Vec<Watch> = watches
        .iter()
        .copied()
        .filter(|watch| watch.device == device)
        .collect();
    let mut wanted: HashMap<u64, Option<PathBuf>> =
        here.iter().map(|watch| (watch.inode, None)).collect();
    if let Some(path) = wanted.get_mut(&stat.st_ino) {
        *path = Some(PathBuf::from("/."));
    }
    search(&top, stat.st_dev, &mut wanted);
    let nameless = here
        .into_iter()
        .filter(|watch| wanted[&watch.inode].is_none())
        .collect();
    Ok((wanted.into_values().flatten().collect(), nameless))
}

/// Looks through a tree, without leaving its file system, until everything has a path. What cannot be read any more is
/// gone.
fn search(top: &Root, device: u64, wanted: &mut HashMap<u64, Option<PathBuf>>) {
    let mut missing = wanted.values().filter(|path| path.is_none()).count();
    let mut directories = vec![Vec::new()];
    while let (true, Some(path)) = (missing > 0, directories.pop()) {
        let Ok(directory) = top.directory(&path) else {
            continue;
        };
        for name in tree::names(directory.as_fd()).unwrap_or_default() {
            let Ok(stat) = fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            else {
                continue;
            };
            if stat.st_dev != device {
                continue;
            }
            let mut inner = path.clone();
            if !inner.is_empty() {
                inner.push(b'/');
            }
            inner.extend_from_slice(name.as_bytes());
            if let Some(unknown @ None) = wanted.get_mut(&stat.st_ino) {
                *unknown = Some(Path::new("/").join(std::ffi::OsStr::from_bytes(&inner)));
                missing -= 1;
            }
            if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() {
                directories.push(inner);
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_watched_has_a_path_until_it_is_removed() {
        let tree = tempfile::tempdir().unwrap();
        let deep = tree.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
        let held = fs::File::create(tree.path().join("gone")).unwrap();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        for path in ["a/b", "a/b/file", "gone"] {
            let flags = AddWatchFlags::IN_ATTRIB;
            inotify.add_watch(&tree.path().join(path), flags).unwrap();
        }
        fs::remove_file(tree.path().join("gone")).unwrap();
        let own = std::process::id().cast_signed();
        let mut mine = watches(&[own]);
        mine.retain(|watch| watch.number == inotify.as_fd().as_raw_fd());
        assert_eq!(mine.len(), 3, "{mine:?}");

        let (mut paths, nameless) = names(tree.path(), &mine).unwrap();
        paths.sort();
        assert_eq!(paths, [Path::new("/a/b"), Path::new("/a/b/file")]);
        assert_eq!(nameless.len(), 1);
        drop(held);
    }

    #[test]
    fn a_line_of_another_kind_is_no_watch() {
        let line = "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8";
        assert_eq!(parse(line), Some((0x9e7e, 0x80_0013)));
        assert_eq!(parse("pos:\t0"), None);
        assert_eq!(parse("inotify wd:3 ino:zz sdev:1"), None);
    }
}
