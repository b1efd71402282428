//! The last steps: covered and protected paths, and the change of the root.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use super::{Root, RootfsError, cover, path_error, place, root_error};
use crate::sys::mount::{Change, Filesystem, attach, change_mount};

impl Root<'_> {
    /// Covers and protects paths and makes this tree the root of the calling process. Afterwards nothing of the
    /// host's tree can be named.
    pub fn enter(self) -> Result<(), RootfsError> {
        let plan = self.plan;
        let root = self.fd.as_fd();
        cover::protect(root, plan.protected.iter().map(PathBuf::as_path))?;
        cover::mask(root, plan.masked.iter().map(PathBuf::as_path))?;
        for (path, mount) in &self.later {
            cover::read_only(mount.as_fd()).map_err(path_error("make read-only", path))?;
        }
        if plan.read_only {
            cover::read_only(root).map_err(root_error("make read-only", &plan.root))?;
        }
        let changed = if plan.no_pivot {
            self.move_over()
        } else {
            self.pivot()
        };
        changed.map_err(root_error("change the root to", &plan.root))?;
        let kind = match plan.propagation {
            Some(propagation) => propagation.kind,
            None if plan.no_pivot => return Ok(()),
            // Nothing is said, and it is nobody's slave either: on another host, where a checkpoint is restored, there is
            // no such master.
            None => MsFlags::MS_PRIVATE,
        };
        let change = Change {
            propagation: kind.bits(),
            ..Change::default()
        };
        // Not beneath, whatever the word says: each mount there has what its own options say.
        change_mount(root, &change, false).map_err(root_error("set the propagation of", &plan.root))
    }

    fn pivot(&self) -> io::Result<()> {
        let old = place::hold(Path::new("/"))?;
        fchdir(&self.fd)?;
        // With the same place for both, the old root comes to lie on top of the new one.
        pivot_root(".", ".")?;
        fchdir(&old)?;
        // More than once where something was mounted over the old root: the uppermost goes first.
        loop {
            match umount2(".", MntFlags::MNT_DETACH) {
                Ok(()) => {}
                // It is in no tree any more.
                Err(Errno::EINVAL) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(chdir("/")?)
    }

    /// Without `pivot_root` the old tree stays, under the new root. Whatever in it shows the host's processes or
    /// devices is taken away: a process that gets out of a chroot must not find it.
    fn move_over(&self) -> io::Result<()> {
        for (point, _) in host_views(&self.plan.root)?.iter().rev() {
            match umount2(point, MntFlags::MNT_DETACH) {
                Ok(()) | Err(Errno::ENOENT) => {}
                // Locked, in a user namespace: covered instead.
                Err(Errno::EINVAL | Errno::EPERM) => {
                    let fs = Filesystem::open("tmpfs")?.mount(0)?;
                    attach(fs.as_fd(), place::hold(point)?.as_fd())?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        let old = place::hold(Path::new("/"))?;
        attach(self.fd.as_fd(), old.as_fd())?;
        fchdir(&self.fd)?;
        chroot(".")?;
        Ok(chdir("/")?)
    }
}

/// Where the host has its proc and sysfs, apart from what is in the container's root: mount point and type.
fn host_views(root: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let view = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let kind = filesystem.split(' ').next()?;
        let point = PathBuf::from(unescaped(mount.split(' ').nth(4)?));
        let is_it = matches!(kind, "proc" | "sysfs") && !point.starts_with(root);
        is_it.then(|| (point, kind.to_owned()))
    };
    Ok(table.lines().filter_map(view).collect())
}

/// A path as mountinfo has it: blanks and backslashes as three octal digits.
fn unescaped(path: &str) -> String {
    let parts = path.split('\\').enumerate();
    parts.fold(String::new(), |text, (number, part)| {
        let code = part.get(..3).and_then(|c| u8::from_str_radix(c, 8).ok());
        match code {
            Some(code) if number > 0 => text + &char::from(code).to_string() + &part[3..],
            _ => text + part,
        }
    })
}
