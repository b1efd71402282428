//! The bytes between the two hosts: batches of records.
//!
//! ```text
//! batch   = version (u8, 1), record …                       at most 1 MiB
//! record  = length (u32), kind (u8), fields                 length counts kind and fields
//! path    = length (u32), bytes      relative, no empty part, no `.` or `..`; empty is the root
//! number  = little-endian
//! ```
//!
//! Every record names what it speaks of: none depends on the one before. The decoder is total: it
//! accepts exactly what the encoder can produce, and it copies nothing, so that nothing is
//! allocated on the word of a peer but one list of records, bounded by the batch.

mod decode;
mod encode;

use std::fmt;

pub use decode::decode;
pub use encode::begin;

/// The largest batch, in bytes.
pub const MAX_BATCH: usize = 1 << 20;
/// The longest path, in bytes.
pub const MAX_PATH: usize = 64 * 1024;
/// The longest single name in a path, in bytes: the kernel's `NAME_MAX`.
pub const MAX_NAME: usize = 255;
/// The most contents in one record, in bytes.
pub const MAX_DATA: usize = 256 * 1024;
/// The most attributes, in bytes of names and values, in one [`Record::Attributes`]; the rest
/// follows in [`Record::Xattr`].
pub const MAX_XATTRS: usize = 256 * 1024;
/// The largest value of one extended attribute, in bytes: the kernel's `XATTR_SIZE_MAX`.
pub const MAX_VALUE: usize = 64 * 1024;
/// The longest text of a symbolic link, in bytes.
pub const MAX_TARGET: usize = 4095;

const VERSION: u8 = 1;

/// Why bytes are not a batch of records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Too many bytes.
    #[error("it is longer than {MAX_BATCH} bytes")]
    TooLong,
    /// Another version of this format.
    #[error("it has format version {found}, not {VERSION}: the two daemons differ too much")]
    Version {
        /// The version found.
        found: u8,
    },
    /// It ends too early, or a length points past the end.
    #[error("it ends within the {field} of a record")]
    Truncated {
        /// What was being read.
        field: &'static str,
    },
    /// No such kind of record.
    #[error("it has a record of the unknown kind {kind}")]
    Kind {
        /// The kind found.
        kind: u8,
    },
    /// A field with a value it cannot have.
    #[error("the {field} of a record is not valid: {rule}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it has to be.
        rule: &'static str,
    },
    /// Bytes after the last field.
    #[error("it has a record of kind {kind} with {extra} bytes too many")]
    Extra {
        /// The kind of record.
        kind: u8,
        /// How many bytes.
        extra: usize,
    },
}

/// A path relative to the root of the tree; one that exists cannot lead upwards. Empty: the root.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath<'a>(&'a [u8]);

impl<'a> TreePath<'a> {
    /// Takes `bytes` for a path if they are one.
    pub fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        let wrong = |rule| {
            Err(WireError::Field {
                field: "path",
                rule,
            })
        };
        if bytes.is_empty() {
            return Ok(Self(bytes));
        }
        if bytes.len() > MAX_PATH {
            return wrong("it is too long");
        }
        if bytes.contains(&0) {
            return wrong("it contains a zero byte");
        }
        for name in bytes.split(|&c| c == b'/') {
            match name {
                b"" => return wrong("it is absolute or has an empty part"),
                b"." | b".." => return wrong("it has a part `.` or `..`"),
                _ if name.len() > MAX_NAME => return wrong("it has a name longer than 255 bytes"),
                _ => {}
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes of the path.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The directory and the name in it; none for the root, which is in no directory of the tree.
    pub fn split(self) -> Option<(TreePath<'a>, &'a [u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&c| c == b'/') {
            Some(slash) => (Self(&self.0[..slash]), &self.0[slash + 1..]),
            None => (Self(b""), self.0),
        })
    }
}

impl fmt::Debug for TreePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.0))
    }
}

/// What a special file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A named pipe.
    Fifo,
    /// A character device; 0:0 is an overlay whiteout.
    Character,
    /// A block device.
    Block,
    /// A unix socket.
    Socket,
}

/// A moment as files record it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileTime {
    /// Seconds since 1970; may be negative.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// Everything about an object but its type and contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// Permissions with set-id and sticky bits; of no meaning for a symbolic link.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The last modification.
    pub mtime: FileTime,
    /// All extended attributes, as (name, value); others are removed.
    pub xattrs: Vec<(&'a [u8], &'a [u8])>,
}

/// One step of making the tree of the destination like that of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// Here is a directory. One that is there already stays with what is in it; anything else goes.
    Directory {
        /// Where.
        path: TreePath<'a>,
    },
    /// Here is a new regular file, all of it a hole. What was there goes, and is never written to,
    /// because it may have other names.
    File {
        /// Where.
        path: TreePath<'a>,
        /// Its length in bytes.
        size: u64,
    },
    /// The regular file that is there gets this length; a longer one ends in a hole.
    Resize {
        /// Where.
        path: TreePath<'a>,
        /// Its length in bytes.
        size: u64,
    },
    /// Contents of the regular file that is there.
    Data {
        /// Where.
        path: TreePath<'a>,
        /// At which byte they begin.
        offset: u64,
        /// The contents.
        bytes: &'a [u8],
    },
    /// A hole in the regular file that is there.
    Hole {
        /// Where.
        path: TreePath<'a>,
        /// At which byte it begins.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Here is a new symbolic link; what was there goes.
    Symlink {
        /// Where.
        path: TreePath<'a>,
        /// Its text: kept, never followed.
        target: &'a [u8],
    },
    /// Here is a new special file; what was there goes.
    Node {
        /// Where.
        path: TreePath<'a>,
        /// What it is.
        kind: NodeKind,
        /// Which device; zero for pipes and sockets.
        rdev: u64,
    },
    /// Here is another name of what is at `to`; what was there goes.
    Link {
        /// Where.
        path: TreePath<'a>,
        /// The other name.
        to: TreePath<'a>,
    },
    /// The object there is complete; these are its attributes. For a directory it comes after
    /// everything in the directory.
    Attributes {
        /// Where.
        path: TreePath<'a>,
        /// What.
        attributes: Attributes<'a>,
    },
    /// One more extended attribute of the object there.
    Xattr {
        /// Where.
        path: TreePath<'a>,
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// Nothing is here any more; of the root: nothing is in it any more.
    Delete {
        /// Where.
        path: TreePath<'a>,
    },
}

#[cfg(test)]
mod test;
