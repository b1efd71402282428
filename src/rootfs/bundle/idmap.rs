//! User namespaces that exist for their maps alone, for id-mapped mounts.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::RootfsError;
use super::plan::{IdMap, Kind, Plan};
use crate::sys::userns;

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
                    IdMap::Ranges { uids, gids } => userns::make(0, uids, gids, 0, |process| {
                        Ok(File::open(process.join("ns/user"))?.into())
                    }),
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
