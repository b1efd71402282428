//! All open file descriptors at once.

use std::io;

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

#[cfg(test)]
mod test {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
    use nix::sys::stat::Mode;

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
