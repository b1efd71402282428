//! All open file descriptors at once.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Marks every open descriptor from `first` on to be closed by exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: no memory is passed; with this flag nothing is closed, so no descriptor that another part of
    // the process owns becomes invalid.
    match unsafe { libc::close_range(first, u32::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over a descriptor that this process was started with, and that nothing in it knows of yet.
///
/// # Errors
///
/// There is none of this number.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed, and nothing is changed.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and who started this process has left it to it: nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod test {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
    use nix::sys::stat::Mode;

    #[test]
    fn what_was_inherited_is_taken_once_and_closed() {
        use std::os::fd::IntoRawFd;
        let file = open("/dev/null", OFlag::O_RDONLY, Mode::empty()).unwrap();
        // High up: once it is closed, no other test gets its number in between.
        let high = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(800)).unwrap();
        let taken = take_inherited(high).unwrap();
        assert_eq!(taken.into_raw_fd(), high);
        drop(take_inherited(high).unwrap());
        assert!(take_inherited(high).is_err());
    }

    #[test]
    fn a_descriptor_that_was_inherited_ends_at_exec() {
        let file = open("/dev/null", OFlag::O_RDONLY, Mode::empty()).unwrap();
        // High up, where no test beside this one has a descriptor that it hands to a child.
        let high = fcntl(&file, FcntlArg::F_DUPFD(900)).unwrap();
        close_on_exec_from(900).unwrap();
        let listed = std::fs::read_to_string(format!("/proc/self/fdinfo/{high}")).unwrap();
        let flags = listed
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap()
            .trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & libc::O_CLOEXEC, 0);
    }
}
