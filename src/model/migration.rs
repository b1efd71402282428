//! What is said about a migration: findings, progress, report, outcome.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bytes, MigrationId, Name, Pages, Rate, RestoreChoice, Span};

/// The host a container leaves or the host it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The host the container leaves.
    Source,
    /// The host the container comes to.
    Destination,
}

/// The phases of a migration, in order. Each guarantees what the next one needs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Both speak one protocol version and know the migration's id.
    Negotiate,
    /// Both agree that the container can move, and the destination has set its place aside.
    Preflight,
    /// The files as they were while the container ran are at the destination.
    Storage,
    /// The memory as it was while the container ran is at the destination.
    Memory,
    /// The container is frozen and the network gate is closed: the blackout begins.
    Freeze,
    /// Everything CRIU tells of the container, and its last pages, are on their way.
    Dump,
    /// The files that changed since the storage phase are at the destination.
    Residual,
    /// The destination holds the whole container, restored and not running.
    Restore,
    /// The source has journalled that it will never resume; the destination runs: the blackout ends.
    Handover,
    /// Post-copy alone: it runs, and fetches what of its memory is still on the source.
    Fill,
    /// Both hosts have freed what they no longer need.
    Settle,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 11] = [
        Self::Negotiate,
        Self::Preflight,
        Self::Storage,
        Self::Memory,
        Self::Freeze,
        Self::Dump,
        Self::Residual,
        Self::Restore,
        Self::Handover,
        Self::Fill,
        Self::Settle,
    ];

    /// Its name in reports, logs and failpoints.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Negotiate => "negotiate",
            Self::Preflight => "preflight",
            Self::Storage => "storage",
            Self::Memory => "memory",
            Self::Freeze => "freeze",
            Self::Dump => "dump",
            Self::Residual => "residual",
            Self::Restore => "restore",
            Self::Handover => "handover",
            Self::Fill => "fill",
            Self::Settle => "settle",
        }
    }
}

/// One reason why a container cannot move, or a remark on what it will cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Stable, for programs: `name-in-use`, `no-room`, `cpu-incompatible`, `criu-incompatible`, …
    pub code: String,
    /// For people: what is wrong, and what to do about it.
    pub text: String,
    /// Whether it prevents the migration.
    pub blocking: bool,
}

impl Finding {
    /// A finding that prevents the migration.
    pub fn blocking(code: &str, text: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            text: text.into(),
            blocking: true,
        }
    }
}

/// One pass of pre-copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Round {
    /// Its number, from 0.
    pub number: u32,
    /// How long it took.
    pub duration: Duration,
    /// Pages looked at.
    pub scanned: Pages,
    /// Pages sent, because they were new or had changed.
    pub sent: Pages,
    /// Bytes that went over the wire for them.
    pub wire: Bytes,
    /// Pages that were dirty again at its end: counted by the tracker, or estimated where it cannot count.
    #[serde(default)]
    pub dirty: Option<Pages>,
    /// Pages that became dirty per second while it ran.
    #[serde(default)]
    pub dirty_rate: Option<Pages>,
    /// The blackout to expect of a freeze at its end.
    #[serde(default)]
    pub predicted_blackout: Option<Duration>,
}

/// Where a migration stands; sent after every phase, round, and a few times a second in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The phase it is in.
    pub phase: Phase,
    /// The current round, in the phase [`Phase::Memory`].
    pub round: Option<u32>,
    /// Bytes over the wire so far.
    pub wire: Bytes,
    /// Bytes over the wire per second, lately.
    pub rate: Option<Rate>,
    /// What the policy expects of the blackout, once there is something to expect it from.
    pub predicted_blackout: Option<Duration>,
    /// The share of its processor time that the container is slowed down to, in percent, where it is.
    #[serde(default)]
    pub throttled: Option<u32>,
    /// Time to the end, as far as it can be told.
    pub eta: Option<Duration>,
}

/// How long a phase took on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseSpan {
    /// The phase.
    pub phase: Phase,
    /// Its begin, from the begin of the migration.
    pub begin: Duration,
    /// Its length.
    pub length: Duration,
    /// Bytes over the wire in it.
    pub wire: Bytes,
}

/// What a migration was like, told when it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationReport {
    /// The migration.
    pub id: MigrationId,
    /// What moved.
    pub container: Name,
    /// From where.
    pub source: Name,
    /// To where.
    pub destination: Name,
    /// When it began, seconds since the epoch.
    pub started_at: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// From begin to end.
    pub total: Duration,
    /// From the freeze on the source until the container ran, and was reachable, at the destination: both ends
    /// are measured by the clock of the host they are on, and the way of the handover (half a round trip) is not
    /// in it. Absent when it was never frozen or never ran there.
    pub blackout: Option<Duration>,
    /// The phases, in order.
    pub phases: Vec<PhaseSpan>,
    /// The pre-copy rounds, in order.
    pub rounds: Vec<Round>,
    /// Pages the container had when it was dumped.
    pub pages: Pages,
    /// Bytes over the wire.
    pub wire: Bytes,
    /// Why the policy did what it did, a line per decision.
    pub decisions: Vec<String>,
    /// How changed pages were found; empty where no memory was copied while it ran.
    #[serde(default)]
    pub tracker: String,
    /// How memory came back at the destination: `auto` where it did not come to that.
    #[serde(default)]
    pub restore: RestoreChoice,
    /// What was done in the blackout, on both sides, by its begin.
    #[serde(default)]
    pub spans: Vec<Span>,
    /// What was left behind when it was frozen, and how it came; none where everything was sent before it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_copy: Option<Box<PostCopy>>,
}

impl MigrationReport {
    /// It ran at the destination, whatever had been known before; `told` is what the destination has said of what it
    /// fetched, where it has.
    pub(crate) fn ended(&mut self, told: Option<&PostCopy>, lost: Option<&str>) {
        self.outcome = match lost {
            Some(why) => Outcome::Lost {
                why: why.to_owned(),
            },
            None => Outcome::Moved,
        };
        let told = told.filter(|told| told.on_demand + told.pushed > Pages(0));
        if let (Some(before), Some(told)) = (&mut self.post_copy, told) {
            **before = PostCopy {
                behind: before.behind,
                ..*told
            };
        }
    }
}

/// The memory that came behind a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PostCopy {
    /// Pages that were left on the source.
    pub behind: Pages,
    /// Those that were fetched because the container waited for them, or for one just before them.
    pub on_demand: Pages,
    /// Those that were sent in the background.
    pub pushed: Pages,
    /// From the handover until the destination needed nothing more; absent where that was not told.
    pub complete: Option<Duration>,
}

/// How a migration ended. It is a value, not a `Result`: after the handover there is no error that could
/// resume the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum Outcome {
    /// It runs at the destination, and there only.
    Moved,
    /// It runs on the source as if nothing had been asked.
    StayedHere {
        /// Why, and what to do about it.
        why: String,
        /// The reasons, where it was refused.
        findings: Vec<Finding>,
    },
    /// The handover was sent and the answer is not known. It runs on neither host until the two have
    /// spoken, or until a person who has fenced one of them resolves it.
    InDoubt {
        /// What was last known.
        why: String,
    },
    /// It ran at the destination, and was killed there because what was left of its memory on the source could not be
    /// fetched any more. It runs nowhere.
    Lost {
        /// Why not.
        why: String,
    },
}
