//! What goes over the API's socket: requests, answers, lines of a stream.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{
    Bytes, ContainerStatus, Digest, Event, Finding, Lease, Limits, MigrationId, MigrationOptions,
    MigrationReport, Name, Progress, Restart, Side, Userns,
};

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Stable, for programs: `no-such-container`, `bad-field`, `busy`, …
    pub code: String,
    /// For people: what failed and why.
    pub message: String,
    /// The field of the request that is wrong, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// `POST /v1/containers`: make a container, from a template or from an image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Its name.
    pub name: Name,
    /// The template, built first where it is not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Name>,
    /// An image of the store, instead of a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// The command, instead of the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// `KEY=value` lines, after (and thus over) the template's.
    #[serde(default)]
    pub env: Vec<String>,
    /// The address it shall have; otherwise the first free one of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// What it may use; what is absent here comes from the template.
    #[serde(default)]
    pub limits: Limits,
    /// When its command is started again, instead of the template's: `no`, `on-failure`, `on-failure:N`, `always`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Whether it has a user namespace of its own, instead of the template's choice: `auto` (it has) or `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userns: Option<Userns>,
    /// Whether to start it at once.
    #[serde(default)]
    pub start: bool,
}

/// `POST …/kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// A name (`TERM`, `SIGTERM`) or a number.
    pub signal: String,
    /// To every process of the container, not to its first alone.
    #[serde(default)]
    pub all: bool,
}

/// `POST …/stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// How long its command may take to end by itself, in milliseconds, before all of it is killed.
    #[serde(default = "StopRequest::default_patience")]
    pub patience_ms: u64,
}

impl StopRequest {
    /// Ten seconds, in milliseconds, as with others.
    pub fn default_patience() -> u64 {
        10_000
    }
}

/// `POST …/exec`: run a command in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// `KEY=value` lines, after the container's own.
    #[serde(default)]
    pub env: Vec<String>,
    /// `uid` or `uid:gid`, instead of the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The directory to start in, instead of the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

/// Which of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of the answer to `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ExecLine {
    /// Some output.
    Output {
        /// Of which kind.
        stream: Output,
        /// The bytes, in base64.
        data: String,
    },
    /// The last line: the exit code, or 128 + the signal's number.
    Exit {
        /// The code.
        exit: i32,
    },
    /// The last line, where the command was lost.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A line of the answer to `logs`: a line that the container printed, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// When, as RFC 3339 has it, UTC.
    pub at: String,
    /// On which of its outputs.
    pub stream: Output,
    /// Whether the rest of the line follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// What, without the end of the line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The same in base64, where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its id on the host.
    pub pid: i32,
    /// Its id in the container.
    pub inner_pid: i32,
    /// Its user id.
    pub uid: u32,
    /// What it does: `R` runs, `S` sleeps, `D` waits for the kernel, `T` is stopped, `Z` has ended.
    pub state: char,
    /// How many threads it has.
    pub threads: u32,
    /// Its memory in RAM, shared parts included.
    pub memory: Bytes,
    /// Its command line, or its name where it has none.
    pub command: String,
}

/// `POST …/migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The destination, by its name among the peers.
    pub to: Name,
    /// How.
    #[serde(default)]
    pub options: MigrationOptions,
    /// Only say what would prevent it.
    #[serde(default)]
    pub dry_run: bool,
}

/// The answer to `migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum MigrateAnswer {
    /// It has begun.
    Started {
        /// Under this id.
        id: MigrationId,
    },
    /// It was a dry run.
    DryRun {
        /// What was found.
        findings: Vec<Finding>,
    },
}

/// Where a migration stands on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationStatus {
    /// Which.
    pub id: MigrationId,
    /// Of what.
    pub container: Name,
    /// From where.
    pub source: Name,
    /// To where.
    pub destination: Name,
    /// Which side this host plays.
    pub side: Side,
    /// Where it stands, while it runs.
    pub progress: Option<Progress>,
    /// How it was, when it has ended.
    pub report: Option<MigrationReport>,
    /// What this host knows of it.
    pub state: MigrationState,
    /// Why the container was lost, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a host knows of a migration. A destination has no report, but it knows this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationState {
    /// It goes on.
    UnderWay,
    /// The container has run on neither host since the handover; it waits for the two to speak.
    InDoubt,
    /// The container runs at the destination, which still fetches memory of the frozen copy here.
    Serving,
    /// The container runs here, and a part of its memory is still on the source.
    Filling,
    /// It is over: the container was killed at the destination, as memory of it could not be fetched.
    Lost,
    /// It is over: the container runs at the destination.
    Moved,
    /// It is over: the container stayed on the source.
    Stayed,
}

/// A line of `GET /v1/migrations/{id}/progress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationLine {
    /// It goes on.
    Progress(Progress),
    /// The last line: it has ended.
    Report(Box<MigrationReport>),
    /// The last line: it ended and its report is not kept here.
    Gone {
        /// What is known.
        why: String,
    },
}

/// `POST …/resolve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// The side whose copy shall live. The other side must have been fenced.
    pub keep: Side,
}

/// A line of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventLine {
    /// Something happened.
    Event(Box<Event>),
    /// The reader was too slow: this many events are lost to it.
    Missed {
        /// How many.
        missed: u64,
    },
}

/// A template of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateInfo {
    /// Its name.
    pub name: Name,
    /// What its file tree is made of.
    pub rootfs: String,
    /// The command it runs.
    pub command: Vec<String>,
    /// The TCP ports it serves.
    pub ports: Vec<u16>,
    /// The image it was last built to, where it was.
    pub image: Option<Digest>,
    /// Why it cannot be used, where it cannot.
    pub problem: Option<String>,
}

/// A line of the answer to a template's build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BuildLine {
    /// What is being done.
    Step(String),
    /// The last line: the image.
    Image(Digest),
    /// The last line: it failed.
    Failed(ApiError),
}

/// A peer of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerInfo {
    /// Its name.
    pub name: Name,
    /// Where it listens.
    pub address: String,
    /// The digest of its certificate.
    pub fingerprint: String,
}

/// `POST /v1/peers/token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// How long it is good for, in seconds.
    #[serde(default = "TokenRequest::default_ttl")]
    pub ttl: u64,
}

impl TokenRequest {
    /// Ten minutes, in seconds.
    pub fn default_ttl() -> u64 {
        600
    }
}

/// The answer: a token, good for one host to join once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenAnswer {
    /// The token.
    pub token: String,
    /// Where to join with it.
    pub address: String,
    /// How long it is good for, in seconds.
    pub ttl: u64,
}

/// `POST /v1/peers/join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Where the other host listens for its peers.
    pub address: String,
    /// The token that it gave.
    pub token: String,
}

/// An address in use on this network, as far as this host knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseInfo {
    /// Whose.
    pub name: Name,
    /// The lease.
    pub lease: Lease,
    /// The host it moved to, where it moved away.
    pub moved_to: Option<Name>,
}

/// `POST /v1/ports`: connects a network namespace that somebody else has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRequest {
    /// Whose it is, as others on the network know it: a container of a bundle has the name that its id has in it.
    pub name: Name,
    /// The path of the network namespace, which has no `eth0`.
    pub netns: PathBuf,
    /// The address; none: any that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
}

/// A port in a network namespace that somebody else has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortInfo {
    /// Whose it is.
    pub name: Name,
    /// The path of the network namespace, as it was given.
    pub netns: PathBuf,
    /// What it has on the network.
    pub lease: Lease,
    /// Whether it is there, and its gate open.
    pub there: bool,
}

/// A container of an OCI bundle, which the command line has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bundle {
    /// Its id.
    pub id: String,
    /// How it is, in the words of the OCI specification; or `paused`.
    pub status: String,
    /// Its first process, while there is one.
    pub pid: Option<i32>,
    /// What it was to run.
    pub command: Vec<String>,
    /// When it was made, as RFC 3339 has it, UTC.
    pub created: String,
    /// The directory of its configuration.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
    /// What was attached to it.
    pub annotations: BTreeMap<String, String>,
}

/// The answer to a list of containers.
pub type Containers = Vec<ContainerStatus>;
