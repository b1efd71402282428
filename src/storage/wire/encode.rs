//! Records into bytes.

use super::{Attributes, NodeKind, Record, VERSION};

/// What a batch begins with.
pub fn begin() -> Vec<u8> {
    vec![VERSION]
}

impl Record<'_> {
    /// Appends the record to a batch. The caller keeps to the limits of this file.
    pub fn encode(&self, batch: &mut Vec<u8>) {
        let start = batch.len();
        batch.extend_from_slice(&[0; 4]);
        batch.push(self.kind());
        self.encode_fields(batch);
        let length = u32::try_from(batch.len() - start - 4).unwrap_or(u32::MAX);
        batch[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Directory { .. } => 1,
            Self::File { .. } => 2,
            Self::Resize { .. } => 3,
            Self::Data { .. } => 4,
            Self::Hole { .. } => 5,
            Self::Symlink { .. } => 6,
            Self::Node { .. } => 7,
            Self::Link { .. } => 8,
            Self::Attributes { .. } => 9,
            Self::Xattr { .. } => 10,
            Self::Delete { .. } => 11,
        }
    }

    fn encode_fields(&self, out: &mut Vec<u8>) {
        match self {
            Self::Directory { path } | Self::Delete { path } => put(out, path.0),
            Self::File { path, size } | Self::Resize { path, size } => {
                put(out, path.0);
                out.extend_from_slice(&size.to_le_bytes());
            }
            Self::Data {
                path,
                offset,
                bytes,
            } => {
                put(out, path.0);
                out.extend_from_slice(&offset.to_le_bytes());
                put(out, bytes);
            }
            Self::Hole {
                path,
                offset,
                length,
            } => {
                put(out, path.0);
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
            }
            Self::Symlink { path, target } => {
                put(out, path.0);
                put(out, target);
            }
            Self::Node { path, kind, rdev } => {
                put(out, path.0);
                out.push(kind.code());
                out.extend_from_slice(&rdev.to_le_bytes());
            }
            Self::Link { path, to } => {
                put(out, path.0);
                put(out, to.0);
            }
            Self::Attributes { path, attributes } => {
                put(out, path.0);
                attributes.encode(out);
            }
            Self::Xattr { path, name, value } => {
                put(out, path.0);
                put(out, name);
                put(out, value);
            }
        }
    }
}

impl Attributes<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.mtime.secs.to_le_bytes());
        out.extend_from_slice(&self.mtime.nanos.to_le_bytes());
        for (name, value) in &self.xattrs {
            put(out, name);
            put(out, value);
        }
    }
}

impl NodeKind {
    fn code(self) -> u8 {
        match self {
            Self::Fifo => 1,
            Self::Character => 2,
            Self::Block => 3,
            Self::Socket => 4,
        }
    }
}

/// A variable field: its length, then its bytes.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}
