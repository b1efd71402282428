//! A tap: an interface whose frames a process reads and writes (tun(4); Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

nix::ioctl_write_int!(
    /// `TUNSETIFF`, whose argument is an address although it is declared as a number.
    set_interface,
    b'T',
    202
);

/// The interface exists for as long as this does: no longer than the process, however that ends.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes the interface `name` in the calling thread's network namespace. Reading and writing do not wait.
    pub fn create(name: &str) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let pointer = (&raw mut request) as libc::c_ulong;
        // SAFETY: the kernel reads and writes one ifreq at this address, and `request` outlives the call.
        unsafe { set_interface(file.as_raw_fd(), pointer) }?;
        Ok(Self(file))
    }

    /// The next frame that waits, Ethernet header and all: its length. None: no frame waits.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.0).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets a frame come out of the interface, as if it had come in over a wire.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write(frame).map(drop)
    }
}
