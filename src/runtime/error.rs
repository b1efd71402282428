//! What can go wrong with a container of a bundle.
//!
//! The texts of the first few are part of the command line: containerd, conmon and others look for their words.

use std::io;
use std::path::{Path, PathBuf};

use super::hooks::HookError;
use super::state::Status;
use crate::cgroup::CgroupError;
use crate::criu::CriuError;
use crate::net::NetError;
use crate::rootfs::bundle::RootfsError;
use crate::security::SecurityError;

/// Why a verb of the OCI command line could not be done.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Not an identifier.
    #[error(
        "invalid container ID format: {text:?}; use up to 1024 letters, digits and '_', '+', '-', '.', and not '.' or '..' alone"
    )]
    Id {
        /// What was given.
        text: String,
    },
    /// No such container.
    #[error("container does not exist: there is no {id} in {}", root.display())]
    Missing {
        /// Its id.
        id: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// The id is taken.
    #[error("container with given ID already exists: {id}; delete it first")]
    Exists {
        /// The id.
        id: String,
    },
    /// A signal or a command for a container without processes.
    #[error("container not running: {id} is {status}")]
    NotRunning {
        /// Its id.
        id: String,
        /// What it is instead.
        status: Status,
    },
    /// The container is not in the state that the verb needs.
    #[error("cannot {verb} container {id} that is {status}; {remedy}")]
    Status {
        /// What was asked.
        verb: &'static str,
        /// The container.
        id: String,
        /// What it is.
        status: Status,
        /// What to do.
        remedy: &'static str,
    },
    /// A migration has it.
    #[error(
        "container {id} is being moved to {to}; wait for it, or `godwit migrations cancel` it first (`godwit migrations list`)"
    )]
    Leaving {
        /// Its id.
        id: String,
        /// The destination.
        to: String,
    },
    /// The configuration asks for what cannot be.
    #[error("config.json: {field}: {why}")]
    Config {
        /// The field, from the root of the file.
        field: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A file that should be JSON of a known shape.
    #[error("{} cannot be understood at {field}: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option of the command line that cannot be.
    #[error("{option}: {why}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A file.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A system call.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The container's process could not get ready; it has told why.
    #[error("unable to start container process: {why}")]
    Child {
        /// Its words.
        why: String,
    },
    /// CRIU could not write a container's images, or make a container of images.
    #[error("cannot {verb} container {id} (CRIU's log: {})", log.display())]
    Checkpoint {
        /// What was asked.
        verb: &'static str,
        /// The container.
        id: String,
        /// Where CRIU says more.
        log: PathBuf,
        /// What it said.
        #[source]
        source: Box<CriuError>,
    },
    /// CRIU, before it has done anything.
    #[error(transparent)]
    Criu(Box<CriuError>),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Network devices.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Capabilities or system call filters.
    #[error(transparent)]
    Security(#[from] SecurityError),
}

impl From<CriuError> for RuntimeError {
    fn from(error: CriuError) -> Self {
        Self::Criu(Box::new(error))
    }
}

/// A refusal of a field of the configuration.
pub(super) fn refused(field: impl Into<String>, why: impl Into<String>) -> RuntimeError {
    RuntimeError::Config {
        field: field.into(),
        why: why.into(),
    }
}

pub(super) fn system(operation: &'static str) -> impl FnOnce(io::Error) -> RuntimeError {
    move |source| RuntimeError::System { operation, source }
}

pub(super) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |source| RuntimeError::File {
        operation,
        path,
        source,
    }
}

/// An error and what caused it, on one line.
pub fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
