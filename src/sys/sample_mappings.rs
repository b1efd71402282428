//! Mappings of many kinds, made to be looked at.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

const PAGE: usize = 4096;
/// A mapping, and a page between it and the next, so that two of one kind stay two.
const STEP: usize = 2 * PAGE;

const PROTECTIONS: [i32; 5] = [
    libc::PROT_NONE,
    libc::PROT_READ,
    libc::PROT_READ | libc::PROT_WRITE,
    libc::PROT_READ | libc::PROT_EXEC,
    libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
];

/// How a file was opened: what a shared mapping may become depends on that.
#[derive(Clone, Copy)]
enum Open {
    Writable,
    ReadOnly,
}

/// Of what a mapping is.
#[derive(Clone, Copy)]
struct Kind {
    flags: i32,
    /// Memory of a file.
    file: Option<Open>,
    /// It was writable once, which a private mapping keeps in mind.
    was_writable: bool,
}

const fn anonymous(flags: i32) -> Kind {
    Kind {
        flags: flags | libc::MAP_ANONYMOUS,
        file: None,
        was_writable: false,
    }
}

const fn of_file(flags: i32, open: Open) -> Kind {
    Kind {
        flags,
        file: Some(open),
        was_writable: false,
    }
}

const PRIVATE: i32 = libc::MAP_PRIVATE;
/// `MAP_DROPPABLE` (6.11).
const DROPPABLE: i32 = 0x08;

const KINDS: [Kind; 12] = [
    anonymous(PRIVATE),
    Kind {
        was_writable: true,
        ..anonymous(PRIVATE)
    },
    anonymous(PRIVATE | libc::MAP_NORESERVE),
    anonymous(PRIVATE | libc::MAP_GROWSDOWN),
    anonymous(PRIVATE | libc::MAP_LOCKED),
    anonymous(libc::MAP_SHARED),
    anonymous(DROPPABLE),
    of_file(PRIVATE, Open::Writable),
    Kind {
        was_writable: true,
        ..of_file(PRIVATE, Open::Writable)
    },
    of_file(PRIVATE, Open::ReadOnly),
    of_file(libc::MAP_SHARED, Open::Writable),
    of_file(libc::MAP_SHARED, Open::ReadOnly),
];

const ADVICE: [&[i32]; 14] = [
    &[],
    &[libc::MADV_DONTDUMP],
    &[libc::MADV_DONTFORK],
    &[libc::MADV_WIPEONFORK],
    &[libc::MADV_HUGEPAGE],
    &[libc::MADV_NOHUGEPAGE],
    &[libc::MADV_MERGEABLE],
    &[libc::MADV_SEQUENTIAL],
    &[libc::MADV_RANDOM],
    &[libc::MADV_DONTDUMP, libc::MADV_DONTFORK],
    &[libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK],
    &[libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE],
    &[libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE],
    &[libc::MADV_DONTFORK, libc::MADV_NOHUGEPAGE],
];

/// One page of every kind of mapping that this kernel has and lets us make, for as long as this lives. Nobody uses
/// them.
#[derive(Debug)]
pub struct SampleMappings {
    range: Range<usize>,
}

impl SampleMappings {
    /// Makes them.
    ///
    /// # Errors
    /// When there is no room for them. A kind that cannot be made is left out.
    pub fn make() -> io::Result<Self> {
        let count = KINDS.len() * PROTECTIONS.len() * ADVICE.len();
        let length = count * STEP;
        let file = memfd_create("sample", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?;
        nix::unistd::ftruncate(&file, PAGE as i64).map_err(io::Error::from)?;
        let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let none = std::ptr::null_mut();
        let flags = PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping that nobody may touch, wherever the kernel finds room.
        let at = unsafe { libc::mmap(none, length, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let samples = Self {
            range: at.addr()..at.addr() + length,
        };
        let mut page = at.cast::<u8>();
        for kind in KINDS {
            for protection in PROTECTIONS {
                for advice in ADVICE {
                    let fd = match kind.file {
                        None => -1,
                        Some(Open::Writable) => file.as_raw_fd(),
                        Some(Open::ReadOnly) => read_only.as_raw_fd(),
                    };
                    // SAFETY: the page is one of the mapping made above, which is ours alone, and there are as many
                    // as there are rounds of these loops.
                    unsafe {
                        sample(page.cast(), kind, protection, advice, fd);
                        page = page.add(STEP);
                    }
                }
            }
        }
        Ok(samples)
    }

    /// Where they are.
    pub fn range(&self) -> Range<u64> {
        self.range.start as u64..self.range.end as u64
    }
}

impl Drop for SampleMappings {
    fn drop(&mut self) {
        let at = std::ptr::with_exposed_provenance_mut(self.range.start);
        // SAFETY: the mapping that `make` made and everything in it; nobody has an address of it.
        unsafe { libc::munmap(at, self.range.len()) };
    }
}

/// Puts a mapping of a kind at `page`. What the kernel refuses does not become one.
///
/// # Safety
/// The page is mapped, and nobody's.
unsafe fn sample(page: *mut libc::c_void, kind: Kind, protection: i32, advice: &[i32], fd: i32) {
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let first = if kind.was_writable {
        writable
    } else {
        protection
    };
    let flags = kind.flags | libc::MAP_FIXED;
    // SAFETY: replaces a page that is nobody's, as the caller promises; advice and protections change that page alone.
    unsafe {
        if libc::mmap(page, PAGE, first, flags, fd, 0) == libc::MAP_FAILED {
            return;
        }
        if kind.was_writable {
            libc::mprotect(page, PAGE, protection);
        }
        for advice in advice {
            libc::madvise(page, PAGE, *advice);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn there_are_many_kinds_and_none_is_left() {
        let samples = SampleMappings::make().unwrap();
        let range = samples.range();
        let inside = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut kinds = std::collections::BTreeSet::new();
            let mut within = false;
            for line in maps.lines() {
                if let Some((start, _)) = line.split_once('-').filter(|_| !line.contains(": ")) {
                    within =
                        u64::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
                } else if within && line.starts_with("VmFlags") {
                    kinds.insert(line.to_owned());
                }
            }
            kinds
        };
        let kinds = inside();
        println!("{} kinds", kinds.len());
        assert!(kinds.len() > 60, "{kinds:?}");
        for word in [
            "gd", "lo", "nr", "dd", "dc", "wf", "hg", "nh", "sr", "rr", "sh",
        ] {
            let word = format!(" {word} ");
            assert!(
                kinds.iter().any(|kind| kind.contains(&word)),
                "{word} {kinds:?}"
            );
        }
        drop(samples);
        // What other tests map there meanwhile is of few kinds.
        assert!(inside().len() < 20);
    }
}
