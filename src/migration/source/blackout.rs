//! From the frozen container to the news that it runs elsewhere. The line that matters is in
//! [`Run::hand_over`].

use std::time::{Duration, Instant};

use super::super::conclude::{Keeps, blocking};
use super::super::error::{Cause, MigrationError};
use super::super::journal::{Entry, JournalState};
use super::super::message::{Fate, Fetched, Message, ToldStep};
use super::super::movable::{HandedOver, Held, Movable};
use super::Ended;
use super::run::Run;
use crate::model::{Outcome, Pages, Phase, PostCopy};

/// A destination that is alive says so twice a second while it restores; one that is silent for this long
/// is taken for dead, and the container goes on here.
const SILENCE: Duration = Duration::from_secs(3);

/// A restore may take this long, however little time the caller gives the whole.
const LEAST: Duration = Duration::from_secs(5);

/// How long the source waits for the news that the container runs, and hears nothing, before it reports doubt. It goes
/// on asking afterwards.
const NEWS: Duration = Duration::from_secs(15);

/// How long it waits for a destination that says that it is alive, and no more: a disk may be slow to take what the
/// container had on the other one.
const NEWS_AT_MOST: Duration = Duration::from_secs(120);

/// The longest that the frozen container waits for the destination to keep its frames: a few round trips on a
/// segment. Without that some are lost, which costs their senders a retransmission.
const HOLDING: Duration = Duration::from_millis(30);

/// What the destination says after the handover.
enum News {
    /// It runs there, since so long after the handover arrived.
    Runs {
        after: Duration,
        steps: Vec<ToldStep>,
        /// What it still fetches.
        behind: Pages,
    },
    /// It never ran there and never will.
    Discarded,
}

type Handed<C> = <<C as Movable>::Held as Held>::HandedOver;

impl Run {
    /// On success the journal says `HandedOver`. On failure the container runs here again.
    pub(super) async fn blackout<C: Movable>(
        &mut self,
        held: C::Held,
    ) -> Result<Handed<C>, MigrationError> {
        let mut held = Some(held);
        let copied = self.copy_phases(&mut held).await;
        // A step that could not be run at all, because the daemon is ending, has dropped the container, and so
        // resumed it.
        let (held, error) = match (held, copied) {
            (Some(held), Ok(())) => match self.hand_over(held) {
                Ok(handed) => return Ok(handed),
                Err(refused) => refused,
            },
            (Some(held), Err(error)) => (held, error),
            (None, copied) => return Err(copied.err().unwrap_or_else(lost)),
        };
        self.shelf = None;
        resume(held, &error).await?;
        Err(error)
    }

    /// On success the destination holds the restored container. The held one stays in its slot, but for a step
    /// that could not be run.
    async fn copy_phases<H: Held>(&mut self, held: &mut Option<H>) -> Result<(), MigrationError> {
        let leaves_behind = self.leaves_behind;
        if let (Some(held), true) = (held.as_mut(), leaves_behind) {
            held.leave_behind();
        }
        self.frozen_said = Instant::now();
        self.say(&Message::Frozen).await?;
        self.enter(Phase::Dump).await?;
        // Meanwhile the destination gets ready to keep its frames.
        self.held_step(held, |held, _| held.look()).await?;
        self.holding().await?;
        self.held_step(held, |held, outbox| {
            held.close_gate(outbox)?;
            Ok(outbox.say_blocking(&Message::GateClosed)?)
        })
        .await?;
        if let (Some(remainder), true) = (held.as_ref().and_then(Held::remainder), leaves_behind) {
            // From the end of the dump on: its restore may already want some of it.
            let (id, peer) = (self.entry.id, &self.entry.peer);
            self.shelf = Some(self.services.shelf.offer(id, peer, remainder));
        }
        let summary = self
            .held_step(held, |held, outbox| {
                let summary = held.dump(outbox)?;
                outbox.say_blocking(&Message::DumpEnd {
                    frames: outbox.end_pages(),
                    summary: summary.clone(),
                })?;
                Ok(summary)
            })
            .await?;
        self.pages = summary.pages;
        self.post_copy = leaves_behind.then_some(PostCopy {
            behind: summary.behind,
            on_demand: Pages(0),
            pushed: Pages(0),
            complete: None,
        });
        self.enter(Phase::Residual).await?;
        self.held_step(held, |held, outbox| {
            held.send_changes(outbox)?;
            outbox.say_blocking(&Message::ResidualEnd)?;
            Ok(())
        })
        .await?;
        self.enter(Phase::Restore).await?;
        self.ready().await?;
        self.enter(Phase::Handover).await
    }

    /// Waits until the destination keeps the container's frames, for a moment.
    async fn holding(&mut self) -> Result<(), MigrationError> {
        match tokio::time::timeout(HOLDING, self.hear(None)).await {
            Ok(Ok(Message::Holding)) => Ok(()),
            Ok(Ok(other)) => Err(MigrationError::unexpected(&other, Phase::Dump)),
            Ok(Err(error)) => Err(error),
            // It comes later, and means nothing then.
            Err(_) => Ok(()),
        }
    }

    async fn held_step<H: Held, R: Send + 'static>(
        &mut self,
        slot: &mut Option<H>,
        work: impl FnOnce(&mut H, &super::super::Outbox) -> Result<R, Cause> + Send + 'static,
    ) -> Result<R, MigrationError> {
        let mut held = slot.take().ok_or_else(lost)?;
        let phase = self.timeline.phase();
        let (held, result, steps) = self
            .step(move |outbox| {
                let result = work(&mut held, outbox);
                let steps = held.steps();
                Ok((held, result, steps))
            })
            .await?;
        self.timeline.noted(steps);
        *slot = Some(held);
        result.map_err(|cause| MigrationError::of_step(phase, cause))
    }

    /// Waits until the destination holds the restored container, but not for longer than the whole may take.
    async fn ready(&mut self) -> Result<(), MigrationError> {
        let patience = Duration::from_millis(self.services.options.timeout_ms).max(LEAST);
        let until = Instant::now() + patience;
        while Instant::now() < until {
            match self.hear(Some(SILENCE)).await? {
                Message::Alive | Message::Holding => {}
                Message::Ready { restore, steps } => {
                    self.timeline.restore = restore;
                    self.timeline.heard(steps, self.frozen_said);
                    return Ok(());
                }
                other => return Err(MigrationError::unexpected(&other, Phase::Restore)),
            }
        }
        let why = format!(
            "not restored within {:.0} s; raise --timeout",
            patience.as_secs_f64()
        );
        Err(MigrationError::GivenUp { why })
    }

    /// **The handover.** When this returns `Ok`, the journal says so durably and the type of what it returns
    /// has no way back. When it returns `Err`, the journal durably says the opposite.
    ///
    /// A write that failed may have reached the disk; only a later write that succeeds makes the opposite
    /// certain. Where that fails too, nothing is certain: the copy stays frozen, as after a handover, and
    /// the destination, which was told nothing, waits and asks.
    fn hand_over<H: Held>(&mut self, held: H) -> Result<H::HandedOver, (H, MigrationError)> {
        let error = match self.journal(JournalState::HandedOver) {
            Ok(()) => return Ok(held.hand_over()),
            Err(error) => error,
        };
        match self.journal(JournalState::StayedHere) {
            Ok(()) => Err((held, error)),
            Err(_) => {
                tracing::error!(migration = %self.entry.id, error = %error.chain(), "the handover is in doubt on this host itself");
                Ok(held.hand_over())
            }
        }
    }

    /// Tells the destination to run and waits for the news. There is no error here that resumes the source.
    pub(super) async fn after_handover<H: HandedOver>(mut self, handed: H) -> Ended<H> {
        let world = self.world();
        let mut shelf = self.shelf.take();
        let handed = if self.entry.state == JournalState::HandedOver {
            let handed_over_at = Instant::now();
            // Lost words are asked for again by both sides.
            let _ = self
                .say(&Message::HandOver {
                    generation: self.entry.generation,
                })
                .await;
            match tokio::time::timeout(NEWS_AT_MOST, self.news(handed_over_at)).await {
                Ok(Some(News::Runs {
                    after,
                    steps,
                    behind,
                })) => {
                    self.timeline.running_at = Some(handed_over_at + after);
                    self.timeline.heard(steps, handed_over_at);
                    if behind == Pages(0) {
                        return self.moved(handed, None).await;
                    }
                    match self.serve(&mut shelf, world.as_ref()).await {
                        Some(Keeps::Destination { fetched }) => {
                            return self.moved(handed, fetched).await;
                        }
                        Some(Keeps::Source) => return self.taken_back(handed).await,
                        None => return self.not_fetched(handed).await,
                    }
                }
                Ok(Some(News::Discarded)) => return self.taken_back(handed).await,
                _ => handed,
            }
        } else {
            handed
        };
        let why = "the handover was sent and no answer came; the two hosts will settle it when they meet again, \
                   or `godwit migrations resolve` does when one of them is gone for good"
            .to_owned();
        let ended = self.end(
            Outcome::InDoubt { why },
            JournalState::HandedOver,
            Some(handed),
        );
        self.close().await;
        ended
    }

    async fn news(&mut self, since: Instant) -> Option<News> {
        loop {
            let heard = self.link.receive_message(Phase::Handover);
            match tokio::time::timeout(NEWS, heard).await.ok()? {
                Ok(Message::Running {
                    after_micros,
                    steps,
                    behind,
                }) => {
                    // A peer's figure goes into a report and nowhere else; it is no longer than we waited.
                    let after = Duration::from_micros(after_micros).min(since.elapsed());
                    return Some(News::Runs {
                        after,
                        steps,
                        behind,
                    });
                }
                Ok(Message::Fate(Fate::Discarded)) => return Some(News::Discarded),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// It runs at the destination, or was lost there, as it has told: the frozen copy goes.
    async fn moved<H: HandedOver>(mut self, handed: H, fetched: Option<Fetched>) -> Ended<H> {
        self.timeline.enter(Phase::Settle, self.outbox.written());
        self.services
            .hook
            .reached(crate::model::Side::Source, Phase::Settle)
            .await;
        let settled = blocking(Phase::Settle, move || handed.settle()).await;
        let mut ended = self.end(Outcome::Moved, JournalState::Moved, None);
        if let Some(fetched) = fetched {
            let told = fetched.told();
            ended.report.ended(Some(&told), fetched.lost.as_deref());
            if fetched.lost.is_some() {
                ended.entry.state = JournalState::Lost;
            }
            ended.entry.why = fetched.lost;
            ended.entry.report = Some(ended.report.clone());
        }
        match settled {
            // `HandedOver` stays in the journal, so the next start settles again.
            Err(error) => {
                tracing::error!(migration = %ended.entry.id, error = %error.chain(), "the frozen copy was not removed");
            }
            Ok(()) => self.record(&ended.entry),
        }
        self.close().await;
        ended
    }

    /// The destination swears that it never ran it: it goes on here.
    async fn taken_back<H: HandedOver>(mut self, handed: H) -> Ended<H> {
        let why = "the destination could not let the restored container run and has discarded it"
            .to_owned();
        let outcome = Outcome::StayedHere {
            why,
            findings: Vec::new(),
        };
        let ended = self.end(outcome, JournalState::StayedHere, None);
        self.record(&ended.entry);
        if let Err(error) = blocking(Phase::Settle, move || handed.take_back()).await {
            tracing::error!(migration = %ended.entry.id, error = %error.chain(), "the container could not be resumed");
        }
        self.close().await;
        ended
    }

    fn record(&self, entry: &Entry) {
        if let Err(error) = self.services.journal.write(entry) {
            tracing::warn!(migration = %entry.id, %error, "the end of a migration was not journalled");
        }
    }
}

/// The container went with a step that could not be run.
fn lost() -> MigrationError {
    let cause = "the step before has not handed the container back";
    MigrationError::local(Phase::Dump, cause)
}

/// The container runs here again. Only a failure of that itself hides the reason.
async fn resume<H: Held>(held: H, reason: &MigrationError) -> Result<(), MigrationError> {
    let reason = reason.chain();
    blocking(Phase::Freeze, move || held.resume()).await.inspect_err(|error| {
        tracing::error!(error = %error.chain(), %reason, "a frozen container could not be resumed");
    })
}
