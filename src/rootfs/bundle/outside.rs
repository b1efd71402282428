//! A container that CRIU has to do with: what of its tree comes from outside, and where a restore finds it.
//!
//! CRIU makes all mounts of a container again, except those that are bound from elsewhere: they have names in its
//! images, and a restore has to say what stands behind a name. The names are those that other runtimes give: a bind
//! mount is called like its place in the container, links in the image followed, and what covers files is called
//! `/dev/null`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::fchdir;

use super::place::{self, Links, Make};
use super::plan::{Kind, Plan, Planned};
use super::{RootfsError, path_error, root_error};
use crate::sys::mount::{Change, Filesystem, attach, change_mount, clone_at};
use crate::sys::namespace;

/// Something of a container's tree that is bound from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// Where it is in the container.
    pub place: PathBuf,
    /// What it is on the host.
    pub source: PathBuf,
}

/// Where a restore happens: a mount namespace that ends with its last user, so that nothing is left whoever is killed
/// when.
#[derive(Debug)]
pub struct Stage {
    /// The namespace.
    pub mounts: OwnedFd,
    /// The directory of the images, where that is another than the one that was given.
    pub images: Option<OwnedFd>,
}

/// The places of a stage, directories of the host that are empty and stay so.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// For the root.
    pub root: &'a Path,
    /// For the images, and where they are. Inside a user namespace CRIU reads them first as nobody and then as the
    /// namespace's root, so that it needs a directory which everybody may enter.
    pub images: Option<(&'a Path, &'a Path)>,
}

/// What files are covered with.
pub const COVER: &str = "/dev/null";

impl Plan {
    /// Everything that is bound from the host, covers apart, for a container whose cgroup is the directory `cgroup`.
    ///
    /// With a user namespace the view of the cgroups is, too: CRIU would mount it anew from a cgroup namespace that
    /// does not belong to that user namespace, which the kernel refuses.
    pub fn outside(&self, cgroup: &Path) -> Result<Vec<Outside>, RootfsError> {
        let root = place::hold(&self.root).map_err(root_error("open", &self.root))?;
        let own_view = self.user_namespace && self.cgroup_namespace;
        let binds = self.mounts.iter().filter_map(|mount| match &mount.kind {
            Kind::Bind { source, id_map } => Some((mount, source.as_path(), id_map.is_some())),
            Kind::Cgroup if own_view => Some((mount, cgroup, false)),
            _ => None,
        });
        let bind = |(mount, source, mapped): (&Planned, &Path, bool)| {
            if mapped {
                return Err(RootfsError::Refused {
                    field: format!("mounts[{}]", mount.index),
                    problem:
                        "is id-mapped, and CRIU would lose the map: bind it without one, or do \
                              without checkpoints"
                            .to_owned(),
                });
            }
            let found = resolved(root.as_fd(), &mount.destination);
            Ok(Outside {
                place: found.map_err(mount.failed("find the place of"))?,
                source: source.to_owned(),
            })
        };
        let devices = self.bound_devices().map(|device| {
            let path = Path::new("/").join(&device.path);
            Ok(Outside {
                place: path.clone(),
                source: path,
            })
        });
        binds.map(bind).chain(devices).collect()
    }

    /// The files that are covered in the container whose root `container` holds.
    pub fn covered_files(&self, container: BorrowedFd<'_>) -> Result<Vec<PathBuf>, RootfsError> {
        let mut covered = Vec::new();
        for path in &self.masked {
            let failed = || path_error("look at", path);
            match place::find(container, path, Links::Inside) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
                Err(error) => return Err(failed()(error)),
                Ok(found) if place::is_directory(found.as_fd()).map_err(failed())? => {}
                Ok(_) => covered.push(Path::new("/").join(path)),
            }
        }
        Ok(covered)
    }

    /// Whether anything is covered.
    pub fn covers(&self) -> bool {
        !self.masked.is_empty()
    }

    /// A mount namespace, as the caller's but for the root, which is mounted there as CRIU wants it, with every place
    /// that something is mounted on, and the images. The caller goes there and comes back: it must have one thread.
    ///
    /// When it fails the caller may still be there; it should end soon.
    pub fn stage(&self, places: Places<'_>) -> Result<Stage, RootfsError> {
        let failed = |operation| root_error(operation, &self.root);
        let own = File::open("/proc/self/ns/mnt").and_then(|own| {
            let cwd = place::hold(Path::new("."))?;
            namespace::leave(namespace::MOUNT)?;
            Ok((own, cwd))
        });
        let (own, cwd) = own.map_err(failed("make a mount namespace for"))?;
        let staged = self.stage_here(places);
        namespace::enter(own.as_fd(), namespace::MOUNT)
            .and_then(|()| Ok(fchdir(&cwd)?))
            .map_err(failed("come back from the mount namespace of"))?;
        staged
    }

    fn stage_here(&self, places: Places<'_>) -> Result<Stage, RootfsError> {
        let mounted = || -> io::Result<OwnedFd> {
            propagate(place::hold(Path::new("/"))?.as_fd(), MsFlags::MS_SLAVE)?;
            let tree = clone_at(&self.root, true)?;
            propagate(tree.as_fd(), MsFlags::MS_PRIVATE)?;
            attach(tree.as_fd(), place::hold(places.root)?.as_fd())?;
            Ok(tree)
        };
        let root = mounted().map_err(root_error("mount", &self.root))?;
        let mut bound = Vec::new();
        let made = self.make_places(root.as_fd(), &mut bound);
        for tree in bound.iter().rev() {
            let at = format!("/proc/self/fd/{}", tree.as_raw_fd());
            umount2(at.as_str(), MntFlags::MNT_DETACH)
                .map_err(|errno| root_error("clear up beneath", &self.root)(errno.into()))?;
        }
        made?;
        let images = places.images.map(|(at, images)| {
            let shown = show_files(images, at);
            shown.map_err(root_error("show the images to CRIU for", &self.root))
        });
        let here = File::open("/proc/self/ns/mnt");
        Ok(Stage {
            images: images.transpose()?,
            mounts: here
                .map_err(root_error("hold the mounts of", &self.root))?
                .into(),
        })
    }

    /// Makes what is missing of the places. What is bound is there meanwhile: it may have places of others in it.
    fn make_places(
        &self,
        root: BorrowedFd<'_>,
        bound: &mut Vec<OwnedFd>,
    ) -> Result<(), RootfsError> {
        for mount in self.mounts.iter().filter(|mount| !self.comes_back(mount)) {
            let ensure = |make| {
                let made = place::ensure(root, &mount.destination, make, Links::Inside);
                made.map_err(mount.failed("find or make the place of"))
            };
            match &mount.kind {
                Kind::Remount { .. } => {}
                Kind::Bind { source, .. } => {
                    let failed = |operation| mount.failed(operation);
                    let is_dir = fs::metadata(source).map_err(failed("look at"))?.is_dir();
                    let at = ensure(if is_dir { Make::Directory } else { Make::File })?;
                    let tree = clone_at(source, mount.asked.bind.unwrap_or(false))
                        .map_err(failed("open the source of"))?;
                    attach(tree.as_fd(), at.fd.as_fd()).map_err(failed("mount"))?;
                    bound.push(tree);
                }
                _ => drop(ensure(Make::Directory)?),
            }
        }
        Ok(())
    }

    /// Whether its place is in a file system that CRIU makes again with all that was in it.
    fn comes_back(&self, mount: &Planned) -> bool {
        self.mounts.iter().any(|other| {
            let made = !matches!(other.kind, Kind::Bind { .. } | Kind::Remount { .. });
            let above = other.destination != mount.destination
                && mount.destination.starts_with(&other.destination);
            made && above
        })
    }
}

/// Shows the files of a directory in another, which everybody may enter and nobody write to.
fn show_files(of: &Path, at: &Path) -> io::Result<OwnedFd> {
    let fs = Filesystem::open("tmpfs")?;
    fs.set("mode", "755")?;
    let shown = fs.mount(0)?;
    attach(shown.as_fd(), place::hold(at)?.as_fd())?;
    for entry in fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let target = place::ensure(
                shown.as_fd(),
                Path::new(&entry.file_name()),
                Make::File,
                Links::None,
            )?;
            attach(clone_at(&entry.path(), false)?.as_fd(), target.fd.as_fd())?;
        }
    }
    place::open(shown.as_fd(), Path::new("."), OFlag::O_RDONLY, Links::None)
}

fn propagate(mount: BorrowedFd<'_>, kind: MsFlags) -> io::Result<()> {
    let change = Change {
        propagation: kind.bits(),
        ..Change::default()
    };
    change_mount(mount, &change, true)
}

/// Where a path leads in the tree that `root` holds, as a path of that tree. The part of it that is not there is taken
/// as it reads: it is in something that is mounted there.
fn resolved(root: BorrowedFd<'_>, path: &Path) -> io::Result<PathBuf> {
    let link = |fd: BorrowedFd<'_>| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let base = link(root)?;
    for there in path.ancestors() {
        let found = match place::find(root, there, Links::Inside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let found = link(found.as_fd())?;
        let found = found.strip_prefix(&base).map_err(io::Error::other)?;
        let rest = path.strip_prefix(there).map_err(io::Error::other)?;
        // Joining with nothing would leave a slash at the end.
        let place = Path::new("/").join(found);
        return Ok(match rest.as_os_str().is_empty() {
            true => place,
            false => place.join(rest),
        });
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_place_is_named_by_where_its_path_leads() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run/secrets")).unwrap();
        fs::create_dir(dir.path().join("var")).unwrap();
        std::os::unix::fs::symlink("/run", dir.path().join("var/run")).unwrap();
        let root = place::hold(dir.path()).unwrap();
        let cases = [
            ("run/secrets", "/run/secrets"),
            ("var/run/secrets", "/run/secrets"),
            ("var/run/not/yet", "/run/not/yet"),
            ("new", "/new"),
        ];
        for (path, place) in cases {
            let found = resolved(root.as_fd(), Path::new(path)).unwrap();
            assert_eq!(found, Path::new(place), "{path}");
        }
    }
}
