//! Records on their way out: gathered into batches, counted, handed to the sink.

use std::io;
use std::os::unix::ffi::OsStrExt;

use super::Totals;
use super::error::StorageError;
use super::scan::Xattr;
use super::snapshot::Stamp;
use super::wire::{self, Attributes, MAX_XATTRS, Record, TreePath};

/// A batch of this many bytes is handed on. One more record, of less than 512 KiB, may be in it.
const FULL: usize = 256 * 1024;

pub(super) struct Outbox<'a> {
    sink: &'a mut dyn FnMut(Vec<u8>) -> io::Result<()>,
    batch: Vec<u8>,
    pub totals: Totals,
}

impl<'a> Outbox<'a> {
    pub fn new(sink: &'a mut dyn FnMut(Vec<u8>) -> io::Result<()>) -> Self {
        Self {
            sink,
            batch: wire::begin(),
            totals: Totals::default(),
        }
    }

    /// Sends one record, now or with those that follow.
    pub fn put(&mut self, record: &Record<'_>) -> Result<(), StorageError> {
        self.totals.count(record);
        record.encode(&mut self.batch);
        if self.batch.len() >= FULL {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends the attributes of a complete object, in as many records as they need.
    pub fn put_attributes(
        &mut self,
        path: &[u8],
        stamp: &Stamp,
        xattrs: &[Xattr],
    ) -> Result<(), StorageError> {
        let path = tree_path(path)?;
        let mut room = MAX_XATTRS;
        let fits = |one: &&Xattr| {
            let needed = one.name.len() + one.value.len() + 8;
            let fits = needed <= room;
            room = if fits { room - needed } else { 0 };
            fits
        };
        let first = xattrs.iter().take_while(fits);
        let pairs: Vec<_> = first
            .map(|one| (one.name.as_bytes(), &*one.value))
            .collect();
        let later = &xattrs[pairs.len()..];
        self.put(&Record::Attributes {
            path,
            attributes: Attributes {
                mode: stamp.mode & 0o7777,
                uid: stamp.uid,
                gid: stamp.gid,
                mtime: stamp.mtime,
                xattrs: pairs,
            },
        })?;
        for one in later {
            self.put(&Record::Xattr {
                path,
                name: one.name.as_bytes(),
                value: &one.value,
            })?;
        }
        Ok(())
    }

    /// Hands on what is gathered.
    pub fn flush(&mut self) -> Result<(), StorageError> {
        let batch = std::mem::replace(&mut self.batch, wire::begin());
        if batch.len() == self.batch.len() {
            return Ok(());
        }
        let length = batch.len();
        (self.sink)(batch).map_err(|source| StorageError::Sink { length, source })
    }
}

/// A path found on this host, as records spell it.
pub(super) fn tree_path(path: &[u8]) -> Result<TreePath<'_>, StorageError> {
    TreePath::new(path).map_err(|source| StorageError::Batch {
        length: path.len(),
        source,
    })
}
