//! Userfaultfds: page faults of an address space, answered from outside of it (userfaultfd(2), ioctl_userfaultfd(2)).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

/// Flag of [`create`] for those without privileges: faults that happen in the kernel are not reported.
pub const USER_MODE_ONLY: i32 = 1;

/// Faults on missing pages are reported.
pub const MODE_MISSING: u64 = 1 << 0;
/// Write-protected pages can be made, and faults on them are reported, or are resolved with `FEATURE_WP_ASYNC`.
pub const MODE_WP: u64 = 1 << 1;

/// Faults on write-protected pages can be told apart.
pub const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
/// A fork is told, with a userfaultfd of the child.
pub const FEATURE_EVENT_FORK: u64 = 1 << 1;
/// A mapping that moves is told, and stays registered.
pub const FEATURE_EVENT_REMAP: u64 = 1 << 2;
/// Pages that are given up are told.
pub const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// A mapping that goes is told.
pub const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
/// Write protection of file and shared memory.
pub const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Pages that were never touched can be write-protected (6.4).
pub const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// A fault on a write-protected page is resolved by the kernel; `PAGEMAP_SCAN` tells of it (6.7).
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

const API: u64 = 0xAA;
const MESSAGE: usize = 32;
/// A page that may be in any address space.
const ANYWHERE: Range<u64> = 1 << 16..(1 << 16) + 4096;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct ApiArguments {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct RangeArguments {
    start: u64,
    length: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct RegisterArguments {
    range: RangeArguments,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CopyArguments {
    destination: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

/// Of zero pages and of `UFFDIO_CONTINUE`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct PlaceArguments {
    range: RangeArguments,
    mode: u64,
    done: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct ProtectArguments {
    range: RangeArguments,
    mode: u64,
}

mod raw {
    #![allow(missing_docs, clippy::undocumented_unsafe_blocks)]
    use super::{
        ApiArguments, CopyArguments, PlaceArguments, ProtectArguments, RangeArguments,
        RegisterArguments,
    };
    nix::ioctl_readwrite!(api, 0xAA, 0x3F, ApiArguments);
    nix::ioctl_readwrite!(register, 0xAA, 0x00, RegisterArguments);
    nix::ioctl_read!(unregister, 0xAA, 0x01, RangeArguments);
    nix::ioctl_read!(wake, 0xAA, 0x02, RangeArguments);
    nix::ioctl_readwrite!(copy, 0xAA, 0x03, CopyArguments);
    nix::ioctl_readwrite!(zeropage, 0xAA, 0x04, PlaceArguments);
    nix::ioctl_readwrite!(write_protect, 0xAA, 0x06, ProtectArguments);
    nix::ioctl_readwrite!(proceed, 0xAA, 0x07, PlaceArguments);
}

/// A userfaultfd of some address space, this process's or another's.
///
/// When its last descriptor is closed, everything that it was registered for becomes ordinary memory: pages that
/// are missing then read as zeros.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

/// How an attempt to put pages in place ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// All are there.
    All,
    /// So many bytes are there, then something came between: try the rest again.
    Some(u64),
    /// The first page is there already.
    Exists,
    /// The address space is being changed: read the events, then try again. Nothing was done.
    Changing,
    /// The first page is in no mapping that this descriptor is registered for, or the range leaves it: not because of
    /// a change that is still to be read.
    Unmapped,
    /// The address space is gone.
    Gone,
}

/// Whether a range is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// It is.
    Yes,
    /// It is not, or not as a whole, or not in one mapping.
    No,
    /// The address space is being changed: read the events, then ask again.
    Changing,
    /// The address space is gone.
    Gone,
}

/// What a userfaultfd tells.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for a page.
    Fault {
        /// The page's address.
        address: u64,
        /// Whether it writes.
        write: bool,
        /// Whether the page is there and write-protected.
        protected: bool,
    },
    /// The process has forked.
    Fork {
        /// The userfaultfd of the child.
        child: Userfaultfd,
    },
    /// A mapping has moved.
    Remap {
        /// From here …
        from: u64,
        /// … to there.
        to: u64,
        /// Its length before.
        length: u64,
    },
    /// Pages are about to be given up; from now on they are zero.
    Remove {
        /// These.
        range: Range<u64>,
    },
    /// Something was unmapped.
    Unmap {
        /// This.
        range: Range<u64>,
    },
}

/// A new userfaultfd of the calling process, closed at exec and never waiting, before its [`Userfaultfd::handshake`].
pub fn create(flags: i32) -> io::Result<Userfaultfd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(Userfaultfd(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The same from `/dev/userfaultfd`, by which whoever may open it can have one for a task that may not ask itself
/// (`fs/userfaultfd.c`, `userfaultfd_dev_ioctl`; Linux 6.1).
///
/// # Errors
/// `NotFound` where the kernel, or this tree of files, has no such device.
pub fn create_by_device(flags: i32) -> io::Result<Userfaultfd> {
    const NEW: libc::c_ulong = 0xAA00; // USERFAULTFD_IOC_NEW
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = std::fs::File::open("/dev/userfaultfd")?;
    // SAFETY: numbers alone.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(Userfaultfd(unsafe { OwnedFd::from_raw_fd(fd) }))
}

impl From<OwnedFd> for Userfaultfd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Userfaultfd> for OwnedFd {
    fn from(uffd: Userfaultfd) -> Self {
        uffd.0
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Userfaultfd {
    /// A duplicate of the descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Agrees on these features, which may be done once; the kernel refuses as a whole what it does not know.
    /// Returns all features it has.
    pub fn handshake(&self, features: u64) -> io::Result<u64> {
        let mut arguments = ApiArguments {
            api: API,
            features,
            ioctls: 0,
        };
        // SAFETY: the arguments are those of linux/userfaultfd.h and outlive the call.
        unsafe { raw::api(self.0.as_raw_fd(), &mut arguments) }?;
        Ok(arguments.features)
    }

    /// Registers the mappings in a range, for `MODE_MISSING`, `MODE_WP` or both. Returns which ioctls it has.
    pub fn register(&self, range: Range<u64>, mode: u64) -> io::Result<u64> {
        let mut arguments = RegisterArguments {
            range: arguments(range),
            mode,
            ioctls: 0,
        };
        // SAFETY: the arguments are those of linux/userfaultfd.h and outlive the call; registering changes no
        // byte of any memory, only who is asked for pages that are missing.
        unsafe { raw::register(self.0.as_raw_fd(), &mut arguments) }?;
        Ok(arguments.ioctls)
    }

    /// Undoes registrations in a range; who waits for a page there finds what it finds without.
    pub fn unregister(&self, range: Range<u64>) -> io::Result<()> {
        let mut arguments = arguments(range);
        // SAFETY: as above; the kernel only reads the argument.
        unsafe { raw::unregister(self.0.as_raw_fd(), &mut arguments) }?;
        Ok(())
    }

    /// Lets everybody who waits for a page in a range try again.
    pub fn wake(&self, range: Range<u64>) -> io::Result<()> {
        let mut arguments = arguments(range);
        // SAFETY: as above; the kernel only reads the argument.
        unsafe { raw::wake(self.0.as_raw_fd(), &mut arguments) }?;
        Ok(())
    }

    /// Write-protects the pages of a range, or undoes that. Who waits is woken.
    pub fn write_protect(&self, range: Range<u64>, on: bool) -> io::Result<()> {
        let mut arguments = ProtectArguments {
            range: arguments(range),
            mode: u64::from(on),
        };
        // SAFETY: as above; a write to a protected page waits or is resolved by the kernel, and no byte changes.
        unsafe { raw::write_protect(self.0.as_raw_fd(), &mut arguments) }?;
        Ok(())
    }

    /// Puts pages that are missing at `address`, whole pages, and wakes who waits for them. A page that is there
    /// is never overwritten.
    pub fn copy(&self, address: u64, pages: &[u8]) -> io::Result<Placed> {
        let mut arguments = CopyArguments {
            destination: address,
            source: pages.as_ptr().addr() as u64,
            length: pages.len() as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the source is borrowed for the call and is as long as is said. The destination is a page that
        // its process has registered and that has no content, so no reference to it can be invalidated: this
        // *is* its first content, as the kernel's zero page otherwise would be.
        let result = unsafe { raw::copy(self.0.as_raw_fd(), &mut arguments) };
        self.outcome(result, arguments.copied)
    }

    /// Puts pages of zeros in a range, as [`Self::copy`] does.
    pub fn zeropage(&self, range: Range<u64>) -> io::Result<Placed> {
        let mut arguments = PlaceArguments {
            range: arguments(range),
            mode: 0,
            done: 0,
        };
        // SAFETY: as of `copy`.
        let result = unsafe { raw::zeropage(self.0.as_raw_fd(), &mut arguments) };
        self.outcome(result, arguments.done)
    }

    /// Whether this descriptor is registered for the anonymous memory of a range, all of one mapping, without
    /// changing anything: `UFFDIO_CONTINUE`, which is for shared memory alone, is refused differently where it is.
    pub fn registered(&self, range: Range<u64>) -> io::Result<Registered> {
        match self.proceed(range) {
            Err(Errno::EAGAIN) => Ok(Registered::Changing),
            Err(Errno::ENOENT) if self.is_changing() => Ok(Registered::Changing),
            Err(Errno::ENOENT) => Ok(Registered::No),
            Err(Errno::ESRCH) => Ok(Registered::Gone),
            Ok(()) | Err(Errno::EINVAL | Errno::EEXIST | Errno::EFAULT) => Ok(Registered::Yes),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the address space is being changed, or has been and that was not read yet: what is asked first of all,
    /// whatever the range.
    fn is_changing(&self) -> bool {
        self.proceed(ANYWHERE) == Err(Errno::EAGAIN)
    }

    fn proceed(&self, range: Range<u64>) -> nix::Result<()> {
        let mut arguments = PlaceArguments {
            range: arguments(range),
            mode: 0,
            done: 0,
        };
        // SAFETY: as of `copy`; on anonymous memory it does nothing.
        unsafe { raw::proceed(self.0.as_raw_fd(), &mut arguments) }.map(drop)
    }

    /// The kernel says how far it came in a field of its own; the error is only what stopped it at the first page.
    ///
    /// That there is no mapping is no answer yet. Since Linux 6.8 it is looked for before it is asked again whether
    /// something changes (`mfill_atomic`, mm/userfaultfd.c): one that moves away in between is missed, and its
    /// descriptor tells where it went only afterwards. But whoever finds it gone finds the change counted, too, until
    /// that was read.
    fn outcome(&self, result: nix::Result<i32>, done: i64) -> io::Result<Placed> {
        match result {
            Ok(_) => Ok(Placed::All),
            Err(_) if done > 0 => Ok(Placed::Some(done.cast_unsigned())),
            Err(Errno::EEXIST) => Ok(Placed::Exists),
            Err(Errno::EAGAIN) => Ok(Placed::Changing),
            Err(Errno::ENOENT) if self.is_changing() => Ok(Placed::Changing),
            Err(Errno::ENOENT) => Ok(Placed::Unmapped),
            Err(Errno::ESRCH) => Ok(Placed::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// The next event, as [`Self::read`], which is at the same time left in `record`, four words in the kernel's
    /// layout: the kernel writes it there itself, in the one system call by which the event counts as read. So a
    /// process that is killed has either not read an event or left it there.
    ///
    /// The words must be in memory, see [`SharedWords::lock`](super::shared::SharedWords::lock).
    pub fn read_recorded(&self, record: &[AtomicU64; 4]) -> io::Result<Option<Event>> {
        let at = record.as_ptr().cast_mut().cast();
        // SAFETY: the words are atomics, borrowed for the call, 32 bytes together: whoever reads them meanwhile
        // sees the words before or after.
        let read = unsafe { libc::read(self.0.as_raw_fd(), at, MESSAGE) };
        match Errno::result(read) {
            Ok(length) if length.cast_unsigned() == MESSAGE => {}
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut message = [0; MESSAGE];
        for (bytes, word) in message.chunks_exact_mut(8).zip(record) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        event(&message).map(Some)
    }

    /// The next event; none where nothing is waiting to be read.
    pub fn read(&self) -> io::Result<Option<Event>> {
        let mut message = [0; MESSAGE];
        match nix::unistd::read(&self.0, &mut message) {
            Ok(MESSAGE) => event(&message).map(Some),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn arguments(range: Range<u64>) -> RangeArguments {
    RangeArguments {
        start: range.start,
        length: range.end.saturating_sub(range.start),
    }
}

/// Reads a message of the kernel's. The descriptor of a fork is owned by what is returned, so a message may be
/// read once.
fn event(message: &[u8; MESSAGE]) -> io::Result<Event> {
    let (words, _) = message.as_chunks::<8>();
    let [first, second, third] = [1, 2, 3].map(|at| u64::from_ne_bytes(words[at]));
    Ok(match message[0] {
        0x12 => Event::Fault {
            address: second,
            write: first & 1 != 0,
            protected: first & 2 != 0,
        },
        0x13 => {
            // The field is 32 bits wide.
            let fd = (first as u32).cast_signed();
            // SAFETY: the kernel has just made it for us; a message is read once.
            let child = Userfaultfd(unsafe { OwnedFd::from_raw_fd(fd) });
            Event::Fork { child }
        }
        0x14 => Event::Remap {
            from: first,
            to: second,
            length: third,
        },
        0x15 => Event::Remove {
            range: first..second,
        },
        0x16 => Event::Unmap {
            range: first..second,
        },
        _ => return Err(io::ErrorKind::InvalidData.into()),
    })
}

#[cfg(test)]
mod test {
    use super::*;

    const PAGE: u64 = 4096;

    /// Fresh memory of this process, by its address: nobody has a reference into it.
    fn map(pages: u64) -> Range<u64> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let length = (pages * PAGE) as usize;
        let none = std::ptr::null_mut();
        // SAFETY: a fresh mapping, wherever the kernel finds room.
        let at = unsafe { libc::mmap(none, length, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        let start = at.expose_provenance() as u64;
        start..start + pages * PAGE
    }

    fn byte(address: u64) -> u8 {
        let at: *const u8 = std::ptr::with_exposed_provenance(address as usize);
        // SAFETY: within the mapping of the test.
        unsafe { at.read_volatile() }
    }

    fn next(uffd: &Userfaultfd) -> Event {
        loop {
            if let Some(event) = uffd.read().unwrap() {
                return event;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn pages_are_placed_once_and_events_are_told() {
        let uffd = create(USER_MODE_ONLY).unwrap();
        let features = FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP;
        if let Err(error) = uffd.handshake(features) {
            // Events are for those who may trace, in some kernels.
            assert_ne!(std::env::var("GODWIT_REQUIRE_ROOT").as_deref(), Ok("1"));
            println!("SKIP: no events here: {error}");
            return;
        }
        let Range { start, end } = map(8);
        uffd.register(start..end, MODE_MISSING).unwrap();
        assert!(uffd.read().unwrap().is_none());

        let pages = [7; 2 * PAGE as usize];
        assert_eq!(uffd.copy(start, &pages).unwrap(), Placed::All);
        assert_eq!(uffd.copy(start, &pages).unwrap(), Placed::Exists);
        let behind = start + 2 * PAGE;
        assert_eq!(uffd.zeropage(behind..behind + PAGE).unwrap(), Placed::All);
        // Up to a page that is there: that much, and no more.
        assert_eq!(uffd.copy(end - PAGE, &pages[..4096]).unwrap(), Placed::All);
        assert_eq!(
            uffd.copy(end - 2 * PAGE, &pages).unwrap(),
            Placed::Some(PAGE)
        );
        assert_eq!((byte(start + PAGE + 9), byte(behind)), (7, 0));
        let far = start - (1 << 40);
        assert_eq!(uffd.copy(far, &pages).unwrap(), Placed::Unmapped);
        let registered = |range: Range<u64>| uffd.registered(range).unwrap();
        assert_eq!(registered(start..end), Registered::Yes);
        assert_eq!(registered(far..far + PAGE), Registered::No);
        assert_eq!(registered(start..end + PAGE), Registered::No);

        std::thread::scope(|scope| {
            // Who waits for a page gets it.
            let reader = scope.spawn(|| byte(start + 4 * PAGE));
            let fault = next(&uffd);
            let Event::Fault { address, write, .. } = fault else {
                panic!("{fault:?}");
            };
            assert_eq!((address, write), (start + 4 * PAGE, false));
            assert_eq!(
                uffd.copy(address, &[5; PAGE as usize]).unwrap(),
                Placed::All
            );
            assert_eq!(reader.join().unwrap(), 5);
            // Who gives pages up, or unmaps, waits until that is read.
            let giver = scope.spawn(|| {
                let at = std::ptr::with_exposed_provenance_mut(start as usize);
                // SAFETY: the mapping of this test, which nobody has a reference into or uses afterwards.
                let results = unsafe {
                    let given = libc::madvise(at, PAGE as usize, libc::MADV_DONTNEED);
                    (given, libc::munmap(at, 8 * PAGE as usize))
                };
                assert_eq!(results, (0, 0));
            });
            let removed = next(&uffd);
            let first = start..start + PAGE;
            assert!(matches!(&removed, Event::Remove { range } if *range == first));
            let record = [const { AtomicU64::new(0) }; 4];
            let unmapped = loop {
                if let Some(event) = uffd.read_recorded(&record).unwrap() {
                    break event;
                }
            };
            let recorded = record.each_ref().map(|word| word.load(Ordering::Relaxed));
            assert_eq!(recorded, [0x16, start, end, 0]);
            assert!(matches!(&unmapped, Event::Unmap { range } if *range == (start..end)));
            giver.join().unwrap();
        });
        assert_eq!(uffd.copy(start, &pages).unwrap(), Placed::Unmapped);
    }

    /// A child that ends with this.
    struct Ends(i32);

    impl Drop for Ends {
        fn drop(&mut self) {
            let pid = nix::unistd::Pid::from_raw(self.0);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
        }
    }

    /// Reads a number that the child has written.
    fn hear(pipe: &OwnedFd) -> i32 {
        let mut number = [0; 4];
        assert_eq!(nix::unistd::read(pipe, &mut number).unwrap(), 4);
        i32::from_ne_bytes(number)
    }

    /// A page goes back and forth between two places, as fast as it can, while it is to be placed where it was last
    /// seen: as long as nobody has read where it went, the answer is never that it is nowhere.
    #[test]
    fn a_mapping_that_moves_away_is_not_taken_for_gone() {
        const TURNS: usize = 20_000;
        let (hears, says) = nix::unistd::pipe().unwrap();
        let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let both = map(2);
        let (one, other) = (both.start, both.start + PAGE);
        let at = |address: u64| std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: the child calls nothing but the kernel, and has a memory of its own, of which it only moves what
        // `map` has made here.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let begin = || -> io::Result<i32> {
                let uffd = create(USER_MODE_ONLY)?;
                uffd.handshake(FEATURE_EVENT_REMAP | FEATURE_EVENT_UNMAP)?;
                uffd.register(one..one + PAGE, MODE_MISSING)?;
                Ok(std::os::fd::IntoRawFd::into_raw_fd(OwnedFd::from(uffd)))
            };
            let number = begin().unwrap_or(-1);
            // SAFETY: as above; the number outlives the call.
            unsafe {
                libc::write(says.as_raw_fd(), (&raw const number).cast(), 4);
                libc::munmap(at(other), PAGE as usize);
                let (mut from, mut to) = (one, other);
                while number >= 0 && libc::getppid() != 1 {
                    libc::mremap(at(from), PAGE as usize, PAGE as usize, fixed, at(to));
                    (from, to) = (to, from);
                }
                libc::_exit(0);
            }
        }
        let number = hear(&hears);
        let end = Ends(child);
        if number < 0 {
            assert_ne!(std::env::var("GODWIT_REQUIRE_ROOT").as_deref(), Ok("1"));
            println!("SKIP: no events here");
            return;
        }
        let process = crate::sys::pidfd::open(child).unwrap();
        let uffd = crate::sys::pidfd::descriptor(process.as_fd(), number).unwrap();
        let uffd = Userfaultfd::from(uffd);
        let mut here = one;
        let mut moved = 0;
        while moved < TURNS {
            assert_ne!(
                uffd.copy(here, &[7; PAGE as usize]).unwrap(),
                Placed::Unmapped
            );
            assert_ne!(uffd.registered(here..here + PAGE).unwrap(), Registered::No);
            match uffd.read().unwrap() {
                Some(Event::Remap { to, .. }) => (here, moved) = (to, moved + 1),
                // The place that it has left.
                Some(Event::Unmap { .. }) | None => {}
                Some(event) => panic!("{event:?}"),
            }
        }
        drop(end);
    }
}
