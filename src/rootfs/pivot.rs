//! The change of the root: afterwards nothing of the host's tree can be named.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::MountError;

/// Makes the mount at `root` the root of the calling process's mount namespace, which must be its own, and
/// takes the old tree away. `bind`: in a user namespace of its own, where no mount that came from outside can become the
/// root (they are locked, mount_namespaces(7)), but a bind of it can.
pub(super) fn pivot(root: &Path, bind: bool) -> Result<(), MountError> {
    let failed = |operation: &'static str| {
        move |errno: nix::errno::Errno| MountError::Root {
            operation,
            source: errno.into(),
        }
    };
    // Nothing that is mounted or unmounted from now on may be passed on to the host.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(failed("separate the mounts of"))?;
    if bind {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(root), root, None::<&str>, flags, None::<&str>).map_err(failed("bind"))?;
    }
    chdir(root).map_err(failed("enter"))?;
    // With the same place for both, the old root comes to lie on top of the new one …
    pivot_root(".", ".").map_err(failed("change to"))?;
    // … and what "." names now is the old one.
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leave the host's tree for"))?;
    chdir("/").map_err(failed("enter"))
}
