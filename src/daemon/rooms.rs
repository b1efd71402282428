//! The containers of this host, made by the rooms.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use super::backend::Say;
use super::{Backend, Context, DaemonError};
use crate::api::types::{CreateRequest, ExecRequest, LeaseInfo, Process, TemplateInfo};
use crate::model::{ContainerStatus, Digest, Name};

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
}

impl Backend for Rooms {
    fn list(&self) -> Result<Vec<ContainerStatus>, DaemonError> {
        Ok(Vec::new())
    }

    fn status(&self, name: &Name) -> Result<ContainerStatus, DaemonError> {
        Err(DaemonError::NoSuchContainer { name: name.clone() })
    }

    fn create(&self, _: &CreateRequest, _: Say<'_>) -> Result<(), DaemonError> {
        Err(CONTAINERS)
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
        Ok(Vec::new())
    }

    fn build(&self, _: &Name, _: Say<'_>) -> Result<Digest, DaemonError> {
        Err(CONTAINERS)
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
