//! A container that does whatever a program can do to its files, by the throw of a seeded die.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit::sys::xattr::{self, Of};
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::time::TimeSpec;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Few names, so that they meet each other again and again.
const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "log", "log.1"];

pub struct Writer {
    root: PathBuf,
    dice: StdRng,
}

impl Writer {
    pub fn new(root: &Path, seed: u64) -> Self {
        Self {
            root: root.to_owned(),
            dice: StdRng::seed_from_u64(seed),
        }
    }

    /// Does some things; most of them fail, because what they need is not there.
    pub fn work(&mut self, times: usize) {
        for _ in 0..times {
            let _ = self.step();
        }
    }

    /// Works until told to stop, with a pause after each thing that was done.
    pub fn work_until(&mut self, stop: &AtomicBool, pause: Duration) {
        while !stop.load(Ordering::Relaxed) {
            if self.step().is_ok() && !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }

    fn path(&mut self) -> PathBuf {
        let depth = self.dice.random_range(1..=3);
        let mut path = self.root.clone();
        path.extend((0..depth).map(|_| NAMES.choose(&mut self.dice).unwrap()));
        path
    }

    fn step(&mut self) -> io::Result<()> {
        let path = self.path();
        match self.dice.random_range(0..24) {
            0..3 => self.write_new(&path),
            3 => self.write_big(&path),
            4..7 => self.write_into(&path),
            7 => {
                let size = self.dice.random_range(0..3_000_000);
                existing(&path)?.set_len(size)
            }
            8 => self.punch(&path),
            9 => fs::remove_file(&path),
            10 => match self.dice.random_range(0..40) {
                0 => fs::remove_dir_all(&path),
                _ => Ok(()),
            },
            11 => fs::rename(&path, self.path()),
            12 => {
                let other = self.path();
                let flags = RenameFlags::RENAME_EXCHANGE;
                Ok(renameat2(AT_FDCWD, &path, AT_FDCWD, &other, flags)?)
            }
            13..16 => fs::create_dir(&path),
            16 => std::os::unix::fs::symlink(self.path(), &path),
            17..19 => fs::hard_link(&path, self.path()),
            19 => {
                let kinds = [SFlag::S_IFIFO, SFlag::S_IFCHR, SFlag::S_IFSOCK];
                let kind = *kinds.choose(&mut self.dice).unwrap();
                Ok(mknod(&path, kind, Mode::S_IRUSR, 0)?)
            }
            20 => {
                let mode = self.dice.random_range(0..=0o7777);
                not_a_link(&path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            }
            21 => {
                let id = self.dice.random_range(0..3);
                std::os::unix::fs::lchown(&path, Some(id), Some(id))
            }
            22 => self.attribute(&path),
            _ => self.replace(&path),
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.dice.random_range(0..most);
        let pattern: [u8; 61] = std::array::from_fn(|_| self.dice.random());
        pattern.into_iter().cycle().take(length).collect()
    }

    fn write_new(&mut self, path: &Path) -> io::Result<()> {
        not_a_link(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let bytes = self.bytes(3000);
        plain(OpenOptions::new().create(true).truncate(true), path)?.write_all(&bytes)
    }

    fn write_big(&mut self, path: &Path) -> io::Result<()> {
        let bytes = self.bytes(400_000);
        let file = plain(OpenOptions::new().create_new(true), path)?;
        for _ in 0..self.dice.random_range(1..5) {
            file.write_all_at(&bytes, self.dice.random_range(0..3_000_000))?;
        }
        Ok(())
    }

    /// In place, and sometimes with a time that lies.
    fn write_into(&mut self, path: &Path) -> io::Result<()> {
        let file = existing(path)?;
        let size = file.metadata()?.len();
        let before = file.metadata()?.modified()?;
        let bytes = self.bytes(100);
        file.write_all_at(&bytes, self.dice.random_range(0..=size))?;
        if self.dice.random_bool(0.3) {
            file.set_modified(before)?;
        }
        Ok(())
    }

    fn punch(&mut self, path: &Path) -> io::Result<()> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let start = self.dice.random_range(0..2_000_000);
        let length = self.dice.random_range(1..500_000);
        Ok(fallocate(existing(path)?, mode, start, length)?)
    }

    fn attribute(&mut self, path: &Path) -> io::Result<()> {
        let name = OsStr::new(*["trusted.x", "trusted.y"].choose(&mut self.dice).unwrap());
        if self.dice.random_bool(0.3) {
            return xattr::remove(Of::At(path), name);
        }
        let value = self.bytes(40);
        xattr::set(Of::At(path), name, &value)
    }

    /// The way of careful programs: write beside, then rename over.
    fn replace(&mut self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("tmp");
        let bytes = self.bytes(3000);
        plain(OpenOptions::new().create(true).truncate(true), &beside)?.write_all(&bytes)?;
        if self.dice.random_bool(0.5) {
            let when = TimeSpec::new(self.dice.random_range(0..2_000_000_000), 17);
            let omit = TimeSpec::UTIME_OMIT;
            let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
            nix::sys::stat::utimensat(AT_FDCWD, &beside, &omit, &when, follow)?;
        }
        fs::rename(&beside, path)
    }
}

/// Links lead anywhere, and pipes block: the writer touches neither.
fn plain(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = options.write(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn existing(path: &Path) -> io::Result<File> {
    plain(&mut OpenOptions::new(), path)
}

fn not_a_link(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_symlink() {
        true => Err(io::ErrorKind::InvalidInput.into()),
        false => Ok(()),
    }
}
