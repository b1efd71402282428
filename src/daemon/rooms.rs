//! The containers of this host, made by the rooms.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use super::backend::Say;
use super::ports::Port;
use super::{Backend, Context, DaemonError, template};
use crate::api::types::{
    CreateRequest, ExecRequest, LeaseInfo, PortInfo, PortRequest, Process, TemplateInfo,
};
use crate::cgroup::Counts;
use crate::container::shim::{self, ShimError};
use crate::container::{self, ContainerError, Host, Record, place};
use crate::model::{
    ContainerSpec, ContainerState, ContainerStatus, Digest, Lease, Name, Usage, User,
};
use crate::oci::{self, Overrides};
use crate::rootfs::StoreError;

/// How long the network is listened to before an address counts as free.
pub(super) const SILENCE: Duration = Duration::from_millis(300);

/// The containers of this host.
pub struct Rooms {
    context: Arc<Context>,
}

impl Rooms {
    /// Those of this host.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// The image that is asked for, and what it runs where nothing else is said.
    fn image(
        &self,
        request: &CreateRequest,
        say: Say<'_>,
    ) -> Result<(oci::Template, Digest), DaemonError> {
        match (&request.template, request.image) {
            (Some(name), _) => {
                let (template, dir) = oci::catalogue::load(&self.context.config.templates, name)?;
                let image = self.context.images.build(&template, &dir, say)?;
                Ok((template, image))
            }
            (None, Some(image)) => {
                if !self.context.images.fetch(image)? {
                    return Err(StoreError::NoImage { digest: image }.into());
                }
                Ok((template::of_bare_image(), image))
            }
            (None, None) => Err(DaemonError::Field {
                field: "template",
                problem: "neither a template nor an image is given".to_owned(),
                remedy: "name one of them".to_owned(),
            }),
        }
    }

    /// An address that nobody has: neither in the book nor on the wire.
    fn lease(&self, request: &CreateRequest) -> Result<Lease, DaemonError> {
        let network = &self.context.network;
        let mut in_use = |address| network.answers(address, SILENCE);
        let lease = self
            .context
            .leases
            .take_unused(&request.name, request.ip, &mut in_use)?;
        Ok(lease)
    }

    fn spec(
        &self,
        request: &CreateRequest,
        template: &oci::Template,
        image: Digest,
        lease: Lease,
    ) -> Result<ContainerSpec, DaemonError> {
        let overrides = Overrides {
            command: request.command.clone(),
            env: request.env.clone(),
            limits: request.limits.clone(),
            restart: request.restart,
            userns: request.userns,
        };
        let lower = self.context.images.lower(image);
        let name = request.name.clone();
        Ok(oci::resolve(
            template, image, &lower, name, lease, &overrides,
        )?)
    }
}

impl Backend for Rooms {
    fn list(&self) -> Result<Vec<ContainerStatus>, DaemonError> {
        Ok(container::list(self.host())?)
    }

    fn status(&self, name: &Name) -> Result<ContainerStatus, DaemonError> {
        container::status(self.host(), name).map_err(|e| absent(e, name))
    }

    fn create(&self, request: &CreateRequest, say: Say<'_>) -> Result<(), DaemonError> {
        let (template, image) = self.image(request, say)?;
        let lease = self.lease(request)?;
        let made = self
            .spec(request, &template, image, lease)
            .and_then(|spec| self.make(&spec, request.start));
        if made.is_err() {
            self.give_back(&request.name);
        }
        made
    }

    fn start(&self, name: &Name) -> Result<(), DaemonError> {
        container::start(self.host(), name)?;
        Ok(())
    }

    fn stop(&self, name: &Name) -> Result<(), DaemonError> {
        Ok(container::stop(self.host(), name)?)
    }

    fn restart_after(&self, name: &Name) -> Result<Option<Duration>, DaemonError> {
        Ok(container::restart_after(self.host(), name)?)
    }

    fn restart(&self, name: &Name) -> Result<(), DaemonError> {
        container::restart(self.host(), name)?;
        Ok(())
    }

    fn kill(&self, name: &Name, signal: i32, all: bool) -> Result<(), DaemonError> {
        Ok(container::kill(self.host(), name, signal, all)?)
    }

    fn delete(&self, name: &Name, force: bool) -> Result<(), DaemonError> {
        container::delete(self.host(), name, force)?;
        self.context.outputs.forget(name);
        Ok(self.context.leases.release(name)?)
    }

    fn exec(&self, name: &Name, request: &ExecRequest) -> Result<Child, DaemonError> {
        let user = match &request.user {
            Some(text) => Some(self.user(name, text)?),
            None => None,
        };
        let request = container::ExecRequest {
            command: request.command.clone(),
            env: request.env.clone(),
            cwd: request.cwd.as_ref().map(PathBuf::from),
            user,
            stdin: Stdio::null(),
            stdout: Stdio::piped(),
            stderr: Stdio::piped(),
        };
        Ok(container::exec(self.host(), name, request)?)
    }

    fn ps(&self, name: &Name) -> Result<Vec<Process>, DaemonError> {
        let all = container::ps(self.host(), name)?;
        let process = |info: container::ProcessInfo| Process {
            pid: info.pid,
            inner_pid: info.inner_pid,
            uid: info.uid,
            state: info.state,
            threads: info.threads,
            memory: info.memory,
            command: info.command,
        };
        Ok(all.into_iter().map(process).collect())
    }

    fn usage(&self, name: Option<&Name>) -> Result<Vec<Usage>, DaemonError> {
        let all = match name {
            Some(name) => vec![self.status(name)?],
            None => self.list()?,
        };
        all.into_iter()
            .map(|status| self.usage_of(status))
            .collect()
    }

    fn log(&self, name: &Name) -> PathBuf {
        self.host().log(name)
    }

    fn wait(&self, name: &Name, patience: Duration) -> Result<bool, DaemonError> {
        let ended = container::wait(self.host(), name, patience);
        if ended.is_err() {
            // It is not here any more: its output is nobody's.
            self.context.outputs.forget(name);
        }
        Ok(ended?.is_some())
    }

    fn tend(&self, name: &Name) -> Result<(), DaemonError> {
        let outputs = &self.context.outputs;
        match shim::Client::connect(&self.host().run(name)) {
            Ok(mut shim) => {
                if !outputs.has(name) && shim.state().pid().is_some() {
                    // An older shim, or one in the middle of something, may not hand them out: then a new
                    // shim would have to do without.
                    outputs.keep(name, shim.pipes().unwrap_or_default());
                }
                Ok(())
            }
            Err(ShimError::Gone { .. }) => {
                let kept = outputs.take(name);
                if container::adopt(self.host(), name, &kept)? {
                    tracing::warn!(container = %name, output_kept = !kept.is_empty(), "its shim had died; it has a new one");
                }
                Ok(())
            }
            // Asked again in the next turn.
            Err(_) => Ok(()),
        }
    }

    fn settle(&self, name: &Name) -> Result<bool, DaemonError> {
        self.context.outputs.forget(name);
        let before = Record::load(self.host(), name)?.state;
        let after = container::settle(self.host(), name)?.state;
        Ok(before != after && after == ContainerState::Stopped)
    }

    fn forget(&self, name: &Name) -> Result<(), DaemonError> {
        let leases = &self.context.leases;
        let away = leases
            .list()
            .into_iter()
            .any(|entry| entry.name == *name && entry.moved_to.is_some());
        if !away {
            return Err(DaemonError::NoSuchContainer { name: name.clone() });
        }
        Ok(leases.release(name)?)
    }

    fn templates(&self) -> Result<Vec<TemplateInfo>, DaemonError> {
        let directory = &self.context.config.templates;
        let names = oci::catalogue::list(directory)?;
        let images = &self.context.images;
        Ok(names
            .into_iter()
            .map(|name| template::info(directory, images, name))
            .collect())
    }

    fn build(&self, template: &Name, say: Say<'_>) -> Result<Digest, DaemonError> {
        let (template, dir) = oci::catalogue::load(&self.context.config.templates, template)?;
        Ok(self.context.images.build(&template, &dir, say)?)
    }

    fn ports(&self) -> Result<Vec<PortInfo>, DaemonError> {
        let all = Port::all(&self.context.config.run_dir);
        Ok(all.into_iter().map(|port| self.shown(port)).collect())
    }

    fn make_port(&self, request: &PortRequest) -> Result<PortInfo, DaemonError> {
        Ok(self.shown(Port::make(&self.context, request)?))
    }

    fn remove_port(&self, name: &Name) -> Result<(), DaemonError> {
        Port::remove(&self.context, name)
    }

    fn leases(&self) -> Result<Vec<LeaseInfo>, DaemonError> {
        let entries = self.context.leases.list();
        Ok(entries
            .into_iter()
            .map(|entry| LeaseInfo {
                name: entry.name,
                lease: entry.lease,
                moved_to: entry.moved_to,
            })
            .collect())
    }
}

impl Rooms {
    fn shown(&self, port: Port) -> PortInfo {
        PortInfo {
            there: self
                .context
                .network
                .is_attached(&port.name)
                .unwrap_or(false),
            name: port.name,
            netns: port.netns,
            lease: port.lease,
        }
    }

    fn usage_of(&self, status: ContainerStatus) -> Result<Usage, DaemonError> {
        use ContainerState::{Arriving, Creating, Stopped};
        let name = status.spec.name;
        let counts = match status.state {
            Stopped => Counts::missing("the container has ended"),
            Creating | Arriving => Counts::missing("the container is not there yet"),
            _ => self.host().cgroup(&name).counts(),
        };
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| DaemonError::Io {
            what: "read the clock".to_owned(),
            source: errno.into(),
        })?;
        Ok(Usage {
            name,
            state: status.state,
            at_us: u64::try_from(now.num_microseconds()).unwrap_or_default(),
            cpu: counts.cpu,
            memory: counts.memory,
            pids: counts.pids,
            io: counts.io,
            pressure: counts.pressure,
        })
    }

    fn host(&self) -> &Host {
        &self.context.host
    }

    /// Makes it, and starts it where that is asked. On failure nothing of it is left.
    fn make(&self, spec: &ContainerSpec, start: bool) -> Result<(), DaemonError> {
        container::create(self.host(), spec)?;
        if !start {
            return Ok(());
        }
        container::start(self.host(), &spec.name).map(drop).map_err(|e| {
            if let Err(e) = place::remove(self.host(), &spec.name) {
                tracing::warn!(container = %spec.name, "not all of it could be removed: {}", super::chain(&e));
            }
            e.into()
        })
    }

    /// Gives the address back after a failure, which is what is told; a lease that stays is found by the
    /// next start of the daemon.
    fn give_back(&self, name: &Name) {
        if let Err(e) = self.context.leases.release(name) {
            tracing::warn!(container = %name, "its address could not be given back: {}", super::chain(&e));
        }
    }

    /// `UID` or `UID:GID`; without a group, the container's own.
    fn user(&self, name: &Name, text: &str) -> Result<User, DaemonError> {
        let wrong = || DaemonError::Field {
            field: "user",
            problem: format!(
                "{:?} is not a user",
                text.chars().take(40).collect::<String>()
            ),
            remedy: "write it as UID or UID:GID, in numbers".to_owned(),
        };
        let number = |text: &str| {
            text.parse()
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or_else(wrong)
        };
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (number(uid)?, number(gid)?),
            None => (number(text)?, self.status(name)?.spec.user.gid),
        };
        Ok(User {
            uid,
            gid,
            groups: Vec::new(),
        })
    }
}

fn absent(error: ContainerError, name: &Name) -> DaemonError {
    match error {
        ContainerError::NotFound { .. } => DaemonError::NoSuchContainer { name: name.clone() },
        e => e.into(),
    }
}
