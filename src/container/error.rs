//! What can go wrong with a container.

use std::io;
use std::path::PathBuf;

use super::shim::ShimError;
use super::state::Refusal;
use crate::cgroup::CgroupError;
use crate::model::{Digest, Name};
use crate::net::NetError;
use crate::rootfs::MountError;

/// What went wrong with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error("there is no container {name} on this host; `godwit list` shows those that there are")]
    NotFound {
        /// The name asked for.
        name: Name,
    },
    /// The name is taken.
    #[error(
        "there is a container {name} on this host already; choose another name or delete it first"
    )]
    Exists {
        /// The name.
        name: Name,
    },
    /// Not in this state.
    #[error(transparent)]
    State(#[from] Refusal),
    /// The image is not here.
    #[error("the image {image} is not on this host; build its template first")]
    NoImage {
        /// Which.
        image: Digest,
    },
    /// Its first process cannot be found.
    #[error("{name} has no process to act on; `godwit state {name}` shows how it ended")]
    NoProcess {
        /// The container.
        name: Name,
    },
    /// A file of the container.
    #[error("cannot {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The record cannot be understood.
    #[error("the record {path} is damaged; restore it, or remove {} to give the container up", path.parent().unwrap_or(path).display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        source: serde_json::Error,
    },
    /// Its network.
    #[error("the network of {name} failed")]
    Network {
        /// The container.
        name: Name,
        /// Why.
        #[source]
        source: NetError,
    },
    /// Its cgroup.
    #[error("the cgroup of {name} failed")]
    Cgroup {
        /// The container.
        name: Name,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// Its user namespace.
    #[error(
        "cannot make the user namespace of {name}; `--userns host` makes a container that has none"
    )]
    Users {
        /// The container.
        name: Name,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its root.
    #[error("the root of {name} failed")]
    Mount {
        /// The container.
        name: Name,
        /// Why.
        #[source]
        source: MountError,
    },
    /// Its shim, or what the shim was asked to do.
    #[error("cannot {operation} {name}")]
    Shim {
        /// What was asked.
        operation: &'static str,
        /// The container.
        name: Name,
        /// What it answered.
        #[source]
        source: ShimError,
    },
    /// A command cannot be run in it.
    #[error("cannot start a command in {name}")]
    Exec {
        /// The container.
        name: Name,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A wish that cannot be.
    #[error("{field} is {value}: {remedy}")]
    Wish {
        /// What was asked for.
        field: &'static str,
        /// As it was given.
        value: String,
        /// What can be given.
        remedy: &'static str,
    },
    /// Its command cannot be started another time.
    #[error(
        "{name} cannot be started again: it was made of an OCI bundle on another host, and what that asked for besides its          command is not here; make it anew of its bundle (`godwit create --bundle`), or `godwit delete` it"
    )]
    OfABundle {
        /// The container.
        name: Name,
    },
    /// Something failed, and so did taking back what had been done before it.
    #[error("{cause}; in addition, not everything could be taken back: {}", leftovers.join("; "))]
    Undo {
        /// What failed first.
        #[source]
        cause: Box<ContainerError>,
        /// What else did.
        leftovers: Vec<String>,
    },
    /// A removal that did as much as it could.
    #[error("{name} is not removed entirely: {}; run it again", failures.join("; "))]
    Remains {
        /// The container.
        name: Name,
        /// What failed.
        failures: Vec<String>,
    },
}

impl ContainerError {
    pub(super) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }

    pub(super) fn network(name: &Name) -> impl FnOnce(NetError) -> Self {
        let name = name.clone();
        move |source| Self::Network { name, source }
    }

    pub(super) fn cgroup(name: &Name) -> impl FnOnce(CgroupError) -> Self {
        let name = name.clone();
        move |source| Self::Cgroup { name, source }
    }

    pub(super) fn mount(name: &Name) -> impl FnOnce(MountError) -> Self {
        let name = name.clone();
        move |source| Self::Mount { name, source }
    }

    pub(super) fn shim(operation: &'static str, name: &Name) -> impl FnOnce(ShimError) -> Self {
        let name = name.clone();
        move |source| Self::Shim {
            operation,
            name,
            source,
        }
    }
}

/// An error and what caused it, in one line.
pub(super) fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries print their cause themselves.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
