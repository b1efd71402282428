//! Mounts by descriptor (the new mount API); the classic calls are safe in `nix`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Opens a file for reading through a read-only mount of its own that nobody else can reach.
///
/// A program executed through this descriptor cannot be opened for writing by way of `/proc/PID/exe`, even by
/// root, while its file in the ordinary tree stays as writable as it was.
pub fn open_read_only(path: &Path) -> io::Result<File> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `name` is a C string that outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let tree = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attributes = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    // SAFETY: an empty C string and a live `mount_attr` of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    File::open(format!("/proc/self/fd/{}", tree.as_raw_fd()))
}

const MOUNT_ATTR_RDONLY: u64 = 1;

/// `struct mount_attr`, version 0 (Linux 5.12).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn a_program_that_runs_cannot_be_written_to() {
        if !crate::sys::process::is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP a_program_that_runs_cannot_be_written_to: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::copy("/bin/sleep", &path).unwrap();
        let program = open_read_only(&path).unwrap();
        let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg("60")
            .spawn()
            .unwrap();
        drop(program);
        let write = |path: &Path| File::options().append(true).open(path);
        // While it runs nobody can write to it anyway; a descriptor taken then and used later is the danger.
        let taken = File::open(format!("/proc/{}/exe", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let again = format!("/proc/self/fd/{}", taken.as_raw_fd());
        let refused = write(Path::new(&again)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        write(&path).unwrap();
    }
}
