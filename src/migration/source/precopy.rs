//! Rounds of memory while the container runs, for as long as the policy wishes.

use std::time::Instant;

use super::super::error::MigrationError;
use super::super::message::Message;
use super::super::movable::Movable;
use super::super::policy::{self, Decision, View};
use super::run::Run;
use crate::model::{Bytes, Phase, Round};

impl Run {
    /// The memory, as it was at some moment of this phase each page, is at the destination, and the policy
    /// says that freezing now is best. The container was never frozen.
    pub(super) async fn memory<C: Movable>(
        &mut self,
        mut container: C,
    ) -> Result<C, MigrationError> {
        loop {
            let fixed = container.fixed_blackout();
            self.predicted = policy::predict(&self.timeline.rounds, fixed);
            let view = View {
                rounds: &self.timeline.rounds,
                options: &self.services.options,
                can_precopy: container.can_precopy(),
                fixed,
                elapsed: self.timeline.elapsed(),
            };
            let decision = policy::decide(&view);
            let (Decision::Another(why) | Decision::Freeze(why) | Decision::GiveUp(why)) =
                &decision;
            self.timeline.decisions.push(why.clone());
            match decision {
                Decision::Another(_) => container = self.round(container).await?,
                Decision::Freeze(_) => return Ok(container),
                Decision::GiveUp(why) => return Err(MigrationError::GivenUp { why }),
            }
        }
    }

    /// One round, to the moment the destination has stored it: only that tells the true rate.
    async fn round<C: Movable>(&mut self, mut container: C) -> Result<C, MigrationError> {
        self.timeline.tracker = container.tracker().to_string();
        let number = u32::try_from(self.timeline.rounds.len()).unwrap_or(u32::MAX);
        let (begin, before) = (Instant::now(), self.outbox.written());
        let (container, stats) = self
            .step(move |outbox| {
                let stats = container.round(number, outbox)?;
                outbox.say_blocking(&Message::RoundEnd { number })?;
                Ok((container, stats))
            })
            .await?;
        match self.hear(None).await? {
            Message::RoundAck { number: acked } if acked == number => {}
            other => return Err(MigrationError::unexpected(&other, Phase::Memory)),
        }
        self.timeline.rounds.push(Round {
            number,
            duration: begin.elapsed(),
            scanned: stats.scanned,
            sent: stats.sent,
            wire: Bytes(self.outbox.written().0 - before.0),
            dirty: None,
            dirty_rate: None,
            predicted_blackout: None,
        });
        Ok(container)
    }
}
