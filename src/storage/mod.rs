//! Files on the move: a tree on one host becomes the same tree on another.
//!
//! ```text
//! source                                             destination
//! send_all      everything, the container writes  ──▶ Receiver: applies as it comes
//! send_again    what changed meanwhile (optional) ──▶ Receiver
//!               ── the container is frozen ──
//! send_changes  what changed; deletions           ──▶ Receiver: now the trees are equal
//! ```
//!
//! Equal means: names, types, contents with their holes, hard links, owners, modes, extended
//! attributes (access lists, capabilities, the overlay's own) and times of modification. Attributes in
//! [`HOST_BOUND_XATTRS`] stay what each host has made them.
//!
//! **Invariant:** a file is only taken for unchanged if a change would show; what cannot be known is
//! sent again.
//! **Invariant:** the sender opens nothing but regular files and directories, and follows no link:
//! the tree belongs to the container.
//! **Invariant:** the receiver changes nothing outside its root, whatever bytes it is given.
//! **Invariant:** memory is bounded by the number of files, never by their size: contents are
//! streamed, and one record is at most 1 MiB.
//! Absent on purpose: compression, checksums and flow control, which are the link's; access times;
//! file attributes of single filesystems (`chattr`), quotas.

mod content;
pub mod digest;
mod error;
mod object;
mod outbox;
mod receive;
mod scan;
mod send;
mod snapshot;
pub mod wire;

pub use digest::{DigestError, HOST_BOUND_XATTRS, digest};
pub use error::StorageError;
pub use receive::Receiver;
pub use scan::tree_bytes;
pub use send::{send_again, send_all, send_changes};
pub use snapshot::Snapshot;

use crate::model::Bytes;
use wire::Record;

/// What a pass has sent, or a receiver has applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// New or changed objects that are not directories.
    pub files: u64,
    /// Contents of regular files, holes apart.
    pub bytes: Bytes,
    /// Names that were removed (each perhaps with a whole tree).
    pub deleted: u64,
    /// Records of all kinds.
    pub records: u64,
}

impl Totals {
    fn count(&mut self, record: &Record<'_>) {
        self.records += 1;
        match record {
            Record::Attributes { .. } => {}
            Record::Delete { path } if !path.bytes().is_empty() => self.deleted += 1,
            Record::Data { bytes, .. } => self.bytes += Bytes(bytes.len() as u64),
            Record::File { .. }
            | Record::Symlink { .. }
            | Record::Node { .. }
            | Record::Link { .. } => self.files += 1,
            _ => {}
        }
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.deleted += other.deleted;
        self.records += other.records;
    }
}
