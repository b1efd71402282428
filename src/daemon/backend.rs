//! What the daemon needs of the rooms that make containers, as one trait: so that the edges can be tested
//! without root.

use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use super::DaemonError;
use crate::api::types::{
    CreateRequest, ExecRequest, LeaseInfo, PortInfo, PortRequest, Process, TemplateInfo,
};
use crate::model::{ContainerStatus, Digest, Name, Usage};

/// Says what is being done while something takes long.
pub type Say<'a> = &'a mut dyn FnMut(&str);

/// The containers of a host. Every call may block. The caller sees to it that one call at a time works on
/// a container, and that the container's state allows it.
pub trait Backend: Send + Sync + 'static {
    /// All containers.
    fn list(&self) -> Result<Vec<ContainerStatus>, DaemonError>;
    /// One container; [`DaemonError::NoSuchContainer`] when there is none.
    fn status(&self, name: &Name) -> Result<ContainerStatus, DaemonError>;
    /// Makes one, and starts it where that is asked. On failure nothing of it is left.
    fn create(&self, request: &CreateRequest, say: Say<'_>) -> Result<(), DaemonError>;
    /// Starts its command.
    fn start(&self, name: &Name) -> Result<(), DaemonError>;
    /// From now on its command is to have ended, and nothing but a person starts it again; where it runs it is asked
    /// to end, which is not waited for.
    fn stop(&self, name: &Name) -> Result<(), DaemonError>;
    /// After which pause its command, which has ended, is to be started again; none when it is not.
    fn restart_after(&self, name: &Name) -> Result<Option<Duration>, DaemonError>;
    /// Starts it again because of that.
    fn restart(&self, name: &Name) -> Result<(), DaemonError>;
    /// Sends a signal to its first process, or to all.
    fn kill(&self, name: &Name, signal: i32, all: bool) -> Result<(), DaemonError>;
    /// Removes it and everything of it. What is already gone is no failure.
    fn delete(&self, name: &Name, force: bool) -> Result<(), DaemonError>;
    /// Runs a command in it; the child's outputs are pipes.
    fn exec(&self, name: &Name, request: &ExecRequest) -> Result<Child, DaemonError>;
    /// Its processes.
    fn ps(&self, name: &Name) -> Result<Vec<Process>, DaemonError>;
    /// What they use: of all, or of one.
    fn usage(&self, name: Option<&Name>) -> Result<Vec<Usage>, DaemonError>;
    /// The file its output goes to.
    fn log(&self, name: &Name) -> PathBuf;
    /// Waits for its command to end, but not for longer than `patience`: whether it has ended.
    fn wait(&self, name: &Name, patience: Duration) -> Result<bool, DaemonError>;
    /// Sees to what must not be missing while it runs: its shim.
    fn tend(&self, name: &Name) -> Result<(), DaemonError>;
    /// Draws the conclusion when its command has ended: frees what only a running container needs. Whether
    /// there was something to conclude is told.
    fn settle(&self, name: &Name) -> Result<bool, DaemonError>;
    /// Gives back what is kept for the name of a container that is not here any more.
    fn forget(&self, name: &Name) -> Result<(), DaemonError>;
    /// The templates.
    fn templates(&self) -> Result<Vec<TemplateInfo>, DaemonError>;
    /// Makes a template's image, or finds it made.
    fn build(&self, template: &Name, say: Say<'_>) -> Result<Digest, DaemonError>;
    /// Ports in network namespaces that others have made.
    fn ports(&self) -> Result<Vec<PortInfo>, DaemonError>;
    /// Makes one. On failure nothing of it is left.
    fn make_port(&self, request: &PortRequest) -> Result<PortInfo, DaemonError>;
    /// Removes one. What is not there is no failure.
    fn remove_port(&self, name: &Name) -> Result<(), DaemonError>;
    /// The addresses.
    fn leases(&self) -> Result<Vec<LeaseInfo>, DaemonError>;
}
