//! The memory of another process, read from outside while it may be running.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::ptr;

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

    /// As [`Self::read`], at most `length` bytes, behind what `into` has.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn append(&self, address: u64, length: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        into.reserve(length);
        let local = libc::iovec {
            iov_base: into.spare_capacity_mut().as_mut_ptr().cast(),
            iov_len: length,
        };
        let remote = libc::iovec {
            iov_base: ptr::without_provenance_mut(
                usize::try_from(address).map_err(|_| io::ErrorKind::InvalidInput)?,
            ),
            iov_len: length,
        };
        // SAFETY: `local` is the spare room of `into`, reserved above and borrowed by nobody else. `remote` is an address
        // in the other process, which the kernel checks there.
        let read = unsafe { libc::process_vm_readv(self.pid.as_raw(), &local, 1, &remote, 1, 0) };
        let before = into.len();
        match usize::try_from(read) {
            Ok(read) if read > 0 => {
                // SAFETY: the kernel has filled so many bytes behind the first `before`, within what was reserved.
                unsafe { into.set_len(before + read.min(length)) };
                Ok(read)
            }
            _ => {
                into.resize(before + length, 0);
                let read = self.read_forced(address, &mut into[before..]);
                into.truncate(before + read.as_ref().copied().unwrap_or(0));
                read
            }
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
        let mut both = b"then ".to_vec();
        let appended = memory.append(address, known.len(), &mut both).unwrap();
        assert_eq!((appended, &both[..5]), (known.len(), &b"then "[..]));
        assert_eq!(both[5..], known);
        // Nothing is left of what could not be read.
        assert!(memory.append(0x10, 100, &mut both).is_err());
        assert_eq!(both.len(), 5 + known.len());
    }
}
