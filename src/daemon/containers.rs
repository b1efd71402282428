//! The containers of this host: every request takes the container's lock, is allowed or refused by its
//! state, works on the blocking pool, and tells what happened.
//!
//! **Invariant:** the lock goes with the work. A client that hangs up takes neither the lock nor the work
//! away in the middle.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use super::requests::{self, Request};
use super::watch::{self, Watched};
use super::{Backend, DaemonError, Events};
use crate::api::types::{
    CreateRequest, ExecRequest, LeaseInfo, PortInfo, PortRequest, Process, TemplateInfo,
};
use crate::daemon::locks::{Locked, Locks};
use crate::model::{ContainerState, ContainerStatus, Digest, EventKind, Name, Usage};

/// How long processes that were killed may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// The containers. Clones are the same containers.
#[derive(Clone)]
pub struct Containers {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) locks: Arc<Locks>,
    pub(super) events: Events,
    pub(super) watched: Arc<Watched>,
}

impl Containers {
    /// The containers behind `backend`.
    pub fn new(backend: Arc<dyn Backend>, locks: Arc<Locks>, events: Events) -> Self {
        Self {
            backend,
            locks,
            events,
            watched: Arc::default(),
        }
    }

    /// All of them.
    pub async fn list(&self) -> Result<Vec<ContainerStatus>, DaemonError> {
        let mut all = self.read("the list", |backend| backend.list()).await?;
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(all)
    }

    /// One of them.
    pub async fn status(&self, name: &Name) -> Result<ContainerStatus, DaemonError> {
        let name = name.clone();
        self.read("a status", move |backend| backend.status(&name))
            .await
    }

    /// Makes one; starts it where that is asked. On failure nothing of it is left.
    pub async fn create(
        &self,
        request: CreateRequest,
        mut say: impl FnMut(&str) + Send + 'static,
    ) -> Result<ContainerStatus, DaemonError> {
        let locked = self.locks.lock(&request.name).await?;
        let this = self.clone();
        blocking("a new container", move || {
            let name = locked.name();
            match this.backend.status(name) {
                Ok(_) => return Err(DaemonError::NameTaken { name: name.clone() }),
                Err(DaemonError::NoSuchContainer { .. }) => {}
                Err(e) => return Err(e),
            }
            this.backend.create(&request, &mut say)?;
            this.events.container(name, ContainerState::Created);
            if request.start {
                this.events.container(name, ContainerState::Running);
            }
            this.status_and_watch(name)
        })
        .await
    }

    /// Starts its command.
    pub async fn start(&self, name: &Name) -> Result<ContainerStatus, DaemonError> {
        self.work(name, Request::Start, |this, locked| {
            this.backend.start(locked.name())?;
            this.events
                .container(locked.name(), ContainerState::Running);
            this.status_and_watch(locked.name())
        })
        .await
    }

    /// Sends it a signal.
    pub async fn kill(&self, name: &Name, signal: i32, all: bool) -> Result<(), DaemonError> {
        self.work(name, Request::Kill, move |this, locked| {
            this.backend.kill(locked.name(), signal, all)
        })
        .await
    }

    /// Has its command end for good: asks it to (SIGTERM), and kills all of it when it still runs after `patience`.
    /// One that has ended is not started again. Nobody else is kept waiting meanwhile.
    pub async fn stop(
        &self,
        name: &Name,
        patience: Duration,
    ) -> Result<ContainerStatus, DaemonError> {
        let runs = self.work(name, Request::Stop, |this, locked| {
            let name = locked.name();
            let runs = this.backend.status(name)?.state == ContainerState::Running;
            this.backend.stop(name)?;
            Ok(runs)
        });
        if runs.await? && !self.ends_within(name, patience).await? {
            let killed = self.kill(name, libc::SIGKILL, true).await;
            // It may have ended in this very moment.
            if !self.ends_within(name, KILLED_WITHIN).await? {
                killed?;
            }
        }
        self.status(name).await
    }

    async fn ends_within(&self, name: &Name, patience: Duration) -> Result<bool, DaemonError> {
        let name = name.clone();
        self.read("an end", move |backend| backend.wait(&name, patience))
            .await
    }

    /// Removes it and everything of it. With `force`, the name of one that moved to another host becomes
    /// free here, too.
    pub async fn delete(&self, name: &Name, force: bool) -> Result<(), DaemonError> {
        let deleted = self.work(name, Request::Delete { force }, move |this, locked| {
            this.backend.delete(locked.name(), force)?;
            let name = locked.name().clone();
            this.events.emit(EventKind::Removed { name });
            Ok(())
        });
        match deleted.await {
            Err(DaemonError::NoSuchContainer { .. }) if force => {
                let name = name.clone();
                self.read("a name", move |backend| backend.forget(&name))
                    .await
            }
            other => other,
        }
    }

    /// Runs a command in it; the child's outputs are pipes.
    pub async fn exec(&self, name: &Name, request: ExecRequest) -> Result<Child, DaemonError> {
        self.work(name, Request::Exec, move |this, locked| {
            this.backend.exec(locked.name(), &request)
        })
        .await
    }

    /// Its processes.
    pub async fn ps(&self, name: &Name) -> Result<Vec<Process>, DaemonError> {
        self.work(name, Request::Ps, |this, locked| {
            this.backend.ps(locked.name())
        })
        .await
    }

    /// What they use: of all, or of one.
    pub async fn usage(&self, name: Option<&Name>) -> Result<Vec<Usage>, DaemonError> {
        let name = name.cloned();
        let ask = move |backend: &dyn Backend| backend.usage(name.as_ref());
        let mut all = self.read("what containers use", ask).await?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Sees to it that it has a shim: one that was killed is replaced.
    pub async fn tend(&self, name: &Name) -> Result<(), DaemonError> {
        let name = name.clone();
        self.read("a shim", move |backend| backend.tend(&name))
            .await
    }

    /// Whether its state allows a migration; which then takes the lock itself.
    pub async fn may_migrate(&self, name: &Name) -> Result<(), DaemonError> {
        let status = self.status(name).await?;
        requests::allowed(Request::Migrate, name, status.state, status.migration)?;
        Ok(())
    }

    /// The file its output goes to.
    pub async fn log(&self, name: &Name) -> Result<PathBuf, DaemonError> {
        self.status(name).await?;
        Ok(self.backend.log(name))
    }

    /// The templates.
    pub async fn templates(&self) -> Result<Vec<TemplateInfo>, DaemonError> {
        self.read("the templates", |backend| backend.templates())
            .await
    }

    /// Makes a template's image, or finds it made.
    pub async fn build(
        &self,
        template: &Name,
        mut say: impl FnMut(&str) + Send + 'static,
    ) -> Result<Digest, DaemonError> {
        let template = template.clone();
        self.read("an image", move |backend| {
            backend.build(&template, &mut say)
        })
        .await
    }

    /// Ports in network namespaces that others have made.
    pub async fn ports(&self) -> Result<Vec<PortInfo>, DaemonError> {
        self.read("the ports", |backend| backend.ports()).await
    }

    /// Makes one. On failure nothing of it is left.
    pub async fn make_port(&self, request: PortRequest) -> Result<PortInfo, DaemonError> {
        let locked = self.locks.lock(&request.name).await?;
        self.read("a new port", move |backend| {
            let _locked = locked;
            backend.make_port(&request)
        })
        .await
    }

    /// Removes one. What is not there is no failure.
    pub async fn remove_port(&self, name: &Name) -> Result<(), DaemonError> {
        let locked = self.locks.lock(name).await?;
        self.read("a port", move |backend| backend.remove_port(locked.name()))
            .await
    }

    /// The addresses.
    pub async fn leases(&self) -> Result<Vec<LeaseInfo>, DaemonError> {
        self.read("the leases", |backend| backend.leases()).await
    }

    /// From now on, tends to this container while its command runs, and draws the conclusion when it ends.
    /// One that is watched already is watched once.
    pub fn watch(&self, name: Name) {
        watch::watch(self, name);
    }

    /// Part of the work, not of the answer: a client that hangs up must not leave its container unwatched.
    fn status_and_watch(&self, name: &Name) -> Result<ContainerStatus, DaemonError> {
        let status = self.backend.status(name)?;
        // One that has ended already has its end concluded, too.
        if matches!(
            status.state,
            ContainerState::Running | ContainerState::Stopped
        ) {
            self.watch(name.clone());
        }
        Ok(status)
    }

    async fn work<T: Send + 'static>(
        &self,
        name: &Name,
        request: Request,
        act: impl FnOnce(&Self, &Locked) -> Result<T, DaemonError> + Send + 'static,
    ) -> Result<T, DaemonError> {
        // A name that does not exist is told at once and gets no lock.
        self.status(name).await?;
        let locked = self.locks.lock(name).await?;
        let this = self.clone();
        blocking(name.as_str(), move || {
            let status = this.backend.status(locked.name())?;
            requests::allowed(request, locked.name(), status.state, status.migration)?;
            act(&this, &locked)
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        what: &str,
        ask: impl FnOnce(&dyn Backend) -> Result<T, DaemonError> + Send + 'static,
    ) -> Result<T, DaemonError> {
        let backend = Arc::clone(&self.backend);
        blocking(what, move || ask(&*backend)).await
    }
}

/// The one place where blocking work leaves the async world.
pub async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, DaemonError> + Send + 'static,
) -> Result<T, DaemonError> {
    let defect = |_| DaemonError::Defect {
        what: what.to_owned(),
    };
    tokio::task::spawn_blocking(work).await.map_err(defect)?
}
