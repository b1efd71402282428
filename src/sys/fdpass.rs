//! Messages with descriptors over SEQPACKET unix sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, listen, recvmsg, sendmsg, socket, socketpair,
};

/// The longest message; longer ones are refused by both ends.
pub const MESSAGE_MAX: usize = 128 * 1024;
/// The most descriptors in one message.
pub const FDS_MAX: usize = 4;

fn fresh() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// Runs `act` with an address of the socket `path` that is short enough, however long the path is: through
/// a descriptor of its directory.
fn with_address<T>(path: &Path, act: impl FnOnce(&UnixAddr) -> nix::Result<T>) -> io::Result<T> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = std::fs::File::open(directory)?;
    let mut short = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    short.extend_from_slice(name.as_bytes());
    let address = UnixAddr::new(short.as_slice())?;
    Ok(act(&address)?)
}

/// A socket that listens at `path`, which must not exist.
pub fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let socket = fresh()?;
    with_address(path, |address| bind(socket.as_raw_fd(), address))?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket)
}

/// A socket connected to the one that listens at `path`.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = fresh()?;
    with_address(path, |address| connect(socket.as_raw_fd(), address))?;
    Ok(socket)
}

/// The next connection to a listening socket.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Two sockets connected to each other.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// Sends one message with descriptors. It fails instead of waiting when the other end does not read, if
/// `wait` is not set.
pub fn send(
    to: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<()> {
    if bytes.len() > MESSAGE_MAX || fds.len() > FDS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {} bytes is too long", bytes.len()),
        ));
    }
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    if !wait {
        flags |= MsgFlags::MSG_DONTWAIT;
    }
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
    Ok(())
}

/// Receives one message with its descriptors; none when the other end is closed.
pub fn receive(from: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = cmsg_space!([i32; FDS_MAX]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        // With a time limit (SO_RCVTIMEO) even a process without handlers is interrupted, by being stopped or traced.
        match recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is too long",
        ));
    }
    let length = message.bytes;
    // A SEQPACKET socket says "closed" with an empty message; nobody here sends an empty one.
    if length == 0 {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some((bytes, fds)))
}

/// Receives what there is, of a stream too, with its descriptors, and does not wait for it: how many bytes, 0 when
/// the other end is closed; none when there is nothing yet.
pub fn receive_some(
    from: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = cmsg_space!([i32; FDS_MAX]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        other => other?,
    };
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(Some((message.bytes, fds)))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (a, b) = pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), b"here", &[write.as_fd()], true).unwrap();
        drop(write);
        let (bytes, mut fds) = receive(b.as_fd()).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), fds.len()), (b"here".as_slice(), 1));
        std::fs::File::from(fds.remove(0)).write_all(b"x").unwrap();
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(a);
        assert!(receive(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_long_path_is_no_obstacle_and_a_full_socket_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = listen_at(&deep.join("shim.sock")).unwrap();
        let client = connect_to(&deep.join("shim.sock")).unwrap();
        let _served = accept(listener.as_fd()).unwrap();
        let sent = (0..10_000).find(|_| send(client.as_fd(), &[1; 1024], &[], false).is_err());
        assert!(sent.is_some());
        assert!(send(client.as_fd(), &vec![0; MESSAGE_MAX + 1], &[], true).is_err());
    }
}
