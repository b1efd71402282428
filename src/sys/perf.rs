//! Perf events.
//!
//! `nix` has nothing of them; the kernel's `struct perf_event_attr` is written down here as far as it is needed.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `PERF_TYPE_BREAKPOINT`.
const BREAKPOINT: u32 = 5;
/// `HW_BREAKPOINT_W`.
const ON_WRITE: u32 = 2;
/// `HW_BREAKPOINT_LEN_8`.
const EIGHT_BYTES: u64 = 8;
/// Bits of the flags: `disabled`, `exclude_kernel`, `exclude_hv`.
const FLAGS: u64 = 1 | 1 << 5 | 1 << 6;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// `struct perf_event_attr` of `PERF_ATTR_SIZE_VER1`, the first with breakpoints; every kernel takes it.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    address: u64,
    length: u64,
}

/// A hardware breakpoint of this thread that never triggers, for as long as it is open, in whatever thread.
///
/// The first event of a task that a kernel without any gets makes it patch its own code on all processors and wait
/// for all of them, and so does the first one after the last was closed: 6 to 8 ms on a quiet machine of two
/// processors, against 0.03 ms for a second one. CRIU sets a breakpoint in every
/// task it dumps, with the tasks frozen; while this is open its breakpoints are not the first.
///
/// # Errors
/// When the kernel has no perf events (ENOENT, ENOSYS, EOPNOTSUPP) or keeps them to itself (EACCES, EPERM). Nothing
/// depends on it but that time.
pub fn hold_breakpoint() -> io::Result<OwnedFd> {
    static WATCHED: u64 = 0;
    let attributes = Attributes {
        kind: BREAKPOINT,
        size: size_of::<Attributes>() as u32,
        flags: FLAGS,
        breakpoint: ON_WRITE,
        address: std::ptr::from_ref(&WATCHED).addr() as u64,
        length: EIGHT_BYTES,
        ..Attributes::default()
    };
    let (this_thread, every_processor, no_group) = (0, -1, -1);
    // SAFETY: the attributes are the kernel's structure in the size they tell, and outlive the call, which only reads
    // them; the other arguments are numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            this_thread,
            every_processor,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this file descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_breakpoint_is_held_or_refused_with_a_reason() {
        match hold_breakpoint() {
            Ok(fd) => {
                let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
                assert!(link.to_string_lossy().contains("perf_event"), "{link:?}");
            }
            Err(error) => {
                let told = [
                    libc::ENOENT,
                    libc::ENOSYS,
                    libc::EOPNOTSUPP,
                    libc::EACCES,
                    libc::EPERM,
                ];
                assert!(told.contains(&error.raw_os_error().unwrap()), "{error}");
            }
        }
    }
}
