//! Where arriving memory waits: a tmpfs of the daemon's own.
//!
//! `/run` is a tmpfs already, but systemd gives it a fifth of the machine's memory, and a container may have more.
//! Whether there is room is a matter of the machine's memory, which every migration is checked against before its
//! first byte; the file system itself sets no limit. It outlives a daemon that is killed, or restarted while
//! memory is still being filled in from it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// As much as the machine has.
const OPTIONS: &str = "mode=0700,size=100%,nr_inodes=0";

/// A tmpfs on a directory.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one on an empty directory, unless an earlier daemon has left one there.
    pub fn on(directory: &Path) -> io::Result<Self> {
        let own = || Self(directory.to_owned());
        let parent = directory.parent().unwrap_or(Path::new("/"));
        if fs::metadata(directory)?.dev() != fs::metadata(parent)?.dev() {
            return Ok(own());
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("godwit"),
            directory,
            Some("tmpfs"),
            flags,
            Some(OPTIONS),
        )?;
        Ok(own())
    }

    /// Unmounts it, unless something in it is still needed. Returns whether it is gone.
    pub fn remove(self) -> io::Result<bool> {
        if fs::read_dir(&self.0)?.next().is_some() {
            return Ok(false);
        }
        match umount2(&self.0, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EBUSY) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod test {
    use std::fs::File;

    use super::*;

    fn mounts(directory: &Path) -> usize {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = directory.to_str().unwrap();
        let here = |line: &&str| line.split(' ').nth(4) == Some(point);
        all.lines().filter(here).count()
    }

    #[test]
    fn there_is_one_however_often_a_daemon_begins_and_none_after_its_end() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP a tmpfs: mounting needs root");
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap().join("memory");
        fs::create_dir(&place).unwrap();
        drop(Tmpfs::on(&place).unwrap());
        let tmpfs = Tmpfs::on(&place).unwrap();
        assert_eq!(mounts(&place), 1);

        // What somebody may still need keeps it, be it a name or an open file.
        let file = File::create(place.join("page")).unwrap();
        assert!(!tmpfs.remove().unwrap());
        fs::remove_file(place.join("page")).unwrap();
        assert!(!Tmpfs::on(&place).unwrap().remove().unwrap());
        drop(file);
        assert!(Tmpfs::on(&place).unwrap().remove().unwrap());
        assert_eq!(mounts(&place), 0);
    }
}
