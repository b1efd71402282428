//! User namespaces that exist for their maps alone, for id-mapped mounts.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::RootfsError;
use super::plan::{IdMap, Kind, Plan};
use crate::sys::clone::{self, Clone, Forked};
use crate::sys::namespace;

/// The namespaces of a plan's id-mapped mounts; equal maps share one.
#[derive(Debug, Default)]
pub(super) struct Namespaces(Vec<(IdMap, OwnedFd)>);

impl Namespaces {
    /// Makes or opens all that the plan needs.
    pub fn make(plan: &Plan) -> Result<Self, RootfsError> {
        let mut made = Self::default();
        for mount in &plan.mounts {
            let Kind::Bind {
                id_map: Some(id_map),
                ..
            } = &mount.kind
            else {
                continue;
            };
            if made.of(id_map).is_none() {
                let fd = match id_map {
                    IdMap::Namespace(path) => File::open(path).map(OwnedFd::from),
                    IdMap::Ranges { uids, gids } => with_maps(uids, gids),
                };
                let fd = fd.map_err(mount.failed("make the maps of owners for"))?;
                made.0.push((id_map.clone(), fd));
            }
        }
        Ok(made)
    }

    pub fn of(&self, id_map: &IdMap) -> Option<BorrowedFd<'_>> {
        let found = self.0.iter().find(|(other, _)| other == id_map);
        found.map(|(_, fd)| fd.as_fd())
    }
}

/// A user namespace with these maps. It needs a process to come into being, which ends at once.
fn with_maps(uids: &str, gids: &str) -> io::Result<OwnedFd> {
    let (mut wait, go) = io::pipe()?;
    let how = Clone {
        namespaces: namespace::USER,
        ..Clone::default()
    };
    let pid = match clone::clone(&how)? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            drop(go);
            // It ends when the parent lets go, or dies.
            let _ = wait.read(&mut [0]);
            // Not by returning: everything above belongs to the parent.
            let _ = kill(Pid::this(), Signal::SIGKILL);
            return Err(io::ErrorKind::Interrupted.into());
        }
    };
    let made = (|| {
        let of = Path::new("/proc").join(pid.to_string());
        fs::write(of.join("uid_map"), uids)?;
        fs::write(of.join("gid_map"), gids)?;
        File::open(of.join("ns/user"))
    })();
    drop(go);
    let waited = waitpid(Pid::from_raw(pid), None);
    let fd = made?;
    waited?;
    Ok(fd.into())
}
