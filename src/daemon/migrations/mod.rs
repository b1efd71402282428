//! The migrations this host takes part in: begun here, served here, taken up again after a restart.
//!
//! **Invariant:** a container's lock is held only while its state changes. In the states `migrating`,
//! `arriving` and `in-doubt` the requests that would disturb it are refused (see [`super::requests`]).

mod arrival;
mod backlog;
mod behind;
mod board;
mod claim;
mod departure;
mod failpoint;
mod frozen;
mod home;
mod incoming;
mod obstacle;
mod recover;
mod remains;
mod restored;
mod streams;
mod watches;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use self::arrival::Arrivals;
use self::board::Board;
use self::departure::Departure;
pub use self::home::Bundled;
use self::home::Home;
use super::{Containers, Context, DaemonError};
use crate::api::types::MigrationStatus;
use crate::container::Record;
use crate::migration::behind::LOST_AFTER;
use crate::migration::conclude::{self, Dial, DialFuture, World};
use crate::migration::destination::{self, Served};
use crate::migration::journal::Directory;
use crate::migration::message::Purpose;
use crate::migration::source::{self, Ended, MoreStreams, Services};
use crate::migration::stream::{self, Door};
use crate::migration::{Duplex, Entry, Hook, Journal, JournalState, Link};
use crate::model::{
    ContainerState, EventKind, Finding, MigrationId, MigrationOptions, Name, Outcome, Progress,
    Rate, Side,
};
use crate::peer::{PeerBook, PeerStream, dial};

/// Between two questions of a host in doubt.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a stranger may take to say what it wants.
const GREETING: Duration = Duration::from_secs(10);

/// The migrations this host takes part in.
pub struct Migrations {
    context: Arc<Context>,
    containers: Containers,
    board: Arc<Board>,
    world: World,
    journal: Arc<Directory>,
    hook: Arc<dyn Hook>,
    door: Arc<Door>,
}

struct Peers(Arc<PeerBook>);

impl Dial for Peers {
    fn dial<'a>(&'a self, peer: &'a Name) -> DialFuture<'a> {
        Box::pin(async move {
            let stream = dial(&self.0, peer).await.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

impl Migrations {
    /// The migrations of a host, with those its journal remembers.
    pub fn new(context: Arc<Context>, containers: Containers) -> Result<Self, DaemonError> {
        let directory = context.config.state_dir.join("migrations");
        let journal = Directory::open(&directory).map_err(|source| DaemonError::Io {
            what: format!("open the journal of migrations {}", directory.display()),
            source,
        })?;
        let journal = Arc::new(journal);
        let board = Arc::new(Board::new(
            context.config.name.clone(),
            Arc::clone(&journal),
        ));
        let dial = Arc::new(Peers(Arc::clone(&context.peers)));
        let hook = failpoint::hook(context.config.run_dir.clone());
        let world = World {
            dial,
            journal: journal.clone(),
            pause: PAUSE,
            lost_after: LOST_AFTER,
            shelf: Arc::default(),
        };
        Ok(Self {
            context,
            containers,
            board,
            world,
            journal,
            hook,
            door: Arc::default(),
        })
    }

    /// Begins to move a container to another host.
    ///
    /// # Errors
    /// When the host is not a peer that answers, or the container's state does not allow it.
    pub async fn start(
        self: &Arc<Self>,
        name: &Name,
        to: &Name,
        options: MigrationOptions,
    ) -> Result<MigrationId, DaemonError> {
        let stream = self.reach(to).await?;
        let id = MigrationId(rand::random());
        let found = self.claim(name, id, to).await?;
        let entry = Entry {
            id,
            container: name.clone(),
            side: Side::Source,
            peer: to.clone(),
            generation: found.0.generation().next(),
            started_at: now(),
            state: JournalState::Began,
            report: None,
            why: None,
        };
        let cancel = CancellationToken::new();
        self.board.begin(&entry, cancel.clone());
        self.context
            .events
            .container(name, ContainerState::Migrating);
        let bundled = match &found.0 {
            Home::Bundle(bundled) => Some(bundled.clone()),
            Home::Own(_) => None,
        };
        let job = source::Job {
            container: Departure::new(&self.context, id, to, found, options.clone()),
            host: self.context.config.name.clone(),
            link: Link::new(stream, cancel.clone()),
            services: self.services(&entry, options, cancel),
            entry,
        };
        let this = Arc::clone(self);
        tokio::spawn(async move { this.leave(job, bundled).await });
        Ok(id)
    }

    /// Says what would prevent it.
    ///
    /// # Errors
    /// When one of the hosts cannot be asked.
    pub async fn dry_run(
        &self,
        name: &Name,
        to: &Name,
        options: MigrationOptions,
    ) -> Result<Vec<Finding>, DaemonError> {
        let stream = self.reach(to).await?;
        let id = MigrationId(rand::random());
        // The address that is kept for one of a bundle meanwhile must not be taken from a migration that begins now.
        let of_bundle = self.containers.status(name).await.is_err();
        let _locked = match of_bundle {
            true => Some(self.context.locks.lock(name).await?),
            false => None,
        };
        let found = self.running(name).await?;
        let bundled = match &found.0 {
            Home::Bundle(bundled) => Some(bundled.clone()),
            Home::Own(_) => None,
        };
        let departure = Departure::new(&self.context, id, to, found, options.clone());
        let link = Link::new(stream, CancellationToken::new());
        let findings = source::dry_run(id, departure, options, link).await;
        if let Some(bundled) = bundled {
            bundled.forget_address(&self.context);
        }
        Ok(findings?)
    }

    /// Asks a migration to end with the container where it was.
    ///
    /// # Errors
    /// When it is not under way here, or is handed over already.
    pub fn cancel(&self, id: MigrationId) -> Result<(), DaemonError> {
        self.board.cancel(id)
    }

    /// All that are known.
    pub fn list(&self) -> Vec<MigrationStatus> {
        self.board.list()
    }

    /// One of them.
    pub fn get(&self, id: MigrationId) -> Option<MigrationStatus> {
        self.board.get(id)
    }

    /// Decides one that is in doubt, and waits until that is carried out.
    ///
    /// # Errors
    /// When it is not in doubt.
    pub async fn resolve(&self, id: MigrationId, keep: Side) -> Result<(), DaemonError> {
        let decisions = self.board.decisions(id, keep)?;
        // It may have been settled by the two hosts at this very moment.
        decisions
            .send(keep)
            .await
            .map_err(|_| DaemonError::NotInDoubt { id })?;
        decisions.closed().await;
        Ok(())
    }

    /// Asks every migration that is not handed over to end: the daemon is about to.
    pub fn stop(&self) {
        self.board.cancel_all();
    }

    /// A peer has connected: serves what it wants.
    pub async fn serve_incoming(self: &Arc<Self>, peer: Name, stream: PeerStream) {
        let mut stream = stream;
        let greeting = match tokio::time::timeout(GREETING, destination::greet(&mut stream)).await {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(error)) => {
                tracing::warn!(%peer, "a peer was not understood: {}", error.chain());
                return Link::new(stream, CancellationToken::new()).close().await;
            }
            Err(_) => return,
        };
        let (id, purpose) = (greeting.migration, greeting.purpose);
        if let Purpose::Stream { token, index } = purpose {
            let settle = PeerStream::settle;
            if let Err(error) = self
                .door
                .enter(stream, settle, &peer, id, token, index)
                .await
            {
                tracing::warn!(%peer, "a stream was refused: {error}");
            }
            return;
        }
        if let Purpose::Fetch { rate } = purpose {
            return self.give(stream, &peer, id, rate).await;
        }
        let link = Link::new(stream, CancellationToken::new());
        if !matches!(purpose, Purpose::Migrate | Purpose::DryRun) {
            let journal = self.journal.as_ref();
            if let Err(error) = conclude::answer(link, &peer, id, purpose, journal).await {
                tracing::debug!(%peer, "a question was not answered: {}", error.chain());
            }
            return;
        }
        let job = destination::Job {
            greeting,
            source: peer.clone(),
            host: Arc::new(Arrivals::new(&self.context, &peer)),
            link,
            door: Arc::clone(&self.door),
            world: self.world.clone(),
            hook: Arc::clone(&self.hook),
            now: now(),
        };
        match destination::serve(job).await {
            Served::Nothing => {}
            Served::Over(entry) => self.arrived(&entry),
            Served::InDoubt(entry, restored) => {
                self.board.begin(&entry, CancellationToken::new());
                let mut decisions = self.board.doubt(entry.id, None);
                self.mark(&entry.container, ContainerState::InDoubt).await;
                let ended =
                    conclude::destination(entry.clone(), restored, &self.world, &mut decisions)
                        .await;
                self.concluded(&entry, ended);
            }
        }
    }

    /// A destination fetches what was left behind here.
    async fn give(&self, stream: PeerStream, peer: &Name, id: MigrationId, rate: Option<Rate>) {
        let entry = self.journal.read(id).unwrap_or_else(|error| {
            tracing::error!(migration = %id, "its journal cannot be read: {error}");
            None
        });
        let entry = entry.filter(|entry| entry.side == Side::Source && entry.peer == *peer);
        let shelf = &self.world.shelf;
        if let Err(error) = shelf.serve(stream, peer, id, rate, entry.as_ref()).await {
            tracing::warn!(%peer, migration = %id, "memory was not fetched to the end: {}", error.chain());
        }
    }

    /// Runs a migration to its end, however long that takes.
    async fn leave(self: Arc<Self>, job: source::Job<Departure>, bundled: Option<Box<Bundled>>) {
        let name = job.entry.container.clone();
        let Ended {
            report,
            entry,
            in_doubt,
        } = source::run(job).await;
        if let Some(handed) = in_doubt {
            let mut decisions = self.board.doubt(entry.id, Some(report.clone()));
            self.mark(&name, ContainerState::InDoubt).await;
            self.context.events.emit(EventKind::MigrationEnded {
                report: Box::new(report),
            });
            let ended = conclude::source(entry.clone(), handed, &self.world, &mut decisions).await;
            return self.concluded(&entry, ended);
        }
        self.board.end(entry.id);
        match report.outcome {
            Outcome::Moved | Outcome::Lost { .. } => {
                self.context.events.emit(EventKind::Removed { name });
            }
            _ => match bundled {
                Some(bundled) => self.stayed_a_bundle(entry.id, bundled).await,
                None => self.stayed(&name).await,
            },
        }
        self.context.events.emit(EventKind::MigrationEnded {
            report: Box::new(report),
        });
        if let Err(error) = self.journal.prune() {
            tracing::warn!("old migrations were not forgotten: {error}");
        }
    }

    /// A container that arrived, or did not.
    fn arrived(&self, entry: &Entry) {
        if matches!(entry.state, JournalState::Moved | JournalState::Lost) {
            self.containers.watch(entry.container.clone());
        }
    }

    /// A migration that was in doubt is not any more.
    fn concluded(&self, before: &Entry, ended: Result<Entry, crate::migration::MigrationError>) {
        self.board.end(before.id);
        let entry = match ended {
            Ok(entry) => entry,
            Err(error) => {
                tracing::error!(migration = %before.id, "a migration in doubt ended badly: {}", error.chain());
                return;
            }
        };
        tracing::info!(migration = %entry.id, state = ?entry.state, "a migration in doubt is settled");
        let name = entry.container.clone();
        let here = (entry.side == Side::Source) == (entry.state == JournalState::StayedHere);
        let watched = here && Record::load(&self.context.host, &name).is_ok();
        if here && entry.state != JournalState::Lost {
            self.context
                .events
                .container(&name, ContainerState::Running);
        }
        if watched {
            self.containers.watch(name);
        } else if !here {
            self.context.events.emit(EventKind::Removed { name });
        }
        if let Some(report) = entry.report {
            self.context.events.emit(EventKind::MigrationEnded {
                report: Box::new(report),
            });
        }
    }

    async fn reach(&self, to: &Name) -> Result<PeerStream, DaemonError> {
        if *to == self.context.config.name {
            return Err(DaemonError::Field {
                field: "to",
                problem: format!("{to} is this host"),
                remedy: "name another host; `godwit peer list` shows them".to_owned(),
            });
        }
        Ok(dial(&self.context.peers, to).await?)
    }

    fn services(
        &self,
        entry: &Entry,
        options: MigrationOptions,
        cancel: CancellationToken,
    ) -> Services {
        let (board, events) = (Arc::clone(&self.board), self.context.events.clone());
        let (id, container) = (entry.id, entry.container.clone());
        let observer = move |progress: Progress| {
            board.progress(id, &progress);
            let (container, side) = (container.clone(), Side::Source);
            events.emit(EventKind::Migration {
                id,
                container,
                side,
                progress,
            });
        };
        Services {
            options,
            cancel,
            journal: self.journal.clone(),
            observer: Arc::new(observer),
            hook: Arc::clone(&self.hook),
            lost_after: LOST_AFTER,
            shelf: Arc::clone(&self.world.shelf),
            streams: Some(MoreStreams {
                count: stream::usual(),
                dial: Arc::clone(&self.world.dial),
            }),
        }
    }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
