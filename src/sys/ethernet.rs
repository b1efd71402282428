//! Whole Ethernet frames, past the network stack: AF_PACKET sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recv, send, socket,
};

/// A socket that sends any frame on one interface, and receives those of one Ethernet type that arrive there. It
/// stays on its interface, and in its interface's network namespace, wherever the thread goes that uses it.
#[derive(Debug)]
pub struct EthernetSocket(OwnedFd);

impl EthernetSocket {
    /// Opens one on `interface` of the calling thread's network namespace.
    pub fn open(interface: &str, ethertype: u16) -> io::Result<Self> {
        let index = if_nametoindex(interface)?;
        // No protocol yet: a socket that has one hears every interface until it is bound.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        bind(socket.as_raw_fd(), &address(index, ethertype)?)?;
        Ok(Self(socket))
    }

    /// The Ethernet address of the interface.
    pub fn hardware_address(&self) -> io::Result<[u8; 6]> {
        let mut raw = nowhere();
        let mut length = LENGTH;
        // SAFETY: both pointers are to values that live through the call, and the length is that of the first; the
        // kernel writes no more than that. (nix takes the kernel's shorter answer for Ethernet for an error.)
        let result = unsafe {
            libc::getsockname(self.0.as_raw_fd(), (&raw mut raw).cast(), &raw mut length)
        };
        Errno::result(result)?;
        let [address @ .., _, _] = raw.sll_addr;
        if raw.sll_halen == 6 {
            Ok(address)
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Sends a frame, Ethernet header and all.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty())?;
        if sent == frame.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Waits for a frame, not longer than `until`, and tells its length; what does not fit into `buffer` is cut
    /// off. None: the time is up.
    pub fn receive(&self, buffer: &mut [u8], until: Instant) -> io::Result<Option<usize>> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up, or the last millisecond would be spent spinning.
            let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn nowhere() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

fn address(index: u32, ethertype: u16) -> io::Result<LinkAddr> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let raw = libc::sockaddr_ll {
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_| invalid())?,
        ..nowhere()
    };
    // SAFETY: the pointer is to a whole sockaddr_ll, of this length and with its family set, that lives until the
    // call has copied it.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(LENGTH)) }.ok_or_else(invalid)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_told() {
        let error = EthernetSocket::open("no-such-one", 0x0806).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
