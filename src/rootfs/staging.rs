//! An image that is being made or received: a directory that is either finished and renamed, or gone.
//!
//! ```text
//! images/.staging-RANDOM/        locked (flock) by whoever fills it
//!                       tree/    becomes images/HEX-DIGEST by one rename
//!                       scratch/ temporary files of the build
//! ```
//!
//! **Invariant:** a staging directory without a lock belongs to nobody: its owner has died. `sweep` removes
//! those when a store is opened. Making one and locking it, and looking whether it is locked, happen under
//! the store's own lock, so that none is swept before it is locked.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::syncfs;

use super::store_error::StoreError;
use crate::model::Digest;
use crate::storage;
use crate::sys::{file, tree};

const STAGING: &str = ".staging-";
const REMOVED: &str = ".removed-";

/// An empty directory that is to become an image. Dropped before [`Staging::commit`], it is removed with all
/// that is in it.
#[derive(Debug)]
pub struct Staging {
    images: PathBuf,
    name: OsString,
    tree: PathBuf,
    /// Held until the directory is gone.
    _lock: Flock<OwnedFd>,
}

impl Staging {
    /// Makes one in the directory `images`.
    pub(super) fn make(images: &Path) -> Result<Self, StoreError> {
        let _store = lock(images, "lock")?;
        let name = OsString::from(format!("{STAGING}{:016x}", rand::random::<u64>()));
        let path = images.join(&name);
        let private = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
        private(&path).map_err(StoreError::io("create", &path))?;
        let lock = lock_directory(&path).map_err(StoreError::io("lock", &path))?;
        let staging = Self {
            images: images.to_owned(),
            tree: path.join("tree"),
            name,
            _lock: lock,
        };
        for directory in [staging.path(), &staging.scratch()] {
            private(directory).map_err(StoreError::io("create", directory))?;
        }
        // Not through mkdir, which the umask of the daemon has a say in.
        fs::set_permissions(&staging.tree, Permissions::from_mode(0o755))
            .map_err(StoreError::io("set the mode of", &staging.tree))?;
        Ok(staging)
    }

    /// The root of the tree to be filled.
    pub fn path(&self) -> &Path {
        &self.tree
    }

    /// A directory for what is not to be in the image.
    pub(super) fn scratch(&self) -> PathBuf {
        self.images.join(&self.name).join("scratch")
    }

    /// Makes the tree the image `expected`, on the disk. Fails where its content is another one, and then
    /// nothing is left of it. That the store has the image already is no error.
    pub fn commit(self, expected: Digest) -> Result<(), StoreError> {
        let found = storage::digest(&self.tree).map_err(|source| StoreError::Digest { source })?;
        if found == expected {
            self.place(found)
        } else {
            Err(StoreError::Mismatch { expected, found })
        }
    }

    /// Makes the tree the image that it is, on the disk, and tells its digest.
    pub(super) fn settle(self) -> Result<Digest, StoreError> {
        let digest = storage::digest(&self.tree).map_err(|source| StoreError::Digest { source })?;
        self.place(digest)?;
        Ok(digest)
    }

    fn place(self, digest: Digest) -> Result<(), StoreError> {
        let target = self.images.join(digest.to_string());
        if target.is_dir() {
            return Ok(());
        }
        // The content must be on the disk before its name says that it is whole.
        let tree = tree::open_root(&self.tree).map_err(StoreError::io("open", &self.tree))?;
        syncfs(&tree)
            .map_err(io::Error::from)
            .map_err(StoreError::io("write to the disk", &self.tree))?;
        match fs::rename(&self.tree, &target) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.map_err(StoreError::io("move an image to", &target)),
        }?;
        file::sync_directory(&self.images)
            .map_err(StoreError::io("write to the disk", &self.images))
    }

    /// Removes it with all that is in it. Dropping does the same, but can only log what it could not remove.
    pub fn discard(self) -> Result<(), StoreError> {
        self.remove()
    }

    fn remove(&self) -> Result<(), StoreError> {
        let path = self.images.join(&self.name);
        let removed = tree::open_root(&self.images)
            .and_then(|images| tree::remove(images.as_fd(), &self.name));
        removed.map_err(StoreError::io("remove", path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                error,
                "an unfinished image is left behind until the next start"
            );
        }
    }
}

/// Takes an image out of the directory `images` and removes it. Interrupted, it is out nevertheless, and
/// [`sweep`] does the rest.
pub(super) fn remove_image(images: &Path, digest: Digest) -> Result<(), StoreError> {
    let path = images.join(digest.to_string());
    let name = OsString::from(format!("{REMOVED}{:016x}", rand::random::<u64>()));
    let _lock = {
        let _store = lock(images, "lock")?;
        if !path.is_dir() {
            return Err(StoreError::NoImage { digest });
        }
        let lock = lock_directory(&path).map_err(StoreError::io("lock", &path))?;
        fs::rename(&path, images.join(&name)).map_err(StoreError::io("rename", &path))?;
        lock
    };
    tree::open_root(images)
        .and_then(|images| tree::remove(images.as_fd(), &name))
        .map_err(StoreError::io("remove", path))
}

/// Removes what builds, transfers and removals left behind whose process has died. What cannot be removed
/// now is tried again the next time.
pub(super) fn sweep(images: &Path) -> Result<(), StoreError> {
    let _store = lock(images, "lock")?;
    let directory = tree::open_root(images).map_err(StoreError::io("open", images))?;
    let names = tree::names(directory.as_fd()).map_err(StoreError::io("list", images))?;
    for name in names {
        let text = name.to_string_lossy();
        if !text.starts_with(STAGING) && !text.starts_with(REMOVED) {
            continue;
        }
        let Ok(_alone) = lock_directory(&images.join(&name)) else {
            continue;
        };
        if let Err(error) = tree::remove(directory.as_fd(), &name) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, name = ?name, "cannot remove an unfinished image that nobody uses");
        }
    }
    Ok(())
}

/// Waits for the lock `name` of the store; it is free again when the value is dropped.
pub(super) fn lock(images: &Path, name: &str) -> Result<Flock<File>, StoreError> {
    let path = images.join(format!(".{name}"));
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = opened.map_err(StoreError::io("open", &path))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(StoreError::io("lock", &path)(errno.into())),
        }
    }
}

/// The lock of a staging directory, if nobody else has it.
fn lock_directory(path: &Path) -> io::Result<Flock<OwnedFd>> {
    let directory = tree::open_root(path)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}
