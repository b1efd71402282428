//! Containers of OCI bundles, which the command line makes without a daemon: they are shown here, and found when they
//! are to be moved to another host; everything else is left to the command line.
//!
//! They have no lock of the daemon's and no shim, and nothing about them is kept: each look reads their records and
//! asks the kernel. What it takes to move one is in [`super::migrations`]; where it arrives it is a container like
//! others.

use std::path::Path;

use super::DaemonError;
use super::containers::blocking;
use crate::api::types::Bundle;
use crate::model::Name;
use crate::runtime::{Id, Leaving, Record, Root, RuntimeError, Status, leaving};

/// Those below one root directory.
#[derive(Debug, Clone)]
pub struct Bundles {
    root: Root,
}

impl Bundles {
    /// Those of the host whose daemon has this run directory: with the usual one, the root that the command line uses
    /// where none is named.
    pub fn of(run_dir: &Path) -> Result<Self, DaemonError> {
        let path = run_dir.join("oci");
        let root = Root::at(&path).map_err(|source| RuntimeError::File {
            operation: "find",
            path,
            source,
        })?;
        Ok(Self { root })
    }

    /// All of them, by id. One that is just being deleted, or whose record cannot be read, is left out.
    pub async fn list(&self) -> Result<Vec<Bundle>, DaemonError> {
        let root = self.root.clone();
        blocking("the containers of bundles", move || {
            let read = |id: &Id| match root.read(id) {
                Ok(record) => Some(shown(&root, record)),
                Err(RuntimeError::Missing { .. }) => None,
                Err(error) => {
                    tracing::warn!("container {id} of a bundle: {}", super::chain(&error));
                    None
                }
            };
            Ok(root.ids()?.iter().filter_map(read).collect())
        })
        .await
    }

    /// One of them.
    pub async fn one(&self, id: &str) -> Result<Bundle, DaemonError> {
        let (root, id) = (self.root.clone(), id.to_owned());
        blocking("a container of a bundle", move || {
            let found = id.parse().and_then(|id| root.read(&id));
            match found {
                Ok(record) => Ok(shown(&root, record)),
                Err(RuntimeError::Missing { .. } | RuntimeError::Id { .. }) => {
                    let id = id.chars().take(80).collect();
                    Err(DaemonError::NoSuchBundle { id })
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// The id of the one that has this name on the network: see [`Name::of_id`].
    pub fn find(&self, name: &Name) -> Option<Id> {
        let same: Option<Id> = name.as_str().parse().ok();
        let same = same.filter(|id| self.root.has(id));
        same.or_else(|| {
            let ids = self.root.ids().unwrap_or_default();
            ids.into_iter()
                .find(|id| Name::of_id(id.as_str()).as_ref() == Some(name))
        })
    }

    /// What somebody who moves it has to know. Blocks.
    ///
    /// # Errors
    /// When it does not run.
    pub fn leaving(&self, id: &Id) -> Result<Leaving, DaemonError> {
        Ok(leaving(&self.root, id)?)
    }

    /// Takes it into a migration to the host `to`: see [`Root::lend`]. Blocks.
    pub fn lend(&self, id: &Id, to: &Name) -> Result<(), DaemonError> {
        Ok(self.root.lend(id, to.as_str())?)
    }

    /// It is in no migration any more. Blocks; idempotent.
    pub fn take_back(&self, id: &Id) -> Result<(), DaemonError> {
        Ok(self.root.take_back(id)?)
    }
}

fn shown(root: &Root, record: Record) -> Bundle {
    let status = root.status(&record);
    let process = record.spec.process().as_ref();
    let annotations = record.spec.annotations().clone().unwrap_or_default();
    Bundle {
        id: record.id.to_string(),
        status: status.to_string(),
        pid: (status != Status::Stopped).then_some(record.init.pid),
        command: process
            .and_then(|process| process.args().clone())
            .unwrap_or_default(),
        created: record.created,
        bundle: record.bundle,
        rootfs: record.rootfs,
        cgroup: record.cgroup,
        annotations: annotations.into_iter().collect(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_container_of_a_bundle_has_a_name_by_which_it_is_found() {
        let named = |id: &str| Name::of_id(id).map(|name| name.to_string());
        assert_eq!(named("web").as_deref(), Some("web"));
        assert_eq!(named("My_Web.1").as_deref(), Some("my-web-1"));
        assert_eq!(named("_-_"), None);
        let long = "0123456789ABcdef".repeat(4);
        assert_eq!(named(&long).as_deref(), Some("0123456789ab"));

        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::of(dir.path()).unwrap();
        let find = |name: &str| {
            let id = bundles.find(&name.parse().unwrap());
            id.map(|id| id.as_str().to_owned())
        };
        assert_eq!(find("web"), None);
        for id in ["web", "a_b", &long] {
            std::fs::create_dir_all(dir.path().join("oci").join(id)).unwrap();
        }
        assert_eq!(find("web").as_deref(), Some("web"));
        assert_eq!(find("a-b").as_deref(), Some("a_b"));
        assert_eq!(find("0123456789ab"), Some(long));
    }
}
