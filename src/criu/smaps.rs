//! What a dump is told of mappings, so that it need not ask for what takes the longer the more memory there is.
//!
//! CRIU reads `/proc/PID/smaps` of every task, with all of them stopped, for the flags of its mappings; the kernel
//! counts every page before it tells them, 18 ms for a GiB. The preloaded object composes the part that CRIU looks at
//! instead: the first lines from `/proc/PID/maps`, which costs nothing, and the flags from a table.
//!
//! **Invariant:** CRIU reads either what smaps would say, or smaps. A task whose mappings are not in the table, or
//! are others than the table says, or have flags whose letters nobody has seen, is looked up in smaps itself.

mod codec;
mod flags;
mod text;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};

pub use codec::Described;
pub use flags::MappingFlags;
pub use text::{Letters, Told};

use super::CriuError;

/// The mappings of tasks with their flags. CRIU looks at it when it asks for its first task's, so it may be filled
/// after CRIU was started. A table that was never [set](Self::set) is of no effect. A copy is the same table.
#[derive(Debug, Clone)]
pub struct SmapsTable(Arc<File>);

/// How often CRIU was told of a task's mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Out of the table.
    pub composed: u32,
    /// By the kernel.
    pub real: u32,
}

impl SmapsTable {
    /// A table that is not set.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> Result<Self, CriuError> {
        let made = memfd_create("criu-smaps", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from);
        let table = Self(Arc::new(File::from(made.map_err(failed("make"))?)));
        table
            .0
            .write_all_at(&codec::unset(), 0)
            .map_err(failed("write"))?;
        Ok(table)
    }

    /// Tells the mappings of these tasks, which must stand still until CRIU has asked for them, and what the kernel
    /// shows of [every task](MappingFlags::everybody).
    ///
    /// # Errors
    /// When there is no memory for it; then it is of no effect.
    pub fn set(&self, tasks: &[Described], everybody: &[Told]) -> Result<(), CriuError> {
        let write = |bytes: &[u8]| self.0.write_all_at(bytes, 0).map_err(failed("write"));
        let bytes = codec::table(tasks, everybody);
        let head = codec::unset();
        // Everything else before the head, which says that it is there.
        write(&head)?;
        let rest = self.0.write_all_at(&bytes[head.len()..], head.len() as u64);
        rest.map_err(failed("write"))?;
        write(&bytes[..head.len()])
    }

    /// What CRIU has asked so far.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn asked(&self) -> Result<Asked, CriuError> {
        let mut bytes = [0; 8];
        self.0
            .read_exact_at(&mut bytes, codec::COUNTS)
            .map_err(failed("read"))?;
        let [c0, c1, c2, c3, r0, r1, r2, r3] = bytes;
        Ok(Asked {
            composed: u32::from_ne_bytes([c0, c1, c2, c3]),
            real: u32::from_ne_bytes([r0, r1, r2, r3]),
        })
    }

    /// A file descriptor of it to pass on.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> CriuError {
    move |source| CriuError::SmapsTable { operation, source }
}

#[cfg(test)]
mod test;
