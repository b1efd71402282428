//! What a container sees as `/`: mount plan, overlay, pivot, devices, masked paths, image store.
//!
//! **Invariant:** inside, nothing is a bind of something of the host, but for the devices of a container with users of
//! its own; see [`plan`].
//!
//! **Invariant:** the order is pivot, furnish, mask: once the root has changed, no link in an image can lead
//! a mount out of it.
//!
//! The image store takes the digest of a tree from `storage`; nothing else here knows that room.

mod book;
mod build;
pub mod bundle;
mod copy;
pub mod devices;
mod diagnosis;
mod files;
mod furnish;
pub mod masked;
pub mod overlay;
mod pivot;
pub mod plan;
mod recipe;
pub mod staging;
pub mod store;
mod store_error;

use std::io;
use std::path::PathBuf;

pub use copy::copy_tree;
pub use staging::Staging;
pub use store::ImageStore;
pub use store_error::StoreError;

/// What went wrong with the mounts of a container.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The overlay, seen from the host.
    #[error("cannot {operation} the root of the container at {target}")]
    Overlay {
        /// What was tried.
        operation: &'static str,
        /// The mount point.
        target: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A layer cannot have other owners than the disk says.
    #[error(
        "cannot show the files at {path} as those of the container's own users: its file system must allow that \
         (ext4, xfs, btrfs; tmpfs from Linux 6.3 on; not overlayfs), or else make the container with --userns host"
    )]
    IdMap {
        /// The layer.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The change of the root.
    #[error("cannot {operation} the root of the container")]
    Root {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something inside.
    #[error(
        "cannot {operation} {target} in the container; in an image it must be a plain directory, or missing"
    )]
    Inside {
        /// What was tried.
        operation: &'static str,
        /// The path, as the container sees it.
        target: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
