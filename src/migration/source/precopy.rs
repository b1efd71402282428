//! Rounds of memory while the container runs, for as long as the policy wishes.

use std::time::{Duration, Instant};

use super::super::conclude::blocking;
use super::super::error::{Cause, MigrationError};
use super::super::forecast::{self, forecast};
use super::super::message::Message;
use super::super::movable::Movable;
use super::super::policy::{self, Decision, View};
use super::run::Run;
use crate::model::{Bytes, Phase, Round, Side};

/// A container that runs, perhaps slowed down. **Dropping it gives it back all its processor time.**
pub(super) struct Running<C: Movable> {
    container: Option<C>,
    throttle: policy::Throttle,
}

impl<C: Movable> Running<C> {
    fn new(container: C) -> Self {
        Self {
            container: Some(container),
            throttle: policy::Throttle::Off,
        }
    }

    fn container(&mut self) -> Result<&mut C, Cause> {
        self.container
            .as_mut()
            .ok_or_else(|| "the step before has not handed the container back".into())
    }

    fn throttle(&mut self, share: u32) -> Result<(), Cause> {
        // Before it is tried: a failure may come after the kernel has heard.
        self.throttle = policy::Throttle::At(share);
        if !self.container()?.throttle(Some(share))? {
            self.throttle = policy::Throttle::Impossible;
        }
        Ok(())
    }

    fn lift(&mut self) -> Result<(), Cause> {
        if let (policy::Throttle::At(_), Some(container)) = (self.throttle, &mut self.container) {
            container.throttle(None)?;
            self.throttle = policy::Throttle::Off;
        }
        Ok(())
    }

    /// Freezes it. It is given back its time first: what CRIU injects into its tasks must not wait for that. What it
    /// dirties in between is little, as nothing comes between.
    pub(super) fn freeze(mut self) -> Result<C::Held, Cause> {
        self.lift()?;
        let container = self.container.take();
        container.ok_or("the container was frozen before")?.freeze()
    }
}

impl<C: Movable> Drop for Running<C> {
    fn drop(&mut self) {
        if let Err(error) = self.lift() {
            tracing::error!(%error, "a container is still slowed down: it was not given back its processor time");
        }
    }
}

impl Run {
    /// The memory, as it was at some moment of this phase each page, is at the destination, and the policy
    /// says that freezing now is best. The container was never frozen; it may be slowed down.
    pub(super) async fn memory<C: Movable>(
        &mut self,
        container: C,
    ) -> Result<Running<C>, MigrationError> {
        let fixed = self.learn(container.fixed_blackout()).await?;
        let mut running = Running::new(container);
        loop {
            let decision = policy::decide(&View {
                rounds: &self.timeline.rounds,
                options: &self.services.options,
                can_precopy: running.container().is_ok_and(|c| c.can_precopy()),
                fixed,
                elapsed: self.timeline.elapsed(),
                throttle: running.throttle,
            });
            self.timeline.decisions.push(decision.to_string());
            match decision {
                Decision::Another(_) => {}
                Decision::Throttle(share, _) => {
                    running = self.throttle(running, share).await?;
                    if running.throttle == policy::Throttle::Impossible {
                        continue;
                    }
                }
                Decision::Freeze(_) => return Ok(running),
                Decision::PostCopy(_) => {
                    self.leaves_behind = true;
                    return Ok(running);
                }
                Decision::GiveUp(why) => return Err(MigrationError::GivenUp { why }),
            }
            running = self.round(running, fixed).await?;
        }
    }

    /// The blackout of a container without dirty pages, by what earlier migrations to the same host have shown.
    async fn learn(&mut self, default: Duration) -> Result<Duration, MigrationError> {
        let journal = self.services.journal.clone();
        let entries = blocking(Phase::Memory, move || {
            // Without it the default has to do.
            Ok(journal.all().unwrap_or_default())
        })
        .await?;
        let earlier = entries
            .iter()
            .filter(|entry| entry.side == Side::Source && entry.peer == self.entry.peer)
            .filter_map(|entry| entry.report.as_ref());
        let (fixed, count) = forecast::learn(earlier, self.restore, self.memory, default);
        self.timeline.decisions.push(match count {
            0 => format!(
                "assume a fixed cost of {} ms: nothing has moved to {} like this yet",
                fixed.as_millis(),
                self.entry.peer
            ),
            count => format!(
                "expect a fixed cost of {} ms, by the last {count} that moved to {} like this",
                fixed.as_millis(),
                self.entry.peer
            ),
        });
        Ok(fixed)
    }

    async fn throttle<C: Movable>(
        &mut self,
        mut running: Running<C>,
        share: u32,
    ) -> Result<Running<C>, MigrationError> {
        let running = blocking(Phase::Memory, move || {
            running.throttle(share)?;
            Ok(running)
        })
        .await?;
        if let policy::Throttle::At(share) = running.throttle {
            self.throttled = Some(share);
        }
        Ok(running)
    }

    /// One round, to the moment the destination has stored it: only that tells the true rate.
    async fn round<C: Movable>(
        &mut self,
        mut running: Running<C>,
        fixed: Duration,
    ) -> Result<Running<C>, MigrationError> {
        let number = u32::try_from(self.timeline.rounds.len()).unwrap_or(u32::MAX);
        let (begin, before) = (Instant::now(), self.outbox.written());
        let (running, stats, tracker) = self
            .step(move |outbox| {
                let container = running.container()?;
                let stats = container.round(number, outbox)?;
                let tracker = container.tracker();
                let frames = outbox.pages();
                outbox.say_blocking(&Message::RoundEnd { number, frames })?;
                Ok((running, stats, tracker))
            })
            .await?;
        self.timeline.tracker = tracker.to_string();
        match self.hear(None).await? {
            Message::RoundAck { number: acked } if acked == number => {}
            other => return Err(MigrationError::unexpected(&other, Phase::Memory)),
        }
        let duration = begin.elapsed();
        let (running, dirty) = blocking(Phase::Memory, move || {
            let mut running = running;
            let dirty = running.container()?.dirty_now();
            Ok((running, dirty))
        })
        .await?;
        self.timeline.rounds.push(Round {
            number,
            duration,
            scanned: stats.scanned,
            sent: stats.sent,
            wire: Bytes(self.outbox.written().0 - before.0),
            dirty,
            dirty_rate: None,
            predicted_blackout: None,
        });
        self.foretell(fixed);
        Ok(running)
    }

    /// Notes what is to be expected at the end of the last round.
    fn foretell(&mut self, fixed: Duration) {
        let now = forecast(&self.timeline.rounds, fixed);
        self.predicted = now.map(|now| now.blackout());
        if let (Some(now), Some(last)) = (now, self.timeline.rounds.last_mut()) {
            last.dirty_rate = now.dirty_rate;
            last.predicted_blackout = self.predicted;
        }
    }
}
