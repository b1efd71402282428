//! The long-running process of a host.
//!
//! ```text
//!            ┌──────────────── Daemon ────────────────┐
//! api ──────▶│ containers ─▶ requests ─▶ Backend      │──▶ container, rootfs, net (blocking rooms)
//!            │ migrations, peers                      │──▶ migration, peer
//!            │ events ◀── everybody                   │──▶ whoever listens
//!            └────────────────────────────────────────┘
//! ```
//!
//! **Invariant:** one request at a time works on a container ([`locks`]), and whether it may is decided by
//! one pure function ([`requests`]).
//!
//! **Invariant:** containers do not depend on this process. Each has its own shim and outlives the daemon;
//! [`recovery`] finds out what is true after a restart.
//!
//! **Invariant:** blocking work runs on the blocking pool, entered at one place ([`containers`]); nothing
//! here changes the namespace of a thread.

pub mod backend;
pub mod bundles;
pub mod clear;
pub mod config;
pub mod containers;
pub mod context;
mod error;
pub mod events;
pub mod facts;
mod farewell;
mod kept;
pub mod locks;
pub mod log;
pub mod migrations;
pub mod peers;
pub mod ports;
pub mod recovery;
pub mod requests;
pub mod rooms;
pub mod run;
mod service;
mod template;
mod tmpfs;
mod watch;

use tokio_util::sync::CancellationToken;

pub use backend::Backend;
pub use bundles::Bundles;
pub use config::Config;
pub use containers::Containers;
pub use context::Context;
pub use error::{DaemonError, Kind, chain};
pub use events::Events;
pub use migrations::Migrations;

use crate::model::HostFacts;

/// What the API talks to.
pub struct Daemon {
    /// The host, as it was when the daemon started.
    pub facts: HostFacts,
    /// What happens.
    pub events: Events,
    /// The containers of this host, its templates and its addresses.
    pub containers: Containers,
    /// Containers that the OCI command line has made.
    pub bundles: Bundles,
    /// The other hosts; absent in a daemon that knows none.
    pub outside: Option<Outside>,
    /// Set when the daemon is to end: streams end then.
    pub stopping: CancellationToken,
}

/// What has to do with other hosts.
pub struct Outside {
    /// Who they are.
    pub peers: peers::Peers,
    /// What goes between them and this one.
    pub migrations: std::sync::Arc<Migrations>,
}

impl Daemon {
    /// The facts with the memory that is available now.
    pub fn facts(&self) -> Result<HostFacts, DaemonError> {
        Ok(HostFacts {
            memory_available: facts::memory_available()?,
            ..self.facts.clone()
        })
    }

    /// What has to do with other hosts, or why there is none.
    pub fn outside(&self) -> Result<&Outside, DaemonError> {
        self.outside.as_ref().ok_or(DaemonError::Alone)
    }
}
