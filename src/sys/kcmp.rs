//! Whether two processes share something (kcmp(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const KCMP_FILE: i32 = 0;

/// What two processes may have in common (clone(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Shared {
    /// The address space (`KCMP_VM`), as after `vfork`.
    Memory = 1,
    /// Root, working directory and umask (`KCMP_FS`).
    Directories = 3,
    /// What becomes of signals (`KCMP_SIGHAND`).
    Handlers = 4,
}

/// Whether two processes have the same memory, as after `vfork`.
pub fn same_memory(one: i32, other: i32) -> io::Result<bool> {
    same(Shared::Memory, one, other)
}

/// Whether two processes have this in common.
pub fn same(what: Shared, one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: numbers alone.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, what as i32, 0, 0) };
    if order < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(order == 0)
}

/// Whether descriptor `number` of process `pid` is the same open file as `ours`.
pub fn same_file(pid: i32, number: i32, ours: BorrowedFd<'_>) -> io::Result<bool> {
    let own = std::process::id();
    // SAFETY: numbers alone.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            pid,
            own,
            KCMP_FILE,
            libc::c_long::from(number),
            libc::c_long::from(ours.as_raw_fd()),
        )
    };
    if order < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(order == 0)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn another_process_has_memory_of_its_own() {
        let own = std::process::id().cast_signed();
        let mut child = std::process::Command::new("sleep")
            .arg("10")
            .spawn()
            .unwrap();
        let other = child.id().cast_signed();
        assert!(same_memory(own, own).unwrap());
        assert!(!same_memory(own, other).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(same_memory(own, other).is_err());
    }

    #[test]
    fn a_duplicate_is_the_same_file_and_another_is_not() {
        let file = File::open("/dev/null").unwrap();
        let duplicate = file.try_clone().unwrap();
        let other = File::open("/dev/null").unwrap();
        let own = std::process::id().cast_signed();
        assert!(same_file(own, duplicate.as_raw_fd(), file.as_fd()).unwrap());
        assert!(!same_file(own, other.as_raw_fd(), file.as_fd()).unwrap());
    }
}
