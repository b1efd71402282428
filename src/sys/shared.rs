//! Memory that is a file's: what is written there is in the file at once, and outlives the process.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// The words of a file, mapped. Whoever has mapped the same file sees the same words.
#[derive(Debug)]
pub struct SharedWords {
    at: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to no thread, and its words are atomic.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of a file, which is made that long.
    pub fn map(file: &File, count: usize) -> io::Result<Self> {
        let length = count.checked_mul(8).filter(|&length| length > 0);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() < length as u64 {
            file.set_len(length as u64)?;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let none = std::ptr::null_mut();
        let fd = file.as_raw_fd();
        // SAFETY: a fresh mapping, wherever the kernel finds room, of a file that is long enough.
        let at = unsafe { libc::mmap(none, length, protection, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { at, count })
    }

    /// Keeps the first `words` in memory, so that nothing that writes them ever waits. Fails where that much may not
    /// be locked.
    pub fn lock(&self, words: usize) -> io::Result<()> {
        let length = words.min(self.count) * 8;
        // SAFETY: within the mapping.
        match unsafe { libc::mlock(self.at.as_ptr().cast(), length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is this long, on a page's border, and lives as long as `self`. Others may write the
        // words meanwhile, which is what atomics are for; nobody in this program makes the file shorter.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; nobody borrows from it any more. It fails for no mapping there is.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.count * 8) };
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_is_written_is_in_the_file_and_in_every_mapping() {
        let file = tempfile::tempfile().unwrap();
        let words = SharedWords::map(&file, 1024).unwrap();
        let others = SharedWords::map(&file, 1024).unwrap();
        words.lock(512).unwrap();
        words[1000].store(7, Ordering::Relaxed);
        assert_eq!(others[1000].load(Ordering::Relaxed), 7);
        drop(words);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 8000).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 7);
        assert!(SharedWords::map(&file, 0).is_err());
    }
}
