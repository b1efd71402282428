//! What a container uses, as its cgroup counts it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bytes, ContainerState, Name};

/// A value, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Reading<T> {
    /// It was not to be read.
    Missing {
        /// Why not.
        missing: String,
    },
    /// The value.
    Value(T),
}

impl<T> Reading<T> {
    /// The value, where there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Missing { .. } => None,
        }
    }
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Whose.
    pub name: Name,
    /// Where it is in its life; one that does not run uses nothing.
    pub state: ContainerState,
    /// When it was read, in microseconds of the host's monotonic clock.
    pub at_us: u64,
    /// Processor time, since the container came to this host.
    pub cpu: Reading<CpuUsage>,
    /// Memory, now.
    pub memory: Reading<MemoryUsage>,
    /// Processes and threads, now.
    pub pids: Reading<PidsUsage>,
    /// Block devices, since the container came to this host.
    pub io: Reading<IoUsage>,
    /// How long its tasks have waited for what they lacked, since the container came to this host.
    pub pressure: Pressures,
}

/// Processor time, in microseconds (`cpu.stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CpuUsage {
    /// In all.
    pub total_us: u64,
    /// Of it outside the kernel.
    pub user_us: u64,
    /// Of it in the kernel.
    pub system_us: u64,
    /// How long it was kept waiting by its limit.
    pub throttled_us: u64,
}

/// Memory (`memory.current`, `memory.max`, ...).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MemoryUsage {
    /// Now.
    pub current: Bytes,
    /// The limit; none where there is none of its own.
    pub limit: Option<Bytes>,
    /// The most there ever was, where the kernel (5.19 or newer) tells.
    pub peak: Option<Bytes>,
    /// In swap.
    pub swap: Option<Bytes>,
    /// How many of its processes were killed because it had too much.
    pub oom_kills: u64,
}

/// Processes and threads (`pids.current`, `pids.max`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PidsUsage {
    /// Now.
    pub current: u64,
    /// The limit; none where there is none of its own.
    pub limit: Option<u64>,
}

/// What went from and to block devices, all together (`io.stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct IoUsage {
    /// Bytes that were read.
    pub read: Bytes,
    /// Bytes that were written.
    pub written: Bytes,
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
}

/// Pressure by what was lacking (`cpu.pressure`, ...; Linux, Documentation/accounting/psi.rst).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pressures {
    /// Processor time.
    pub cpu: Reading<Pressure>,
    /// Memory.
    pub memory: Reading<Pressure>,
    /// Block devices.
    pub io: Reading<Pressure>,
}

/// How long tasks have waited for one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Pressure {
    /// At least one of them.
    pub some: Stall,
    /// All of them at once.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Stall {
    /// The share of the last ten seconds, in hundredths of a percent.
    pub avg10_bp: u32,
    /// In all, in microseconds.
    pub total_us: u64,
}
