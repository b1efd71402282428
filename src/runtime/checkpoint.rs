//! `checkpoint`: a running container becomes images.
//!
//! **Promise:** when it fails, or is killed, the container runs on: CRIU undoes its work when nobody answers it, and
//! it is CRIU that freezes the container.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::create::facts;
use super::delete;
use super::error::{file, refused, system};
use super::images::{self, Filling};
use super::plan::{Namespaces, Plan};
use super::state::{Id, Record, Status};
use super::store::Root;
use super::{RuntimeError, manage, streams};
use crate::criu::{
    Allowed, Criu, CriuError, DumpRequest, Leave, NetworkLock, Notify, Server, Session, Spawn,
    Verdict, may_read_limits,
};
use crate::rootfs::bundle::{self, COVER};

/// What `checkpoint` is asked.
#[derive(Debug, Clone)]
pub struct CheckpointRequest {
    /// The container.
    pub id: Id,
    /// The directory of the images.
    pub images: PathBuf,
    /// The directory of log and statistics; none: that of the images.
    pub work: Option<PathBuf>,
    /// The images of a pre-dump before, relative to the directory of the images.
    pub parent: Option<PathBuf>,
    /// The container goes on.
    pub leave_running: bool,
    /// Memory alone, and the container goes on.
    pub pre_dump: bool,
    /// Memory stays in CRIU until a restore elsewhere has fetched it.
    pub lazy_pages: bool,
    /// Where a zero byte is written when CRIU is ready to serve memory: an own descriptor's number.
    pub status_fd: Option<i32>,
    /// Where memory is sent, or with lazy pages served: address and port.
    pub page_server: Option<(String, u16)>,
    /// Memory that is dumped again is taken out of the parent images.
    pub dedup: bool,
    /// What may be dumped.
    pub allowed: Allowed,
    /// Which CRIU; none: the host's.
    pub criu: Option<PathBuf>,
}

impl CheckpointRequest {
    /// Whether the container goes on.
    fn leaves_it(&self) -> bool {
        self.leave_running || self.pre_dump
    }
}

/// The name under which images know a namespace that is not the container's own, as other runtimes give it.
pub(super) fn namespace_key(kind: LinuxNamespaceType) -> Option<&'static str> {
    match kind {
        LinuxNamespaceType::Network => Some("extRootNetNS"),
        LinuxNamespaceType::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

/// Writes the images. Unless the container goes on, it is deleted.
pub fn checkpoint(root: &Root, request: &CheckpointRequest) -> Result<(), RuntimeError> {
    let (home, record) = root.open(&request.id)?;
    let status = root.status(&record);
    check_status(&request.id, status)?;
    let namespaces = check(&record)?;
    check_parent(request)?;
    let status_fd = request.status_fd.map(open_status).transpose()?;
    let criu = find(request.criu.as_deref())?;
    check_features(request, &criu)?;
    if let Some(work) = &request.work {
        images::make(work)?;
    }
    let filling = Filling::begin(&request.images)?;
    let dumped = dump(request, &record, &namespaces, &criu, &filling, status_fd);
    if let Err(error) = dumped {
        filling.undo();
        if status == Status::Running {
            // CRIU has thawed it, if nobody has killed it.
            let _ = manage::group(&record).thaw();
        }
        return Err(error);
    }
    if request.leaves_it() {
        return Ok(());
    }
    delete::end(&record)?;
    delete::poststop(&record);
    home.remove()
}

fn check_status(id: &Id, status: Status) -> Result<(), RuntimeError> {
    let remedy = match status {
        Status::Running | Status::Paused => return Ok(()),
        Status::Created => "container cannot be checkpointed in created state: start it first",
        Status::Creating => "wait until its creation has ended",
        Status::Stopped => "container cannot be checkpointed in stopped state: nothing of it runs",
    };
    Err(RuntimeError::Status {
        verb: "checkpoint",
        id: id.to_string(),
        status,
        remedy,
    })
}

/// Refuses what CRIU would lose, or could not bring back.
fn check(record: &Record) -> Result<Namespaces, RuntimeError> {
    let namespaces = Plan::of(&record.spec, facts())?.namespaces;
    check_spec(&record.spec, &namespaces)?;
    streams::check(record.init.pid, &record.streams)?;
    let below = manage::group(record).occupied_below()?;
    if let Some(cgroup) = below {
        let why = format!(
            "the container has processes in a cgroup that it has made, {}, and a restore would put all into \
             one: end them first",
            cgroup.display()
        );
        return Err(RuntimeError::Option {
            option: "--manage-cgroups-mode",
            why,
        });
    }
    Ok(namespaces)
}

/// What of a configuration there is no checkpoint of, and no restore.
pub(super) fn check_spec(spec: &Spec, namespaces: &Namespaces) -> Result<(), RuntimeError> {
    for kind in [LinuxNamespaceType::Cgroup, LinuxNamespaceType::Mount] {
        if namespaces.joined(kind).is_some() {
            let why = format!(
                "CRIU cannot restore into the {kind} namespace of others; give the container its own"
            );
            return Err(refused("linux.namespaces", why));
        }
    }
    let mapped = namespaces.is_new(LinuxNamespaceType::User);
    if mapped && namespaces.is_new(LinuxNamespaceType::Time) {
        let why = "CRIU cannot dump a time namespace beside a user namespace to which it does not belong; leave \
                   {\"type\": \"time\"} out";
        return Err(refused("linux.namespaces", why));
    }
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    if profile.is_some_and(|profile| profile.listener_path().is_some()) {
        let why =
            "CRIU cannot keep a filter that notifies; such a container cannot be checkpointed";
        return Err(refused("linux.seccomp.listenerPath", why));
    }
    Ok(())
}

fn check_parent(request: &CheckpointRequest) -> Result<(), RuntimeError> {
    let Some(parent) = &request.parent else {
        return Ok(());
    };
    let refused = |why: String| RuntimeError::Option {
        option: "--parent-path",
        why,
    };
    if parent.is_absolute() {
        return Err(refused(
            "must be relative to the directory of --image-path".to_owned(),
        ));
    }
    let at = cleaned(&request.images.join(parent));
    if !at.join("inventory.img").exists() {
        let why = format!("there is no pre-dump in {}", at.display());
        return Err(refused(why));
    }
    Ok(())
}

/// A path without `..`, as words: the directory of images that are to be made may not be there yet.
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir
                if matches!(clean.components().next_back(), Some(Component::Normal(_))) =>
            {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

/// The descriptor that gets a byte, opened anew for writing.
fn open_status(number: i32) -> Result<File, RuntimeError> {
    let refused = |why: String| RuntimeError::Option {
        option: "--status-fd",
        why: format!("{number}: {why}"),
    };
    let at = format!("/proc/self/fd/{number}");
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).map_err(|_| {
        refused("there is no such descriptor; leave it open for this program".into())
    })?;
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|text| i32::from_str_radix(text.trim(), 8).ok());
    if flags.unwrap_or(0) & OFlag::O_ACCMODE.bits() == OFlag::O_RDONLY.bits() {
        return Err(refused("cannot be written to".into()));
    }
    let opened = File::options().write(true).open(at);
    opened.map_err(|error| refused(format!("cannot be opened for writing: {error}")))
}

/// The CRIU of this host.
pub(super) fn find(named: Option<&Path>) -> Result<Criu, RuntimeError> {
    Ok(Criu::find(named)?)
}

/// Refuses what this kernel and this CRIU cannot do, by the option that asks for it.
fn check_features(request: &CheckpointRequest, criu: &Criu) -> Result<(), RuntimeError> {
    let tracks = [
        (request.pre_dump, "--pre-dump"),
        (request.parent.is_some(), "--parent-path"),
    ];
    let track = tracks.iter().find(|(asked, _)| *asked);
    if track.is_none() && !request.lazy_pages {
        return Ok(());
    }
    let features = criu.features()?;
    if let (Some((_, option)), false) = (track, features.mem_track) {
        return Err(RuntimeError::Option {
            option,
            why: "this kernel does not track memory changes for CRIU (CONFIG_MEM_SOFT_DIRTY is off): \
                  checkpoint without, in one go"
                .to_owned(),
        });
    }
    let lazy = |why: &str| RuntimeError::Option {
        option: "--lazy-pages",
        why: why.to_owned(),
    };
    if request.lazy_pages && !features.lazy_pages {
        return Err(lazy(
            "this kernel has no userfaultfd as CRIU needs it: checkpoint without",
        ));
    }
    if request.lazy_pages && request.page_server.is_none() {
        return Err(lazy(
            "needs --page-server ADDRESS:PORT, where memory is served",
        ));
    }
    Ok(())
}

fn dump(
    request: &CheckpointRequest,
    record: &Record,
    namespaces: &Namespaces,
    criu: &Criu,
    filling: &Filling,
    mut status_fd: Option<File>,
) -> Result<(), RuntimeError> {
    let asked = dump_request(request, record, namespaces, criu)?;
    // The root of a user namespace reads them, too. Their directory is the owner's alone.
    umask(Mode::from_bits_truncate(0o022));
    if !request.pre_dump {
        let path = filling.path().join(streams::FILE);
        let names = serde_json::to_vec(&record.streams).unwrap_or_default();
        fs::write(&path, names).map_err(file("write", &path))?;
    }
    let spawn = Spawn {
        limits_from_proc: !may_read_limits(),
        spare_tar: true,
        ..Spawn::default()
    };
    let mut judge = |step| {
        if let (Notify::StatusReady, Some(mut ready)) = (step, status_fd.take()) {
            // Who waits for it may have given up.
            let _ = ready.write_all(&[0]);
        }
        Verdict::Continue
    };
    let done = Session::start(criu, spawn).and_then(|session| match request.pre_dump {
        true => session.pre_dump(&asked, &mut judge),
        false => session.dump(&asked, &mut judge),
    });
    done.map(drop).map_err(|source| {
        failed(
            "checkpoint",
            &request.id,
            request.work.as_deref(),
            &asked.images,
            &asked.log_file,
            source,
        )
    })
}

/// What CRIU could not do, and where it says more.
pub(super) fn failed(
    verb: &'static str,
    id: &Id,
    work: Option<&Path>,
    images: &Path,
    log: &str,
    source: CriuError,
) -> RuntimeError {
    RuntimeError::Checkpoint {
        verb,
        id: id.to_string(),
        log: work.unwrap_or(images).join(log),
        source: Box::new(source),
    }
}

fn dump_request(
    request: &CheckpointRequest,
    record: &Record,
    namespaces: &Namespaces,
    criu: &Criu,
) -> Result<DumpRequest, RuntimeError> {
    let server = request.page_server.clone();
    Ok(DumpRequest {
        work: request.work.clone(),
        leave: if request.leaves_it() {
            Leave::Running
        } else {
            Leave::Dead
        },
        log_level: LOG_LEVEL,
        freeze_cgroup: Some(record.cgroup.clone()),
        page_server: server.map(|(address, port)| Server::At(address, port)),
        track_mem: request.pre_dump || request.parent.is_some(),
        parent: request.parent.clone(),
        allowed: Allowed {
            orphan_terminal: true,
            ..request.allowed.clone()
        },
        network_lock: network_lock(&request.allowed, criu)?,
        empty_network: namespaces.is_new(LinuxNamespaceType::Network),
        lazy_pages: request.lazy_pages,
        dedup: request.dedup,
        config_file: config_file(&record.spec),
        external: external(record, namespaces)?,
        ..DumpRequest::new(record.init.pid, &request.images)
    })
}

/// Everything: who reads a log of CRIU has a reason.
pub(super) const LOG_LEVEL: i32 = 4;

/// Packets of connections that are kept must not meet sockets that are in CRIU's hands, nor, when the container is
/// gone and its network is not, nobody: the answer would end them.
fn network_lock(allowed: &Allowed, criu: &Criu) -> Result<NetworkLock, RuntimeError> {
    if !allowed.tcp_established {
        return Ok(NetworkLock::Skip);
    }
    criu.network_lock().ok_or_else(|| RuntimeError::Option {
        option: "--tcp-established",
        why: "CRIU cannot keep packets away meanwhile: install iptables, or a CRIU that was built with \
              nftables"
            .to_owned(),
    })
}

/// A file with options for CRIU that the container or this host has, as other runtimes know it.
pub(super) fn config_file(spec: &Spec) -> Option<PathBuf> {
    let annotated = spec.annotations().as_ref();
    let annotated = annotated.and_then(|all| all.get("org.criu.config"));
    match annotated {
        Some(path) if path.is_empty() => None,
        Some(path) => Some(PathBuf::from(path)),
        None => ["/etc/criu/godwit.conf", "/etc/criu/runc.conf"]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists()),
    }
}

/// What of the container is not its own.
fn external(record: &Record, namespaces: &Namespaces) -> Result<Vec<String>, RuntimeError> {
    let mut external: Vec<String> = streams::external(&record.streams).collect();
    for joined in &namespaces.joined {
        let Some(key) = namespace_key(joined.kind) else {
            continue;
        };
        let (name, pid) = (proc_name(joined.kind), record.init.pid);
        // As the container has it: what the path leads to now may be another.
        let path = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        let inode = fs::metadata(&path).map_err(file("look at", &path))?.ino();
        external.push(format!("{name}[{inode}]:{key}"));
    }
    let plan = bundle::Plan::of(&record.spec, &record.bundle, bundle::Options::default())?;
    for bound in plan.outside(&record.cgroup)? {
        let place = bound.place.display();
        external.push(format!("mnt[{place}]:{place}"));
    }
    let container = container_root(record)?;
    for path in plan.covered_files(container.as_fd())? {
        external.push(format!("mnt[{}]:{COVER}", path.display()));
    }
    Ok(external)
}

/// The name of a kind of namespace in `/proc/PID/ns`.
pub(super) fn proc_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Time => "time",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Mount => "mnt",
    }
}

pub(super) fn container_root(record: &Record) -> Result<OwnedFd, RuntimeError> {
    let path = PathBuf::from(format!("/proc/{}/root", record.init.pid));
    let root = nix::fcntl::open(
        &path,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    root.map_err(|errno| system("hold the container's root")(errno.into()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_parent_is_found_beside_images_that_are_not_there_yet() {
        for (path, clean) in [
            ("/a/b/../c", "/a/c"),
            ("/a/./b/c/../../d", "/a/d"),
            ("a/../../c", "../c"),
            ("../a", "../a"),
            ("/../a", "/../a"),
        ] {
            assert_eq!(cleaned(Path::new(path)), Path::new(clean));
        }
    }
}
