//! What a container is: parsed once (by `oci`), then trusted by every room.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bytes, Digest, Generation, Lease, Name, Restart, Userns};

/// Everything that makes a container, the same on every host it lives on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Its name; also its host name inside.
    pub name: Name,
    /// The template it was made from, for people.
    pub template: String,
    /// The image (read-only lower layer) in the content-addressed store.
    pub image: Digest,
    /// The command and its arguments; never empty.
    pub command: Vec<String>,
    /// `KEY=value` lines.
    pub env: Vec<String>,
    /// The directory it starts in; absolute.
    pub cwd: PathBuf,
    /// Whom it runs as.
    pub user: User,
    /// TCP ports it serves, for people and for the report.
    pub ports: Vec<u16>,
    /// What it may use.
    pub limits: Limits,
    /// When its command is started again. Not told to other hosts where it never is, which is what those of an
    /// earlier version do.
    #[serde(default, skip_serializing_if = "Restart::is_no")]
    pub restart: Restart,
    /// Whose its users are. Not told to other hosts where they are the host's, which is what those of an earlier
    /// version take for granted.
    #[serde(default, skip_serializing_if = "Userns::is_host")]
    pub userns: Userns,
    /// Its network identity.
    pub lease: Lease,
}

/// Numeric user and groups, resolved against the image's own `/etc/passwd` when the spec was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// User id inside the container.
    pub uid: u32,
    /// Primary group id inside the container.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Limits as users mean them. None: no limit of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most memory, in bytes.
    pub memory: Option<Bytes>,
    /// CPU time per wall time, in thousandths of one core.
    pub cpu_millis: Option<u64>,
    /// Most processes and threads.
    pub pids: Option<u64>,
}

/// Where a container is in its life on *this* host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Being made; recovery removes what it finds in this state.
    Creating,
    /// Made, its command not yet started.
    Created,
    /// Its command runs.
    Running,
    /// It runs here and is being copied elsewhere.
    Migrating,
    /// It is being copied to this host and does not run here yet.
    Arriving,
    /// The handover was sent or awaited and the answer is not known: it runs on neither host until the
    /// two have spoken.
    InDoubt,
    /// Its command has ended; files and log are kept until it is deleted.
    Stopped,
}

/// What the API tells about a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerStatus {
    /// The container.
    pub spec: ContainerSpec,
    /// Where it is in its life.
    pub state: ContainerState,
    /// How many times it has been handed over.
    pub generation: Generation,
    /// The host process id of its first process, while it has one.
    pub pid: Option<i32>,
    /// When it was created, seconds since the epoch.
    pub created_at: u64,
    /// How its command ended: the exit code, or 128 + the signal's number. Absent while it runs, and when
    /// it could not be learnt.
    pub exit_code: Option<i32>,
    /// Why Godwit has ended it, where nobody had asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How often it was started again, by what its spec says of that, since a person has started it.
    #[serde(default)]
    pub restarts: u32,
    /// The migration it is part of, in the states `migrating`, `arriving` and `in-doubt`.
    pub migration: Option<super::MigrationId>,
}
