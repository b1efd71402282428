//! The containers of this host, made by the rooms.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use super::backend::Say;
use super::{Backend, Context, DaemonError, template};
use crate::api::types::{CreateRequest, ExecRequest, LeaseInfo, Process, TemplateInfo};
use crate::model::{ContainerSpec, ContainerStatus, Digest, Lease, Name};
use crate::oci::{self, Overrides};
use crate::rootfs::StoreError;

/// How long the network is listened to before an address counts as free.
const SILENCE: Duration = Duration::from_millis(300);

/// The containers of this host.
pub struct Rooms {
    context: Arc<Context>,
}

const CONTAINERS: DaemonError = DaemonError::NotYet {
    what: "a container",
};

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
        Ok(Vec::new())
    }

    fn status(&self, name: &Name) -> Result<ContainerStatus, DaemonError> {
        Err(DaemonError::NoSuchContainer { name: name.clone() })
    }

    fn create(&self, request: &CreateRequest, say: Say<'_>) -> Result<(), DaemonError> {
        let (template, image) = self.image(request, say)?;
        let lease = self.lease(request)?;
        let made = self
            .spec(request, &template, image, lease)
            .and_then(|_spec| Err(CONTAINERS));
        if made.is_err() {
            self.give_back(&request.name);
        }
        made
    }

    fn start(&self, _: &Name) -> Result<(), DaemonError> {
        Err(CONTAINERS)
    }

    fn kill(&self, _: &Name, _: i32, _: bool) -> Result<(), DaemonError> {
        Err(CONTAINERS)
    }

    fn delete(&self, _: &Name, _: bool) -> Result<(), DaemonError> {
        Err(CONTAINERS)
    }

    fn exec(&self, _: &Name, _: &ExecRequest) -> Result<Child, DaemonError> {
        Err(CONTAINERS)
    }

    fn ps(&self, _: &Name) -> Result<Vec<Process>, DaemonError> {
        Err(CONTAINERS)
    }

    fn log(&self, name: &Name) -> PathBuf {
        let state = &self.context.config.state_dir;
        state.join("containers").join(name.as_str()).join("log")
    }

    fn wait(&self, _: &Name, _: Duration) -> Result<bool, DaemonError> {
        Err(CONTAINERS)
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
    /// Gives the address back after a failure, which is what is told; a lease that stays is found by the
    /// next start of the daemon.
    fn give_back(&self, name: &Name) {
        if let Err(e) = self.context.leases.release(name) {
            tracing::warn!(container = %name, "its address could not be given back: {}", super::chain(&e));
        }
    }
}
