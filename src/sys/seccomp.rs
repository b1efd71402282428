//! Seccomp filters of the calling thread.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `struct sock_filter`: one instruction of a filter.
pub use libc::sock_filter as Instruction;

/// `SECCOMP_FILTER_FLAG_LOG`.
pub const LOG: u64 = libc::SECCOMP_FILTER_FLAG_LOG;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
pub const SPEC_ALLOW: u64 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const NEW_LISTENER: u64 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19).
pub const WAIT_KILLABLE_RECV: u64 = 1 << 5;

/// Loads a filter for the calling thread and everything it becomes or makes, for good. The descriptor on which it
/// notifies, when [`NEW_LISTENER`] is among the flags.
///
/// # Errors
/// EACCES: the thread has neither given up new privileges nor `CAP_SYS_ADMIN`. EINVAL: a program or a flag that this
/// kernel does not know. EBUSY: there is a listener already.
pub fn load(program: &[Instruction], flags: u64) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len: length,
        // The kernel copies the program and writes nothing.
        filter: program.as_ptr().cast_mut(),
    };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program is as long as it says and outlives the call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the kernel returns a new descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as i32) }))
}

/// Whether the kernel can do what this answer of a filter asks for.
pub fn knows_action(action: u32) -> bool {
    // SECCOMP_GET_ACTION_AVAIL.
    let operation = 2;
    // SAFETY: the call reads four bytes at the pointer, which outlives it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) };
    result == 0
}

#[cfg(test)]
mod test {
    use super::*;

    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

    fn always(answer: u32) -> [Instruction; 1] {
        [Instruction {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: answer,
        }]
    }

    #[test]
    fn a_filter_that_allows_all_is_loaded_and_a_wrong_one_is_not() {
        if !crate::sys::process::is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP a_filter_that_allows_all: needs root");
            return;
        }
        // A filter is of one thread: this one, which ends with the test.
        std::thread::spawn(|| {
            let allow = always(libc::SECCOMP_RET_ALLOW);
            assert!(load(&allow, 0).unwrap().is_none());
            assert!(load(&allow, SPEC_ALLOW | LOG).unwrap().is_none());
            let listener = load(&allow, NEW_LISTENER | WAIT_KILLABLE_RECV).unwrap();
            assert!(listener.is_some());
            assert_eq!(
                load(&allow, NEW_LISTENER).unwrap_err().raw_os_error(),
                Some(libc::EBUSY)
            );
            assert!(load(&[], 0).is_err());
            assert!(load(&allow, 1 << 20).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_kernel_knows_its_actions() {
        assert!(knows_action(libc::SECCOMP_RET_ERRNO));
        assert!(knows_action(libc::SECCOMP_RET_USER_NOTIF));
        assert!(!knows_action(0x1234_0000));
    }
}
