//! Ports of the container network in namespaces that others have made: those of containers that an engine starts.
//!
//! What is known of one is a file beneath the run directory, written before the port is made and removed after it: after
//! a crash at any moment there is a file for every port, and a port without its namespace goes with the next request for
//! its name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Context, DaemonError};
use crate::api::types::PortRequest;
use crate::container::Record;
use crate::model::{Lease, Name};
use crate::sys::file;

/// What is known of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Whose, as others on the network know it.
    pub name: Name,
    /// The network namespace, as it was given.
    pub netns: PathBuf,
    /// Its inode number: a namespace is nothing else, whatever its path.
    pub inode: u64,
    /// What it has on the network.
    pub lease: Lease,
}

fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("ports")
}

impl Port {
    fn file(run_dir: &Path, name: &Name) -> PathBuf {
        directory(run_dir).join(name.as_str())
    }

    /// The port of this name; none where there is none.
    pub fn load(run_dir: &Path, name: &Name) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(run_dir, name)).ok()?).ok()
    }

    /// All of them, by name.
    pub fn all(run_dir: &Path) -> Vec<Self> {
        let entries = fs::read_dir(directory(run_dir))
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut all: Vec<Self> = names
            .filter_map(|name| Self::load(run_dir, &name))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn save(&self, run_dir: &Path) -> Result<(), DaemonError> {
        let path = Self::file(run_dir, &self.name);
        let text = serde_json::to_vec(self).map_err(io::Error::other);
        fs::create_dir_all(directory(run_dir))
            .and_then(|()| file::replace(&path, &text?))
            .map_err(|source| DaemonError::Io {
                what: format!("write {}", path.display()),
                source,
            })
    }

    /// Makes one, with its gate open. On failure nothing of it is left.
    pub fn make(context: &Context, request: &PortRequest) -> Result<Self, DaemonError> {
        let run_dir = &context.config.run_dir;
        let name = &request.name;
        let inode = namespace(&request.netns)?;
        if Record::load(&context.host, name).is_ok() {
            return Err(DaemonError::NameTaken { name: name.clone() });
        }
        if let Some(held) = Self::load(run_dir, name) {
            if namespace(&held.netns).is_ok_and(|inode| inode == held.inode) {
                return Err(DaemonError::NameTaken { name: name.clone() });
            }
            Self::remove(context, name)?;
        }
        let known = context
            .leases
            .list()
            .iter()
            .any(|entry| entry.name == *name);
        let mut in_use = |address| context.network.answers(address, super::rooms::SILENCE);
        let lease = context.leases.take_unused(name, request.ip, &mut in_use)?;
        let port = Self {
            name: name.clone(),
            netns: request.netns.clone(),
            inode,
            lease,
        };
        let made = port.steps(context);
        if made.is_err() {
            let undone = context.network.unplug(name).map_err(DaemonError::from);
            let forgotten = if known {
                Ok(())
            } else {
                context.leases.release(name)
            };
            if let Err(error) = undone
                .and_then(|()| Ok(forgotten?))
                .and_then(|()| port.forget(run_dir))
            {
                tracing::error!(%name, "a port that could not be made was not removed: {}", error.chain());
            }
        }
        made.map(|()| port)
    }

    fn steps(&self, context: &Context) -> Result<(), DaemonError> {
        self.save(&context.config.run_dir)?;
        context.network.plug(&self.name, &self.lease, &self.netns)?;
        context.network.attach(&self.name)?;
        context.network.announce(&self.lease, &self.netns)?;
        Ok(())
    }

    /// Removes one, and gives its address back unless its container lives on another host now. One that is not there is
    /// no failure.
    pub fn remove(context: &Context, name: &Name) -> Result<(), DaemonError> {
        let Some(port) = Self::load(&context.config.run_dir, name) else {
            return Ok(());
        };
        port.unplug(context)?;
        let entry = context
            .leases
            .list()
            .into_iter()
            .find(|entry| entry.name == *name);
        if entry.is_some_and(|entry| entry.moved_to.is_none()) {
            context.leases.release(name)?;
        }
        Ok(())
    }

    /// The same, and its address stays as it is.
    pub fn unplug(&self, context: &Context) -> Result<(), DaemonError> {
        context.network.unplug(&self.name)?;
        self.forget(&context.config.run_dir)
    }

    fn forget(&self, run_dir: &Path) -> Result<(), DaemonError> {
        let path = Self::file(run_dir, &self.name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DaemonError::Io {
                what: format!("remove {}", path.display()),
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// The inode number of a network namespace that is not the host's.
fn namespace(path: &Path) -> Result<u64, DaemonError> {
    let refused = |problem: String| DaemonError::Field {
        field: "netns",
        problem,
        remedy:
            "give the path of a container's network namespace: /run/netns/NAME, /proc/PID/ns/net"
                .to_owned(),
    };
    let meta = fs::metadata(path)
        .map_err(|error| refused(format!("{} cannot be looked at: {error}", path.display())))?;
    let host = fs::metadata("/proc/self/ns/net").map_err(|source| DaemonError::Io {
        what: "look at this host's network namespace".to_owned(),
        source,
    })?;
    if meta.dev() != host.dev() || !path.is_absolute() {
        return Err(refused(format!(
            "{} is not the path of a namespace",
            path.display()
        )));
    }
    if meta.ino() == host.ino() {
        return Err(refused(format!("{} is this host's own", path.display())));
    }
    Ok(meta.ino())
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::Mac;

    #[test]
    fn what_is_no_namespace_of_a_container_is_refused() {
        let said = |path: &str| namespace(Path::new(path)).unwrap_err().to_string();
        assert!(said("/nowhere/at/all").contains("cannot be looked at"));
        assert!(said("/etc/passwd").contains("not the path of a namespace"));
        assert!(said("/proc/self/ns/net").contains("this host's own"));
    }

    #[test]
    fn what_is_known_of_ports_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Port::all(dir.path()), []);
        let address = [10, 88, 0, 9].into();
        let port = |name: &str| Port {
            name: name.parse().unwrap(),
            netns: "/run/netns/x".into(),
            inode: 7,
            lease: Lease {
                address,
                prefix: 16,
                gateway: None,
                mac: Mac::of(address),
            },
        };
        let (b, a) = (port("b"), port("a"));
        b.save(dir.path()).unwrap();
        a.save(dir.path()).unwrap();
        assert_eq!(Port::load(dir.path(), &a.name), Some(a.clone()));
        assert_eq!(Port::all(dir.path()), [a.clone(), b.clone()]);
        a.forget(dir.path()).unwrap();
        a.forget(dir.path()).unwrap();
        assert_eq!(Port::all(dir.path()), [b]);
    }
}
