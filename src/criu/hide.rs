//! Memory that CRIU does not find: what was sent already, by somebody who can do so while the tasks run.

mod codec;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};

pub use codec::{BadRange, Hidden, HiddenFile};

use super::CriuError;

/// The ranges of memory that a dump does not find, and so neither reads nor sends. CRIU looks at it when it scans
/// its first task, so it may be filled after CRIU was started and must be before the dump is asked for: a table
/// that was never [set](Self::set) makes the dump fail. A copy is the same table.
///
/// In a hidden range CRIU finds no page but guard pages. It restores the mapping all the same, empty.
#[derive(Debug, Clone)]
pub struct HideTable(Arc<File>);

impl HideTable {
    /// A table that is not set.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> Result<Self, CriuError> {
        let made = memfd_create("criu-hide", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from);
        let table = Self(Arc::new(File::from(made.map_err(failed("make"))?)));
        table.write(&codec::unset()).map_err(failed("write"))?;
        Ok(table)
    }

    /// Hides these ranges, and no others. None at all is fine, and hides nothing.
    ///
    /// # Errors
    /// When a range is not one of a process's pages, or two overlap; then the table is not set.
    pub fn set(&self, hidden: &[Hidden]) -> Result<(), CriuError> {
        self.set_with_files(hidden, &[])
    }

    /// The same, and no page of these files of shared memory is found either.
    ///
    /// # Errors
    /// As of [`Self::set`].
    pub fn set_with_files(&self, hidden: &[Hidden], files: &[HiddenFile]) -> Result<(), CriuError> {
        self.write(&codec::unset()).map_err(failed("write"))?;
        let bytes = codec::table(hidden, files).map_err(|source| CriuError::Hide { source })?;
        self.write(&bytes).map_err(failed("write"))
    }

    /// A file descriptor of it to pass on.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, 0)
    }
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> CriuError {
    move |source| CriuError::HideTable { operation, source }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_table_that_cannot_be_set_stays_unset() {
        let table = HideTable::new().unwrap();
        let read = || {
            let mut bytes = [0; 32];
            table.0.read_exact_at(&mut bytes, 0).unwrap();
            bytes.to_vec()
        };
        assert_eq!(read(), codec::unset());
        let good = Hidden {
            pid: 7,
            range: 0x1000..0x2000,
            guards: false,
        };
        table.clone().set(std::slice::from_ref(&good)).unwrap();
        assert_ne!(read(), codec::unset());
        let error = table.set(&[good.clone(), good]).unwrap_err();
        assert!(matches!(error, CriuError::Hide { .. }), "{error}");
        assert_eq!(read(), codec::unset());
    }
}
