//! The root of a container: a read-only image below, its own changes above.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::MountError;

/// The layers of one container.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// The image; never written.
    pub lower: &'a Path,
    /// What the container changed.
    pub upper: &'a Path,
    /// Empty, on the file system of `upper`; the kernel's own.
    pub work: &'a Path,
}

/// Mounts the layers at `target`, as a mount that is not passed on to other mount namespaces.
///
/// The layers must not be changed from outside while they are mounted.
pub fn mount_overlay(layers: &Layers<'_>, target: &Path) -> Result<(), MountError> {
    let failed = |source: std::io::Error| MountError::Overlay {
        operation: "mount",
        target: target.to_owned(),
        source,
    };
    for directory in [layers.upper, layers.work, target] {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let mut options = OsString::from("lowerdir=").into_vec();
    escape(layers.lower, &mut options);
    options.extend_from_slice(b",upperdir=");
    escape(layers.upper, &mut options);
    options.extend_from_slice(b",workdir=");
    escape(layers.work, &mut options);
    // Features that differ from kernel to kernel, and with which a layer means something only together with the
    // very file system it was written on. It must mean the same at the next host.
    options.extend_from_slice(b",index=off,metacopy=off,redirect_dir=off");
    let options = OsString::from_vec(options);
    // A device in an image or in a layer is nothing but a name.
    let flags = MsFlags::MS_NODEV;
    mount(
        Some("overlay"),
        target,
        Some("overlay"),
        flags,
        Some(options.as_os_str()),
    )
    .map_err(|errno| failed(errno.into()))?;
    let private = mount(
        None::<&str>,
        target,
        None::<&str>,
        MsFlags::MS_PRIVATE,
        None::<&str>,
    );
    private.map_err(|errno| {
        // The first failure is the one to tell.
        let _ = unmount(target);
        failed(errno.into())
    })
}

/// Takes away whatever is mounted at `target`. Nothing being mounted there is no error.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    loop {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            // Somebody looks around in there; it disappears when they are gone.
            Err(Errno::EBUSY) => {
                umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(
                    |errno| MountError::Overlay {
                        operation: "unmount",
                        target: target.to_owned(),
                        source: errno.into(),
                    },
                )?;
            }
            Err(errno) => {
                return Err(MountError::Overlay {
                    operation: "unmount",
                    target: target.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
}

/// A path as an option of overlayfs, in which ',' separates options, ':' layers, and '\' takes their meaning.
fn escape(path: &Path, into: &mut Vec<u8>) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            into.push(b'\\');
        }
        into.push(byte);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn separators_in_a_path_lose_their_meaning() {
        let mut out = Vec::new();
        escape(Path::new("/a,b:c\\d"), &mut out);
        assert_eq!(out, b"/a\\,b\\:c\\\\d");
    }

    #[test]
    fn an_overlay_is_mounted_and_taken_away() {
        if !crate::sys::process::is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP an_overlay_is_mounted_and_taken_away: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("low,er")).unwrap();
        fs::write(at("low,er/file"), "image").unwrap();
        let layers = Layers {
            lower: &at("low,er"),
            upper: &at("upper"),
            work: &at("work"),
        };
        mount_overlay(&layers, &at("root")).unwrap();
        assert_eq!(fs::read_to_string(at("root/file")).unwrap(), "image");
        fs::write(at("root/file"), "changed").unwrap();
        unmount(&at("root")).unwrap();
        unmount(&at("root")).unwrap();
        unmount(&at("nothing")).unwrap();
        assert!(!at("root/file").exists());
        assert_eq!(fs::read_to_string(at("upper/file")).unwrap(), "changed");
        assert_eq!(fs::read_to_string(at("low,er/file")).unwrap(), "image");
    }
}
