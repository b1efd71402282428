//! CRIU's images as files of one flat directory, in pieces.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use crate::criu::wound;

/// The size of a piece, in bytes.
const PIECE: usize = 1 << 20;

pub(super) fn failed(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Image {
        operation,
        path,
        source,
    }
}

/// Takes a piece of an image: name, offset, bytes.
pub type Piece<'a> = dyn FnMut(&str, u64, &[u8]) -> io::Result<()> + 'a;

/// Hands out every image of a directory in pieces: name, offset, bytes. Logs stay. Returns names and lengths.
///
/// # Errors
/// When a file cannot be read, or with what `piece` returned.
pub fn for_each_chunk(
    directory: &Path,
    piece: &mut Piece<'_>,
) -> Result<Vec<(String, u64)>, CheckpointError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        // CRIU names its files in ASCII; a log is for this host, and so is the link to its parent.
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let name = entry.file_name();
        let name = name.to_str().filter(|name| !name.ends_with(".log"));
        if let Some(name) = name.filter(|_| is_file) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    let mut images = Vec::new();
    let mut buffer = vec![0; PIECE];
    for name in names {
        let path = directory.join(&name);
        let mut file = File::open(&path).map_err(failed("open", &path))?;
        let mut offset = 0;
        loop {
            let count = file.read(&mut buffer).map_err(failed("read", &path))?;
            // An empty file is told by one empty piece.
            if count > 0 || offset == 0 {
                piece(&name, offset, &buffer[..count]).map_err(failed("send", &path))?;
            }
            if count == 0 {
                break;
            }
            offset += count as u64;
        }
        images.push((name, offset));
    }
    Ok(images)
}

/// The directory into which another host's images arrive.
#[derive(Debug)]
pub struct ImageDirectory {
    path: PathBuf,
    held: u64,
    limit: u64,
}

impl ImageDirectory {
    /// An existing, empty directory that takes at most `limit` bytes.
    pub fn new(path: &Path, limit: u64) -> Self {
        Self {
            path: path.to_owned(),
            held: 0,
            limit,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps a piece. The name must be a plain file name; a file is made by its first piece and never
    /// followed elsewhere.
    ///
    /// # Errors
    /// When it cannot be written, or is more than this directory takes.
    pub fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.path.join(name);
        self.held += bytes.len() as u64;
        let over = self.held > self.limit || offset > self.limit;
        if over || name.contains('/') || name.starts_with('.') {
            let source = io::Error::from(if over {
                io::ErrorKind::FileTooLarge
            } else {
                io::ErrorKind::InvalidInput
            });
            return Err(failed("keep", &path)(source));
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        file.and_then(|file| file.write_all_at(bytes, offset))
            .map_err(failed("write", &path))
    }

    /// Checks that every announced image is here in its full length.
    ///
    /// # Errors
    /// Names the first one that is not.
    pub fn verify(&self, announced: &[(String, u64)]) -> Result<(), CheckpointError> {
        for (name, expected) in announced {
            let found = fs::symlink_metadata(self.path.join(name))
                .ok()
                .map(|m| m.len());
            if found != Some(*expected) {
                return Err(CheckpointError::Incomplete {
                    name: name.clone(),
                    found,
                    expected: *expected,
                });
            }
        }
        Ok(())
    }

    /// Has timers go on that would stand still after a restore ([`wound`]). Before the restore.
    ///
    /// # Errors
    /// When the image of open files cannot be read or written.
    pub fn wind_timers(&self) -> Result<(), CheckpointError> {
        let path = self.path.join("files.img");
        let image = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            image => image.map_err(failed("read", &path))?,
        };
        wound(&image).map_or(Ok(()), |image| {
            fs::write(&path, image).map_err(failed("write", &path))
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn images_arrive_as_they_were() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let big: Vec<u8> = (0..PIECE as u32 + 5000).map(|i| i as u8).collect();
        fs::write(from.path().join("pages-1.img"), &big).unwrap();
        fs::write(from.path().join("empty.img"), b"").unwrap();
        fs::write(from.path().join("dump.log"), b"not for others").unwrap();
        let mut there = ImageDirectory::new(to.path(), 1 << 30);
        let images = for_each_chunk(from.path(), &mut |name, offset, bytes| {
            there.write(name, offset, bytes).map_err(io::Error::other)
        })
        .unwrap();
        assert_eq!(
            images,
            [
                ("empty.img".to_owned(), 0),
                ("pages-1.img".to_owned(), big.len() as u64)
            ]
        );
        there.verify(&images).unwrap();
        assert_eq!(fs::read(to.path().join("pages-1.img")).unwrap(), big);
        assert!(!to.path().join("dump.log").exists());
    }

    #[test]
    fn what_is_missing_or_cut_short_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = ImageDirectory::new(dir.path(), 1 << 20);
        images.write("core-1.img", 0, b"abc").unwrap();
        for announced in [("core-1.img", 4), ("mm-1.img", 0)] {
            let error = images
                .verify(&[(announced.0.to_owned(), announced.1)])
                .unwrap_err();
            assert!(error.to_string().contains(announced.0), "{error}");
        }
    }

    #[test]
    fn a_peer_can_neither_fill_the_memory_nor_leave_the_directory() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut images = ImageDirectory::new(dir.path(), 10);
        assert!(images.write("../x", 0, b"").is_err());
        assert!(images.write("a", 1 << 40, b"x").is_err());
        std::os::unix::fs::symlink(outside.path().join("x"), dir.path().join("link")).unwrap();
        assert!(images.write("link", 0, b"x").is_err());
        assert!(images.write("a", 0, b"1234567890123").is_err());
        assert!(!outside.path().join("x").exists());
    }
}
