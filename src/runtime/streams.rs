//! The standard streams of a container, which are the host's: how a checkpoint names them, and a restore finds those
//! that take their places.
//!
//! The names are CRIU's: `pipe:[INODE]`, and for files that lie in no mount of the container `file[MOUNT:INODE]` (in
//! hexadecimal digits); before that of a device stands its path. A checkpoint has them in `descriptors.json`, a list
//! of three, where runc and crun have them, too; of theirs only pipes can be found again.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{Uid, fchown};

use super::RuntimeError;
use super::error::{file, system};
use super::store;
use crate::criu::Spawn;

/// The file of a checkpoint that has the names.
pub(super) const FILE: &str = "descriptors.json";

/// The calling process's three streams, which become a container's.
fn own() -> [io::Result<OwnedFd>; 3] {
    [
        io::stdin().as_fd().try_clone_to_owned(),
        io::stdout().as_fd().try_clone_to_owned(),
        io::stderr().as_fd().try_clone_to_owned(),
    ]
}

/// What they are called. One that is closed, or nothing that can be found again, has a name that says so.
pub(super) fn names() -> Vec<String> {
    (0..3)
        .map(|number| name(Path::new("/proc/self"), number).unwrap_or_default())
        .collect()
}

/// What a process, by its directory in `/proc`, has under this number.
fn name(process: &Path, number: i32) -> io::Result<String> {
    let at = process.join(format!("fd/{number}"));
    let link = fs::read_link(&at)?.to_string_lossy().into_owned();
    let meta = fs::metadata(&at)?;
    let device = meta.file_type().is_char_device();
    // Terminals are something else to CRIU.
    let terminal = link.starts_with("/dev/pts/") || link.starts_with("/dev/tty");
    if !(meta.is_file() || (device && !terminal)) {
        return Ok(link);
    }
    let mount: i32 = fact(process, number, "mnt_id:", 10)?;
    let key = format!("file[{mount:x}:{:x}]", meta.ino());
    Ok(if device { format!("{link}:{key}") } else { key })
}

/// A number that the kernel tells about a descriptor.
fn fact(process: &Path, number: i32, name: &str, radix: u32) -> io::Result<i32> {
    let text = fs::read_to_string(process.join(format!("fdinfo/{number}")))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value
        .and_then(|text| i32::from_str_radix(text.trim(), radix).ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What CRIU knows it by; none where it does not.
fn key(name: &str) -> Option<&str> {
    match name.find("file[") {
        Some(at) => Some(&name[at..]),
        None => name.starts_with("pipe:[").then_some(name),
    }
}

/// Those of the names that a dump has to be told, because they are of nothing it knows.
pub(super) fn external(names: &[String]) -> impl Iterator<Item = String> {
    let keys = names.iter().filter_map(|name| key(name));
    keys.filter(|key| key.starts_with("file["))
        .map(str::to_owned)
}

/// Refuses streams that a restore could not continue: CRIU wants a file to be as long as it was, if it is not written
/// at its end alone.
pub(super) fn check(pid: i32, names: &[String]) -> Result<(), RuntimeError> {
    const OUTPUTS: [(i32, &str); 2] = [(1, "output"), (2, "error")];
    let process = PathBuf::from(format!("/proc/{pid}"));
    for (number, what) in OUTPUTS {
        let recorded = names.get(number as usize).map_or("", String::as_str);
        let still = name(&process, number).is_ok_and(|name| name == recorded);
        if !still || !recorded.starts_with("file[") {
            continue;
        }
        let flags = fact(&process, number, "flags:", 8).unwrap_or(0);
        let appends = OFlag::O_WRONLY | OFlag::O_APPEND;
        if !OFlag::from_bits_retain(flags).contains(appends) {
            let why = format!(
                "the standard {what} of the container is a file that is written from its beginning on, and could not \
                 be continued: run the container with a pipe, or append to the file (>>)"
            );
            return Err(RuntimeError::Option {
                option: "checkpoint",
                why,
            });
        }
    }
    Ok(())
}

/// Reads the names in a directory of images.
pub(super) fn read(images: &Path) -> Result<Vec<String>, RuntimeError> {
    let path = images.join(FILE);
    let bytes = fs::read(&path).map_err(file("read", &path))?;
    store::parse(&path, &bytes)
}

/// Gives the calling process's streams to a restore, in the places of those of these names: key and number.
///
/// They belong to the container's user, as they do after `create`. What was a device, and has no device to be
/// restored to, is `/dev/null`.
pub(super) fn inherit(
    spawn: &mut Spawn,
    names: &[String],
    user: Option<u32>,
) -> Result<Vec<(String, i32)>, RuntimeError> {
    let failed = || system("take the standard streams");
    let mut inherited: Vec<(String, i32)> = Vec::new();
    for (name, stream) in names.iter().zip(own()) {
        let Some(key) = key(name).filter(|key| inherited.iter().all(|(other, _)| other != key))
        else {
            continue;
        };
        let mut stream = stream.map_err(failed())?;
        let kind = fstat(&stream)
            .map_err(|errno| failed()(errno.into()))?
            .st_mode
            & libc::S_IFMT;
        let device = kind == libc::S_IFCHR;
        if name.starts_with('/') && !device {
            let null = File::options().read(true).write(true).open("/dev/null");
            stream = null.map_err(failed())?.into();
        } else if let (Some(user), false) = (user, device) {
            // Streams that cannot be given away stay what they are: they work as they are.
            let _ = fchown(&stream, Some(Uid::from_raw(user)), None);
        }
        inherited.push((key.to_owned(), spawn.pass(stream)));
    }
    Ok(inherited)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_pipe_has_its_own_name_and_a_file_one_by_its_mount() {
        let own = Path::new("/proc/self");
        let (read, _write) = nix::unistd::pipe().unwrap();
        let of_pipe = name(own, read.as_raw_fd()).unwrap();
        assert!(of_pipe.starts_with("pipe:["), "{of_pipe}");
        let null = File::open("/dev/null").unwrap();
        let of_null = name(own, null.as_raw_fd()).unwrap();
        let inode = null.metadata().unwrap().ino();
        assert!(of_null.starts_with("/dev/null:file["), "{of_null}");
        assert!(of_null.ends_with(&format!(":{inode:x}]")), "{of_null}");
        let file = tempfile::tempfile().unwrap();
        let of_file = name(own, file.as_raw_fd()).unwrap();
        assert!(of_file.starts_with("file["), "{of_file}");
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let of_socket = name(own, socket.as_raw_fd()).unwrap();
        assert_eq!(key(&of_socket), None);
        let names = [of_pipe.clone(), of_null, of_file.clone()];
        assert_eq!(key(&names[0]), Some(of_pipe.as_str()));
        let told: Vec<String> = external(&names).collect();
        assert_eq!(told[0], names[1].strip_prefix("/dev/null:").unwrap());
        assert_eq!(told[1], of_file);
    }
}
