//! What CRIU is told of a container's mappings: it would have the kernel count all their pages for it.

use crate::criu::{Described, MappingFlags, SmapsTable};
use crate::memory::Target;

/// What is known of the flags of a container's mappings. Nothing depends on it but time: of a task that is not told
/// of, CRIU reads smaps.
#[derive(Debug)]
pub(super) struct Mappings {
    flags: MappingFlags,
}

impl Mappings {
    /// Nothing but what every process may have.
    pub fn new(flags: MappingFlags) -> Self {
        Self { flags }
    }

    /// Learns what flags these tasks have, which run, a tracker's among them; only of flags that are new is read what
    /// grows with their memory.
    pub fn learn(&mut self, targets: &[Target]) {
        for target in targets {
            if let Err(error) = self.flags.learn(target.pid) {
                tracing::debug!(pid = target.pid, %error, "flags of mappings are not known");
            }
        }
    }

    /// Tells about these tasks, which stand still.
    pub fn tell(&self, targets: &[Target], table: &SmapsTable) {
        let describe = |target: &Target| -> Option<Described> {
            match self.flags.describe(target.pid) {
                Ok(Some(described)) => Some(described),
                Ok(None) => {
                    tracing::debug!(pid = target.pid, "CRIU reads smaps: new kinds of mappings");
                    None
                }
                Err(error) => {
                    tracing::debug!(pid = target.pid, %error, "CRIU reads smaps");
                    None
                }
            }
        };
        let tasks: Vec<Described> = targets.iter().filter_map(describe).collect();
        if let Err(error) = table.set(&tasks, self.flags.everybody()) {
            tracing::debug!(%error, "CRIU reads smaps");
        }
    }
}
