//! Extended attributes: list, get, set, remove. No link is followed.

use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Whose attributes.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    /// Of an open file or directory (not one opened with `O_PATH`: the kernel refuses that).
    Open(BorrowedFd<'a>),
    /// Of whatever a descriptor holds, one opened with `O_PATH` too, and be it a link or a device. It needs
    /// `/proc` of the caller's own process namespace.
    Held(BorrowedFd<'a>),
    /// Of what lies at a path; a symbolic link at its end is meant itself.
    At(&'a Path),
}

/// The path of `name` in an open directory, for what must not be opened: links, devices, pipes. It needs
/// `/proc` of the caller's own process namespace.
pub fn path_in(directory: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    path.push(name);
    path
}

/// The names of all attributes, sorted. A file system without attributes has none.
pub fn list(of: Of<'_>) -> io::Result<Vec<OsString>> {
    let of = Target::new(of)?;
    let bytes = match sized(|buffer, size| of.list(buffer, size)) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        result => result?,
    };
    let mut names: Vec<OsString> = bytes
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names.sort();
    Ok(names)
}

/// The value of one attribute; none where there is no attribute of this name.
pub fn get(of: Of<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let of = Target::new(of)?;
    let name = CString::new(name.as_bytes())?;
    match sized(|buffer, size| of.get(&name, buffer, size)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        result => result.map(Some),
    }
}

/// Sets one attribute, whether it was there or not.
pub fn set(of: Of<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    let of = Target::new(of)?;
    let name = CString::new(name.as_bytes())?;
    match of.set(&name, value) {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes one attribute; one that is not there is no error.
pub fn remove(of: Of<'_>, name: &OsStr) -> io::Result<()> {
    let of = Target::new(of)?;
    let name = CString::new(name.as_bytes())?;
    if of.remove(&name) == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        error => Err(error),
    }
}

/// Calls once with a buffer that is nearly always large enough. Where it is not, calls twice: once for the
/// size, once for the bytes; again where they grew in between.
fn sized(mut call: impl FnMut(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    let mut small = [0; 256];
    match usize::try_from(call(small.as_mut_ptr(), small.len())) {
        Ok(got) => return Ok(small[..got].to_vec()),
        Err(_) => {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ERANGE) {
                return Err(error);
            }
        }
    }
    loop {
        let size = usize::try_from(call(std::ptr::null_mut(), 0))
            .map_err(|_| io::Error::last_os_error())?;
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; size];
        match usize::try_from(call(buffer.as_mut_ptr(), size)) {
            Ok(got) => {
                buffer.truncate(got);
                return Ok(buffer);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ERANGE) {
                    return Err(error);
                }
            }
        }
    }
}

enum Target<'a> {
    Open(BorrowedFd<'a>),
    /// A path below `/proc/self/fd`, which leads to the very object and no further.
    Held(CString),
    At(CString),
}

impl<'a> Target<'a> {
    fn new(of: Of<'a>) -> io::Result<Self> {
        Ok(match of {
            Of::Open(fd) => Self::Open(fd),
            Of::Held(fd) => Self::Held(CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?),
            Of::At(path) => Self::At(CString::new(path.as_os_str().as_bytes())?),
        })
    }

    fn list(&self, buffer: *mut u8, size: usize) -> isize {
        let buffer = buffer.cast::<c_char>();
        // SAFETY: `buffer` points to `size` writable bytes, or is null with size 0 (`sized` sees to that);
        // the descriptor is borrowed and the path is a C string that outlives the call.
        unsafe {
            match self {
                Self::Open(fd) => libc::flistxattr(fd.as_raw_fd(), buffer, size),
                Self::Held(path) => libc::listxattr(path.as_ptr(), buffer, size),
                Self::At(path) => libc::llistxattr(path.as_ptr(), buffer, size),
            }
        }
    }

    fn get(&self, name: &CString, buffer: *mut u8, size: usize) -> isize {
        let buffer = buffer.cast::<c_void>();
        // SAFETY: as in `list`; `name` is a C string that outlives the call.
        unsafe {
            match self {
                Self::Open(fd) => libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), buffer, size),
                Self::Held(path) => libc::getxattr(path.as_ptr(), name.as_ptr(), buffer, size),
                Self::At(path) => libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer, size),
            }
        }
    }

    fn set(&self, name: &CString, value: &[u8]) -> c_int {
        let (bytes, size) = (value.as_ptr().cast::<c_void>(), value.len());
        // SAFETY: `bytes` points to `size` readable bytes; names and paths are C strings that outlive the
        // call, the descriptor is borrowed.
        unsafe {
            match self {
                Self::Open(fd) => libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), bytes, size, 0),
                Self::Held(path) => libc::setxattr(path.as_ptr(), name.as_ptr(), bytes, size, 0),
                Self::At(path) => libc::lsetxattr(path.as_ptr(), name.as_ptr(), bytes, size, 0),
            }
        }
    }

    fn remove(&self, name: &CString) -> c_int {
        // SAFETY: names and paths are C strings that outlive the call, the descriptor is borrowed.
        unsafe {
            match self {
                Self::Open(fd) => libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()),
                Self::Held(path) => libc::removexattr(path.as_ptr(), name.as_ptr()),
                Self::At(path) => libc::lremovexattr(path.as_ptr(), name.as_ptr()),
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_are_listed_and_read_by_path_and_by_descriptor() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let directory = File::open(dir.path()).unwrap();
        let inside = path_in(directory.as_fd(), OsStr::new("file"));
        match set(Of::At(&path), OsStr::new("user.b"), b"two") {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                println!("SKIP xattr: this file system has no user attributes");
                return;
            }
            result => result.unwrap(),
        }
        set(Of::Open(file.as_fd()), OsStr::new("user.a"), b"").unwrap();
        for of in [Of::At(&path), Of::Open(file.as_fd()), Of::At(&inside)] {
            let ours = |n: &OsString| n.as_bytes().starts_with(b"user.");
            let names: Vec<_> = list(of).unwrap().into_iter().filter(ours).collect();
            assert_eq!(names, ["user.a", "user.b"]);
            assert_eq!(get(of, OsStr::new("user.a")).unwrap(), Some(vec![]));
            assert_eq!(
                get(of, OsStr::new("user.b")).unwrap(),
                Some(b"two".to_vec())
            );
            assert_eq!(get(of, OsStr::new("user.c")).unwrap(), None);
        }
        assert!(list(Of::At(Path::new("/nonexistent"))).is_err());
        remove(Of::At(&path), OsStr::new("user.a")).unwrap();
        remove(Of::Open(file.as_fd()), OsStr::new("user.a")).unwrap();
        let long = vec![7; 3000];
        set(Of::At(&path), OsStr::new("user.a"), &long).unwrap();
        assert_eq!(
            get(Of::At(&path), OsStr::new("user.a")).unwrap(),
            Some(long)
        );
    }

    #[test]
    fn a_held_link_is_asked_itself() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        File::create(&path).unwrap();
        if set(Of::At(&path), OsStr::new("user.on-file"), b"1").is_err() {
            println!("SKIP a_held_link_is_asked_itself: this file system has no user attributes");
            return;
        }
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let root = crate::sys::beneath::Root::open(dir.path()).unwrap();
        let has = |name: &[u8]| {
            let held = root.handle(name).unwrap();
            let names = list(Of::Held(held.as_fd())).unwrap();
            names.iter().any(|name| name == "user.on-file")
        };
        assert!(has(b"file"));
        assert!(!has(b"link"));
    }
}
