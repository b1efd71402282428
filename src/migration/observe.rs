//! What a migration tells while it goes on, and the record that becomes its report.

use std::time::{Duration, Instant};

use crate::model::{Bytes, Phase, PhaseSpan, Progress, Round};

/// Listens to a migration. Called from several threads; must not block.
pub trait Observer: Send + Sync + 'static {
    /// Where it stands now.
    fn progress(&self, progress: Progress);
}

impl<F: Fn(Progress) + Send + Sync + 'static> Observer for F {
    fn progress(&self, progress: Progress) {
        self(progress);
    }
}

/// Begin and end of each phase, the rounds, the decisions.
#[derive(Debug)]
pub struct Timeline {
    begin: Instant,
    current: Option<(Phase, Instant, Bytes)>,
    /// The phases so far.
    pub phases: Vec<PhaseSpan>,
    /// The rounds so far.
    pub rounds: Vec<Round>,
    /// What the policy decided, and why.
    pub decisions: Vec<String>,
    /// When the container was frozen.
    pub frozen_at: Option<Instant>,
    /// When it was known to run at the destination.
    pub running_at: Option<Instant>,
}

impl Timeline {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            begin: Instant::now(),
            current: None,
            phases: Vec::new(),
            rounds: Vec::new(),
            decisions: Vec::new(),
            frozen_at: None,
            running_at: None,
        }
    }

    /// Ends the current phase and begins another.
    pub fn enter(&mut self, phase: Phase, wire: Bytes) {
        self.leave(wire);
        self.current = Some((phase, Instant::now(), wire));
    }

    /// Ends the current phase.
    pub fn leave(&mut self, wire: Bytes) {
        if let Some((phase, since, before)) = self.current.take() {
            self.phases.push(PhaseSpan {
                phase,
                begin: since - self.begin,
                length: since.elapsed(),
                wire: Bytes(wire.0.saturating_sub(before.0)),
            });
        }
    }

    /// The phase it is in; the first one before it has begun.
    pub fn phase(&self) -> Phase {
        self.current.map_or(Phase::Negotiate, |(phase, ..)| phase)
    }

    /// Since the begin of the migration.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// From the freeze to the news that it runs.
    pub fn blackout(&self) -> Option<Duration> {
        Some(self.running_at?.duration_since(self.frozen_at?))
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}
