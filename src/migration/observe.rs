//! What a migration tells while it goes on, and the record that becomes its report.

use std::time::{Duration, Instant};

use super::message::ToldStep;
use crate::model::{
    Bytes, Phase, PhaseSpan, Progress, RestoreChoice, Round, Side, Span, Spans, Step,
};

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
    /// How changed pages were found; empty before the first round.
    pub tracker: String,
    /// How memory came back at the destination.
    pub restore: RestoreChoice,
    spans: Vec<Span>,
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
            tracker: String::new(),
            restore: RestoreChoice::Auto,
            spans: Vec::new(),
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

    /// Steps of the blackout on this host.
    pub fn noted(&mut self, steps: Vec<Step>) {
        let Some(frozen) = self.frozen_at else { return };
        let spans = steps.into_iter().take(Spans::MOST).map(|step| Span {
            side: Side::Source,
            name: Spans::plain(&step.name),
            begin: step.begin.saturating_duration_since(frozen),
            length: step.length,
        });
        self.spans.extend(spans);
    }

    /// Steps of the blackout on the destination, told from the arrival of what was said to it at `said`.
    pub fn heard(&mut self, steps: Vec<ToldStep>, said: Instant) {
        let Some(frozen) = self.frozen_at else { return };
        let since = said.saturating_duration_since(frozen);
        self.spans.extend(ToldStep::hear(steps, since));
    }

    /// The steps of the blackout on both sides, by their begin; of two that begin at once the longer first.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = self.spans.clone();
        spans.sort_by_key(|span| (span.begin, std::cmp::Reverse(span.length)));
        spans
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
