//! The standard streams of a container, which are the host's: how a checkpoint names them, and a restore finds those
//! that take their places.
//!
//! The names are CRIU's: `pipe:[INODE]`, and `file[MOUNT:INODE]` (in hexadecimal digits) for files and devices that
//! lie in no mount of the container. A checkpoint has them in `descriptors.json`, a list of three, where runc and crun
//! have them, too; of theirs only pipes can be found again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::unistd::{Uid, fchown, isatty};

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
    let named = own().map(|stream| stream.and_then(|stream| name(stream.as_fd())));
    named.map(Result::unwrap_or_default).to_vec()
}

fn name(stream: BorrowedFd<'_>) -> io::Result<String> {
    let number = stream.as_raw_fd();
    let at = format!("/proc/self/fd/{number}");
    let link = fs::read_link(&at)?.to_string_lossy().into_owned();
    let meta = fs::metadata(&at)?;
    let kind = meta.file_type();
    let is_file = kind.is_file() || (kind.is_char_device() && !isatty(stream).unwrap_or(true));
    if link.starts_with("pipe:") || !is_file {
        return Ok(link);
    }
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let mount = facts.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let mount: i32 = mount
        .and_then(|text| text.trim().parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(format!("file[{mount:x}:{:x}]", meta.ino()))
}

/// Those of the names that a dump has to be told, because they are of nothing it knows.
pub(super) fn external(names: &[String]) -> impl Iterator<Item = String> {
    names
        .iter()
        .filter(|name| name.starts_with("file["))
        .cloned()
}

/// Reads the names in a directory of images.
pub(super) fn read(images: &Path) -> Result<Vec<String>, RuntimeError> {
    let path = images.join(FILE);
    let bytes = fs::read(&path).map_err(file("read", &path))?;
    store::parse(&path, &bytes)
}

/// Gives the calling process's streams to a restore, in the places of those of these names: key and number.
///
/// Pipes belong to the container's user, as they do after `create`.
pub(super) fn inherit(
    spawn: &mut Spawn,
    names: &[String],
    user: Option<u32>,
) -> Result<Vec<(String, i32)>, RuntimeError> {
    let mut inherited: Vec<(String, i32)> = Vec::new();
    for (name, stream) in names.iter().zip(own()) {
        let known = name.starts_with("pipe:[") || name.starts_with("file[");
        if !known || inherited.iter().any(|(key, _)| key == name) {
            continue;
        }
        let stream = stream.map_err(system("take the standard streams"))?;
        if let (Some(user), true) = (user, name.starts_with("pipe:[")) {
            // Streams that cannot be given away stay what they are: they work as they are.
            let _ = fchown(&stream, Some(Uid::from_raw(user)), None);
        }
        inherited.push((name.clone(), spawn.pass(stream)));
    }
    Ok(inherited)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_pipe_has_its_own_name_and_a_file_one_by_its_mount() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let of_pipe = name(read.as_fd()).unwrap();
        assert!(of_pipe.starts_with("pipe:["), "{of_pipe}");
        let null = File::open("/dev/null").unwrap();
        let of_file = name(null.as_fd()).unwrap();
        let inode = null.metadata().unwrap().ino();
        assert!(of_file.starts_with("file["), "{of_file}");
        assert!(of_file.ends_with(&format!(":{inode:x}]")), "{of_file}");
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(name(socket.as_fd()).unwrap().starts_with("socket:["));
        let names = [of_pipe, of_file.clone()];
        assert_eq!(external(&names).collect::<Vec<_>>(), [of_file]);
    }
}
