//! The root of a container: a read-only image below, its own changes above.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::MountError;
use crate::sys::mount::{Change, attach, change_mount, clone_at};
use crate::sys::userns;

/// The layers of one container.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// The image; never written.
    pub lower: &'a Path,
    /// What the container changed.
    pub upper: &'a Path,
    /// Empty, on the file system of `upper`; the kernel's own.
    pub work: &'a Path,
    /// How the container's users see the owners of their files; none: as they are.
    pub shown: Option<Shown<'a>>,
}

/// Layers whose files belong to other ids than the disk says: those of a container's own user namespace.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// A user namespace whose maps lead from the ids on the disk to those of this host; root of the host among them.
    pub id_map: BorrowedFd<'a>,
    /// Where they are mounted for the moment in which the overlay is made of them; it is made, and removed again.
    pub at: &'a Path,
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
    let Some(shown) = layers.shown else {
        return mount_layers(layers, target);
    };
    // The overlay has mounts of its own of its layers, which are like those that it was told.
    let mounted = show(layers, &shown, |layers| mount_layers(layers, target));
    let hidden = unshow(shown.at);
    mounted?;
    hidden.inspect_err(|_| {
        // The first failure is the one to tell.
        let _ = unmount(target);
    })
}

/// Mounts the layers with other owners and has `work` use them.
fn show(
    layers: &Layers<'_>,
    shown: &Shown<'_>,
    work: impl FnOnce(&Layers<'_>) -> Result<(), MountError>,
) -> Result<(), MountError> {
    let own = layers.upper.parent().unwrap_or(layers.upper);
    let lower = show_one(layers.lower, shown, LOWER)?;
    // Both by one mount, as the kernel demands.
    let own = show_one(own, shown, OWN)?;
    let within = |path: &Path| own.join(path.file_name().unwrap_or_default());
    work(&Layers {
        lower: &lower,
        upper: &within(layers.upper),
        work: &within(layers.work),
        shown: None,
    })
}

/// The names, beneath [`Shown::at`], of what is mounted there.
const LOWER: &str = "image";
const OWN: &str = "own";

fn show_one(what: &Path, shown: &Shown<'_>, name: &str) -> Result<PathBuf, MountError> {
    let at = shown.at.join(name);
    let failed = |source: std::io::Error| MountError::IdMap {
        path: what.to_owned(),
        source,
    };
    fs::create_dir_all(&at).map_err(failed)?;
    let tree = clone_at(what, false).map_err(failed)?;
    let change = Change {
        id_map: Some(shown.id_map),
        propagation: MsFlags::MS_PRIVATE.bits(),
        ..Change::default()
    };
    change_mount(tree.as_fd(), &change, false).map_err(failed)?;
    let place = fs::File::open(&at).map_err(failed)?;
    attach(tree.as_fd(), place.as_fd()).map_err(failed)?;
    Ok(at)
}

/// Takes away what [`mount_overlay`] has mounted beneath [`Shown::at`], or a crash in it has left there.
pub fn unshow(at: &Path) -> Result<(), MountError> {
    for name in [LOWER, OWN] {
        unmount(&at.join(name))?;
    }
    match fs::remove_dir_all(at) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(MountError::Overlay {
            operation: "remove the directory that showed the layers of",
            target: at.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Finds out whether layers in `directory` can be shown with other owners. Nothing is left behind.
pub fn try_shown(directory: &Path) -> Result<(), MountError> {
    // Not the name of a container.
    let scratch = directory.join(".shown");
    let failed = |source| MountError::IdMap {
        path: directory.to_owned(),
        source,
    };
    let (root, shown) = (scratch.join("root"), scratch.join("shown"));
    let clear = || {
        unmount(&root)?;
        unshow(&shown)?;
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    };
    clear()?;
    let tried = (|| {
        let lower = scratch.join("lower");
        fs::create_dir_all(&lower).map_err(failed)?;
        let maps = "0 524288 65536\n65536 0 1\n";
        let id_map = userns::make(0, maps, maps, 0, |process| {
            fs::File::open(process.join("ns/user"))
        });
        let id_map = id_map.map_err(failed)?;
        let layers = Layers {
            lower: &lower,
            upper: &scratch.join("upper"),
            work: &scratch.join("work"),
            shown: Some(Shown {
                id_map: id_map.as_fd(),
                at: &shown,
            }),
        };
        mount_overlay(&layers, &root)?;
        // One that could not be set up for writing is mounted for reading.
        fs::write(root.join("file"), "").map_err(failed)
    })();
    let cleared = clear();
    tried.and(cleared)
}

fn mount_layers(layers: &Layers<'_>, target: &Path) -> Result<(), MountError> {
    let failed = |source: std::io::Error| MountError::Overlay {
        operation: "mount",
        target: target.to_owned(),
        source,
    };
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
            shown: None,
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

    #[test]
    fn layers_are_shown_with_the_owners_of_a_user_namespace_and_kept_with_their_own() {
        use std::os::unix::fs::{MetadataExt, chown};
        if !crate::sys::process::is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP layers_are_shown_with_the_owners…: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("lower")).unwrap();
        for (name, id) in [("root", 0), ("web", 33)] {
            fs::write(at("lower").join(name), "image").unwrap();
            chown(at("lower").join(name), Some(id), Some(id)).unwrap();
        }
        let maps = "0 700000 65536\n65536 0 1\n";
        let id_map = crate::sys::userns::make(0, maps, maps, 0, |process| {
            fs::File::open(process.join("ns/user"))
        })
        .unwrap();
        fs::create_dir(at("state")).unwrap();
        let layers = Layers {
            lower: &at("lower"),
            upper: &at("state/upper"),
            work: &at("state/work"),
            shown: Some(Shown {
                id_map: id_map.as_fd(),
                at: &at("shown"),
            }),
        };
        mount_overlay(&layers, &at("root")).unwrap();
        assert!(!at("shown").exists());
        let owner = |path: &str| fs::symlink_metadata(at(path)).unwrap().uid();
        assert_eq!((owner("root/root"), owner("root/web")), (700_000, 700_033));
        fs::write(at("root/web"), "changed").unwrap();
        fs::write(at("root/new"), "new").unwrap();
        chown(at("root/new"), Some(700_007), None).unwrap();
        unmount(&at("root")).unwrap();
        assert_eq!(
            (owner("state/upper/web"), owner("state/upper/new")),
            (33, 7)
        );
        assert_eq!(fs::read_to_string(at("lower/web")).unwrap(), "image");
        try_shown(&at("state")).unwrap();
        assert!(!at("state/.shown").exists());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
    }
}
