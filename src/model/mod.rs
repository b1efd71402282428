//! Plain values of the domain: ids, amounts, specs, host facts, events, reports.
//!
//! **Invariant:** no I/O, no clock, no async, no other room. What is parsed here is trusted everywhere
//! else: a [`Name`] that exists is a valid name.

pub mod amount;
pub mod event;
pub mod host;
pub mod id;
pub mod kernel_flags;
pub mod lease;
pub mod migration;
pub mod options;
pub mod restart;
pub mod span;
pub mod spec;
pub mod time;
pub mod usage;
mod userns;

pub use amount::{Bytes, PAGE_SIZE, Pages, Rate};
pub use event::{Event, EventKind};
pub use host::{Ability, CpuFacts, CriuVersion, HostFacts, TrackerOffer};
pub use id::{Digest, Generation, MigrationId, Name};
pub use lease::{Lease, Mac, Neighbour};
pub use migration::{
    Finding, MigrationReport, Outcome, Phase, PhaseSpan, PostCopy, Progress, Round, Side,
};
pub use options::{
    ChoiceError, Compress, MigrationOptions, OnNoConvergence, OptionError, RestoreChoice,
    TrackerChoice,
};
pub use restart::{Restart, RestartError};
pub use span::{OpenStep, Span, Spans, Step};
pub use spec::{ContainerSpec, ContainerState, ContainerStatus, Limits, OfBundle, User};
pub use usage::{
    CpuUsage, IoUsage, MemoryUsage, PidsUsage, Pressure, Pressures, Reading, Stall, Usage,
};
pub use userns::{NotUserns, Userns};
