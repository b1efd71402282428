//! The phases of a migration on its source, one line each.

use std::io;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::behind::OnShelf;
use super::super::conclude::blocking;
use super::super::error::{Cause, MigrationError};
use super::super::journal::{Entry, JournalState};
use super::super::link::{Link, Outbox};
use super::super::message::{Message, Purpose};
use super::super::movable::{Held, Movable};
use super::super::observe::Timeline;
use super::super::stream::Streams;
use super::negotiate::negotiate;
use super::precopy::Running;
use super::serve::{no_post_copy, unable};
use super::{Ended, Job, Services};
use crate::model::{
    Bytes, Finding, MigrationId, MigrationOptions, MigrationReport, Name, OnNoConvergence, Outcome,
    Pages, Phase, PostCopy, Progress, Rate, RestoreChoice, Side,
};

/// How long a destination may take to remove what it had of a container that stayed.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often it is told how a step goes.
const TICK: Duration = Duration::from_millis(200);
/// Below this a rate says nothing of the time that is left.
const TELLING: Rate = Rate(1 << 20);

/// A migration under way: everything but the container, which each phase is handed and hands on.
pub(super) struct Run {
    pub(super) entry: Entry,
    pub(super) host: Name,
    pub(super) services: Services,
    pub(super) link: Link,
    pub(super) outbox: Outbox,
    pub(super) timeline: Timeline,
    pub(super) pages: Pages,
    pub(super) memory: Bytes,
    pub(super) predicted: Option<Duration>,
    /// The share of its processor time that the container is slowed down to, in percent.
    pub(super) throttled: Option<u32>,
    /// How its memory will come back at the destination.
    pub(super) restore: RestoreChoice,
    /// The streams that pages go by, where they have some.
    pub(super) streams: Option<Streams>,
    /// When the destination was told that the container is frozen.
    pub(super) frozen_said: Instant,
    /// Whether a part of its memory is left behind.
    pub(super) leaves_behind: bool,
    pub(super) post_copy: Option<PostCopy>,
    /// Where that is fetched from.
    pub(super) shelf: Option<OnShelf>,
}

type Handed<C> = <<C as Movable>::Held as Held>::HandedOver;

/// Moves a container to another host.
///
/// Up to the handover any failure, cancellation included, leaves it running here, and the outcome is
/// `StayedHere`. From the handover on it never runs here again unless the destination swears that it did
/// not run there; while that is not known the outcome is `InDoubt`, and the frozen copy is returned.
pub async fn run<C: Movable>(job: Job<C>) -> Ended<Handed<C>> {
    let Job {
        entry,
        host,
        container,
        link,
        services,
    } = job;
    let outbox = link.outbox();
    outbox.set_bandwidth(services.options.bandwidth);
    let (timeline, pages, memory) = (Timeline::new(), Pages(0), Bytes(0));
    let mut run = Run {
        entry,
        host,
        services,
        link,
        outbox,
        timeline,
        pages,
        memory,
        predicted: None,
        throttled: None,
        restore: RestoreChoice::Eager,
        streams: None,
        frozen_said: Instant::now(),
        leaves_behind: false,
        post_copy: None,
        shelf: None,
    };
    match run.until_handover(container).await {
        Ok(handed) => run.after_handover(handed).await,
        Err(error) => run.stayed_here(error).await,
    }
}

/// What would prevent the migration on either host. Changes nothing.
///
/// # Errors
/// When one of the hosts could not be asked.
pub async fn dry_run<C: Movable>(
    id: MigrationId,
    container: C,
    options: MigrationOptions,
    mut link: Link,
) -> Result<Vec<Finding>, MigrationError> {
    let wishes_post_copy = options.on_no_convergence == OnNoConvergence::PostCopy;
    let (mut offer, mut findings) = blocking(Phase::Preflight, move || {
        let mut container = container;
        let (offer, mut findings) = (container.offer()?, container.findings()?);
        findings.extend(unable(wishes_post_copy, &container));
        Ok((offer, findings))
    })
    .await?;
    offer.options = options;
    negotiate(&mut link, id, Purpose::DryRun).await?;
    link.say(&Message::Offer(Box::new(offer)), Phase::Preflight)
        .await?;
    match link
        .receive_message(Phase::Preflight)
        .await
        .map_err(|e| e.in_phase(Phase::Preflight))?
    {
        Message::Refusal { findings: theirs }
        | Message::Reserved {
            findings: theirs, ..
        } => findings.extend(theirs),
        other => return Err(MigrationError::unexpected(&other, Phase::Preflight)),
    }
    link.close().await;
    Ok(findings)
}

impl Run {
    /// On success the container is frozen, restored at the destination, and the journal says `HandedOver`.
    /// On failure it runs here, its network gate open.
    async fn until_handover<C: Movable>(
        &mut self,
        container: C,
    ) -> Result<Handed<C>, MigrationError> {
        self.journal(JournalState::Began)?;
        self.enter(Phase::Negotiate).await?;
        negotiate(&mut self.link, self.entry.id, Purpose::Migrate).await?;
        self.enter(Phase::Preflight).await?;
        let (container, needs_image) = self.preflight(container).await?;
        self.enter(Phase::Storage).await?;
        let container = self.storage(container, needs_image).await?;
        self.enter(Phase::Memory).await?;
        let running = self.memory(container).await?;
        self.enter(Phase::Freeze).await?;
        let held = self.freeze(running).await?;
        self.blackout::<C>(held).await
    }

    /// The destination has seen the container's description and set a place aside.
    async fn preflight<C: Movable>(
        &mut self,
        mut container: C,
    ) -> Result<(C, bool), MigrationError> {
        let wishes_post_copy = self.services.options.on_no_convergence == OnNoConvergence::PostCopy;
        let (container, offer, findings) = blocking(Phase::Preflight, move || {
            let offer = container.offer()?;
            let mut findings = container.findings()?;
            findings.extend(unable(wishes_post_copy, &container));
            Ok((container, offer, findings))
        })
        .await?;
        if findings.iter().any(|f| f.blocking) {
            return Err(MigrationError::Prevented { findings });
        }
        self.memory = offer.memory;
        let mut offer = offer;
        offer.options = self.services.options.clone();
        self.say(&Message::Offer(Box::new(offer))).await?;
        match self.hear(None).await? {
            Message::Reserved {
                needs_image,
                restore,
                streams,
                post_copy,
                ..
            } => {
                if wishes_post_copy && !post_copy {
                    let findings = vec![no_post_copy("the destination does not know it")];
                    return Err(MigrationError::Prevented { findings });
                }
                self.restore = restore;
                self.open_streams(streams).await?;
                Ok((container, needs_image))
            }
            Message::Refusal { findings } => Err(MigrationError::Refused { findings }),
            other => Err(MigrationError::unexpected(&other, Phase::Preflight)),
        }
    }

    /// The files, as they were at some moment of this phase each, are on their way.
    async fn storage<C: Movable>(
        &mut self,
        container: C,
        needs_image: bool,
    ) -> Result<C, MigrationError> {
        self.step(move |outbox| {
            let mut container = container;
            if needs_image {
                container.send_image(outbox)?;
                outbox.say_blocking(&Message::ImageEnd)?;
            }
            container.send_files(outbox)?;
            outbox.say_blocking(&Message::StorageEnd)?;
            Ok(container)
        })
        .await
    }

    /// On success the container is frozen and its network gate closed; on failure it runs as before.
    async fn freeze<C: Movable>(&mut self, running: Running<C>) -> Result<C::Held, MigrationError> {
        self.timeline.frozen_at = Some(Instant::now());
        blocking(Phase::Freeze, move || running.freeze()).await
    }

    /// It runs here. Says so to the destination and to the journal.
    async fn stayed_here<H>(mut self, error: MigrationError) -> Ended<H> {
        let error = self.better_reason(error).await;
        let why = error.chain();
        self.call_off(&why).await;
        let findings = error.findings();
        let mut ended = self.end(
            Outcome::StayedHere { why, findings },
            JournalState::StayedHere,
            None,
        );
        if let Err(error) = self.services.journal.write(&ended.entry) {
            // `Began` has the same meaning to whoever reads it after a restart.
            tracing::warn!(migration = %ended.entry.id, %error, "the end of a migration was not journalled");
        }
        ended.in_doubt = None;
        self.close().await;
        ended
    }

    /// Tells the destination, and waits until it has removed what it had, so that another attempt finds nothing
    /// of this one. A destination that is gone discards by itself when it notices.
    async fn call_off(&mut self, why: &str) {
        let phase = self.timeline.phase();
        let cancel = Message::Cancel {
            why: why.to_owned(),
        };
        let farewell = async {
            self.say(&cancel).await.ok();
            while self.link.receive(phase).await.is_ok() {}
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }

    /// When the connection broke because the destination gave up, it says why as soon as it has removed what it had.
    async fn better_reason(&mut self, error: MigrationError) -> MigrationError {
        if !matches!(error, MigrationError::LinkLost { .. }) {
            return error;
        }
        let phase = self.timeline.phase();
        let words = async {
            loop {
                match self.link.receive_message(phase).await {
                    Ok(Message::Failed { why }) => return Some(why),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        match (tokio::time::timeout(FAREWELL, words).await, error) {
            (Ok(Some(why)), _) => MigrationError::OtherSide { why },
            // This connection is none of those that were lost.
            (
                _,
                MigrationError::LinkLost {
                    phase,
                    source: None,
                },
            ) => MigrationError::LinkLost {
                phase,
                source: self.outbox.why_streams_lost().map(io::Error::other),
            },
            (_, error) => error,
        }
    }

    /// The report and the entry of a migration that ends in this way.
    pub(super) fn end<H>(
        &mut self,
        outcome: Outcome,
        state: JournalState,
        in_doubt: Option<H>,
    ) -> Ended<H> {
        self.timeline.leave(self.outbox.written());
        let report = MigrationReport {
            id: self.entry.id,
            container: self.entry.container.clone(),
            source: self.host.clone(),
            destination: self.entry.peer.clone(),
            started_at: self.entry.started_at,
            outcome,
            total: self.timeline.elapsed(),
            blackout: self.timeline.blackout(),
            phases: self.timeline.phases.clone(),
            rounds: self.timeline.rounds.clone(),
            pages: self.pages,
            wire: self.outbox.written(),
            decisions: self.timeline.decisions.clone(),
            tracker: self.timeline.tracker.clone(),
            restore: self.timeline.restore,
            spans: self.timeline.spans(),
            post_copy: self.post_copy.map(Box::new),
        };
        self.entry.state = state;
        self.entry.report = Some(report.clone());
        Ended {
            report,
            entry: self.entry.clone(),
            in_doubt,
        }
    }

    pub(super) async fn close(self) {
        let Self { link, outbox, .. } = self;
        drop(outbox);
        link.close().await;
    }

    /// Begins a phase, unless somebody asked to stop.
    pub(super) async fn enter(&mut self, phase: Phase) -> Result<(), MigrationError> {
        self.timeline.enter(phase, self.outbox.written());
        self.tell(None);
        tokio::select! {
            () = self.services.cancel.cancelled() => return Err(MigrationError::Cancelled { phase }),
            () = self.services.hook.reached(Side::Source, phase) => {}
        }
        if self.services.cancel.is_cancelled() {
            Err(MigrationError::Cancelled { phase })
        } else {
            Ok(())
        }
    }

    /// Runs a step that blocks on a thread of its own, telling the observer how it goes.
    pub(super) async fn step<R: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Outbox) -> Result<R, Cause> + Send + 'static,
    ) -> Result<R, MigrationError> {
        let phase = self.timeline.phase();
        let outbox = self.outbox.clone();
        let job = blocking(phase, move || work(&outbox));
        tokio::pin!(job);
        let mut tick = tokio::time::interval(TICK);
        let mut before = (Instant::now(), self.outbox.written());
        loop {
            tokio::select! {
                result = &mut job => return result,
                _ = tick.tick() => {
                    let now = (Instant::now(), self.outbox.written());
                    // The first tick comes at once, and nothing has been sent by then.
                    let rate = Bytes(now.1.0 - before.1.0).per(now.0 - before.0);
                    self.tell(rate.filter(|_| now.0 - before.0 >= TICK / 2));
                    before = now;
                }
            }
        }
    }

    pub(super) fn tell(&self, rate: Option<Rate>) {
        let phase = self.timeline.phase();
        let round = (phase == Phase::Memory)
            .then_some(u32::try_from(self.timeline.rounds.len()).unwrap_or(u32::MAX));
        let written = self.outbox.written();
        let left = Bytes(self.memory.0.saturating_sub(written.0));
        // All memory goes in the first round; what follows is short, or nobody can tell.
        let eta = rate
            .filter(|&rate| round == Some(0) && rate >= TELLING)
            .and_then(|rate| rate.time_for(left));
        self.services.observer.progress(Progress {
            phase,
            round,
            wire: written,
            rate,
            predicted_blackout: self.predicted,
            throttled: self.throttled.filter(|_| phase == Phase::Memory),
            eta,
        });
    }

    pub(super) async fn say(&self, message: &Message) -> Result<(), MigrationError> {
        self.link.say(message, self.timeline.phase()).await
    }

    /// The next message, at most after `silence`; a destination that gives up is an error here.
    pub(super) async fn hear(
        &mut self,
        silence: Option<Duration>,
    ) -> Result<Message, MigrationError> {
        let phase = self.timeline.phase();
        let cancel: CancellationToken = self.services.cancel.clone();
        let message = async {
            match silence {
                None => self.link.receive_message(phase).await,
                Some(limit) => tokio::time::timeout(limit, self.link.receive_message(phase))
                    .await
                    .unwrap_or(Err(MigrationError::LinkLost {
                        phase,
                        source: None,
                    })),
            }
        };
        let message = tokio::select! {
            message = message => message.map_err(|e| e.in_phase(phase))?,
            () = cancel.cancelled() => return Err(MigrationError::Cancelled { phase }),
            () = self.outbox.streams_lost() => {
                return Err(MigrationError::LinkLost { phase, source: None });
            }
        };
        match message {
            Message::Failed { why } => Err(MigrationError::OtherSide { why }),
            other => Ok(other),
        }
    }

    pub(super) fn journal(&mut self, state: JournalState) -> Result<(), MigrationError> {
        let entry = Entry {
            state,
            ..self.entry.clone()
        };
        self.services
            .journal
            .write(&entry)
            .map_err(|source| MigrationError::Journal {
                id: entry.id,
                source,
            })?;
        self.entry = entry;
        Ok(())
    }
}
