//! The memory of another process, read from outside while it may be running.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// The memory that a process has when this is opened; after an exec there is nothing more to read in it.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: Pid,
    file: File,
}

impl ProcessMemory {
    /// Opens the memory of a process.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid: Pid::from_raw(pid),
            file: File::open(format!("/proc/{pid}/mem"))?,
        })
    }

    /// Reads from `address` on; how many bytes, which may be fewer than asked for.
    ///
    /// `process_vm_readv` is the faster way; it respects protections, so what it refuses is asked of the file,
    /// which reads pages of `PROT_NONE` too (unless the kernel was told not to: `proc_mem.force_override=never`).
    ///
    /// # Errors
    /// When not even the first byte can be read.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len();
        let remote = RemoteIoVec {
            base: usize::try_from(address).map_err(|_| io::ErrorKind::InvalidInput)?,
            len: length,
        };
        match process_vm_readv(self.pid, &mut [IoSliceMut::new(buffer)], &[remote]) {
            Ok(read) if read > 0 => Ok(read),
            _ => self.read_forced(address, buffer),
        }
    }

    /// As [`Self::read`], whatever the protections.
    pub fn read_forced(&self, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read_at(buffer, address) {
            // The address space is gone.
            Ok(0) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            other => other,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn memory_can_be_read_up_to_where_it_ends() {
        let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
        let known = b"something to find".to_vec();
        let mut buffer = vec![0; known.len()];
        let address = known.as_ptr().addr() as u64;
        assert_eq!(memory.read(address, &mut buffer).unwrap(), known.len());
        assert_eq!(buffer, known);
        buffer.fill(0);
        assert_eq!(
            memory.read_forced(address, &mut buffer).unwrap(),
            known.len()
        );
        assert_eq!(buffer, known);
        assert!(memory.read(0x10, &mut buffer).is_err());
    }
}
