//! Terminals: whose they are, and how large.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Makes the terminal the controlling one of the calling process, which leads a session without one.
pub fn control(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// The size of a terminal: rows and columns.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut window = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request writes one `winsize`, which lives until the call returns.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut window) })?;
    Ok((window.ws_row, window.ws_col))
}

/// Makes the descriptors 0, 1 and 2 the terminal.
pub fn become_stdio(terminal: &OwnedFd) -> io::Result<()> {
    nix::unistd::dup2_stdin(terminal.as_fd())?;
    nix::unistd::dup2_stdout(terminal.as_fd())?;
    nix::unistd::dup2_stderr(terminal.as_fd())?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_size_of_a_terminal_is_read() {
        let master = File::options()
            .read(true)
            .write(true)
            .open("/dev/ptmx")
            .unwrap();
        crate::sys::pty::resize(master.as_fd(), 33, 111).unwrap();
        assert_eq!(size(master.as_fd()).unwrap(), (33, 111));
    }
}
