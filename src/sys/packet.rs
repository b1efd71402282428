//! Message sockets (`SOCK_SEQPACKET`): whole messages, with a file descriptor beside them where one is sent.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, recv, recvmsg,
    send, shutdown, socketpair,
};

/// Two sockets joined with each other, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// Sends one message, whole.
pub fn send_packet(socket: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    loop {
        match send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) if sent == message.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A message, and the first file descriptor that came with it.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes; none at the end of the connection.
    pub bytes: Vec<u8>,
    /// The descriptor, closed on exec.
    pub fd: Option<OwnedFd>,
}

/// Waits for one message of at most `limit` bytes. A longer one is an error (`InvalidData`), and lost.
pub fn receive_packet(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Packet> {
    let length = retried(|| {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        recv(socket.as_raw_fd(), &mut [], flags)
    })?;
    let mut bytes = vec![0; length.min(limit)];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_TRUNC;
    let (received, descriptors) = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags);
        match message {
            Ok(message) => {
                let mut all = Vec::new();
                for part in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(numbers) = part {
                        all.extend(numbers);
                    }
                }
                break (message.bytes, all);
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    // Owned at once, all of them, so that none stays open when only the first is wanted.
    let mut owned = descriptors.into_iter().map(|number| {
        // SAFETY: the kernel has just made this descriptor in our table for this message; nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(number) }
    });
    let fd = owned.next();
    drop(owned.collect::<Vec<_>>());
    if received > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {received} bytes, at most {limit} are allowed"),
        ));
    }
    bytes.truncate(received);
    Ok(Packet { bytes, fd })
}

/// Ends the connection in both directions, for everyone who holds either end.
pub fn hang_up(socket: impl AsFd) -> io::Result<()> {
    match shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both) {
        Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn retried<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::io::{IoSlice, Write};

    #[test]
    fn messages_keep_their_borders_and_the_end_is_empty() {
        let (a, b) = pair().unwrap();
        send_packet(a.as_fd(), b"one").unwrap();
        send_packet(a.as_fd(), b"two, longer").unwrap();
        assert_eq!(receive_packet(b.as_fd(), 100).unwrap().bytes, b"one");
        assert_eq!(
            receive_packet(b.as_fd(), 100).unwrap().bytes,
            b"two, longer"
        );
        drop(a);
        assert!(receive_packet(b.as_fd(), 100).unwrap().bytes.is_empty());
    }

    #[test]
    fn a_message_over_the_limit_is_refused_and_the_next_one_comes() {
        let (a, b) = pair().unwrap();
        send_packet(a.as_fd(), &[7; 101]).unwrap();
        send_packet(a.as_fd(), b"next").unwrap();
        assert!(receive_packet(b.as_fd(), 100).is_err());
        assert_eq!(receive_packet(b.as_fd(), 100).unwrap().bytes, b"next");
    }

    #[test]
    fn a_descriptor_comes_with_its_message() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let numbers = [writer.as_raw_fd()];
        sendmsg::<()>(
            a.as_raw_fd(),
            &[IoSlice::new(b"fd")],
            &[ControlMessage::ScmRights(&numbers)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        drop(writer);
        let packet = receive_packet(b.as_fd(), 100).unwrap();
        let mut sent = io::PipeWriter::from(packet.fd.unwrap());
        sent.write_all(b"x").unwrap();
        drop(sent);
        assert_eq!(io::read_to_string(&mut reader).unwrap(), "x");
    }

    #[test]
    fn hanging_up_ends_a_copy_held_elsewhere() {
        let (a, b) = pair().unwrap();
        let copy = a.try_clone().unwrap();
        hang_up(&a).unwrap();
        assert!(receive_packet(b.as_fd(), 10).unwrap().bytes.is_empty());
        assert!(send_packet(copy.as_fd(), b"x").is_err());
    }
}
