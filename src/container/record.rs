//! What is on disk about a container: `record.json`.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{ContainerError, Host};
use crate::model::{ContainerSpec, ContainerState, Generation, MigrationId, Name};
use crate::sys::file;

/// A container, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it is.
    pub spec: ContainerSpec,
    /// How many times it has been handed over.
    pub generation: Generation,
    /// When it was created, seconds since the epoch.
    pub created_at: u64,
    /// Where it was in its life when this was written. Whether it still runs, [`super::status()`] finds out.
    pub state: ContainerState,
    /// The migration it is part of.
    pub migration: Option<MigrationId>,
    /// How it ended, once that is known.
    pub exit_code: Option<i32>,
    /// Why Godwit has ended it, where nobody had asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What its restart goes by.
    #[serde(default)]
    pub life: Life,
}

/// What is remembered of a container so that it can be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Life {
    /// Whether its command is to run: somebody has started it, and nobody has stopped it since.
    pub wanted: bool,
    /// When its command was last started, seconds since the epoch.
    pub started_at: u64,
    /// When its end was seen, seconds since the epoch.
    pub ended_at: u64,
    /// How often it was started again since a person has started it.
    pub restarts: u32,
    /// How often of these in a row it had ended soon.
    pub quick: u32,
}

impl Record {
    /// The record of a container that is being made now.
    pub fn new(spec: &ContainerSpec) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            spec: spec.clone(),
            generation: Generation::default(),
            created_at: now.unwrap_or_default().as_secs(),
            state: ContainerState::Creating,
            migration: None,
            exit_code: None,
            why: None,
            life: Life::default(),
        }
    }

    fn path(host: &Host, name: &Name) -> PathBuf {
        host.state(name).join("record.json")
    }

    /// Reads the record of a container.
    pub fn load(host: &Host, name: &Name) -> Result<Self, ContainerError> {
        let path = Self::path(host, name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ContainerError::NotFound { name: name.clone() });
            }
            other => other.map_err(ContainerError::file("read", &path))?,
        };
        serde_json::from_slice(&text).map_err(|source| ContainerError::Record { path, source })
    }

    /// Writes it: afterwards it is on the disk. The container's state directory is there.
    pub fn save(&self, host: &Host) -> Result<(), ContainerError> {
        let path = Self::path(host, &self.spec.name);
        let text = serde_json::to_vec_pretty(self).map_err(|source| ContainerError::Record {
            path: path.clone(),
            source,
        })?;
        file::replace(&path, &text).map_err(ContainerError::file("write", path))
    }

    /// Forgets it: the container does not exist any more.
    pub fn remove(host: &Host, name: &Name) -> Result<(), ContainerError> {
        let path = Self::path(host, name);
        match file::remove(&path) {
            // Nor does its directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(ContainerError::file("remove", path)),
        }
    }
}
