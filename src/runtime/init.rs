//! The way of a container's first process, from its birth to the command it becomes.
//!
//! **Invariant:** it says what failed to whoever listens (the creator first, the starter later) and ends; nothing
//! of the creator's own undoing is ever done by it.
//!
//! The conversation is drawn at the head of [`super::wire`].

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{LinuxNamespaceType, LinuxPersonalityDomain, Spec};

use super::command::{Command, StepError, lower};
use super::create::wait_when_mounted;
use super::error::in_one_line;
use super::memory_policy::MemoryPolicy;
use super::plan::Namespaces;
use super::state::{self, Record, Status};
use super::talk::{say, say_failed, tell_listener, wait_for_go};
use super::wire::FromProcess;
use super::{console, run_hooks};
use crate::rootfs::bundle;
use crate::sys::{fdpass, namespace, netns, process};

/// Everything the process needs; it was all made before the process was.
#[derive(Debug)]
pub(super) struct Inside {
    /// What is written about the container; its process's id is not known yet.
    pub record: Record,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// The cgroup namespace to join.
    pub cgroup_namespace: Option<OwnedFd>,
    /// Its mounts.
    pub mounts: bundle::Plan,
    /// What it becomes.
    pub command: Command,
    /// Who gets the master of its terminal.
    pub console: Option<OwnedFd>,
    /// The socket on which it waits for the start.
    pub start: OwnedFd,
    /// From which nodes it gets its memory.
    pub memory_policy: Option<MemoryPolicy>,
    /// Whether it gets a session keyring of its own.
    pub new_keyring: bool,
}

impl Inside {
    fn spec(&self) -> &Spec {
        &self.record.spec
    }

    /// The whole way.
    pub fn run(mut self, creator: OwnedFd) -> ! {
        // A panic must not unwind into the code of the creator, whose copy this is.
        let all = std::panic::AssertUnwindSafe(|| {
            if let Err(error) = self.prepare(creator.as_fd()) {
                say_failed(creator.as_fd(), &in_one_line(&*error));
                return;
            }
            drop(creator);
            let Ok(starter) = fdpass::accept(self.start.as_fd()) else {
                return;
            };
            let error = self.go(starter.as_fd());
            say_failed(starter.as_fd(), &in_one_line(&*error));
        });
        let _ = std::panic::catch_unwind(all);
        process::leave(1)
    }

    /// Everything before the start.
    fn prepare(&mut self, creator: BorrowedFd<'_>) -> Result<(), StepError> {
        process::unblock_signals();
        if self.namespaces.is_new(LinuxNamespaceType::User) {
            wait_for_go(creator)?;
        }
        if self.namespaces.has(LinuxNamespaceType::User) {
            become_root()?;
        }
        nix::unistd::setsid().map_err(|e| format!("start a session: {}", lower(e)))?;
        self.enter_cgroup_namespace()?;
        self.name()?;
        if self.namespaces.is_new(LinuxNamespaceType::Network) {
            netns::raise_loopback().map_err(|e| format!("raise the loopback device: {e}"))?;
        }
        if self.new_keyring {
            keyring(self.record.id.as_str())?;
        }
        self.mount(creator)?;
        personality(self.spec())?;
        if let Some(policy) = &self.memory_policy {
            let failed = |e| format!("set linux.memoryPolicy: {e}");
            policy.set().map_err(failed)?;
        }
        self.make_directory()?;
        self.command.look_for()?;
        say(creator, &FromProcess::Ready)?;
        Ok(())
    }

    fn enter_cgroup_namespace(&self) -> Result<(), StepError> {
        if let Some(joined) = &self.cgroup_namespace {
            namespace::enter(joined.as_fd(), namespace::CGROUP)
                .map_err(|e| format!("join the cgroup namespace: {e}"))?;
        } else if self.namespaces.is_new(LinuxNamespaceType::Cgroup) {
            namespace::leave(namespace::CGROUP)
                .map_err(|e| format!("make a cgroup namespace: {e}"))?;
        }
        Ok(())
    }

    fn name(&self) -> Result<(), StepError> {
        let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        if let Some(name) = given(self.spec().hostname()) {
            nix::unistd::sethostname(name).map_err(|e| format!("set hostname: {}", lower(e)))?;
        }
        if let Some(name) = given(self.spec().domainname()) {
            process::domain_name(&name).map_err(|e| format!("set domainname: {e}"))?;
        }
        Ok(())
    }

    /// Makes the mounts, the terminal among them, and changes the root.
    fn mount(&mut self, creator: BorrowedFd<'_>) -> Result<(), StepError> {
        let plan = &self.mounts;
        plan.separate()?;
        let sources = if plan.needs_parent() {
            say(creator, &FromProcess::NeedsSources)?;
            plan.receive_sources(creator)?
        } else {
            plan.sources()?
        };
        let root = plan.build(sources)?;
        let terminal = match &self.console {
            Some(holder) => Some((root.console(console::size(self.command.process()))?, holder)),
            None => None,
        };
        if wait_when_mounted(self.spec().hooks().as_ref()) {
            say(creator, &FromProcess::Mounted)?;
        }
        self.record.init.pid = wait_for_go(creator)?;
        self.run_hooks("createContainer")?;
        root.enter()?;
        if let Some((terminal, holder)) = terminal {
            console::take(terminal, holder.as_fd())?;
        }
        Ok(())
    }

    fn run_hooks(&self, kind: &'static str) -> Result<(), StepError> {
        let state = state::for_hooks(&self.record, Status::Created);
        Ok(run_hooks(kind, self.spec().hooks().as_ref(), &state)?)
    }

    /// The directory in which the command starts is made where it is missing, as other runtimes do.
    fn make_directory(&self) -> Result<(), StepError> {
        let cwd = self.command.process().cwd();
        match DirBuilder::new().recursive(true).mode(0o755).create(cwd) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(format!("cwd {cwd:?} is not a directory").into())
            }
            Err(e) => Err(format!("make the cwd {cwd:?}: {e}").into()),
            Ok(()) => Ok(()),
        }
    }

    /// From the start on. It returns only if the command cannot be become.
    fn go(&self, starter: BorrowedFd<'_>) -> StepError {
        let settled = self
            .command
            .settle(|listener| Ok(tell_listener(starter, listener)?))
            .and_then(|()| self.run_hooks("startContainer"));
        match settled {
            Ok(()) => self.command.become_it(),
            Err(error) => error,
        }
    }
}

/// Becomes root of the user namespace, whose maps have been written.
pub(super) fn become_root() -> Result<(), StepError> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    let failed = |errno: Errno| format!("become root of the user namespace: {}", lower(errno));
    nix::unistd::setgroups(&[]).map_err(failed)?;
    nix::unistd::setresgid(gid, gid, gid).map_err(failed)?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed)?;
    // The change has made it dumpable or not as the host is set; it must not be.
    nix::sys::prctl::set_dumpable(false).map_err(failed)?;
    Ok(())
}

fn keyring(id: &str) -> Result<(), StepError> {
    let name = CString::new(format!("_ses.{id}"))?;
    match process::new_session_keyring(&name) {
        // A kernel without keys has none that could leak.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS)) => Ok(()),
        other => other.map_err(|e| format!("make a session keyring: {e}").into()),
    }
}

fn personality(spec: &Spec) -> Result<(), StepError> {
    let asked = spec.linux().as_ref().and_then(|l| l.personality().as_ref());
    let Some(asked) = asked else {
        return Ok(());
    };
    let domain = match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000,
        LinuxPersonalityDomain::PerLinux32 => 0x0008,
    };
    process::personality(domain).map_err(|e| format!("set linux.personality: {e}").into())
}
