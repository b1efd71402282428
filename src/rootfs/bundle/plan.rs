//! A configuration's mounts, devices, paths and kernel settings, read once and then trusted. Pure.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Mount, Spec,
};

use super::RootfsError;
use super::option::{self, Asked, Propagation};

/// What the caller decides, and not the configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The root becomes `/` by moving and `chroot` instead of `pivot_root`, which cannot leave a root that is the
    /// kernel's initial ramfs.
    pub no_pivot: bool,
}

/// Everything that a container's file systems will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The directory that becomes `/`.
    pub(super) root: PathBuf,
    pub(super) read_only: bool,
    pub(super) no_pivot: bool,
    pub(super) propagation: Option<Propagation>,
    pub(super) mounts: Vec<Planned>,
    pub(super) devices: Vec<Device>,
    /// Whether `/dev` gets its devices and links: not where it is bound from somewhere.
    pub(super) furnish: bool,
    /// Paths that are covered, and paths that cannot be written; relative to the root.
    pub(super) masked: Vec<PathBuf>,
    pub(super) protected: Vec<PathBuf>,
    /// Files beneath `/proc/sys`, and what is written to them.
    pub(super) settings: Vec<(PathBuf, String)>,
    /// Whether the container has a user namespace.
    pub(super) user_namespace: bool,
    /// Whether it has a cgroup namespace.
    pub(super) cgroup_namespace: bool,
    /// The SELinux context of file systems that are made.
    pub(super) label: Option<String>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    /// Its place among the mounts of the configuration, for errors.
    pub index: usize,
    /// Where, relative to the root, without `..`; links in it are followed inside the root.
    pub destination: PathBuf,
    pub kind: Kind,
    pub asked: Asked,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A part of the host's tree.
    Bind {
        source: PathBuf,
        /// Whose maps the owners of files go through.
        id_map: Option<IdMap>,
    },
    /// A file system of the kernel's own, made by descriptor.
    Virtual { kind: String, source: String },
    /// The cgroups that the container may see.
    Cgroup,
    /// Another file system, made by mount(2).
    Other { kind: String, source: String },
    /// What is there already is changed.
    Remount { kind: String, source: String },
}

/// Where an id-mapped mount has its maps from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IdMap {
    /// Lines as in `/proc/PID/uid_map` and `gid_map`.
    Ranges { uids: String, gids: String },
    /// A user namespace that is there.
    Namespace(PathBuf),
}

/// A device node or a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// Relative to the root.
    pub path: PathBuf,
    pub kind: NodeKind,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeKind {
    Character(u64, u64),
    Block(u64, u64),
    Pipe,
}

/// File systems that only exist in the kernel: made in a namespace of the container's they show that namespace.
const VIRTUAL: [&str; 5] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue"];

/// The devices every container has, as the specification lists them: name, major, minor.
const DEFAULT_DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

fn refused(field: impl Into<String>, problem: impl Into<String>) -> RootfsError {
    RootfsError::Refused {
        field: field.into(),
        problem: problem.into(),
    }
}

/// Reads all that concerns file systems. Nothing is looked up and nothing made.
pub(super) fn of(spec: &Spec, bundle: &Path, options: Options) -> Result<Plan, RootfsError> {
    let root = spec.root().as_ref();
    let root = root.ok_or_else(|| refused("root", "is missing; give the path of the root"))?;
    let linux = spec.linux().as_ref();
    let linux = linux.ok_or_else(|| refused("linux", "is missing; it has the namespaces"))?;
    let has = |kind| has_namespace(linux, kind);
    if !has(LinuxNamespaceType::Mount) {
        let problem = "has no mount namespace; without one the mounts would be the host's";
        return Err(refused("linux.namespaces", problem));
    }
    let propagation = root_propagation(linux, options)?;
    let mounts = spec.mounts().iter().flatten().enumerate();
    let mounts: Vec<Planned> = mounts
        .map(|(index, mount)| planned(index, mount, bundle, linux))
        .collect::<Result<_, _>>()?;
    let bound = |m: &Planned| matches!(m.kind, Kind::Bind { .. });
    let dev = |m: &&Planned| m.destination == Path::new("dev");
    let furnish = !mounts.iter().filter(dev).any(bound);
    let paths = |list: &Option<Vec<String>>| -> Vec<PathBuf> {
        let list = list.iter().flatten().filter(|path| !path.is_empty());
        list.map(|path| clean(Path::new(path))).collect()
    };
    Ok(Plan {
        root: bundle.join(root.path()),
        read_only: root.readonly().unwrap_or(false),
        no_pivot: options.no_pivot,
        propagation,
        furnish,
        mounts,
        devices: devices(linux.devices().as_deref().unwrap_or_default())?,
        masked: paths(linux.masked_paths()),
        protected: paths(linux.readonly_paths()),
        settings: settings(linux)?,
        user_namespace: has(LinuxNamespaceType::User),
        cgroup_namespace: has(LinuxNamespaceType::Cgroup),
        label: linux.mount_label().clone().filter(|l| !l.is_empty()),
    })
}

fn has_namespace(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    let namespaces = linux.namespaces().iter().flatten();
    namespaces.into_iter().any(|n| n.typ() == kind)
}

fn root_propagation(linux: &Linux, options: Options) -> Result<Option<Propagation>, RootfsError> {
    let field = "linux.rootfsPropagation";
    let word = linux.rootfs_propagation().as_deref().unwrap_or_default();
    if word.is_empty() {
        return Ok(None);
    }
    let Some(found) = option::propagation(word) else {
        let problem = format!("is {word:?}; it can be shared, slave, private or unbindable");
        return Err(refused(field, problem));
    };
    if options.no_pivot && found.kind == MsFlags::MS_PRIVATE {
        let problem = "of private cannot be had without pivot_root: leave out --no-pivot";
        return Err(refused(field, problem));
    }
    Ok(Some(found))
}

/// A path as it reads: without `.`, `..` and doubled slashes, relative to the root.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn planned(
    index: usize,
    mount: &Mount,
    bundle: &Path,
    linux: &Linux,
) -> Result<Planned, RootfsError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let destination = clean(mount.destination());
    if destination.as_os_str().is_empty() {
        let problem = "is the root itself; only places beneath it can be mounted on";
        return Err(refused(field("destination"), problem));
    }
    let asked = option::read(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().clone().unwrap_or_default();
    let bind = asked.bind.is_some() || kind == "bind" || kind == "rbind";
    if !bind && (kind.is_empty() || kind == "none") && !asked.remount {
        let problem = "is missing, and no option says bind";
        return Err(refused(field("type"), problem));
    }
    let virtual_source = || match source.to_str() {
        Some("") => Ok(kind.to_owned()),
        Some(source) => Ok(source.to_owned()),
        None => Err(refused(field("source"), "is not UTF-8")),
    };
    let id_map = id_map(index, mount, &asked, bind, linux)?;
    let kind = if asked.remount {
        Kind::Remount {
            kind: kind.to_owned(),
            source: virtual_source()?,
        }
    } else if bind {
        check_bind(index, &source, &asked)?;
        Kind::Bind {
            source: bundle.join(source),
            id_map,
        }
    } else if kind == "cgroup" || kind == "cgroup2" {
        Kind::Cgroup
    } else if VIRTUAL.contains(&kind) {
        Kind::Virtual {
            kind: kind.to_owned(),
            source: virtual_source()?,
        }
    } else {
        Kind::Other {
            kind: kind.to_owned(),
            source: virtual_source()?,
        }
    };
    if asked.copy_up && !matches!(&kind, Kind::Virtual { kind, .. } if kind == "tmpfs") {
        let problem = "has tmpcopyup, which only a tmpfs can do";
        return Err(refused(field("options"), problem));
    }
    Ok(Planned {
        index,
        destination,
        kind,
        asked,
    })
}

fn check_bind(index: usize, source: &Path, asked: &Asked) -> Result<(), RootfsError> {
    if source.as_os_str().is_empty() {
        let field = format!("mounts[{index}].source");
        return Err(refused(field, "is missing; a bind mount needs one"));
    }
    // What fstab has for its own tools is nobody's option.
    let comment = |option: &&String| {
        option.starts_with("x-") || option.starts_with("X-") || option.starts_with("comment=")
    };
    match asked.data.iter().find(|option| !comment(option)) {
        None => Ok(()),
        Some(option) => {
            let problem = format!("has {option:?}, which means nothing for a bind mount");
            Err(refused(format!("mounts[{index}].options"), problem))
        }
    }
}

fn id_map(
    index: usize,
    mount: &Mount,
    asked: &Asked,
    bind: bool,
    linux: &Linux,
) -> Result<Option<IdMap>, RootfsError> {
    let list = |list: &Option<Vec<LinuxIdMapping>>| list.clone().unwrap_or_default();
    let (uids, gids) = (list(mount.uid_mappings()), list(mount.gid_mappings()));
    if asked.id_map.is_none() && uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let problem = |problem: &str| Err(refused(format!("mounts[{index}]"), problem));
    if !bind {
        return problem("is to be id-mapped; that can be done with bind mounts only");
    }
    if uids.is_empty() != gids.is_empty() {
        return problem("has only one of uidMappings and gidMappings; give both");
    }
    let lines = |ranges: &[LinuxIdMapping]| -> String {
        let line =
            |r: &LinuxIdMapping| format!("{} {} {}\n", r.container_id(), r.host_id(), r.size());
        ranges.iter().map(line).collect()
    };
    if !uids.is_empty() {
        let (uids, gids) = (lines(&uids), lines(&gids));
        return Ok(Some(IdMap::Ranges { uids, gids }));
    }
    let namespaces = linux.namespaces().iter().flatten();
    let user = namespaces
        .into_iter()
        .find(|n| n.typ() == LinuxNamespaceType::User);
    let Some(user) = user else {
        return problem(
            "is to be id-mapped, but has no mappings and the container no user namespace",
        );
    };
    if let Some(path) = user.path() {
        return Ok(Some(IdMap::Namespace(path.clone())));
    }
    let (uids, gids) = (list(linux.uid_mappings()), list(linux.gid_mappings()));
    if uids.is_empty() || gids.is_empty() {
        return problem("is to be id-mapped as the user namespace, which has no mappings");
    }
    let (uids, gids) = (lines(&uids), lines(&gids));
    Ok(Some(IdMap::Ranges { uids, gids }))
}

/// The default devices, and the listed ones, which win.
fn devices(listed: &[LinuxDevice]) -> Result<Vec<Device>, RootfsError> {
    let mut devices = Vec::new();
    for (name, major, minor) in DEFAULT_DEVICES {
        devices.push(Device {
            path: Path::new("dev").join(name),
            kind: NodeKind::Character(major, minor),
            mode: 0o666,
            owner: (0, 0),
        });
    }
    for (index, device) in listed.iter().enumerate() {
        let device = listed_device(index, device)?;
        devices.retain(|other| other.path != device.path);
        devices.push(device);
    }
    Ok(devices)
}

fn listed_device(index: usize, device: &LinuxDevice) -> Result<Device, RootfsError> {
    let field = |name: &str| format!("linux.devices[{index}].{name}");
    let path = clean(device.path());
    if path.as_os_str().is_empty() {
        return Err(refused(field("path"), "is empty"));
    }
    let number = |name, value: i64, most| match u64::try_from(value) {
        Ok(value) if value <= most => Ok(value),
        _ => Err(refused(
            field(name),
            format!("is {value}; it can be 0 to {most}"),
        )),
    };
    let numbers = || {
        // As many bits as the kernel has for each.
        let major = number("major", device.major(), 0xFFF)?;
        Ok((major, number("minor", device.minor(), 0xF_FFFF)?))
    };
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => {
            let (major, minor) = numbers()?;
            NodeKind::Character(major, minor)
        }
        LinuxDeviceType::B => {
            let (major, minor) = numbers()?;
            NodeKind::Block(major, minor)
        }
        LinuxDeviceType::P => NodeKind::Pipe,
        LinuxDeviceType::A => {
            return Err(refused(
                field("type"),
                "is a; a node is of one type: c, b, u or p",
            ));
        }
    };
    Ok(Device {
        path,
        kind,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

/// What each namespace has of its own beneath `/proc/sys`.
const IPC_SETTINGS: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

fn settings(linux: &Linux) -> Result<Vec<(PathBuf, String)>, RootfsError> {
    // Sorted, so that the same configuration always does the same.
    let asked: BTreeMap<_, _> = linux.sysctl().iter().flatten().collect();
    let mut settings = Vec::new();
    for (key, value) in asked {
        let field = format!("linux.sysctl.{key}");
        let path = setting_path(key);
        if Path::new(&path)
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
        {
            return Err(refused(field, "is no name of a kernel setting"));
        }
        let needed = if path.starts_with("net/") {
            (LinuxNamespaceType::Network, "network")
        } else if IPC_SETTINGS.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
            (LinuxNamespaceType::Ipc, "ipc")
        } else if path == "kernel/domainname" {
            (LinuxNamespaceType::Uts, "uts")
        } else if path == "kernel/hostname" {
            return Err(refused(field, "is set by the field hostname"));
        } else {
            let problem = "is no setting that a namespace has of its own: it would be the host's";
            return Err(refused(field, problem));
        };
        if !has_namespace(linux, needed.0) {
            let problem = format!("needs a namespace of type {} in linux.namespaces", needed.1);
            return Err(refused(field, problem));
        }
        settings.push((PathBuf::from(path), value.clone()));
    }
    Ok(settings)
}

/// The path of a kernel setting. As with sysctl(8), the first separator decides: after `a/b` dots are part of a
/// name, after `a.b` slashes are.
fn setting_path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            key.chars().map(swap).collect()
        }
        _ => key.to_owned(),
    }
}
