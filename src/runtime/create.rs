//! `create`: a bundle becomes a process that waits for its start.
//!
//! **Promise:** when it fails, nothing is left: no process, no cgroup, no file.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, LinuxNamespaceType, Spec};

use super::birth::{self, Birth};
use super::command::Command;
use super::devices::NetDevices;
use super::error::{file, refused, system};
use super::init::Inside;
use super::memory_policy::MemoryPolicy;
use super::plan::{Facts, Plan};
use super::state::{Id, Identity, Record, Status};
use super::store::{self, Root};
use super::talk::{hear, say};
use super::undo::Undo;
use super::wire::{FromProcess, ToProcess};
use super::{
    RuntimeError, check_hooks, console, limits, list_of, resctrl, run_hooks, streams, unknown,
};
use crate::cgroup::manage::{Driver, Group, Planned};
use crate::rootfs::bundle;
use crate::sys::{fdpass, pidfd};

/// What `create` and `run` are asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// The container's id.
    pub id: Id,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// The socket that gets a pidfd of the container's process.
    pub pidfd_socket: Option<PathBuf>,
    /// The file that gets the process's id.
    pub pid_file: Option<PathBuf>,
    /// Change the root by a move of its mount.
    pub no_pivot: bool,
    /// Leave the session keyring as it is.
    pub no_new_keyring: bool,
    /// How many descriptors after the first three pass to the container.
    pub preserve_fds: u32,
    /// Whether systemd makes the cgroup.
    pub systemd: bool,
}

/// Reads the configuration of a bundle.
pub fn read_config(bundle: &Path) -> Result<Spec, RuntimeError> {
    let path = bundle.join("config.json");
    let bytes = fs::read(&path).map_err(file("read", &path))?;
    unknown::parse(&path, &bytes, "/process")
}

/// What this host has.
pub(super) fn facts() -> Facts {
    let on = |path: &str, wanted: &str| {
        fs::read_to_string(path).is_ok_and(|text| text.trim_start().starts_with(wanted))
    };
    Facts {
        apparmor: on("/sys/module/apparmor/parameters/enabled", "Y"),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
    }
}

/// Makes the container. Its process is a child of the caller.
pub fn create(root: &Root, request: &Request) -> Result<Record, RuntimeError> {
    let console = request.console_socket.as_deref().map(connect).transpose()?;
    create_with(root, request, console.map(OwnedFd::from))
}

/// As [`create`], with the socket that gets the terminal's master.
pub(super) fn create_with(
    root: &Root,
    request: &Request,
    console: Option<OwnedFd>,
) -> Result<Record, RuntimeError> {
    let wish = Wish::of(request, console.is_some())?;
    let cgroup = wish.cgroup()?;
    let birth = Birth::of(&wish.plan)?;
    let cgroup_namespace = wish
        .plan
        .namespaces
        .joined(LinuxNamespaceType::Cgroup)
        .map(birth::open)
        .transpose()?;
    let home = root.take(&request.id)?;
    let mut undo = Undo::new(root, home);
    let done = wish.carry_out(&mut undo, cgroup, birth, console, cgroup_namespace);
    if done.is_err() {
        undo.all();
    }
    done
}

/// A request and the configuration it is about, checked.
pub(super) struct Wish<'a> {
    pub request: &'a Request,
    bundle: PathBuf,
    rootfs: PathBuf,
    pub spec: Spec,
    pub plan: Plan,
    pub mounts: bundle::Plan,
    pub devices: NetDevices,
    pub resctrl: Option<resctrl::Planned>,
    memory_policy: Option<MemoryPolicy>,
    command: Command,
}

impl<'a> Wish<'a> {
    /// Reads the configuration and checks it; `console`: whether somebody holds the terminal's master.
    pub fn of(request: &'a Request, console: bool) -> Result<Self, RuntimeError> {
        let bundle =
            fs::canonicalize(&request.bundle).map_err(file("find the bundle", &request.bundle))?;
        let spec = read_config(&bundle)?;
        let plan = Plan::of(&spec, facts())?;
        let options = bundle::Options {
            no_pivot: request.no_pivot,
        };
        let mounts = bundle::Plan::of(&spec, &bundle, options)?;
        let rootfs = spec.root().as_ref().map(|root| bundle.join(root.path()));
        let rootfs =
            rootfs.ok_or_else(|| refused("root", "is missing; give the path of the root"))?;
        let rootfs = fs::canonicalize(&rootfs).map_err(file("find the root", &rootfs))?;
        let process = spec.process().clone();
        let process = process.ok_or_else(|| refused("process", "must not be empty"))?;
        console::check(&process, console)?;
        check_hooks(spec.hooks().as_ref())?;
        let linux = spec.linux().as_ref();
        let devices = linux.map(|linux| NetDevices::of(linux, &plan.namespaces));
        let devices = devices.transpose()?.unwrap_or_default();
        devices.check()?;
        let memory_policy = linux.map(MemoryPolicy::of).transpose()?.flatten();
        let seccomp = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
        let command = Command::of(process, seccomp, request.preserve_fds)?;
        Ok(Self {
            request,
            bundle,
            rootfs,
            plan,
            mounts,
            devices,
            resctrl: resctrl::Planned::of(&spec, &request.id)?,
            memory_policy,
            command,
            spec,
        })
    }

    /// The cgroup that it will have.
    pub fn cgroup(&self) -> Result<Planned, RuntimeError> {
        let driver = if self.request.systemd {
            Driver::Systemd
        } else {
            Driver::CgroupFs
        };
        let linux = self.spec.linux().as_ref();
        let path = linux.and_then(|l| l.cgroups_path().as_deref());
        let resources = linux.and_then(|l| l.resources().as_ref());
        Ok(Group::plan(
            self.request.id.as_str(),
            path,
            driver,
            resources,
        )?)
    }

    /// What is written about it.
    pub fn record(&self, init: Identity, cgroup: PathBuf) -> Record {
        Record {
            id: self.request.id.clone(),
            init,
            ready: false,
            rootfs: self.rootfs.clone(),
            bundle: self.bundle.clone(),
            created: store::now(),
            cgroup,
            systemd: self.request.systemd,
            streams: streams::names(),
            classes: self.resctrl.as_ref().map(resctrl::Planned::classes),
            spec: self.spec.clone(),
        }
    }

    fn carry_out(
        self,
        undo: &mut Undo<'_>,
        cgroup: Planned,
        birth: Birth,
        console: Option<OwnedFd>,
        cgroup_namespace: Option<OwnedFd>,
    ) -> Result<Record, RuntimeError> {
        let group = undo.make(&self, cgroup)?;
        let directory = group.directory()?;
        let home = undo.home()?;
        let start = fdpass::listen_at(&home.socket()).map_err(file("make", &home.socket()))?;
        let hooks = self.spec.hooks().clone();
        let process = self.command.process().clone();
        let sources = self.mounts.needs_parent().then(|| self.mounts.clone());
        let inside = Inside {
            record: undo.record()?.clone(),
            namespaces: self.plan.namespaces.clone(),
            cgroup_namespace,
            mounts: self.mounts,
            command: self.command,
            console,
            start,
            memory_policy: self.memory_policy,
            new_keyring: !self.request.no_new_keyring,
        };
        let (ours, theirs) = fdpass::pair().map_err(system("make a socket"))?;
        // Both sides get a copy of all this; each keeps the end that is its own.
        let mut parts = Some((inside, ours, theirs));
        let pid = birth
            .give(directory.as_fd(), || {
                if let Some((inside, ours, theirs)) = parts.take() {
                    drop(ours);
                    inside.run(theirs);
                }
            })
            .map_err(birth::failed)?;
        undo.born(pid);
        let Some((_, ours, _)) = parts.take() else {
            unreachable!("only the other copy has taken it")
        };
        let go = || match say(ours.as_fd(), &ToProcess::Go { pid }) {
            // It has ended, and what it has said before is heard next.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(system("speak to the container's process")),
        };
        if self.plan.namespaces.is_new(LinuxNamespaceType::User) {
            birth::map_ids(pid, &self.plan)?;
            go()?;
        }
        limits::set(pid, &process)?;
        self.devices.give(pid, &mut undo.devices)?;
        if let Some(resctrl) = &self.resctrl {
            resctrl.put(pid)?;
        }
        undo.save()?;
        if let Some(mounts) = &sources {
            expect(&ours, &FromProcess::NeedsSources)?;
            let process = pidfd::open(pid).map_err(system("open the container's process"))?;
            let sent = mounts.sources_in(process.as_fd())?.send(ours.as_fd());
            sent.map_err(system("speak to the container's process"))?;
        }
        let hooks = hooks.as_ref();
        if wait_when_mounted(hooks) {
            expect(&ours, &FromProcess::Mounted)?;
            let state = undo.state(Status::Creating)?;
            for kind in WHEN_MOUNTED {
                run_hooks(kind, hooks, &state)?;
            }
        }
        go()?;
        expect(&ours, &FromProcess::Ready)?;
        undo.ready()?;
        tell_pid(self.request, pid)?;
        undo.keep()
    }
}

/// The hooks that are run outside when the mounts are made.
const WHEN_MOUNTED: [&str; 2] = ["prestart", "createRuntime"];

/// Whether the process has to wait for such hooks.
pub(super) fn wait_when_mounted(hooks: Option<&Hooks>) -> bool {
    let some = |kind| list_of(hooks, kind).is_some_and(|list| !list.is_empty());
    WHEN_MOUNTED.into_iter().any(some)
}

/// Waits for the process's next word, which must be this one.
fn expect(from: &OwnedFd, wanted: &FromProcess) -> Result<(), RuntimeError> {
    let heard = hear::<FromProcess>(from.as_fd());
    match heard.map_err(system("hear the container's process"))? {
        Some(word) if word == *wanted => Ok(()),
        Some(FromProcess::Failed { why }) => Err(RuntimeError::Child { why }),
        Some(word) => Err(RuntimeError::Child {
            why: format!("it has said {word:?} instead of {wanted:?}"),
        }),
        None => Err(RuntimeError::Child {
            why: "it was killed while it was prepared; was there a lack of memory?".to_owned(),
        }),
    }
}

/// Tells the process's id to those who asked for it.
pub(super) fn tell_pid(request: &Request, pid: i32) -> Result<(), RuntimeError> {
    if let Some(path) = &request.pid_file {
        write_pid(path, pid)?;
    }
    if let Some(path) = &request.pidfd_socket {
        send_pidfd(path, pid)?;
    }
    Ok(())
}

/// Writes a process's id, as a whole: who sees the file sees all of it.
pub(super) fn write_pid(path: &Path, pid: i32) -> Result<(), RuntimeError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{pid}"));
    let staged = path.with_file_name(name);
    fs::write(&staged, pid.to_string())
        .and_then(|()| fs::rename(&staged, path))
        .map_err(file("write", path))
}

/// Sends a descriptor of the process.
pub(super) fn send_pidfd(path: &Path, pid: i32) -> Result<(), RuntimeError> {
    let socket = connect(path)?;
    let process = pidfd::open(pid).map_err(system("open the container's process"))?;
    fdpass::send(socket.as_fd(), b"pidfd", &[process.as_fd()], true)
        .map_err(file("send the pidfd to", path))
}

/// Connects to a stream socket.
pub(super) fn connect(path: &Path) -> Result<UnixStream, RuntimeError> {
    UnixStream::connect(path).map_err(file("connect to", path))
}
