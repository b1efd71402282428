//! TCP's repair mode (tcp(7) knows it not; `TCP_REPAIR`, net/ipv4/tcp.c).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes a TCP socket out of repair mode: whether it was in it. Sockets of other kinds are never in it.
///
/// Leaving it probes the other end, so that a connection that was silent meanwhile goes on.
pub fn end_repair(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut on: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` and `length` are valid for writes for the whole call, and `length` is the size of `on`.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw mut on).cast(),
            &raw mut length,
        )
    };
    if asked != 0 || on == 0 {
        return Ok(false);
    }
    let off: libc::c_int = 0;
    // SAFETY: `off` is valid for reads for the whole call, and its size is given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const off).cast(),
            length,
        )
    };
    if set == 0 {
        Ok(true)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_that_is_not_in_repair_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (unix, _other) = UnixStream::pair().unwrap();
        for socket in [listener.as_fd(), stream.as_fd(), unix.as_fd()] {
            assert!(!end_repair(socket).unwrap());
        }
    }

    #[test]
    fn a_connection_in_repair_works_again() {
        if !nix::unistd::geteuid().is_root() {
            assert!(
                std::env::var_os("GODWIT_REQUIRE_ROOT").is_none(),
                "needs root"
            );
            eprintln!("SKIP a_connection_in_repair_works_again: needs root");
            return;
        }
        use std::io::{Read, Write};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut there, _) = listener.accept().unwrap();
        let on: libc::c_int = 1;
        // SAFETY: `on` is valid for reads for the whole call, and its size is given.
        let set = unsafe {
            libc::setsockopt(
                here.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_REPAIR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        assert!(
            here.write_all(b"lost").is_err(),
            "repair mode changes nothing: the test is void"
        );
        assert!(end_repair(here.as_fd()).unwrap());
        here.write_all(b"heard").unwrap();
        let mut heard = [0; 5];
        there.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"heard");
    }
}
