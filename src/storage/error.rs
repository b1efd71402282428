//! What can go wrong when files are moved.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::wire::{TreePath, WireError};

/// Why files could not be read, sent, received or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The kernel refused one operation on one object of the tree.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried: a verb, with its object where the path does not say it.
        operation: &'static str,
        /// On what, relative to the root of the tree (the last part of it, if it is very long).
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an extended attribute.
    #[error(
        "cannot {operation} the extended attribute {name:?} of {}: does the filesystem of the destination have such attributes?",
        path.display()
    )]
    Xattr {
        /// What was tried.
        operation: &'static str,
        /// The name of the attribute.
        name: String,
        /// Of what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The tree changed during the last pass, in which nothing may write any more.
    #[error(
        "{} changed while the last pass read it: freeze every process that writes there first",
        path.display()
    )]
    Unsettled {
        /// What changed.
        path: PathBuf,
    },
    /// A path does not fit into a record.
    #[error(
        "the path {} has {length} bytes, and at most {limit} can be sent: move the directory up",
        path.display()
    )]
    TooDeep {
        /// The last part of the path.
        path: PathBuf,
        /// How long it is.
        length: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The sink, that is the link to the other host, took no more.
    #[error("cannot hand on a batch of {length} bytes")]
    Sink {
        /// How large the batch was.
        length: usize,
        /// What the sink said.
        #[source]
        source: io::Error,
    },
    /// Bytes that are no records.
    #[error("a batch of {length} bytes from the source is not valid")]
    Batch {
        /// How large the batch was.
        length: usize,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// Contents for something that is not a regular file.
    #[error("{} is not a regular file, and the source sent contents for it", path.display())]
    NotAFile {
        /// The path in the record.
        path: PathBuf,
    },
}

impl StorageError {
    pub(super) fn xattr(
        operation: &'static str,
        name: &[u8],
        path: TreePath<'_>,
        source: io::Error,
    ) -> Self {
        Self::Xattr {
            operation,
            name: String::from_utf8_lossy(name).into_owned(),
            path: shown(path.bytes()),
            source,
        }
    }
}

/// The most of a path that an error shows, in bytes: paths may come from a hostile peer.
const SHOWN: usize = 400;

/// A path for an error: the last part of it, if it is very long.
pub(super) fn shown(path: &[u8]) -> PathBuf {
    let text = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    match path.len() {
        0 => text(b"."),
        1..=SHOWN => text(path),
        length => text(&[b"...", &path[length - SHOWN..]].concat()),
    }
}

/// Turns what the kernel said about `path` into an error of this room.
pub(super) fn failed<E: Into<io::Error>>(
    operation: &'static str,
    path: &[u8],
) -> impl FnOnce(E) -> StorageError {
    move |source| StorageError::Io {
        operation,
        path: shown(path),
        source: source.into(),
    }
}
