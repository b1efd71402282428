//! What the kernel tells of sockets (sock_diag(7)).

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `linux/sock_diag.h`
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `linux/unix_diag.h`
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// The lengths of `nlmsghdr`, and of `unix_diag_msg`.
const HEAD: usize = 16;
const BODY: usize = 16;

/// The unix sockets of this thread's network namespace, and the other end of each: 0 for one that has none. Sockets
/// are called by their inode numbers.
pub fn unix_peers() -> io::Result<HashMap<u64, u64>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    send(netlink.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut peers = HashMap::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let size = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if take(&buffer[..size], &mut peers)? {
            return Ok(peers);
        }
    }
}

/// `nlmsghdr` and `unix_diag_req`: all of them, in all states.
fn request() -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut bytes = Vec::new();
    bytes.extend(40_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// Takes the messages of one answer; true with the last.
fn take(mut rest: &[u8], peers: &mut HashMap<u64, u64>) -> io::Result<bool> {
    while rest.len() >= HEAD {
        let length = word(rest, 0) as usize;
        if length < HEAD || length > rest.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (message, kind) = (&rest[..length], half(rest, 4));
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR if length >= HEAD + 4 => {
                let code = word(message, HEAD).cast_signed();
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ if kind == SOCK_DIAG_BY_FAMILY && length >= HEAD + BODY => {
                let inode = word(message, HEAD + 4);
                peers.insert(inode.into(), peer(&message[HEAD + BODY..]).into());
            }
            _ => {}
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    Ok(false)
}

/// The peer among the attributes of a socket.
fn peer(mut attributes: &[u8]) -> u32 {
    while attributes.len() >= 4 {
        let length = usize::from(half(attributes, 0));
        if length < 4 || length > attributes.len() {
            break;
        }
        if half(attributes, 2) == UNIX_DIAG_PEER && length >= 8 {
            return word(attributes, 4);
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    0
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_ends_of_a_pair_are_each_others() {
        let inode = |socket: &UnixStream| nix::sys::stat::fstat(socket).unwrap().st_ino;
        let (one, other) = UnixStream::pair().unwrap();
        let peers = unix_peers().unwrap();
        assert_eq!(peers[&inode(&one)], inode(&other));
        assert_eq!(peers[&inode(&other)], inode(&one));
        drop(other);
        assert_eq!(unix_peers().unwrap()[&inode(&one)], 0);
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        let mut peers = HashMap::new();
        assert!(take(&[1; 20], &mut peers).is_err());
        assert!(!take(&[0; 3], &mut peers).unwrap());
        assert!(peers.is_empty());
    }
}
