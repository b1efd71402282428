//! Paths that tell of the host: covered, or made read-only.

use std::io;
use std::path::Path;

use nix::mount::MsFlags;

use super::MountError;
use super::devices::{bind, failed, name_of, open_target};
use super::plan::{EMPTY, MASKED, NOTHING, READ_ONLY_PATHS};

/// Covers what must not be seen and protects what must not be written. What covers it is there already.
pub fn mask() -> Result<(), MountError> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    for path in READ_ONLY_PATHS {
        cover(path, |_| path, plain)?;
    }
    for path in MASKED {
        let with = |directory| if directory { EMPTY } else { NOTHING };
        cover(path, with, plain)?;
    }
    Ok(())
}

/// Binds at `path` what `with` names for a directory or a file. A path that this kernel lacks is left out.
fn cover(
    path: &str,
    with: impl FnOnce(bool) -> &'static str,
    flags: MsFlags,
) -> Result<(), MountError> {
    let at = match open_target(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("open", path))?,
    };
    let directory = at.metadata().map_err(failed("look at", path))?.is_dir();
    bind(Path::new(with(directory)), &name_of(&at), flags)
        .map_err(|errno| failed("cover", path)(errno.into()))
}
