//! The mounts, one after the other.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fstat, mkdirat, umask};

use super::option::{self, Asked};
use super::place::{self, Links, Make, Place};
use super::plan::{Kind, Plan, Planned};
use super::{Root, RootfsError, Sources, device, root_error, setting};
use crate::rootfs::copy::{self, Content};
use crate::sys::mount::{
    Change, Filesystem, READ_ONLY, attach, change_mount, clone_at, is_mount_root,
};

impl Planned {
    /// The error for what was tried with this mount.
    pub(super) fn failed(
        &self,
        operation: &'static str,
    ) -> impl FnOnce(io::Error) -> RootfsError + use<> {
        let (index, destination) = (self.index, self.destination.clone());
        move |source| RootfsError::Mount {
            operation,
            index,
            destination,
            source,
        }
    }
}

impl Plan {
    /// Makes the container's tree: mounts, devices, links, kernel settings. The calling process is in all of the
    /// container's namespaces, in its cgroup, and root in them; its root is still the host's.
    ///
    /// What has been made when it fails goes away with the mount namespace.
    pub fn build(&self, sources: Sources) -> Result<Root<'_>, RootfsError> {
        // Modes are meant as they are written.
        let before = umask(Mode::empty());
        let built = self.build_all(sources);
        umask(before);
        built
    }

    fn build_all(&self, sources: Sources) -> Result<Root<'_>, RootfsError> {
        self.attach_root(&sources)
            .map_err(root_error("mount", &self.root))?;
        let mut work = Work {
            plan: self,
            root: sources.root.as_fd(),
            binds: sources.binds.iter(),
            scratch: None,
            later: Vec::new(),
        };
        for mount in &self.mounts {
            work.make(mount)?;
        }
        let later = std::mem::take(&mut work.later);
        work.clear_up()
            .map_err(root_error("clear up beside", &self.root))?;
        if self.furnish {
            device::furnish(self, sources.root.as_fd(), &sources.devices)?;
        }
        setting::write(&self.settings)?;
        Ok(Root {
            plan: self,
            fd: sources.root,
            later,
        })
    }

    /// Mounts the root over itself, where hooks look for it.
    fn attach_root(&self, sources: &Sources) -> io::Result<()> {
        if self.propagation.map(|p| p.kind) == Some(MsFlags::MS_SHARED) {
            // Otherwise every mount made in it would appear on the host, and pivot_root would refuse.
            let private = Change {
                propagation: MsFlags::MS_PRIVATE.bits(),
                ..Change::default()
            };
            change_mount(sources.root.as_fd(), &private, false)?;
            let around = mount_around(sources.place.as_fd())?;
            change_mount(around.as_fd(), &private, false)?;
        }
        attach(sources.root.as_fd(), sources.place.as_fd())
    }
}

/// The root of the mount in which `place` is.
fn mount_around(place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut at = place.try_clone_to_owned()?;
    while !is_mount_root(at.as_fd())? {
        let up = openat(&at, "..", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let (below, above) = (fstat(&at)?, fstat(&up)?);
        if (below.st_dev, below.st_ino) == (above.st_dev, above.st_ino) {
            let problem = "this process is in a chroot, whose root is not where a mount begins";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        at = up;
    }
    Ok(at)
}

/// The list of mounts, half done.
struct Work<'a> {
    plan: &'a Plan,
    root: BorrowedFd<'a>,
    binds: std::slice::Iter<'a, OwnedFd>,
    /// Where mount(2) mounts, which needs a path: a file system of our own that is in nobody's way.
    scratch: Option<OwnedFd>,
    later: Vec<(PathBuf, OwnedFd)>,
}

impl Work<'_> {
    fn make(&mut self, mount: &Planned) -> Result<(), RootfsError> {
        match &mount.kind {
            Kind::Bind { .. } => {
                let tree = self.binds.next();
                let tree = tree.ok_or_else(|| io::ErrorKind::NotFound.into());
                let tree = tree.and_then(|tree: &OwnedFd| tree.try_clone());
                let tree = tree.map_err(mount.failed("find the source of"))?;
                self.bind(mount, tree)
            }
            Kind::Virtual { kind, source } => self.make_virtual(mount, kind, source),
            Kind::Cgroup => self.cgroup(mount),
            Kind::Other { kind, source } => {
                let target = self.target(mount, Make::Directory, Links::Inside)?;
                let label = self.plan.label.as_deref();
                let made = self
                    .scratch()
                    .and_then(|scratch| classic(scratch, mount, kind, source, label));
                let made = made.map_err(mount.failed("make the file system of"))?;
                set_all(mount, &made)?;
                self.attach(mount, made, &target)
            }
            Kind::Remount { kind, source } => {
                let target = place::find(self.root, &mount.destination, Links::Inside)
                    .map_err(mount.failed("find what is to be changed by"))?;
                remount(mount, target.as_fd(), kind, source).map_err(mount.failed("remount for"))
            }
        }
    }

    fn target(&self, mount: &Planned, make: Make, links: Links) -> Result<Place, RootfsError> {
        place::ensure(self.root, &mount.destination, make, links)
            .map_err(mount.failed("find or make the place of"))
    }

    fn bind(&mut self, mount: &Planned, tree: OwnedFd) -> Result<(), RootfsError> {
        let directory = place::is_directory(tree.as_fd()).map_err(mount.failed("look at"))?;
        let make = if directory {
            Make::Directory
        } else {
            Make::File
        };
        let target = self.target(mount, make, Links::Inside)?;
        let later = self.is_dev(mount) && mount.asked.own.set & READ_ONLY != 0;
        let own = Change {
            set: mount.asked.own.set & !if later { READ_ONLY } else { 0 },
            clear: mount.asked.own.clear,
            ..Change::default()
        };
        if !mount.asked.own.is_empty() {
            change_mount(tree.as_fd(), &own, false).map_err(mount.failed("set the options of"))?;
        }
        set_all(mount, &tree)?;
        self.put_off(mount, later, &tree)?;
        self.attach(mount, tree, &target)
    }

    fn is_dev(&self, mount: &Planned) -> bool {
        mount.destination == Path::new("dev")
    }

    /// Remembers a mount that becomes read-only only when all is in it.
    fn put_off(&mut self, mount: &Planned, later: bool, fd: &OwnedFd) -> Result<(), RootfsError> {
        if later {
            let fd = fd.try_clone().map_err(mount.failed("keep"))?;
            self.later.push((mount.destination.clone(), fd));
        }
        Ok(())
    }

    fn make_virtual(
        &mut self,
        mount: &Planned,
        kind: &str,
        source: &str,
    ) -> Result<(), RootfsError> {
        // Inside these two everything else trusts in names.
        let links = match kind {
            "proc" | "sysfs" => Links::None,
            _ => Links::Inside,
        };
        let target = self.target(mount, Make::Directory, links)?;
        let later = mount.asked.own.set & READ_ONLY != 0 && (kind == "tmpfs" || self.is_dev(mount));
        let attributes = mount.asked.own.set & !if later { READ_ONLY } else { 0 };
        let label = self.plan.label.as_deref();
        let label = label.filter(|_| kind != "proc" && kind != "sysfs");
        let made = Filesystem::open(kind)
            .and_then(|fs| {
                let mode = fstat(&target.fd)?.st_mode & 0o7777;
                if kind == "tmpfs" && !target.made && !has(&mount.asked, "mode") {
                    // As the directory that it covers.
                    fs.set("mode", &format!("{mode:o}"))?;
                }
                configure(&fs, source, &mount.asked, label)?;
                fs.mount(attributes)
            })
            .map_err(mount.failed("make the file system of"))?;
        if mount.asked.copy_up && !target.made {
            copy_up(&target, made.as_fd()).map_err(mount.failed("copy what is covered by"))?;
        }
        set_all(mount, &made)?;
        self.put_off(mount, later, &made)?;
        self.attach(mount, made, &target)
    }

    /// Inside a cgroup namespace the cgroups are mounted anew and show the container's. Without one they are a
    /// bind of the host's: to mount them anew would change the options of the host's own mount.
    fn cgroup(&mut self, mount: &Planned) -> Result<(), RootfsError> {
        let target = self.target(mount, Make::Directory, Links::Inside)?;
        let attributes = mount.asked.own.set;
        let fresh = || -> io::Result<OwnedFd> {
            let fs = Filesystem::open("cgroup2")?;
            fs.set("source", "cgroup")?;
            fs.mount(attributes)
        };
        let bound = || -> io::Result<Option<OwnedFd>> {
            let Some(path) = mounted_cgroups()? else {
                return Ok(None);
            };
            let tree = clone_at(&path, false)?;
            let change = Change {
                set: attributes,
                ..Change::default()
            };
            change_mount(tree.as_fd(), &change, false)?;
            Ok(Some(tree))
        };
        let made = if self.plan.cgroup_namespace {
            fresh().or_else(|error| match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ResourceBusy => {
                    bound()?.ok_or(error)
                }
                _ => Err(error),
            })
        } else {
            bound().and_then(|found| found.map_or_else(fresh, Ok))
        };
        let made = made.map_err(mount.failed("mount the cgroups of"))?;
        self.attach(mount, made, &target)
    }

    fn attach(&mut self, mount: &Planned, made: OwnedFd, at: &Place) -> Result<(), RootfsError> {
        place::guard(at.fd.as_fd(), &mount.destination, made.as_fd())
            .and_then(|()| attach(made.as_fd(), at.fd.as_fd()))
            .map_err(mount.failed("mount"))?;
        for propagation in &mount.asked.propagation {
            // On the spot, not before: beneath a shared mount everything becomes shared.
            let change = Change {
                propagation: propagation.kind.bits(),
                ..Change::default()
            };
            change_mount(made.as_fd(), &change, propagation.recursive)
                .map_err(mount.failed("set the propagation of"))?;
        }
        Ok(())
    }

    /// Takes the scratch file system away, from which everything has been moved to its place.
    fn clear_up(&mut self) -> io::Result<()> {
        let Some(scratch) = self.scratch.take() else {
            return Ok(());
        };
        let at = format!("/proc/self/fd/{}", scratch.as_raw_fd());
        Ok(umount2(at.as_str(), MntFlags::MNT_DETACH)?)
    }

    /// Only this process can reach it, by its descriptor: it lies over the old root.
    fn scratch(&mut self) -> io::Result<BorrowedFd<'_>> {
        if self.scratch.is_none() {
            let fs = Filesystem::open("tmpfs")?.mount(0)?;
            let private = Change {
                propagation: MsFlags::MS_PRIVATE.bits(),
                ..Change::default()
            };
            let around = mount_around(place::hold(Path::new("/"))?.as_fd())?;
            change_mount(around.as_fd(), &private, false)?;
            attach(fs.as_fd(), around.as_fd())?;
            self.scratch = Some(fs);
        }
        let scratch = self.scratch.as_ref().map(AsFd::as_fd);
        scratch.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Sets the options that are for the mount and all beneath.
fn set_all(mount: &Planned, tree: &OwnedFd) -> Result<(), RootfsError> {
    let asked = mount.asked.all;
    if asked.is_empty() {
        return Ok(());
    }
    let change = Change {
        set: asked.set,
        clear: asked.clear,
        ..Change::default()
    };
    change_mount(tree.as_fd(), &change, true).map_err(mount.failed("set the options of all in"))
}

fn has(asked: &Asked, key: &str) -> bool {
    let key_of = |option: &String| option.split('=').next().is_some_and(|name| name == key);
    asked.data.iter().any(key_of)
}

fn configure(fs: &Filesystem, source: &str, asked: &Asked, label: Option<&str>) -> io::Result<()> {
    fs.set("source", source)?;
    const OWN: [(MsFlags, &str); 3] = [
        (MsFlags::MS_SYNCHRONOUS, "sync"),
        (MsFlags::MS_DIRSYNC, "dirsync"),
        (MsFlags::MS_LAZYTIME, "lazytime"),
    ];
    for (flag, word) in OWN {
        if asked.filesystem().contains(flag) {
            fs.flag(word)?;
        }
    }
    for option in &asked.data {
        match option.split_once('=') {
            Some((key, value)) => fs.set(key, value),
            None => fs.flag(option),
        }
        .map_err(|error| io::Error::new(error.kind(), format!("option {option}: {error}")))?;
    }
    label.map_or(Ok(()), |label| fs.set("context", label))
}

/// Copies what is in a directory of the container into a tmpfs that will cover it.
fn copy_up(covered: &Place, into: BorrowedFd<'_>) -> io::Result<()> {
    let inside = |fd: i32| PathBuf::from(format!("/proc/self/fd/{fd}/."));
    let (from, to) = (inside(covered.fd.as_raw_fd()), inside(into.as_raw_fd()));
    copy::copy(&from, &to, Content::Copied).map_err(io::Error::other)
}

/// Makes a file system by mount(2), in a directory of `scratch`, and returns it, held.
fn classic(
    scratch: BorrowedFd<'_>,
    planned: &Planned,
    kind: &str,
    source: &str,
    label: Option<&str>,
) -> io::Result<OwnedFd> {
    let name = planned.index.to_string();
    mkdirat(scratch, name.as_str(), Mode::S_IRWXU)?;
    let mut data = planned.asked.data.clone();
    data.extend(label.map(|label| format!("context=\"{label}\"")));
    let at = format!("/proc/self/fd/{}/{name}", scratch.as_raw_fd());
    let flags = option::classic(&planned.asked);
    let data = data.join(",");
    mount(
        Some(source),
        at.as_str(),
        Some(kind),
        flags,
        Some(data.as_str()),
    )?;
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    Ok(openat(scratch, name.as_str(), flags, Mode::empty())?)
}

fn remount(planned: &Planned, target: BorrowedFd<'_>, kind: &str, source: &str) -> io::Result<()> {
    let asked = &planned.asked;
    if !is_mount_root(target)? {
        return Err(Errno::EINVAL.into());
    }
    if asked.bind.is_none() {
        let at = format!("/proc/self/fd/{}", target.as_raw_fd());
        let flags = option::classic(asked) | MsFlags::MS_REMOUNT;
        let data = asked.data.join(",");
        mount(
            Some(source),
            at.as_str(),
            Some(kind),
            flags,
            Some(data.as_str()),
        )?;
    }
    let own = Change {
        set: asked.own.set,
        clear: asked.own.clear,
        ..Change::default()
    };
    change_mount(target, &own, false)?;
    for propagation in &asked.propagation {
        let change = Change {
            propagation: propagation.kind.bits(),
            ..Change::default()
        };
        change_mount(target, &change, propagation.recursive)?;
    }
    Ok(())
}

/// Where cgroup v2 is mounted; none where it is not.
fn mounted_cgroups() -> io::Result<Option<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
    let point = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_it = filesystem.split(' ').next() == Some("cgroup2");
        mount.split(' ').nth(4).filter(|_| is_it).map(PathBuf::from)
    };
    Ok(table.lines().find_map(point))
}
