//! The directories a request works in.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::request::Directories;
use super::{CriuError, LogTail};

/// The directories of a request. CRIU opens them through `/proc/<our pid>/fd`, so they are open here, under
/// whatever numbers they have, as long as the request lasts.
pub(super) struct Place {
    images: File,
    work: File,
}

impl Place {
    pub fn open(images: &Path, work: Option<&Path>) -> Result<Self, CriuError> {
        let open = |purpose, path: &Path| {
            let opened = File::open(path).and_then(|file| {
                if file.metadata()?.is_dir() {
                    Ok(file)
                } else {
                    Err(io::ErrorKind::NotADirectory.into())
                }
            });
            opened.map_err(|source| CriuError::Directory {
                purpose,
                path: path.to_owned(),
                source,
            })
        };
        Ok(Self {
            images: open("images", images)?,
            work: open("work", work.unwrap_or(images))?,
        })
    }

    pub fn directories(&self) -> Directories {
        Directories {
            images: self.images.as_raw_fd(),
            work: self.work.as_raw_fd(),
        }
    }

    /// A file of the work directory, as a path that follows the directory even where it was renamed.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let directory = format!("/proc/self/fd/{}", self.work.as_raw_fd());
        Path::new(&directory).join(name)
    }

    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(name)).ok()
    }

    pub fn log(&self, name: &str) -> LogTail {
        let file = File::open(self.path(name));
        file.and_then(|mut file| LogTail::read(&mut file))
            .unwrap_or_default()
    }
}
