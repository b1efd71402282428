//! Processes by descriptor: unlike a number, a pidfd never means another process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor of the process with this id.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A descriptor of the thread with this id, where the kernel has such (6.9).
pub fn open_thread(tid: i32) -> io::Result<OwnedFd> {
    // PIDFD_THREAD.
    let flags = libc::O_EXCL;
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A duplicate of a file descriptor of another process (pidfd_getfd(2)).
pub fn descriptor(process: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers alone, and what it returns is a new descriptor that nobody else owns.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process.
pub fn signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill it in as kill(2) would.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            none,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The wait status of a process that has ended and was reaped by its parent, whoever that is.
///
/// None while it lives or is not reaped yet, and on kernels before 6.15, which do not tell.
pub fn exit_status(process: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the request number carries the size of `PidfdInfo`, which lives until the call returns.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result == 0 {
        return Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code));
    }
    match io::Error::last_os_error() {
        // Old kernels do not know the request, or know it and not the exit status of the dead.
        e if matches!(
            e.raw_os_error(),
            Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH)
        ) =>
        {
            Ok(None)
        }
        e => Err(e),
    }
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`, for the structure as it was in Linux 6.15.
const PIDFD_GET_INFO: u64 = (3 << 30) | ((size_of::<PidfdInfo>() as u64) << 16) | (0xFF << 8) | 11;

/// `struct pidfd_info`, version 0 (64 bytes), which ends with the exit code.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn the_exit_status_of_a_reaped_process_can_be_learnt() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "exit 7"])
            .spawn()
            .unwrap();
        let process = open(child.id() as i32).unwrap();
        child.wait().unwrap();
        match exit_status(process.as_fd()).unwrap() {
            Some(status) => assert_eq!(libc::WEXITSTATUS(status), 7),
            None => println!("SKIP: this kernel does not tell the exit status of the dead"),
        }
    }

    #[test]
    fn a_signal_reaches_the_process_and_no_other() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = open(child.id() as i32).unwrap();
        signal(process.as_fd(), libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(signal(process.as_fd(), libc::SIGKILL).is_err());
    }
}
