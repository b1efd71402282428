//! `restore`: images become the container that they were made of.
//!
//! **Promise:** when it fails, or is killed, nothing runs. What is left by a kill, a record and a cgroup, is removed
//! by `delete`, as after any other container.
//!
//! CRIU makes the processes, their namespaces and their mounts. Ours is what is around them: the record, the cgroup
//! in which CRIU starts (and so everything that it makes), the places of the mounts, the streams and the terminal,
//! the loopback device and those of the host that it gets. Hooks are run as other runtimes run them: `prestart` and `createRuntime`, when the namespaces
//! are there.

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::checkpoint::{self, namespace_key, proc_name};
use super::create::{self, Request, Wish};
use super::error::{file, system};
use super::foreground::Attention;
use super::run::Ended;
use super::state::{Record, Status};
use super::store::{self, Root};
use super::undo::Undo;
use super::{RuntimeError, birth, images, plan, run_hooks, streams};
use crate::cgroup::manage::Planned;
use crate::criu::{Allowed, Criu, Notify, RestoreRequest as Asked, Session, Spawn, Verdict};
use crate::rootfs::bundle::{self, COVER};
use crate::sys::fdpass;
use crate::sys::netns::{self, NetNs};

/// What `restore` is asked.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// What it has in common with `create`.
    pub create: Request,
    /// The directory of the images.
    pub images: PathBuf,
    /// The directory of log and statistics; none: that of the images.
    pub work: Option<PathBuf>,
    /// Memory comes later, from `criu lazy-pages`, which listens in the directory of the log.
    pub lazy_pages: bool,
    /// Memory is taken out of the images as it is restored.
    pub dedup: bool,
    /// What may be restored.
    pub allowed: Allowed,
    /// The profile of the security module, `TYPE:NAME`; none: as dumped.
    pub lsm_profile: Option<String>,
    /// The SELinux context of mounts that have one; none: as dumped.
    pub lsm_mount_context: Option<String>,
    /// Which CRIU; none: the host's.
    pub criu: Option<PathBuf>,
}

/// Restores a container. In the foreground it is deleted after its end, unless it is to be kept.
pub fn restore(
    root: &Root,
    request: &RestoreRequest,
    detach: bool,
    keep: bool,
) -> Result<Ended, RuntimeError> {
    let spec = create::read_config(&request.create.bundle)?;
    let terminal = spec.process().as_ref().and_then(|p| p.terminal()) == Some(true);
    let console = request.create.console_socket.is_some() || (terminal && !detach);
    let wish = Wish::of(&request.create, console)?;
    checkpoint::check_spec(&wish.spec, &wish.plan.namespaces)?;
    let cgroup = wish.cgroup()?;
    images::check(&request.images)?;
    let criu = checkpoint::find(request.criu.as_deref())?;
    check_lazy(request, &criu)?;
    let home = root.take(&request.create.id)?;
    let mut undo = Undo::new(root, home);
    let restored = carry_out(request, &wish, &mut undo, cgroup, &criu);
    if restored.is_err() {
        undo.all();
    }
    let (record, master) = restored?;
    drop(undo);
    if detach {
        return Ok(Ended::RunsOn);
    }
    let attention = Attention::start()?;
    let code = attention.until_it_ends(record.init.pid, master);
    if !keep {
        super::delete(root, &request.create.id, true)?;
    }
    Ok(Ended::With(code?))
}

fn check_lazy(request: &RestoreRequest, criu: &Criu) -> Result<(), RuntimeError> {
    if !request.lazy_pages {
        return Ok(());
    }
    let refused = |why: String| RuntimeError::Option {
        option: "--lazy-pages",
        why,
    };
    if !criu.features()?.lazy_pages {
        return Err(refused(
            "this kernel has no userfaultfd as CRIU needs it: restore without".to_owned(),
        ));
    }
    let work = request.work.as_deref().unwrap_or(&request.images);
    if !work.join("lazy-pages.socket").exists() {
        let why = format!(
            "nobody serves memory at {}/lazy-pages.socket: start `criu lazy-pages` with that directory as its \
             --work-dir first",
            work.display()
        );
        return Err(refused(why));
    }
    Ok(())
}

/// Restores it; the terminal's master, where nobody else was named to hold it.
fn carry_out(
    request: &RestoreRequest,
    wish: &Wish<'_>,
    undo: &mut Undo<'_>,
    cgroup: Planned,
    criu: &Criu,
) -> Result<(Record, Option<OwnedFd>), RuntimeError> {
    let cgroup = undo.make(wish, cgroup)?.path().to_owned();
    let [root, seen] = undo.home()?.stage();
    for place in [&root, &seen] {
        let made = DirBuilder::new().mode(0o700).create(place);
        made.map_err(file("make", place))?;
    }
    let mapped = wish.plan.namespaces.is_new(LinuxNamespaceType::User);
    let stage = wish.mounts.stage(bundle::Places {
        root: &root,
        images: mapped.then_some((&seen, &request.images)),
    })?;
    let names = streams::read(&request.images)?;
    let mut spawn = Spawn {
        cgroup: Some(cgroup.clone()),
        new_cgroup_namespace: wish.plan.namespaces.is_new(LinuxNamespaceType::Cgroup),
        mounts: Some(stage.mounts),
        spare_tar: true,
        ..Spawn::default()
    };
    let mut asked = ask(request, wish, &root, &cgroup)?;
    if let Some(images) = &stage.images {
        asked.images = format!("/proc/self/fd/{}", images.as_raw_fd()).into();
    }
    asked.inherit = streams::inherit(&mut spawn, &names, host_user(wish))?;
    inherit_namespaces(wish, &mut spawn, &mut asked)?;
    if let Some(work) = &request.work {
        images::make(work)?;
    }
    let restored = converse(request, wish, undo, (criu, spawn), &asked);
    for place in [&root, &seen] {
        // Nothing is mounted there that anybody else could see.
        fs::remove_dir(place).map_err(file("remove", place))?;
    }
    let master = restored?;
    let record = undo.keep()?;
    create::tell_pid(&request.create, record.init.pid)?;
    Ok((record, master))
}

/// The container's user, as the host numbers it.
fn host_user(wish: &Wish<'_>) -> Option<u32> {
    let user = wish.spec.process().as_ref()?.user().uid();
    let maps = wish
        .spec
        .linux()
        .as_ref()
        .and_then(|l| l.uid_mappings().as_deref());
    plan::host_id(maps, user)
}

fn ask(
    request: &RestoreRequest,
    wish: &Wish<'_>,
    root: &Path,
    cgroup: &Path,
) -> Result<Asked, RuntimeError> {
    let outside = wish.mounts.outside(cgroup)?;
    let bound = outside
        .iter()
        .map(|bound| format!("mnt[{}]:{}", bound.place.display(), bound.source.display()));
    let covers = wish.mounts.covers();
    let namespaces = &wish.plan.namespaces;
    let joined = namespaces.joined.iter();
    Ok(Asked {
        work: Some(request.work.clone().unwrap_or(request.images.clone())),
        log_level: checkpoint::LOG_LEVEL,
        root: Some(root.to_owned()),
        external: bound
            .chain(covers.then(|| format!("mnt[{COVER}]:{COVER}")))
            .collect(),
        lazy_pages: request.lazy_pages,
        consume: request.dedup,
        allowed: Allowed {
            orphan_terminal: true,
            ..request.allowed.clone()
        },
        empty_network: namespaces.is_new(LinuxNamespaceType::Network),
        join: joined
            .filter(|joined| namespace_key(joined.kind).is_none())
            .map(|joined| (proc_name(joined.kind), joined.path.clone()))
            .collect(),
        lsm_profile: request.lsm_profile.clone(),
        lsm_mount_context: request.lsm_mount_context.clone(),
        config_file: checkpoint::config_file(&wish.spec),
        ..Asked::new(&request.images)
    })
}

/// Namespaces of others that CRIU is given, and does not join by itself.
fn inherit_namespaces(
    wish: &Wish<'_>,
    spawn: &mut Spawn,
    asked: &mut Asked,
) -> Result<(), RuntimeError> {
    for joined in &wish.plan.namespaces.joined {
        if let Some(key) = namespace_key(joined.kind) {
            let number = spawn.pass(birth::open(joined)?);
            asked.inherit.push((key.to_owned(), number));
        }
    }
    Ok(())
}

fn converse(
    request: &RestoreRequest,
    wish: &Wish<'_>,
    undo: &mut Undo<'_>,
    (criu, spawn): (&Criu, Spawn),
    asked: &Asked,
) -> Result<Option<OwnedFd>, RuntimeError> {
    let id = &request.create.id;
    let failed = |source| {
        let work = request.work.as_deref();
        checkpoint::failed(
            "restore",
            id,
            work,
            &request.images,
            &asked.log_file,
            source,
        )
    };
    let session = Session::start(criu, spawn).map_err(failed)?;
    let mut way = Way {
        wish,
        undo,
        pid: None,
        let_go: false,
        master: None,
        wrong: None,
    };
    let done = session.restore(asked, &mut |step| way.judge(step));
    match (done, way.wrong) {
        (Ok(_), _) => Ok(way.master),
        (Err(_), Some(wrong)) => Err(wrong),
        (Err(error), None) if way.let_go => {
            // CRIU was killed at the very end: what was restored runs, and the record says so.
            tracing::warn!("container {id} runs, although CRIU did not end well: {error}");
            Ok(way.master)
        }
        (Err(error), None) => Err(failed(error)),
    }
}

/// A restore on its way.
struct Way<'a, 'b> {
    wish: &'a Wish<'a>,
    undo: &'a mut Undo<'b>,
    pid: Option<i32>,
    /// Whether the processes have been let go.
    let_go: bool,
    /// The terminal's master, until somebody takes it.
    master: Option<OwnedFd>,
    /// Why we have said no.
    wrong: Option<RuntimeError>,
}

impl Way<'_, '_> {
    fn judge(&mut self, step: Notify) -> Verdict {
        match self.step(step) {
            Ok(()) => Verdict::Continue,
            Err(error) => {
                self.wrong.get_or_insert(error);
                Verdict::Refuse
            }
        }
    }

    fn step(&mut self, step: Notify) -> Result<(), RuntimeError> {
        match step {
            Notify::SetupNamespaces { pid } => {
                self.pid = Some(pid);
                self.undo.begun();
                // Those that follow are its children.
                if let Some(resctrl) = &self.wish.resctrl {
                    resctrl.put(pid)?;
                }
                self.run_hooks(pid)
            }
            Notify::PostSetupNamespaces => {
                self.raise_loopback()?;
                self.give_devices()
            }
            // A refusal kills the processes: no record, no container.
            Notify::PostRestore { pid } => {
                let init = store::identity(pid).ok_or_else(|| RuntimeError::Child {
                    why: "it ended while it was restored".to_owned(),
                })?;
                self.undo.restored(init)
            }
            Notify::PreResume => {
                self.let_go = true;
                Ok(())
            }
            Notify::OrphanPtsMaster { master } => self.hand_over(master),
            _ => Ok(()),
        }
    }

    fn run_hooks(&self, pid: i32) -> Result<(), RuntimeError> {
        let mut state = self.undo.state(Status::Creating)?;
        state["pid"] = pid.into();
        for kind in ["prestart", "createRuntime"] {
            run_hooks(kind, self.wish.spec.hooks().as_ref(), &state)?;
        }
        Ok(())
    }

    /// A network namespace that is dumped empty has nothing but this device, and that is down.
    fn raise_loopback(&self) -> Result<(), RuntimeError> {
        let namespaces = &self.wish.plan.namespaces;
        let Some(pid) = self
            .pid
            .filter(|_| namespaces.is_new(LinuxNamespaceType::Network))
        else {
            return Ok(());
        };
        NetNs::open(Path::new(&format!("/proc/{pid}/ns/net")))
            .and_then(|namespace| namespace.run(netns::raise_loopback))
            .and_then(|raised| raised)
            .map_err(system("raise the loopback device"))
    }

    /// Those of the host that the configuration names; images have nothing of them.
    fn give_devices(&mut self) -> Result<(), RuntimeError> {
        match self.pid {
            Some(pid) => self.wish.devices.give(pid, &mut self.undo.devices),
            None => Ok(()),
        }
    }

    fn hand_over(&mut self, master: OwnedFd) -> Result<(), RuntimeError> {
        let Some(socket) = &self.wish.request.console_socket else {
            self.master = Some(master);
            return Ok(());
        };
        let holder = create::connect(socket)?;
        fdpass::send(holder.as_fd(), b"/dev/ptmx", &[master.as_fd()], true)
            .map_err(file("send the terminal's master to", socket))
    }
}
