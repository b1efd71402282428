//! Kernel settings of the container's namespaces.
//!
//! They are written through the host's `/proc`, before the root changes: which namespace they belong to is decided
//! by the process that opens them, so the container's own `/proc`, in which somebody may have a hand, is not
//! needed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::RootfsError;
use super::place::{self, Links};

/// Writes all settings: paths beneath `/proc/sys`, and values.
pub(super) fn write(settings: &[(PathBuf, String)]) -> Result<(), RootfsError> {
    for (setting, value) in settings {
        write_one(setting, value).map_err(|source| RootfsError::Setting {
            setting: setting.clone(),
            source,
        })?;
    }
    Ok(())
}

fn write_one(setting: &Path, value: &str) -> io::Result<()> {
    let root = place::hold(Path::new("/proc/sys"))?;
    let fd = place::open(root.as_fd(), setting, OFlag::O_WRONLY, Links::None)?;
    if fstatfs(&fd)?.filesystem_type() != PROC_SUPER_MAGIC {
        let problem = "/proc/sys is not the kernel's on this host";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    File::from(fd).write_all(value.as_bytes())
}
