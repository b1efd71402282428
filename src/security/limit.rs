//! Resource limits of single processes; those of the whole container are the cgroup's.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::SecurityError;

/// Name, resource, soft and hard limit.
const LIMITS: [(&str, Resource, u64, u64); 2] = [
    // Enough for a busy server; some programs walk through all possible descriptors, so not "unlimited".
    ("NOFILE", Resource::RLIMIT_NOFILE, 65_536, 1_048_576),
    // A core file would be written into the container's own layer, and moved with it.
    ("CORE", Resource::RLIMIT_CORE, 0, 0),
];

/// Sets the limits. Where raising the hard one is not allowed here, the one that was inherited stays.
pub fn set_limits() -> Result<(), SecurityError> {
    for (limit, resource, soft, hard) in LIMITS {
        let failed = |errno: Errno| SecurityError::Limit {
            limit,
            source: errno.into(),
        };
        match setrlimit(resource, soft, hard) {
            Err(Errno::EPERM) => {
                let (_, most) = getrlimit(resource).map_err(failed)?;
                setrlimit(resource, soft.min(most), most).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
    }
    Ok(())
}
