//! The phases of a migration on its destination, one line each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::bare::{Duplex, lost, say, wait_for};
use super::super::behind::{self, Fetching};
use super::super::conclude::{self, blocking};
use super::super::error::MigrationError;
use super::super::journal::{Entry, JournalState};
use super::super::link::Link;
use super::super::message::{
    Fate, Message, NEWEST_VERSION, OLDEST_VERSION, Offer, Purpose, ToldStep, common_version,
};
use super::super::movable::{Arriving, Destination, Restored};
use super::super::stream::Intake;
use super::receive::{Received, receive};
use super::{Greeting, Job, RestoredOf, Served};
use crate::model::{Finding, Pages, Phase, Side, Spans};

/// How often a destination that restores says that it is alive.
const ALIVE: Duration = Duration::from_millis(500);

/// Understands the first words of a connection, and refuses a version outside the window.
///
/// # Errors
/// When the first words are not understood or not spoken here; the other host has been told.
pub async fn greet(stream: &mut impl Duplex) -> Result<Greeting, MigrationError> {
    let phase = Phase::Negotiate;
    let (oldest, newest, migration, purpose) = match wait_for(stream).await? {
        Message::Hello {
            oldest,
            newest,
            migration,
            purpose,
        } => (oldest, newest, migration, purpose),
        other => return Err(MigrationError::unexpected(&other, phase)),
    };
    let Some(version) = common_version(oldest, newest) else {
        let text = format!(
            "the source speaks protocol versions {oldest} to {newest}, this host {OLDEST_VERSION} to {NEWEST_VERSION}; upgrade the older Godwit",
        );
        let findings = vec![Finding::blocking("version", text)];
        let refusal = Message::Refusal {
            findings: findings.clone(),
        };
        say(stream, &refusal).await.map_err(lost(phase))?;
        return Err(MigrationError::Refused { findings });
    };
    if matches!(purpose, Purpose::Migrate | Purpose::DryRun) {
        let welcome = Message::Welcome { version };
        say(stream, &welcome).await.map_err(lost(phase))?;
    }
    Ok(Greeting { migration, purpose })
}

/// Takes a container in.
///
/// Until the journal says `Ready` any failure removes everything. Afterwards only the source's word does,
/// or lets it run.
pub async fn serve<D: Destination>(mut job: Job<D>) -> Served<RestoredOf<D>> {
    match prepare(&mut job).await {
        Ok(Some((entry, ready))) => take_over(job, entry, ready).await,
        Ok(None) => {
            job.link.close().await;
            Served::Nothing
        }
        Err((entry, error)) => {
            tracing::info!(migration = %job.greeting.migration, error = %error.chain(), "a container did not arrive");
            let _ = job
                .link
                .say(&Message::Failed { why: error.chain() }, Phase::Restore)
                .await;
            job.link.close().await;
            match entry {
                None => Served::Nothing,
                Some(mut entry) => {
                    entry.state = JournalState::StayedHere;
                    if let Err(error) = job.world.journal.write(&entry) {
                        // `Reserved` has the same meaning to whoever reads it after a restart.
                        tracing::warn!(migration = %entry.id, %error, "the end of a migration was not journalled");
                    }
                    Served::Over(entry)
                }
            }
        }
    }
}

/// A container that is restored here and held, and what it took since it was frozen.
struct Ready<R> {
    restored: R,
    fetching: Option<Fetching>,
    frozen: Instant,
    spans: Spans,
}

type Prepared<R> = Result<Option<(Entry, R)>, (Option<Entry>, MigrationError)>;

/// On success the container is restored, held, and the journal says `Ready`; none for a dry run or a
/// refusal. On failure nothing is left here but an entry, if one was written.
async fn prepare<D: Destination>(job: &mut Job<D>) -> Prepared<Ready<RestoredOf<D>>> {
    reached(job, Phase::Preflight).await;
    let Some(offer) = admit(job).await.map_err(|e| (None, e))? else {
        return Ok(None);
    };
    let mut entry = entry(job, &offer);
    write(job, &mut entry, JournalState::Reserved).map_err(|e| (None, e))?;
    match restore(job, offer, &entry).await {
        Ok(ready) => match write(job, &mut entry, JournalState::Ready) {
            Ok(()) => Ok(Some((entry, ready))),
            Err(error) => {
                let restored = blocking(Phase::Restore, move || ready.restored.discard()).await;
                if let Err(error) = restored {
                    tracing::error!(error = %error.chain(), "a restored container was not removed");
                }
                Err((Some(entry), error))
            }
        },
        Err(error) => Err((Some(entry), error)),
    }
}

/// Reads the offer and answers it. None: refused, or a dry run.
async fn admit<D: Destination>(job: &mut Job<D>) -> Result<Option<Offer>, MigrationError> {
    let phase = Phase::Preflight;
    let offer = match job
        .link
        .receive_message(phase)
        .await
        .map_err(|e| e.in_phase(phase))?
    {
        Message::Offer(offer) => *offer,
        Message::Cancel { why } => return Err(MigrationError::OtherSide { why }),
        other => return Err(MigrationError::unexpected(&other, phase)),
    };
    let host = job.host.clone();
    let (offer, findings) = blocking(phase, move || {
        let findings = host.findings(&offer)?;
        Ok((offer, findings))
    })
    .await?;
    if findings.iter().any(|f| f.blocking) || job.greeting.purpose == Purpose::DryRun {
        job.link.say(&Message::Refusal { findings }, phase).await?;
        return Ok(None);
    }
    Ok(Some(offer))
}

/// Sets a place aside, takes everything, restores. On failure nothing is left.
async fn restore<D: Destination>(
    job: &mut Job<D>,
    offer: Offer,
    entry: &Entry,
) -> Result<Ready<RestoredOf<D>>, MigrationError> {
    let host = job.host.clone();
    let arriving = blocking(Phase::Preflight, move || host.reserve(&offer)).await?;
    let intake = match arriving.pages() {
        Ok(pages) => Intake::new(pages),
        Err(cause) => {
            let error = MigrationError::local(Phase::Preflight, cause);
            return Err(discard(arriving, error).await);
        }
    };
    let awaited = job
        .door
        .expect(job.greeting.migration, &job.source, &intake);
    let reserved = Message::Reserved {
        needs_image: arriving.needs_image(),
        restore: arriving.way(),
        streams: Some(awaited.offer),
        post_copy: arriving.takes_later(),
        findings: Vec::new(),
    };
    if let Err(error) = job.link.say(&reserved, Phase::Preflight).await {
        return Err(discard(arriving, error).await);
    }
    let spans = Spans::new(Instant::now);
    let taken = take_all(job, arriving, &intake, &spans).await;
    // Whatever comes of it: nobody has the store any more but who restores or discards it.
    intake.end().await;
    drop((awaited, intake));
    let (arriving, received) = match taken? {
        (arriving, Ok(received)) => (arriving, received),
        (arriving, Err(error)) => return Err(discard(arriving, error).await),
    };
    reached(job, Phase::Restore).await;
    let Received { summary, frozen } = received;
    let step = spans.begin("complete the images");
    let completed = blocking(Phase::Restore, move || {
        let mut arriving = arriving;
        let left = arriving.complete(&summary);
        Ok((arriving, summary, left))
    });
    let completed = alive_during(&job.link, Phase::Restore, completed).await?;
    drop(step);
    let (arriving, summary, left) = completed;
    let fetching = match left {
        Ok(left) => left.map(|left| behind::begin(entry, left, &job.world)),
        Err(cause) => {
            let error = MigrationError::local(Phase::Restore, cause);
            return Err(discard(arriving, error).await);
        }
    };
    let step = spans.begin("restore");
    let work = blocking(Phase::Restore, move || {
        let _step = step;
        arriving.restore(&summary)
    });
    // A lost link shows when `Ready` finds no answer; the restore is not worth interrupting.
    let restored = alive_during(&job.link, Phase::Restore, work).await?;
    if let Some(fetching) = &fetching {
        fetching.it_is_held();
    }
    Ok(Ready {
        restored,
        fetching,
        frozen,
        spans,
    })
}

/// Does it, and says meanwhile that this host is alive.
async fn alive_during<T>(link: &Link, phase: Phase, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut alive = tokio::time::interval(ALIVE);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = alive.tick() => { let _ = link.say(&Message::Alive, phase).await; }
        }
    }
}

/// Runs the blocking receiver on a thread of its own, which borrows link and container for so long.
async fn take_all<D: Destination>(
    job: &mut Job<D>,
    mut arriving: D::Arriving,
    intake: &Arc<Intake>,
    spans: &Spans,
) -> Result<(D::Arriving, Result<Received, MigrationError>), MigrationError> {
    let (intake, spans) = (Arc::clone(intake), spans.clone());
    let hook = job.hook.clone();
    let placeholder = Link::closed();
    let mut link = std::mem::replace(&mut job.link, placeholder);
    let (link, arriving, result) = blocking(Phase::Storage, move || {
        let result = receive(&mut link, &mut arriving, &intake, hook.as_ref(), &spans);
        Ok((link, arriving, result))
    })
    .await?;
    job.link = link;
    Ok((arriving, result))
}

async fn discard<A: Arriving>(arriving: A, reason: MigrationError) -> MigrationError {
    if let Err(error) = blocking(Phase::Settle, move || arriving.discard()).await {
        tracing::error!(error = %error.chain(), "what had arrived of a container was not removed");
    }
    reason
}

/// The container is held. Says `Ready` and does what the source says.
async fn take_over<D: Destination>(
    mut job: Job<D>,
    entry: Entry,
    ready: Ready<RestoredOf<D>>,
) -> Served<RestoredOf<D>> {
    let Ready {
        mut restored,
        fetching,
        frozen,
        spans,
    } = ready;
    let mut steps = spans.take();
    steps.extend(restored.steps());
    let ready = Message::Ready {
        restore: restored.way(),
        steps: ToldStep::tell(steps, frozen),
    };
    let _ = job.link.say(&ready, Phase::Restore).await;
    let mut entry = entry;
    let mut arrived = Instant::now();
    let ended = match word(&mut job).await {
        Some(Message::HandOver { generation }) => {
            arrived = Instant::now();
            entry.generation = generation;
            reached(&job, Phase::Handover).await;
            // Not journalled: not accepted, and the source's journal tells whoever asks.
            if let Err(error) = write(&job, &mut entry, JournalState::Accepted) {
                tracing::error!(migration = %entry.id, error = %error.chain(), "the handover was not journalled");
                return Served::InDoubt(entry, restored);
            }
            // What it has on the disk of its source is put on this one before the answer, which may take a while.
            let accepted = conclude::accept(entry.clone(), restored, fetching, &job.world);
            alive_during(&job.link, Phase::Handover, accepted).await
        }
        Some(Message::Cancel { .. }) => conclude::discard(entry.clone(), restored, &job.world)
            .await
            .map(|entry| (entry, None)),
        _ => return Served::InDoubt(entry, restored),
    };
    let (entry, mut running) = ended.unwrap_or_else(|error| {
        tracing::error!(migration = %entry.id, error = %error.chain(), "a migration ended badly");
        (
            job.world
                .journal
                .read(entry.id)
                .ok()
                .flatten()
                .unwrap_or(entry),
            None,
        )
    });
    let news = match entry.state {
        // Also where the journal could not say so.
        _ if running.is_some() => runs(running.as_mut(), arrived),
        JournalState::Moved => runs::<RestoredOf<D>>(None, arrived),
        JournalState::StayedHere => Message::Fate(Fate::Discarded),
        _ => Message::Fate(Fate::Pending),
    };
    let _ = job.link.say(&news, Phase::Handover).await;
    let mut entry = entry;
    if let Some(running) = running {
        if running.behind > Pages(0) {
            reached(&job, Phase::Fill).await;
        } else {
            reached(&job, Phase::Settle).await;
        }
        match conclude::finish(entry.clone(), running, &job.world).await {
            Ok(ended) => entry = ended,
            Err(error) => {
                tracing::error!(migration = %entry.id, error = %error.chain(), "that all memory is here was not journalled");
            }
        }
    } else {
        reached(&job, Phase::Settle).await;
    }
    job.link.close().await;
    Served::Over(entry)
}

/// The news that it runs.
fn runs<R: Restored>(running: Option<&mut conclude::Running<R>>, arrived: Instant) -> Message {
    let (since, behind) = match &running {
        Some(running) => (Some(running.since), running.behind),
        None => (None, Pages(0)),
    };
    let steps = running.map_or_else(Vec::new, |running| running.steps());
    Message::Running {
        after_micros: after(arrived, since),
        steps: ToldStep::tell(steps, arrived),
        behind,
    }
}

/// Microseconds from the arrival of the handover until it ran.
fn after(arrived: Instant, since: Option<Instant>) -> u64 {
    let took = since.map(|since| since.saturating_duration_since(arrived));
    u64::try_from(took.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// The source's word; none when it was lost.
async fn word<D: Destination>(job: &mut Job<D>) -> Option<Message> {
    loop {
        match job.link.receive_message(Phase::Handover).await {
            Ok(word @ (Message::HandOver { .. } | Message::Cancel { .. })) => return Some(word),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

fn entry<D: Destination>(job: &Job<D>, offer: &Offer) -> Entry {
    Entry {
        id: job.greeting.migration,
        container: offer.spec.name.clone(),
        side: Side::Destination,
        peer: job.source.clone(),
        generation: offer.generation.next(),
        started_at: job.now,
        state: JournalState::Reserved,
        report: None,
        why: None,
    }
}

fn write<D: Destination>(
    job: &Job<D>,
    entry: &mut Entry,
    state: JournalState,
) -> Result<(), MigrationError> {
    let next = Entry {
        state,
        ..entry.clone()
    };
    job.world
        .journal
        .write(&next)
        .map_err(|source| MigrationError::Journal {
            id: next.id,
            source,
        })?;
    *entry = next;
    Ok(())
}

async fn reached<D: Destination>(job: &Job<D>, phase: Phase) {
    let hook: Arc<dyn super::super::Hook> = job.hook.clone();
    hook.reached(Side::Destination, phase).await;
}
