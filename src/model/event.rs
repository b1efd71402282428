//! Everything an outsider may learn while it happens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ContainerState, MigrationId, MigrationReport, Name, Progress, Side};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum EventKind {
    /// A container came into a state.
    Container {
        /// Which.
        name: Name,
        /// Which state.
        state: ContainerState,
    },
    /// A container is gone from this host.
    Removed {
        /// Which.
        name: Name,
    },
    /// A migration goes on.
    Migration {
        /// Which.
        id: MigrationId,
        /// Of what.
        container: Name,
        /// Which side this host plays in it.
        side: Side,
        /// Where it stands.
        progress: Progress,
    },
    /// A migration has ended.
    MigrationEnded {
        /// How it was.
        report: Box<MigrationReport>,
    },
    /// A peer was added or removed, or a stranger was refused.
    Peer {
        /// Its name, or the address of a stranger.
        peer: String,
        /// What happened to it.
        what: String,
    },
}
