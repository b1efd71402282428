//! Fetches what was left behind, over one connection after the other, until nothing is missing or the source is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::bare;
use super::super::codec::{Kind, Numbered};
use super::super::conclude::{World, blocking};
use super::super::error::MigrationError;
use super::super::journal::Entry;
use super::super::link::{Inbound, Link};
use super::super::message::{Fetched, Message, NEWEST_VERSION, OLDEST_VERSION, Purpose};
use super::super::movable::Left;
use super::Later;
use super::wire::{Ask, MOST_RUNS, Run};
use crate::model::{Pages, Phase, Rate};

/// For how long a source may not be heard of before it is taken for lost, and the container for which it has memory
/// with it.
pub const LOST_AFTER: Duration = Duration::from_secs(30);

/// How long a page that was asked for may take before the connection is given up and made anew.
const STALLS_AFTER: Duration = Duration::from_secs(3);
/// How long it may take to connect.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// How long a source that has been told the end may go on sending.
const HEARS_OUT: Duration = Duration::from_secs(5);
/// Between two attempts to connect, at most.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked whether anybody still needs anything.
const LOOK: Duration = Duration::from_millis(100);
/// As many pages are asked for at once that nobody waits for.
const PIECE: u32 = 16;
/// The fewest and the most pages that are on their way.
const WINDOW: (u64, u64) = (2 * PIECE as u64, 256 * PIECE as u64);
/// What nobody waits for may take so long on its way: who waits for a page waits behind it.
const BEHIND: Duration = Duration::from_millis(20);

/// Pages are being fetched. **Dropping it ends that**, and nothing else.
#[derive(Debug)]
pub struct Fetching {
    task: JoinSet<Ending>,
    far: watch::Sender<Far>,
}

/// How far the container is that the pages are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Far {
    Restoring,
    Held,
    Runs,
}

/// How it ended.
#[derive(Debug)]
pub struct Ending {
    /// What the source is to be told, once that is journalled.
    pub fetched: Fetched,
    link: Option<Link>,
}

impl Fetching {
    /// The container runs: from now on a source that is lost is its end.
    pub fn it_runs(&self) {
        self.far.send_replace(Far::Runs);
    }

    /// It is restored: while it is held nothing is lost, as it may still run on its source.
    pub fn it_is_held(&self) {
        self.far.send_replace(Far::Held);
    }

    /// Waits until nothing is missing, or the container was killed because something always will be.
    pub async fn end(mut self) -> Ending {
        match self.task.join_next().await {
            Some(Ok(ending)) => ending,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The daemon is ending; the next one goes on.
            _ => std::future::pending().await,
        }
    }
}

impl Ending {
    /// Tells the source, if it still listens. Otherwise it asks.
    pub async fn tell(self) {
        if let Some(mut link) = self.link {
            let word = Message::Fetched(self.fetched);
            if link.say(&word, Phase::Fill).await.is_ok() {
                // Pages that were asked for may be on their way. A connection that is closed before they are read is reset,
                // and a source that cannot send them hears nothing more.
                let rest = async { while link.receive(Phase::Fill).await.is_ok() {} };
                let _ = tokio::time::timeout(HEARS_OUT, rest).await;
            }
            link.close().await;
        }
    }
}

/// Begins to fetch, for a container that is being restored.
pub fn begin(entry: &Entry, left: Left, world: &World) -> Fetching {
    let Left { later, rate } = left;
    let (far, how_far) = watch::channel(Far::Restoring);
    let mut task = JoinSet::new();
    let fetch = Fetch {
        entry: entry.clone(),
        later,
        rate,
        world: world.clone(),
        heard: Instant::now(),
        on_demand: Pages(0),
        pushed: Pages(0),
    };
    task.spawn(fetch.run(how_far));
    Fetching { task, far }
}

struct Fetch {
    entry: Entry,
    later: Arc<dyn Later>,
    rate: Option<Rate>,
    world: World,
    /// When the source was last heard of.
    heard: Instant,
    on_demand: Pages,
    pushed: Pages,
}

/// How a connection ended.
enum End {
    /// Nothing is needed any more.
    Over,
    Broken(String),
    /// The source has nothing to give any more.
    Gone(String),
}

impl Fetch {
    async fn run(mut self, mut far: watch::Receiver<Far>) -> Ending {
        let begin = Instant::now();
        let mut last = "it was not reached".to_owned();
        let (lost, link) = loop {
            if self.is_over() {
                break (None, None);
            }
            let end = match self.connect().await {
                Ok(mut link) => {
                    let end = self.over(&mut link).await;
                    if matches!(end, End::Over) {
                        break (None, Some(link));
                    }
                    end
                }
                Err(end) => end,
            };
            match end {
                End::Over => {}
                End::Broken(why) => {
                    tracing::info!(migration = %self.entry.id, missing = %self.later.missing(), why, "memory is not fetched just now");
                    last = why;
                }
                End::Gone(why) => break (Some(why), None),
            }
            let silent = self.heard.elapsed();
            if silent >= self.world.lost_after {
                let seconds = silent.as_secs();
                break (Some(format!("it was silent for {seconds} s: {last}")), None);
            }
            tokio::time::sleep(PAUSE.min(self.world.pause)).await;
        };
        let why = match lost {
            None => None,
            Some(why) => {
                let why = format!(
                    "{} of its memory was left on {}, which is lost: {why}",
                    self.later.missing().bytes(),
                    self.entry.peer
                );
                // What never ran here is not lost with the source; but a restore must not wait for ever.
                let _ = far.wait_for(|far| *far != Far::Held).await;
                self.lose(&why).await;
                Some(why)
            }
        };
        let fetched = Fetched {
            on_demand: self.on_demand,
            pushed: self.pushed,
            took: begin.elapsed(),
            lost: why,
        };
        Ending { fetched, link }
    }

    fn is_over(&self) -> bool {
        self.later.is_over().unwrap_or_else(|error| {
            tracing::error!(migration = %self.entry.id, "whether a container needs more memory is not known: {error}");
            false
        })
    }

    /// Kills it, however often that takes: nothing may go on with memory that is not there.
    async fn lose(&self, why: &str) {
        tracing::error!(migration = %self.entry.id, container = %self.entry.container, why, "a container is killed: its memory cannot be fetched any more");
        loop {
            let (later, reason) = (Arc::clone(&self.later), why.to_owned());
            match blocking(Phase::Fill, move || later.lose(&reason)).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(migration = %self.entry.id, "it could not be killed, and is again: {}", error.chain());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn connect(&mut self) -> Result<Link, End> {
        let connected = tokio::time::timeout(CONNECTS_WITHIN, self.greet()).await;
        connected.unwrap_or_else(|_| Err(End::Broken("it does not answer".to_owned())))
    }

    async fn greet(&mut self) -> Result<Link, End> {
        let broken = |error: &dyn std::fmt::Display| End::Broken(error.to_string());
        let dialled = self.world.dial.dial(&self.entry.peer).await;
        let mut stream = dialled.map_err(|error| broken(&error))?;
        let hello = Message::Hello {
            oldest: OLDEST_VERSION,
            newest: NEWEST_VERSION,
            migration: self.entry.id,
            purpose: Purpose::Fetch { rate: self.rate },
        };
        let said = bare::say(&mut stream, &hello).await;
        said.map_err(|error| broken(&error))?;
        let answer = bare::wait_for(&mut stream).await;
        match answer.map_err(|error| End::Broken(error.chain()))? {
            Message::Welcome { .. } => {
                self.heard = Instant::now();
                Ok(Link::new(stream, CancellationToken::new()))
            }
            Message::Gone { why } => Err(End::Gone(why)),
            Message::Failed { why } => Err(End::Broken(why)),
            other => Err(End::Broken(
                MigrationError::unexpected(&other, Phase::Fill).to_string(),
            )),
        }
    }

    /// Fetches over a connection.
    async fn over(&mut self, link: &mut Link) -> End {
        self.later.begin();
        let (wake, phase) = (self.later.wake(), Phase::Fill);
        let mut window = Window::new();
        let mut look = tokio::time::interval(LOOK);
        loop {
            if let Err(end) = self.ask(link, &mut window).await {
                return end;
            }
            let inbound = tokio::select! {
                inbound = link.receive(phase) => inbound,
                () = wake.notified() => continue,
                _ = look.tick() => {
                    if self.is_over() {
                        return End::Over;
                    }
                    if window.stalls() {
                        return End::Broken("it does not give what it was asked for".to_owned());
                    }
                    continue;
                }
            };
            let batch = match inbound {
                Ok(Inbound::Data(frame)) if frame.kind == Kind::Pages => frame.payload,
                Ok(Inbound::Data(frame)) => {
                    return End::Broken(format!("it sent a frame of {:?}", frame.kind));
                }
                Ok(Inbound::Message(Message::Gone { why })) => return End::Gone(why),
                Ok(Inbound::Message(other)) => {
                    return End::Broken(MigrationError::unexpected(&other, phase).to_string());
                }
                Err(error) => return End::Broken(error.chain()),
            };
            let later = Arc::clone(&self.later);
            let taken = blocking(phase, move || {
                let numbered = Numbered::decode(&batch)?;
                later.take(numbered.batch)
            });
            match taken.await {
                Ok(pages) => window.came(pages),
                Err(error) => return End::Broken(error.chain()),
            }
            self.heard = Instant::now();
            if self.later.missing() == Pages(0) {
                return End::Over;
            }
        }
    }

    /// Asks for what somebody waits for, and for as much else as may be on its way.
    async fn ask(&mut self, link: &Link, window: &mut Window) -> Result<(), End> {
        let urgent = self.later.wanted();
        self.on_demand += window.asked(&urgent);
        self.send(link, urgent, true).await?;
        let mut other = Vec::new();
        while let Some(room) = window.room() {
            let Some(run) = self.later.next(room) else {
                break;
            };
            self.pushed += window.asked(&[run]);
            other.push(run);
        }
        self.send(link, other, false).await
    }

    async fn send(&self, link: &Link, runs: Vec<Run>, urgent: bool) -> Result<(), End> {
        for runs in runs.chunks(MOST_RUNS) {
            let ask = Ask {
                urgent,
                runs: runs.to_vec(),
            };
            let sent = link.outbox().put(Kind::Ask, ask.encode()).await;
            sent.map_err(|error| End::Broken(error.to_string()))?;
        }
        Ok(())
    }
}

/// How much is on its way, and how much may be.
struct Window {
    out: u64,
    most: u64,
    /// When what is on its way was asked for, or the last of it came.
    moved: Instant,
    /// How long the first of it was on its way, when nothing else was.
    way: Option<Duration>,
    /// What came, and since when, by which the link is measured.
    came: u64,
    since: Instant,
}

impl Window {
    fn new() -> Self {
        Self {
            out: 0,
            most: WINDOW.0 * 4,
            moved: Instant::now(),
            way: None,
            came: 0,
            since: Instant::now(),
        }
    }

    /// How many pages may be asked for that nobody waits for.
    fn room(&self) -> Option<u32> {
        (self.out + u64::from(PIECE) <= self.most).then_some(PIECE)
    }

    fn asked(&mut self, runs: &[Run]) -> Pages {
        let pages = runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
        if self.out == 0 {
            self.moved = Instant::now();
        }
        self.out += pages;
        Pages(pages)
    }

    fn came(&mut self, pages: Pages) {
        let way = *self.way.get_or_insert_with(|| self.moved.elapsed());
        self.moved = Instant::now();
        self.out = self.out.saturating_sub(pages.0);
        self.came += pages.0;
        let took = self.since.elapsed();
        if took >= BEHIND {
            // As much as comes in that time, and on the way there and back.
            let time = BEHIND + way.min(STALLS_AFTER);
            let pace = self.came as f64 / took.as_secs_f64() * time.as_secs_f64();
            let full = self.out + pages.0 >= self.most / 2;
            let wished = if full { (pace * 2.0) as u64 } else { self.most };
            self.most = wished.clamp(WINDOW.0, WINDOW.1);
            (self.came, self.since) = (0, Instant::now());
        }
    }

    /// Whether nothing has come for too long. Something always is to come.
    fn stalls(&self) -> bool {
        self.moved.elapsed() >= STALLS_AFTER
    }
}

#[cfg(test)]
mod test {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_window_opens_to_what_the_link_carries_and_never_closes() {
        let mut window = Window::new();
        let run = |pages| Run {
            process: 1,
            address: 0,
            pages,
        };
        for (pages, most) in [(1 << 20, WINDOW.1), (1, WINDOW.0)] {
            window.asked(&[run(pages)]);
            window.out = window.most + u64::from(pages);
            window.since = Instant::now().checked_sub(BEHIND).unwrap();
            window.came(Pages(pages.into()));
            assert_eq!(window.most, most, "{pages}");
        }
        window.out = 0;
        assert_eq!(window.room(), Some(PIECE));
        window.out = window.most;
        assert_eq!(window.room(), None);
        assert!(!window.stalls());
        window.moved = Instant::now().checked_sub(STALLS_AFTER).unwrap();
        assert!(window.stalls());
    }

    #[tokio::test]
    async fn a_source_with_pages_on_their_way_hears_the_end_before_the_connection_goes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (far, _) = listener.accept().await.unwrap();
        let mut source = Link::new(far, CancellationToken::new());
        let ending = Ending {
            fetched: Fetched {
                on_demand: Pages(3),
                ..Fetched::default()
            },
            link: Some(Link::new(near.unwrap(), CancellationToken::new())),
        };
        let told = tokio::spawn(ending.tell());
        match source.receive(Phase::Fill).await {
            Ok(Inbound::Message(Message::Fetched(fetched))) => {
                assert_eq!(fetched.on_demand, Pages(3));
            }
            other => panic!("heard {other:?}"),
        }
        for _ in 0..200 {
            let sent = source.outbox().put(Kind::Pages, vec![0; 1 << 16]).await;
            sent.expect("it still listens");
        }
        source.close().await;
        told.await.unwrap();
    }
}
