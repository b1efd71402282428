//! What is known about a container, and the words for how it is. Pure: what is on the disk is a [`Record`].

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::RuntimeError;
use super::resctrl::Classes;

/// The version of the runtime specification that is spoken here.
pub const OCI_VERSION: &str = "1.2.0";

/// The name of a container, unique below one root directory, where it is the name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Id(String);

impl Id {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = RuntimeError;
    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || b"_+-.".contains(&c);
        let good = (1..=1024).contains(&text.len())
            && text.bytes().all(inner)
            && text != "."
            && text != "..";
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(RuntimeError::Id {
                text: text.chars().take(80).collect(),
            })
        }
    }
}

impl TryFrom<String> for Id {
    type Error = RuntimeError;
    fn try_from(text: String) -> Result<Self, RuntimeError> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How a container is, in the words of the specification; `paused` is runc's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its process is being prepared.
    Creating,
    /// Its process waits for the start.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its id on the host.
    pub pid: i32,
    /// When it was started, in ticks since the host's start.
    pub start_time: u64,
}

/// What is on the disk about a container: everything a later verb needs, even when the bundle is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its id.
    pub id: Id,
    /// Its first process.
    pub init: Identity,
    /// Whether that process is ready to be started, or was.
    pub ready: bool,
    /// The bundle, as an absolute path.
    pub bundle: PathBuf,
    /// The root file system, as an absolute path.
    pub rootfs: PathBuf,
    /// When it was created, as RFC 3339 has it.
    pub created: String,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
    /// Whether that is systemd's scope.
    pub systemd: bool,
    /// What its standard streams are called in a checkpoint.
    #[serde(default)]
    pub streams: Vec<String>,
    /// What it has of the processor's cache and the memory's bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
    /// The configuration it was created from.
    pub spec: Spec,
}

/// What `state` and `list` print, field by field as runc does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The version of the specification.
    pub oci_version: String,
    /// The container.
    pub id: Id,
    /// Its first process; 0 when that has ended.
    pub pid: i32,
    /// How it is.
    pub status: Status,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was created.
    pub created: String,
    /// What was attached to it.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// Who created it.
    pub owner: String,
}

/// What is printed about a container that is `status`.
pub fn shown(record: &Record, status: Status) -> Shown {
    Shown {
        oci_version: record.spec.version().clone(),
        id: record.id.clone(),
        pid: match status {
            Status::Stopped => 0,
            _ => record.init.pid,
        },
        status,
        bundle: record.bundle.clone(),
        rootfs: record.rootfs.clone(),
        created: record.created.clone(),
        annotations: record.spec.annotations().clone().unwrap_or_default(),
        owner: String::new(),
    }
}

/// The state as the specification has it, for hooks: they know `creating` and not `paused`.
pub fn for_hooks(record: &Record, status: Status) -> serde_json::Value {
    let mut state = serde_json::json!({
        "ociVersion": record.spec.version(),
        "id": record.id.as_str(),
        "status": status,
        "bundle": record.bundle,
        "annotations": record.spec.annotations().clone().unwrap_or_default(),
    });
    if status != Status::Stopped {
        state["pid"] = record.init.pid.into();
    }
    state
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_id_is_one_name_of_a_directory() {
        for good in ["a", "A.b_c-d+e", "..a", &"x".repeat(1024)] {
            assert_eq!(good.parse::<Id>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "ü", "a\0", &"x".repeat(1025)] {
            assert!(bad.parse::<Id>().is_err(), "{bad:?}");
        }
    }
}
