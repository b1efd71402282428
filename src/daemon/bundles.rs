//! Containers of OCI bundles, which the command line makes without a daemon: they are shown here, and everything else
//! is left to the command line.
//!
//! They have no lock of the daemon's and no shim, and nothing about them is kept: each look reads their records and
//! asks the kernel. A migration needs more than there is of them: a root file system that arrives with them, a network
//! namespace whose gate can be closed, a keeper of their streams; see [`DaemonError::OfABundle`].

use std::path::Path;

use super::DaemonError;
use super::containers::blocking;
use crate::api::types::Bundle;
use crate::model::Name;
use crate::runtime::{Id, Record, Root, RuntimeError, Status};

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

    /// Says of a name that is not the daemon's whether it is that of one of these, which cannot be migrated.
    pub fn explain(&self, error: DaemonError) -> DaemonError {
        match error {
            DaemonError::NoSuchContainer { name } if self.has(&name) => {
                DaemonError::OfABundle { name }
            }
            other => other,
        }
    }

    fn has(&self, name: &Name) -> bool {
        name.as_str().parse().is_ok_and(|id| self.root.has(&id))
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
    fn a_container_of_a_bundle_is_not_migrated_and_the_reason_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::of(dir.path()).unwrap();
        let absent = || DaemonError::NoSuchContainer {
            name: "web".parse().unwrap(),
        };
        let told = bundles.explain(absent());
        assert!(matches!(told, DaemonError::NoSuchContainer { .. }));
        std::fs::create_dir_all(dir.path().join("oci/web")).unwrap();
        let told = bundles.explain(absent());
        assert!(told.to_string().contains("OCI bundle"), "{told}");
        assert!(told.remedy().unwrap().contains("godwit restore"));
    }
}
