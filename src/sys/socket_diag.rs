//! What the kernel tells of sockets (sock_diag(7)).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `linux/sock_diag.h`
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `linux/unix_diag.h`
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// `include/net/tcp_states.h`
const TCP_LISTEN: u32 = 10;
/// The lengths of `nlmsghdr`, of `unix_diag_msg` and of `inet_diag_msg` (`linux/inet_diag.h`), in which the length of
/// the queue is at 56, and the inode number at 68.
const HEAD: usize = 16;
const UNIX_BODY: usize = 16;
const INET_BODY: usize = 72;

/// The unix sockets of this thread's network namespace, and the other end of each: 0 for one that has none. Sockets
/// are called by their inode numbers.
pub fn unix_peers() -> io::Result<HashMap<u64, u64>> {
    let mut peers = HashMap::new();
    ask(&Dump::open()?, &of_unix(), &mut |socket| {
        if socket.len() >= UNIX_BODY {
            let inode = word(socket, 4);
            peers.insert(inode.into(), peer(&socket[UNIX_BODY..]).into());
        }
    })?;
    Ok(peers)
}

/// The TCP sockets of a network namespace that listen, each with how many connections wait to be taken. Sockets are
/// called by their inode numbers.
///
/// Beside `/proc/net/tcp` this is cheap: that walks the table of all connections of all namespaces to its end, ten
/// milliseconds for the 262144 places that a kernel with 24 GiB has.
pub fn listeners(dump: &Dump) -> io::Result<HashMap<u64, usize>> {
    let mut found = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        ask(dump, &of_listeners(family as u8), &mut |socket| {
            if socket.len() >= INET_BODY {
                found.insert(word(socket, 68).into(), word(socket, 56) as usize);
            }
        })?;
    }
    Ok(found)
}

/// A socket that asks about those of the network namespace in which it was opened, whichever thread uses it.
#[derive(Debug)]
pub struct Dump(OwnedFd);

impl Dump {
    /// Opens one in this thread's namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self(socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?))
    }
}

/// Has every socket told that the request is about, from behind the head of its message.
fn ask(dump: &Dump, request: &[u8], tell: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    send(dump.0.as_raw_fd(), request, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let size = recv(dump.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if take(&buffer[..size], tell)? {
            return Ok(());
        }
    }
}

/// `nlmsghdr` for a dump, before `body`.
fn request(body: &[u8]) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let length = (HEAD + body.len()) as u32;
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// `unix_diag_req`: all of them, in all states.
fn of_unix() -> Vec<u8> {
    let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(0_u32.to_ne_bytes());
    body.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    body.extend([0xff; 8]);
    request(&body)
}

/// `inet_diag_req_v2`: those of TCP that listen, whatever their addresses.
fn of_listeners(family: u8) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend((1_u32 << TCP_LISTEN).to_ne_bytes());
    body.extend([0; 48]);
    request(&body)
}

/// Takes the messages of one answer; true with the last.
fn take(mut rest: &[u8], tell: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
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
            _ if kind == SOCK_DIAG_BY_FAMILY => tell(&message[HEAD..]),
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
        let mut told = 0;
        assert!(take(&[1; 20], &mut |_| told += 1).is_err());
        assert!(!take(&[0; 3], &mut |_| told += 1).unwrap());
        assert_eq!(told, 0);
    }

    #[test]
    fn a_socket_that_listens_is_told_of_with_what_waits() {
        use std::net::{TcpListener, TcpStream};
        let dump = Dump::open().unwrap();
        let inode = |socket: &TcpListener| nix::sys::stat::fstat(socket).unwrap().st_ino;
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listeners(&dump).unwrap().get(&inode(&four)), Some(&0));
        let clients = [(); 3].map(|()| TcpStream::connect(four.local_addr().unwrap()).unwrap());
        assert_eq!(listeners(&dump).unwrap().get(&inode(&four)), Some(&3));
        four.accept().unwrap();
        assert_eq!(listeners(&dump).unwrap().get(&inode(&four)), Some(&2));
        drop(clients);
        if let Ok(six) = TcpListener::bind("[::1]:0") {
            assert_eq!(listeners(&dump).unwrap().get(&inode(&six)), Some(&0));
        }
        let gone = inode(&four);
        drop(four);
        assert_eq!(listeners(&dump).unwrap().get(&gone), None);
    }
}
