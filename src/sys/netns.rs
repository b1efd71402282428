//! Network namespaces: made and pinned to a path, entered by a thread of their own, unpinned.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Where a thread finds the namespace it is in itself, which need not be the one of its process.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace: it lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// The calling thread's.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// The one pinned at `pin`.
    pub fn open(pin: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(pin)?;
        Ok(Self(file.into()))
    }

    /// Does `work` in the namespace, on a thread that exists for nothing else: the caller's own namespace, and
    /// that of every thread that will be made later, stays what it is. Threads made by `work` are in it too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The inode number of the network namespace that a socket belongs to (`SIOCGSKNS`, `net/socket.c`).
pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SIOCGSKNS: libc::c_ulong = 0x894C;
    // SAFETY: the call takes nothing but numbers, and what it returns is a new descriptor.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    let namespace = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(nix::sys::stat::fstat(&namespace)?.st_ino)
}

/// Makes a new network namespace that nobody is in, and pins it at `pin`, which must not exist: it stays until
/// [`unpin`]. On failure nothing is left behind.
pub fn pin_new(pin: &Path) -> io::Result<()> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        self::pin(Path::new(OWN), pin)
    })
}

/// Pins a namespace of whatever kind, which `of` names in `/proc`, at `pin`, which must not exist: it stays until
/// [`unpin`]. On failure nothing is left behind.
pub fn pin(of: &Path, pin: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(pin)?;
    let none = None::<&str>;
    let pinned = mount(Some(of), pin, none, MsFlags::MS_BIND, none).map_err(io::Error::from);
    if pinned.is_err() {
        // The first failure is the one worth telling.
        let _ = fs::remove_file(pin);
    }
    pinned
}

/// Undoes [`pin_new`], or what a crash has left of it: a file without a mount, several mounts on one file, or
/// nothing at all. The namespace itself ends with the last process and the last open file in it.
pub fn unpin(pin: &Path) -> io::Result<()> {
    loop {
        match umount2(pin, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point, or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a setting of the calling thread's namespace: `key` is the path below `/proc/sys/net`. Whether the
/// setting exists, as it does not where the kernel lacks the protocol, is told.
pub fn set_parameter(key: &str, value: &str) -> io::Result<bool> {
    match File::options()
        .write(true)
        .open(Path::new("/proc/sys/net").join(key))
    {
        Ok(mut file) => io::Write::write_all(&mut file, value.as_bytes()).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Brings the loopback device of the calling thread's namespace up, with its addresses; new namespaces have it down.
pub fn raise_loopback() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: a structure of plain numbers, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request reads one `ifreq`, which is alive and whose name ends with a zero.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned());
        match thread.spawn_scoped(scope, work)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Gives `work` a directory, in a mount namespace of its own: whatever a test leaves mounted ends with it.
    fn as_root(test: &str, work: impl FnOnce(&Path) + Send) {
        if !nix::unistd::geteuid().is_root() {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
            assert!(!required, "{test}: needs root");
            println!("SKIP {test}: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let one_way = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            mount(None::<&str>, "/", None::<&str>, one_way, None::<&str>)?;
            work(dir.path());
            Ok(())
        })
        .unwrap();
    }

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn work_is_done_in_the_pinned_namespace_and_the_caller_stays_where_it_was() {
        as_root("netns run", |dir| {
            let pin = dir.join("pin");
            pin_new(&pin).unwrap();
            let home = inode(Path::new(OWN));
            let there = NetNs::open(&pin)
                .unwrap()
                .run(|| inode(Path::new(OWN)))
                .unwrap();
            assert_eq!(there, inode(&pin));
            assert_ne!(there, home);
            assert_eq!(inode(Path::new(OWN)), home);
            unpin(&pin).unwrap();
            assert!(!pin.exists());
        });
    }

    #[test]
    fn a_new_namespace_has_a_loopback_device_that_can_be_raised() {
        as_root("netns loopback", |dir| {
            let pin = dir.join("pin");
            pin_new(&pin).unwrap();
            let raised = NetNs::open(&pin).unwrap().run(|| {
                let bind = || std::net::TcpListener::bind("127.0.0.1:0");
                let talk = |listener: std::net::TcpListener| {
                    std::net::TcpStream::connect(listener.local_addr().unwrap())
                };
                assert!(bind().and_then(talk).is_err(), "it was up");
                raise_loopback().unwrap();
                bind().and_then(talk).is_ok()
            });
            assert!(raised.unwrap());
            unpin(&pin).unwrap();
        });
    }

    #[test]
    fn a_pin_is_not_put_on_something_that_exists() {
        as_root("netns pin", |dir| {
            let pin = dir.join("pin");
            pin_new(&pin).unwrap();
            let before = inode(&pin);
            assert_eq!(
                pin_new(&pin).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists
            );
            assert_eq!(inode(&pin), before);
            unpin(&pin).unwrap();
        });
    }

    #[test]
    fn whatever_a_crash_left_of_a_pin_is_removed() {
        as_root("netns unpin", |dir| {
            let pin = dir.join("pin");
            unpin(&pin).unwrap();
            fs::write(&pin, "").unwrap();
            assert!(NetNs::open(&pin).unwrap().run(|| ()).is_err());
            unpin(&pin).unwrap();
            assert!(!pin.exists());
            pin_new(&pin).unwrap();
            mount(
                Some(OWN),
                &pin,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .unwrap();
            unpin(&pin).unwrap();
            unpin(&pin).unwrap();
            assert!(!pin.exists());
            let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
            assert!(!mounts.contains(pin.to_str().unwrap()));
        });
    }
}
