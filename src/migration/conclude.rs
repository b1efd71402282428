//! Two hosts that lost each other around the handover find out what is true.
//!
//! Both sides ask, neither guesses: a source that has handed over asks for the container's *fate*, a
//! destination that is ready asks for the *verdict*. Both answer from their journals alone. No answer means
//! asking again, for as long as it takes; a person who has fenced one of the hosts may decide instead.

mod running;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::behind::{OnShelf, Shelf};
use super::error::{Cause, MigrationError};
use super::journal::{Entry, Journal, JournalState};
use super::link::{Duplex, Link};
use super::message::{Fate, Fetched, Message, NEWEST_VERSION, OLDEST_VERSION, Purpose, Verdict};
use super::movable::{HandedOver, Held, Restored};
use crate::model::{MigrationId, Name, Phase, Side};

pub use running::{Running, accept, finish};

/// A way to the other host.
pub trait Dial: Send + Sync + 'static {
    /// Opens an authenticated stream.
    fn dial<'a>(&'a self, peer: &'a Name) -> DialFuture<'a>;
}

/// What [`Dial::dial`] returns.
pub type DialFuture<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send + 'a>>;

/// What concluding needs of the world.
#[derive(Clone)]
pub struct World {
    /// A way to the other host.
    pub dial: Arc<dyn Dial>,
    /// This host's journal.
    pub journal: Arc<dyn Journal>,
    /// Between two questions.
    pub pause: Duration,
    /// For how long a host may not be heard of that has memory of a container which runs here: [`LOST_AFTER`](super::behind::LOST_AFTER).
    pub lost_after: Duration,
    /// Where frozen copies of this host are, for destinations that still fetch memory of them.
    pub shelf: Arc<Shelf>,
}

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a person's decision arrives: which side keeps the container.
pub type Decisions = mpsc::Receiver<Side>;

/// Who has a container that was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keeps {
    /// The destination, or nobody any more.
    Destination { fetched: Option<Fetched> },
    /// The source: it never ran elsewhere.
    Source,
}

/// A source that has handed over and heard nothing: asks until it knows, and gives what the destination fetches of the
/// frozen copy until then. Returns the final entry.
///
/// # Errors
/// When the journal cannot be written or the copy cannot be settled or taken back; the entry then stays as
/// it was, and the daemon's next start tries again.
pub async fn source<H: HandedOver>(
    mut entry: Entry,
    handed: H,
    world: &World,
    decisions: &mut Decisions,
) -> Result<Entry, MigrationError> {
    let mut shelf = on_shelf(&entry, &handed, world);
    let keeps = loop {
        let keeps = tokio::select! {
            fate = fate_of(&mut entry, world) => fate,
            fetched = fetched(&mut shelf) => Some(Keeps::Destination { fetched: Some(fetched) }),
            Some(side) = decisions.recv() => decided(&entry, side),
        };
        match keeps {
            Some(keeps) => break keeps,
            None => tokio::time::sleep(world.pause).await,
        }
    };
    drop(shelf);
    end_source(&mut entry, handed, keeps, world).await
}

/// What a person decides is carried out, but for one thing: what runs elsewhere is not resumed here.
fn decided(entry: &Entry, side: Side) -> Option<Keeps> {
    match side {
        Side::Destination => Some(Keeps::Destination { fetched: None }),
        Side::Source if entry.state == JournalState::Serving => {
            tracing::warn!(migration = %entry.id, "it has run at the destination and is not resumed here");
            None
        }
        Side::Source => Some(Keeps::Source),
    }
}

/// The frozen copy can be fetched from until what this returns is dropped.
fn on_shelf<H: HandedOver>(entry: &Entry, handed: &H, world: &World) -> Option<OnShelf> {
    let remainder = handed.remainder()?;
    Some(world.shelf.offer(entry.id, &entry.peer, remainder))
}

/// What the destination has told at the end; never, where nothing can be fetched.
pub(super) async fn fetched(shelf: &mut Option<OnShelf>) -> Fetched {
    match shelf {
        Some(shelf) => shelf.fetched().await,
        None => std::future::pending().await,
    }
}

/// Asks the destination once. That it runs there and still fetches is noted.
pub(super) async fn fate_of(entry: &mut Entry, world: &World) -> Option<Keeps> {
    let fate = ask(world, &entry.peer, entry.id, Purpose::AskFate).await;
    match fate {
        Ok(Message::Fate(Fate::Running)) => Some(Keeps::Destination { fetched: None }),
        Ok(Message::Fetched(fetched)) if fetched.lost.is_some() => Some(Keeps::Destination {
            fetched: Some(fetched),
        }),
        Ok(Message::Fate(Fate::Discarded)) if entry.state != JournalState::Serving => {
            Some(Keeps::Source)
        }
        Ok(Message::Fate(Fate::Filling)) if entry.state != JournalState::Serving => {
            if let Err(error) = write(world, entry, JournalState::Serving) {
                tracing::warn!(migration = %entry.id, "that it runs there was not journalled: {}", error.chain());
            }
            None
        }
        _ => None,
    }
}

/// Ends a handed-over migration on the source, now that it is known who keeps the container.
async fn end_source<H: HandedOver>(
    entry: &mut Entry,
    handed: H,
    keeps: Keeps,
    world: &World,
) -> Result<Entry, MigrationError> {
    match keeps {
        // The copy first: should this host die in between, the next start asks again and settles again.
        Keeps::Destination { fetched } => {
            let ran = entry.state == JournalState::Serving || fetched.is_some();
            blocking(Phase::Settle, move || handed.settle()).await?;
            entry.why = fetched.as_ref().and_then(|fetched| fetched.lost.clone());
            if let (Some(report), true) = (&mut entry.report, ran) {
                let told = fetched.as_ref().map(Fetched::told);
                report.ended(told.as_ref(), entry.why.as_deref());
            }
            let state = match entry.why {
                Some(_) => JournalState::Lost,
                None => JournalState::Moved,
            };
            write(world, entry, state)?;
        }
        // The journal first: once it says so, a destination that asks is told to discard.
        Keeps::Source => {
            write(world, entry, JournalState::StayedHere)?;
            blocking(Phase::Settle, move || handed.take_back()).await?;
        }
    }
    Ok(entry.clone())
}

/// A destination that is ready, or has accepted, and lost its source: asks until it knows. Returns the
/// final entry.
///
/// # Errors
/// When the journal cannot be written, or the container has run here and is gone.
pub async fn destination<R: Restored>(
    mut entry: Entry,
    restored: R,
    world: &World,
    decisions: &mut Decisions,
) -> Result<Entry, MigrationError> {
    loop {
        if entry.state == JournalState::Accepted {
            let (entry, running) = accept(entry, restored, None, world).await?;
            return match running {
                Some(running) => finish(entry, running, world).await,
                None => Ok(entry),
            };
        }
        let keep = tokio::select! {
            verdict = ask(world, &entry.peer, entry.id, Purpose::AskVerdict) => match verdict {
                Ok(Message::Verdict(Verdict::HandedOver { generation })) => {
                    entry.generation = generation;
                    Some(Side::Destination)
                }
                Ok(Message::Verdict(Verdict::StayedHere)) => Some(Side::Source),
                _ => None,
            },
            Some(side) = decisions.recv() => Some(side),
        };
        match keep {
            Some(Side::Destination) => write(world, &mut entry, JournalState::Accepted)?,
            Some(Side::Source) => return discard(entry, restored, world).await,
            None => tokio::time::sleep(world.pause).await,
        }
    }
}

/// Removes what arrived. The container never ran here.
///
/// # Errors
/// When something could not be removed. The journal says `StayedHere` only after the copy is certainly gone.
pub async fn discard<R: Restored>(
    mut entry: Entry,
    restored: R,
    world: &World,
) -> Result<Entry, MigrationError> {
    blocking(Phase::Settle, move || restored.discard()).await?;
    write(world, &mut entry, JournalState::StayedHere)?;
    Ok(entry)
}

/// A source whose daemon was restarted: resumes what was not handed over, and concludes what was.
/// Returns the final entry.
///
/// # Errors
/// As [`source`].
pub async fn source_after_restart<H: Held>(
    mut entry: Entry,
    held: H,
    world: &World,
    decisions: &mut Decisions,
) -> Result<Entry, MigrationError> {
    if matches!(
        entry.state,
        JournalState::HandedOver | JournalState::Serving
    ) {
        return source(entry, held.hand_over(), world, decisions).await;
    }
    // Resumed first: a crash in between finds `Began` again and resumes again, which changes nothing.
    blocking(Phase::Freeze, move || held.resume()).await?;
    write(world, &mut entry, JournalState::StayedHere)?;
    Ok(entry)
}

/// A destination whose daemon was restarted: discards what was not ready, and concludes what was. Returns
/// the final entry.
///
/// # Errors
/// As [`destination`].
pub async fn destination_after_restart<R: Restored>(
    entry: Entry,
    restored: R,
    world: &World,
    decisions: &mut Decisions,
) -> Result<Entry, MigrationError> {
    match entry.state {
        // The source cannot have handed over: it was never told `Ready`.
        JournalState::Reserved => discard(entry, restored, world).await,
        JournalState::Filling => running::go_on(entry, restored, world).await,
        _ => destination(entry, restored, world, decisions).await,
    }
}

/// Answers a question of another host from the journal.
///
/// # Errors
/// When the connection is lost or the journal cannot be read.
pub async fn answer(
    link: Link,
    peer: &Name,
    id: MigrationId,
    purpose: Purpose,
    journal: &dyn Journal,
) -> Result<(), MigrationError> {
    let entry = journal
        .read(id)
        .map_err(|source| MigrationError::Journal { id, source })?;
    let entry = entry.filter(|e| e.peer == *peer);
    let message = match purpose {
        Purpose::AskVerdict => {
            Message::Verdict(verdict(entry.filter(|e| e.side == Side::Source).as_ref()))
        }
        _ => told(entry.filter(|e| e.side == Side::Destination).as_ref()),
    };
    link.say(&message, Phase::Handover).await?;
    link.close().await;
    Ok(())
}

/// What a source's journal says.
pub fn verdict(entry: Option<&Entry>) -> Verdict {
    match entry.map(|e| e.state) {
        Some(
            JournalState::HandedOver
            | JournalState::Serving
            | JournalState::Moved
            | JournalState::Lost,
        ) => Verdict::HandedOver {
            generation: entry.map(|e| e.generation).unwrap_or_default(),
        },
        Some(JournalState::StayedHere) => Verdict::StayedHere,
        Some(JournalState::Began) => Verdict::Pending,
        _ => Verdict::Unknown,
    }
}

/// What a destination answers: with the reason, where it has one.
fn told(entry: Option<&Entry>) -> Message {
    match entry.and_then(|entry| entry.why.clone()) {
        Some(why) => Message::Fetched(Fetched {
            lost: Some(why),
            ..Fetched::default()
        }),
        None => Message::Fate(fate(entry)),
    }
}

/// What a destination's journal says.
pub fn fate(entry: Option<&Entry>) -> Fate {
    match entry.map(|e| e.state) {
        Some(JournalState::Moved | JournalState::Lost) => Fate::Running,
        Some(JournalState::Filling) => Fate::Filling,
        Some(JournalState::StayedHere) => Fate::Discarded,
        Some(JournalState::Reserved | JournalState::Ready | JournalState::Accepted) => {
            Fate::Pending
        }
        _ => Fate::Unknown,
    }
}

async fn ask(
    world: &World,
    peer: &Name,
    id: MigrationId,
    purpose: Purpose,
) -> Result<Message, MigrationError> {
    let question = async {
        let stream = world.dial.dial(peer).await;
        let stream = stream.map_err(|e| MigrationError::LinkLost {
            phase: Phase::Handover,
            source: Some(e),
        })?;
        let mut link = Link::new(stream, CancellationToken::new());
        let hello = Message::Hello {
            oldest: OLDEST_VERSION,
            newest: NEWEST_VERSION,
            migration: id,
            purpose,
        };
        link.say(&hello, Phase::Handover).await?;
        let answer = link.receive_message(Phase::Handover).await;
        link.close().await;
        answer
    };
    let lost = MigrationError::LinkLost {
        phase: Phase::Handover,
        source: None,
    };
    tokio::time::timeout(PATIENCE, question)
        .await
        .unwrap_or(Err(lost))
}

fn write(world: &World, entry: &mut Entry, state: JournalState) -> Result<(), MigrationError> {
    entry.state = state;
    world
        .journal
        .write(entry)
        .map_err(|source| MigrationError::Journal {
            id: entry.id,
            source,
        })
}

/// Runs a blocking step on a thread of its own. A panic in it goes on in the caller.
pub(super) async fn blocking<R: Send + 'static>(
    phase: Phase,
    work: impl FnOnce() -> Result<R, Cause> + Send + 'static,
) -> Result<R, MigrationError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|cause| MigrationError::of_step(phase, cause)),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(MigrationError::local(phase, error)),
        },
    }
}
