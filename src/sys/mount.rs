//! Mounts by descriptor (the new mount API); the classic calls are safe in `nix`.
//!
//! What is mounted, and where, is held open: no path is resolved a second time, so nobody can change meanwhile
//! what it means.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Nothing can be written through the mount.
pub const READ_ONLY: u64 = 0x1;
/// Set-user-id bits and file capabilities count for nothing.
pub const NO_SUID: u64 = 0x2;
/// Devices cannot be opened.
pub const NO_DEVICES: u64 = 0x4;
/// Nothing can be executed.
pub const NO_EXEC: u64 = 0x8;
/// All bits that say when the access time is written; no bit of them: as usual (`relatime`).
pub const ACCESS_TIME: u64 = 0x70;
/// The access time is never written.
pub const NO_ACCESS_TIME: u64 = 0x10;
/// The access time is always written.
pub const STRICT_ACCESS_TIME: u64 = 0x20;
/// The access time of directories is never written.
pub const NO_DIRECTORY_ACCESS_TIME: u64 = 0x80;
/// No symbolic link is followed.
pub const NO_LINKS: u64 = 0x20_0000;

const ID_MAPPED: u64 = 0x10_0000;

/// Opens a file for reading through a read-only mount of its own that nobody else can reach.
///
/// A program executed through this descriptor cannot be opened for writing by way of `/proc/PID/exe`, even by
/// root, while its file in the ordinary tree stays as writable as it was.
pub fn open_read_only(path: &Path) -> io::Result<File> {
    let tree = clone_at(path, false)?;
    let change = Change {
        set: READ_ONLY,
        ..Change::default()
    };
    change_mount(tree.as_fd(), &change, false)?;
    File::open(format!("/proc/self/fd/{}", tree.as_raw_fd()))
}

/// A new mount of what is at `path`, as a bind mount would show it, that is in no tree yet; `recursive`: with all
/// that is mounted beneath.
pub fn clone_at(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    open_tree(libc::AT_FDCWD, &name, 0, recursive)
}

/// As [`clone_at`], of what is held open.
pub fn clone_of(place: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    open_tree(place.as_raw_fd(), c"", libc::AT_EMPTY_PATH, recursive)
}

fn open_tree(at: i32, name: &CStr, flags: i32, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = flags as u32 | libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: `name` is a C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, at, name.as_ptr(), flags) };
    descriptor(fd)
}

/// Mounts what `tree` holds (its mount's root) on what `target` holds.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const FROM_EMPTY_PATH: u32 = 0x4;
    const TO_EMPTY_PATH: u32 = 0x40;
    // SAFETY: two descriptors and two empty C strings.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            FROM_EMPTY_PATH | TO_EMPTY_PATH,
        )
    };
    done(result)
}

/// How a mount is changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// Attributes that are set.
    pub set: u64,
    /// Attributes that are taken away.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0: what becomes of mounts beneath it.
    pub propagation: u64,
    /// A user namespace whose maps the owners of files go through; only for a mount that is in no tree yet.
    pub id_map: Option<BorrowedFd<'a>>,
}

/// Changes the mount whose root `mount` holds; `recursive`: and all beneath.
pub fn change_mount(mount: BorrowedFd<'_>, change: &Change<'_>, recursive: bool) -> io::Result<()> {
    let mut attributes = MountAttr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    if let Some(namespace) = change.id_map {
        attributes.attr_set |= ID_MAPPED;
        attributes.userns_fd = namespace.as_raw_fd() as u64;
    }
    if change.set & ACCESS_TIME != 0 || change.clear & ACCESS_TIME != 0 {
        // The kernel wants them exchanged as a whole.
        attributes.attr_clr |= ACCESS_TIME;
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: an empty C string and a live `mount_attr` of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    done(result)
}

/// Whether `place` is the root of its mount.
pub fn is_mount_root(place: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: a structure of plain numbers, for which all zeros is a value.
    let mut facts: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty C string, and a live structure for the answer.
    let result = unsafe {
        libc::statx(
            place.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            0,
            &raw mut facts,
        )
    };
    done(result.into())?;
    Ok(facts.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// A file system on its way to being mounted.
#[derive(Debug)]
pub struct Filesystem(OwnedFd);

impl Filesystem {
    /// Begins with one of this type.
    pub fn open(kind: &str) -> io::Result<Self> {
        const CLOSE_ON_EXEC: u32 = 1;
        let kind = CString::new(kind)?;
        // SAFETY: `kind` is a C string that outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOSE_ON_EXEC) };
        descriptor(fd).map(Self)
    }

    /// Sets an option that has a value (shorter than 256 bytes: the kernel takes no more).
    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        let (key, value) = (CString::new(key)?, CString::new(value)?);
        self.configure(SET_STRING, Some(&key), Some(&value))
    }

    /// Sets an option that has no value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.configure(SET_FLAG, Some(&CString::new(key)?), None)
    }

    /// Makes it, and a mount of it with these attributes that is in no tree yet.
    pub fn mount(self, attributes: u64) -> io::Result<OwnedFd> {
        const CLOSE_ON_EXEC: u32 = 1;
        self.configure(CREATE, None, None)?;
        let context = self.0.as_raw_fd();
        // SAFETY: a descriptor and two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_fsmount, context, CLOSE_ON_EXEC, attributes) };
        descriptor(fd).map_err(|error| self.explained(error))
    }

    fn configure(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: null pointers, or C strings that outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                pointer(key),
                pointer(value),
                0,
            )
        };
        done(result).map_err(|error| self.explained(error))
    }

    /// The error with what the file system itself has to say, where it says something.
    fn explained(&self, error: io::Error) -> io::Error {
        let mut said = [0; 512];
        let Ok(mut context) = self.0.try_clone().map(File::from) else {
            return error;
        };
        let Ok(length @ 1..) = context.read(&mut said) else {
            return error;
        };
        // "e tmpfs: Bad value for 'size'": a letter for the severity comes first.
        let said = String::from_utf8_lossy(&said[..length]);
        let said = said.trim().get(2..).unwrap_or_default();
        io::Error::new(error.kind(), format!("{error}: {said}"))
    }
}

const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const CREATE: u32 = 6;

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

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

    #[test]
    fn a_program_whose_file_was_replaced_is_executed_as_it_was() {
        if !nix::unistd::geteuid().is_root() {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some();
            assert!(!required, "a program that was replaced: needs root");
            println!("SKIP a_program_whose_file_was_replaced: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::copy("/bin/sleep", &path).unwrap();
        let mut child = Command::new(&path).arg("60").spawn().unwrap();
        // As dpkg does it.
        std::fs::copy("/bin/false", dir.path().join("new")).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        let exe = format!("/proc/{}/exe", child.id());
        let ran = open_read_only(Path::new(&exe)).map(|old| {
            Command::new(format!("/proc/self/fd/{}", old.as_raw_fd()))
                .arg("0")
                .status()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ran.unwrap().unwrap().success());
    }
}
