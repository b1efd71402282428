//! A container is slowed down for a while: a share of the processor time it was using, by `cpu.max`.
//!
//! The share is of what it *used* and not of what it may use: a container that uses a tenth of one core would not
//! notice 80 % of a host. What it used is measured from [`Throttle::new`] to the first [`Throttle::set`].
//!
//! **Invariant:** what is set here is gone when the value is dropped. What a killed process has left is lifted by
//! [`Cgroup::unthrottle`], which anybody may call at any time.

use std::time::{Duration, Instant};

use super::{Cgroup, CgroupError, plan};
use crate::model::Limits;

/// A measurement over less time says nothing.
const LEAST: Duration = Duration::from_millis(10);

/// Slows a cgroup down.
#[derive(Debug)]
pub struct Throttle {
    cgroup: Cgroup,
    limits: Limits,
    begin: Option<(Instant, u64)>,
    /// What it used before it was slowed down first, in microseconds of processor time per second.
    usage: Option<u64>,
    on: bool,
}

impl Throttle {
    /// For this cgroup, which has these limits. Changes nothing; measures from now on.
    pub fn new(cgroup: Cgroup, limits: Limits) -> Self {
        let used = cgroup.cpu_used();
        Self {
            cgroup,
            limits,
            begin: used.map(|used| (Instant::now(), used)),
            usage: None,
            on: false,
        }
    }

    /// Gives it this share, in percent, of what it was using; none: all that its limits allow. False: there is no
    /// `cpu` controller here, and nothing was changed.
    ///
    /// # Errors
    /// When the kernel does not take it. It may be slowed down then; dropping the value lifts that.
    pub fn set(&mut self, percent: Option<u32>) -> Result<bool, CgroupError> {
        if !self.cgroup.can_throttle() {
            return Ok(false);
        }
        let Some(percent) = percent else {
            self.cgroup.unthrottle(&self.limits)?;
            self.on = false;
            return Ok(true);
        };
        let Some(usage) = self.usage.or_else(|| self.measure()) else {
            return Ok(false);
        };
        self.usage = Some(usage);
        self.on = true;
        let value = plan::throttled(&self.limits, usage, percent);
        self.cgroup.write("slow down", plan::CPU_MAX, &value)?;
        Ok(true)
    }

    /// Microseconds of processor time per second, since the begin.
    fn measure(&self) -> Option<u64> {
        let (since, before) = self.begin?;
        let used = self.cgroup.cpu_used()?.saturating_sub(before);
        let time = since.elapsed().max(LEAST);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some((used as f64 / time.as_secs_f64()) as u64)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if self.on
            && let Err(error) = self.cgroup.unthrottle(&self.limits)
        {
            tracing::error!(cgroup = %self.cgroup.path().display(), "it is still slowed down: {error}");
        }
    }
}

impl Cgroup {
    /// Whether it can be slowed down: the `cpu` controller is there.
    pub fn can_throttle(&self) -> bool {
        self.path().join(plan::CPU_MAX).exists()
    }

    /// Gives it all the processor time that its limits allow. Idempotent; nothing to do where there is no `cpu`
    /// controller, and for a cgroup that is gone.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn unthrottle(&self, limits: &Limits) -> Result<(), CgroupError> {
        if !self.can_throttle() {
            return Ok(());
        }
        self.write("lift the limit", plan::CPU_MAX, &plan::cpu_max(limits))
    }

    /// The processor time it has used, in microseconds; none where the kernel does not tell.
    fn cpu_used(&self) -> Option<u64> {
        plan::cpu_used(&self.read("cpu.stat").ok()?)
    }
}
