//! The part of capabilities that is not a set of bits of a thread: the bounding set, and what a change of user keeps.

use std::io;

/// Takes a capability out of the bounding set of the calling thread, for good. Whether the kernel knows it: they are
/// numbered without gaps, so that the first one unknown is behind the last.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn drop_from_bounding(number: u32) -> io::Result<bool> {
    // SAFETY: no pointers.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        error => Err(error),
    }
}

/// Whether the calling thread keeps its permitted capabilities when it stops being root. An exec forgets it.
pub fn keep_over_change_of_user(keep: bool) -> io::Result<()> {
    // SAFETY: no pointers.
    let result = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
