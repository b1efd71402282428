//! The frozen copies of this host whose memory may be fetched, and who fetches it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::super::bare::{self, Duplex};
use super::super::codec::Kind;
use super::super::conclude::blocking;
use super::super::error::MigrationError;
use super::super::journal::{Entry, JournalState};
use super::super::link::{Inbound, Link};
use super::super::message::{Fetched, Message, NEWEST_VERSION};
use super::Remainder;
use super::wire::{Ask, Run};
use crate::model::{MigrationId, Name, Phase, Rate};

/// The most runs that wait to be read: an honest destination asks for far less before it has something.
const MOST_WAITING: usize = 1 << 16;

/// Frozen copies whose memory may be fetched.
#[derive(Default)]
pub struct Shelf(Mutex<HashMap<MigrationId, Offered>>);

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").finish_non_exhaustive()
    }
}

struct Offered {
    peer: Name,
    pages: Arc<dyn Remainder>,
    news: watch::Sender<News>,
}

/// What is heard of a destination that fetches.
#[derive(Debug, Clone)]
pub struct News {
    /// How many connections there are.
    pub connections: usize,
    /// When there was one last.
    pub since: Instant,
    /// How it ended.
    pub fetched: Option<Fetched>,
}

/// A copy that may be fetched until this is dropped.
pub struct OnShelf {
    shelf: Arc<Shelf>,
    id: MigrationId,
    news: watch::Receiver<News>,
}

impl Drop for OnShelf {
    fn drop(&mut self) {
        self.shelf.offered().remove(&self.id);
    }
}

impl OnShelf {
    /// What is heard now.
    pub fn now(&self) -> News {
        self.news.borrow().clone()
    }

    /// Waits until the destination has told how it ended. Cancel-safe.
    pub async fn fetched(&mut self) -> Fetched {
        let ended = self.news.wait_for(|news| news.fetched.is_some()).await;
        match ended.ok().and_then(|news| news.fetched.clone()) {
            Some(fetched) => fetched,
            // Another has taken this place, and hears of it.
            None => std::future::pending().await,
        }
    }
}

impl Shelf {
    /// From now on this migration's destination may fetch these pages.
    pub fn offer(
        self: &Arc<Self>,
        id: MigrationId,
        peer: &Name,
        pages: Arc<dyn Remainder>,
    ) -> OnShelf {
        let (sender, news) = watch::channel(News {
            connections: 0,
            since: Instant::now(),
            fetched: None,
        });
        let offered = Offered {
            peer: peer.clone(),
            pages,
            news: sender,
        };
        self.offered().insert(id, offered);
        OnShelf {
            shelf: Arc::clone(self),
            id,
            news,
        }
    }

    /// Serves a peer that wants pages of a migration, as fast as `rate` allows, until it has them or leaves. `entry` is
    /// what the journal knows of the migration.
    ///
    /// # Errors
    /// When it says what makes no sense. It has been told why it does not get what it wants.
    pub async fn serve(
        &self,
        mut stream: impl Duplex,
        peer: &Name,
        id: MigrationId,
        rate: Option<Rate>,
        entry: Option<&Entry>,
    ) -> Result<(), MigrationError> {
        let Some((pages, news)) = self.find(peer, id) else {
            // Whoever does not listen misses the reason.
            bare::say(&mut stream, &refusal(entry)).await.ok();
            return Ok(());
        };
        let opening = Arc::clone(&pages);
        if let Err(error) = blocking(Phase::Fill, move || opening.open()).await {
            let why = error.chain();
            tracing::error!(migration = %id, %why, "a frozen copy cannot be read");
            bare::say(&mut stream, &Message::Failed { why }).await.ok();
            return Ok(());
        }
        let version = NEWEST_VERSION;
        if bare::say(&mut stream, &Message::Welcome { version })
            .await
            .is_err()
        {
            return Ok(());
        }
        let _connected = Connected::new(&news);
        let mut link = Link::new(stream, tokio_util::sync::CancellationToken::new());
        link.outbox().set_bandwidth(rate);
        let served = give(&mut link, pages, &news).await;
        link.close().await;
        served
    }

    fn find(
        &self,
        peer: &Name,
        id: MigrationId,
    ) -> Option<(Arc<dyn Remainder>, watch::Sender<News>)> {
        let offered = self.offered();
        let found = offered.get(&id).filter(|found| found.peer == *peer)?;
        Some((Arc::clone(&found.pages), found.news.clone()))
    }

    fn offered(&self) -> MutexGuard<'_, HashMap<MigrationId, Offered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is nothing to be fetched: for ever, or just now.
fn refusal(entry: Option<&Entry>) -> Message {
    let gone = |why: &str| Message::Gone {
        why: why.to_owned(),
    };
    match entry.map(|entry| entry.state) {
        Some(JournalState::Began | JournalState::HandedOver | JournalState::Serving) => {
            Message::Failed {
                why: "the frozen copy cannot be read just now".to_owned(),
            }
        }
        Some(JournalState::StayedHere) => gone("the container was taken back on its source"),
        Some(_) => gone("the frozen copy was removed from its source"),
        None => gone("the source does not know of this migration"),
    }
}

/// A connection that is being served.
struct Connected<'a>(&'a watch::Sender<News>);

impl<'a> Connected<'a> {
    fn new(news: &'a watch::Sender<News>) -> Self {
        news.send_modify(|news| news.connections += 1);
        Self(news)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|news| {
            news.connections -= 1;
            news.since = Instant::now();
        });
    }
}

/// Reads what is asked for and sends it, what somebody waits for first.
async fn give(
    link: &mut Link,
    pages: Arc<dyn Remainder>,
    news: &watch::Sender<News>,
) -> Result<(), MigrationError> {
    let phase = Phase::Fill;
    let (mut urgent, mut other): (VecDeque<Run>, VecDeque<Run>) = Default::default();
    loop {
        // What has been asked meanwhile is heard before the next is read.
        let idle = urgent.is_empty() && other.is_empty();
        let heard = tokio::select! {
            biased;
            heard = link.receive(phase) => Some(heard),
            () = std::future::ready(()), if !idle => None,
        };
        match heard {
            Some(Ok(Inbound::Data(frame))) if frame.kind == Kind::Ask => {
                let ask = Ask::decode(&frame.payload);
                let ask = ask.map_err(|source| MigrationError::Codec { source })?;
                let queue = if ask.urgent { &mut urgent } else { &mut other };
                queue.extend(ask.runs);
                if urgent.len() + other.len() > MOST_WAITING {
                    let what = "more questions than it can have".to_owned();
                    return Err(MigrationError::Unexpected { what, phase });
                }
            }
            Some(Ok(Inbound::Data(frame))) => {
                let what = format!("a frame of {:?}", frame.kind);
                return Err(MigrationError::Unexpected { what, phase });
            }
            Some(Ok(Inbound::Message(Message::Fetched(fetched)))) => {
                news.send_modify(|news| news.fetched = Some(fetched));
                return Ok(());
            }
            Some(Ok(Inbound::Message(other))) => {
                return Err(MigrationError::unexpected(&other, phase));
            }
            // It comes back.
            Some(Err(MigrationError::LinkLost { .. })) => return Ok(()),
            Some(Err(error)) => return Err(error),
            None => {
                let Some(run) = urgent.pop_front().or_else(|| other.pop_front()) else {
                    continue;
                };
                let (pages, outbox) = (Arc::clone(&pages), link.outbox());
                let read = blocking(phase, move || {
                    let mut out = |batch| outbox.send(Kind::Pages, batch).map_err(io::Error::other);
                    pages.read(run, &mut out)
                });
                match read.await {
                    Ok(()) => {}
                    Err(MigrationError::LinkLost { .. }) => return Ok(()),
                    Err(error) => {
                        let why = error.chain();
                        tracing::error!(%why, "a page of a frozen copy cannot be given");
                        link.say(&Message::Gone { why }, phase).await.ok();
                        return Err(error);
                    }
                }
            }
        }
    }
}
