//! What can go wrong between a container and its images.

use std::io;
use std::path::PathBuf;

use crate::cgroup::CgroupError;
use crate::criu::CriuError;
use crate::memory::MemoryError;

/// Why a container did not become images, or images no container.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A copy that was handed over, and is not what it was.
    #[error("the frozen copy is gone, or does not stand still any more")]
    Thawed,
    /// CRIU could not do its part.
    #[error("CRIU could not {operation} the container")]
    Criu {
        /// `pre-dump`, `dump` or `restore`.
        operation: &'static str,
        /// What it said.
        #[source]
        source: CriuError,
    },
    /// Its memory could not be moved.
    #[error("the container's memory could not be {operation}")]
    Memory {
        /// `sent`, `stored`, …
        operation: &'static str,
        /// Why.
        #[source]
        source: MemoryError,
    },
    /// Its cgroup did not obey.
    #[error("the container's cgroup could not be {operation}")]
    Cgroup {
        /// `read`, `frozen`, …
        operation: &'static str,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// The thread that speaks with CRIU ended by itself.
    #[error("the conversation with CRIU ended without a result")]
    Silent,
    /// An image file could not be read or written.
    #[error("could not {operation} the image {}", path.display())]
    Image {
        /// What was tried.
        operation: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// What arrived is not what was announced.
    #[error("the image {name} has {found:?} bytes here and {expected} on the source")]
    Incomplete {
        /// Which file.
        name: String,
        /// Its length here; none where it is missing.
        found: Option<u64>,
        /// Its length there.
        expected: u64,
    },
    /// A namespace or a pipe that the restore needs is not to be had.
    #[error("could not open {what} for the restore")]
    Open {
        /// What.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Restored tasks that may not run could not be ended.
    #[error("restored tasks that are not to run could not be killed")]
    Remains {
        /// What the kernel said.
        #[source]
        source: nix::Error,
    },
    /// Who decides said no.
    #[error("the restored container was not wanted any more")]
    Unwanted,
}
