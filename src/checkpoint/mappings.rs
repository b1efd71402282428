//! What CRIU is told of a container's mappings: it would have the kernel count all their pages for it.

use std::collections::HashSet;

use crate::criu::{Described, MappingFlags, SmapsTable};
use crate::memory::Target;

/// What is known of the flags of a container's mappings. Nothing depends on it but time: of a task that is not told
/// of, CRIU reads smaps.
#[derive(Debug)]
pub(super) struct Mappings {
    flags: MappingFlags,
    learnt: HashSet<i32>,
}

impl Mappings {
    /// Nothing but what every process may have.
    pub fn new(flags: MappingFlags) -> Self {
        let learnt = HashSet::new();
        Self { flags, learnt }
    }

    /// Learns what flags these tasks have, which run, and only then reads what grows with their memory. What a
    /// tracker adds to the flags, and takes away again, need not be known: then a task is looked at `once`, before.
    pub fn learn(&mut self, targets: &[Target], once: bool) {
        for target in targets {
            if !self.learnt.insert(target.pid) && once {
                continue;
            }
            if let Err(error) = self.flags.learn(target.pid) {
                tracing::debug!(pid = target.pid, %error, "flags of mappings are not known");
            }
        }
    }

    /// Tells about these tasks, which stand still, and of which every trace has been taken.
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
