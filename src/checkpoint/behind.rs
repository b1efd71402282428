//! The memory of a container that was dumped and handed over, and that another host still reads.

use super::CheckpointError;
use super::precopy::targets;
use crate::cgroup::Cgroup;
use crate::memory::Frozen;

/// Opens the memory of a container that stands still, whoever has frozen it. It must never be thawed while what this
/// returns is read.
///
/// # Errors
/// When it does not stand still, or has no processes any more.
pub fn frozen_memory(cgroup: &Cgroup) -> Result<Frozen, CheckpointError> {
    let failed = |source| CheckpointError::Cgroup {
        operation: "look at",
        source,
    };
    if !cgroup.is_frozen().map_err(failed)? {
        return Err(CheckpointError::Thawed);
    }
    let frozen = Frozen::open(&targets(cgroup)?).map_err(|source| CheckpointError::Memory {
        operation: "read",
        source,
    })?;
    if frozen.tasks() == 0 {
        return Err(CheckpointError::Thawed);
    }
    Ok(frozen)
}
