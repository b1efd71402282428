//! What a container is: parsed once (by `oci`), then trusted by every room.

use std::path::{Component, PathBuf};

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
    /// What it has of an OCI bundle, if it was made of one and not of a template. Not told to other hosts where it was
    /// not, which is what those of an earlier version take for granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<OfBundle>,
}

/// What a container has that was made of an OCI bundle on another host: its root, whole, is its own layer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfBundle {
    /// Where in it files and directories of that host were bound: it has copies of them, which go with it.
    pub copies: Vec<PathBuf>,
    /// The files in it that are covered by `/dev/null`.
    pub covered: Vec<PathBuf>,
}

impl OfBundle {
    /// Most places of either kind.
    pub const MOST: usize = 256;

    /// What is wrong with it; none: nothing. The places become words of CRIU's, which have separators.
    pub fn problem(&self) -> Option<String> {
        if self.copies.len().max(self.covered.len()) > Self::MOST {
            return Some(format!(
                "it has more than {} mounts of one kind",
                Self::MOST
            ));
        }
        let plain = |place: &&PathBuf| {
            let normal = |part| matches!(part, Component::RootDir | Component::Normal(_));
            let text = place.to_str().unwrap_or_default();
            let clean = !text.contains(|c: char| c.is_control() || "[]:".contains(c));
            place.is_absolute() && place.components().all(normal) && text.len() > 1 && clean
        };
        let bad = self
            .copies
            .iter()
            .chain(&self.covered)
            .find(|p| !plain(p))?;
        Some(format!(
            "{:?} is not a path of plain names, without brackets and colons",
            bad.to_string_lossy()
        ))
    }
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

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn places_of_a_bundle_are_plain_paths() {
        let of = |place: &str| OfBundle {
            copies: vec!["/etc/hosts".into()],
            covered: vec![place.into()],
        };
        assert_eq!(of("/proc/kcore").problem(), None);
        for bad in ["", "/", "etc", "/a/../b", "/a]:/b", "/a:b", "/a\nb"] {
            let problem = of(bad).problem();
            assert!(problem.is_some(), "{bad:?}");
        }
        let many = OfBundle {
            copies: vec!["/a".into(); OfBundle::MOST + 1],
            covered: Vec::new(),
        };
        assert!(many.problem().unwrap().contains("256"));
    }
}
