//! Capabilities, seccomp profile, rlimits: what is taken away, and when.
//!
//! **Invariant:** everything here only takes away. The order matters and is the caller's: limits, the bounding
//! set, the user, the remaining sets, no new privileges, the filters, exec.

mod capability;
mod filter;
mod limit;
pub mod profile;
pub mod seccomp;
mod sets;

pub use capability::{KEPT, bound_capabilities, settle_capabilities};
pub use filter::{Filters, compile};
pub use limit::set_limits;
pub use sets::Sets;

use std::error::Error;
use std::path::PathBuf;

/// What could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// A capability set.
    #[error("cannot reduce the {set} capabilities")]
    Capability {
        /// Which set.
        set: &'static str,
        /// What the kernel said.
        #[source]
        source: caps::errors::CapsError,
    },
    /// The seccomp filters.
    #[error("cannot {operation} the seccomp filters: the kernel needs CONFIG_SECCOMP_FILTER")]
    Filter {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A seccomp profile of a bundle.
    #[error("the seccomp profile cannot be kept, in {field}: {reason}")]
    Profile {
        /// The field.
        field: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// Who answers a filter's notifications.
    #[error(
        "cannot hand the seccomp listener over at {path}: is the program that answers running?"
    )]
    Listener {
        /// Its socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A resource limit.
    #[error("cannot set the limit {limit}")]
    Limit {
        /// Which.
        limit: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}
