//! A container of this host on its way to another: the rooms' side of [`Movable`].

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cgroup::{Cgroup, Throttle};
use crate::checkpoint::{Precopy, Standby, Subject, end_repair};
use crate::container::shim::Client;
use crate::daemon::Context;
use crate::memory::tracker;
use crate::migration::codec::Kind;
use crate::migration::message::NullName;
use crate::migration::{Cause, Movable, NamedSegment, Offer, Outbox, RoundStats};
use crate::model::{
    Bytes, Finding, MigrationId, MigrationOptions, Name, Pages, Spans, TrackerChoice,
};
use crate::storage::{Snapshot, send_all, tree_bytes};

use super::backlog::Listeners;
use super::frozen::{Frozen, HeldDeparture};
use super::home::Home;
use super::obstacle::Scene;
use super::{remains, restored, streams, watches};

/// How long a container may take to stand still.
pub const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// How long CRIU may hold tasks after its client has gone.
const LET_GO_WITHIN: Duration = Duration::from_secs(20);
/// The blackout of an empty container, as measured with these namespaces.
const FIXED: Duration = Duration::from_millis(60);

/// As many segments of shared memory as are told of beforehand.
const MOST_SEGMENTS: usize = 1024;

/// A running container that may leave.
pub struct Departure {
    parts: Parts,
    options: MigrationOptions,
    throttle: Throttle,
    rounds: Option<Rounds>,
    /// Asked when it is frozen, and opened before.
    listeners: Option<Listeners>,
    snapshot: Option<Snapshot>,
    /// The inode numbers of the pipes of its output. Asked for at the begin, so that it can do without its
    /// shim from then on.
    stdio: Option<[u64; 2]>,
    /// `/dev/null` of its host among its streams.
    null: Option<NullName>,
    /// What was found of it before this was made.
    findings: Vec<Finding>,
}

/// What copies its memory, from the first round to the dump.
pub struct Rounds {
    /// Goes first: the rounds leave nothing in tasks that CRIU holds.
    pub standby: Standby,
    pub precopy: Precopy,
}

/// What is known of a container that leaves, whatever has become of it.
#[derive(Clone)]
pub struct Parts {
    pub context: Arc<Context>,
    pub id: MigrationId,
    pub to: Name,
    pub home: Home,
    pub pid: i32,
}

impl Departure {
    /// The container that is there, which runs; `findings`: what is known already of what prevents it.
    pub fn new(
        context: &Arc<Context>,
        id: MigrationId,
        to: &Name,
        (home, pid, findings): (Home, i32, Vec<Finding>),
        options: MigrationOptions,
    ) -> Self {
        let throttle = Throttle::new(home.cgroup(context), home.spec().limits.clone());
        let context = Arc::clone(context);
        let to = to.clone();
        Self {
            parts: Parts {
                context,
                id,
                to,
                home,
                pid,
            },
            options,
            throttle,
            rounds: None,
            listeners: None,
            snapshot: None,
            stdio: None,
            null: None,
            findings,
        }
    }
}

impl Parts {
    pub fn name(&self) -> &Name {
        &self.home.spec().name
    }

    pub fn cgroup(&self) -> Cgroup {
        self.home.cgroup(&self.context)
    }

    pub fn directory(&self) -> PathBuf {
        remains::directory(&self.context, self.id)
    }

    fn memory(&self) -> Result<Bytes, Cause> {
        let procs = self.cgroup().procs()?;
        Ok(procs.into_iter().filter_map(resident).sum())
    }

    /// Its shared memory, as far as there is much to be gained by telling of it before.
    fn segments(&self) -> Result<Vec<NamedSegment>, Cause> {
        let procs = self.cgroup().procs()?;
        let mut segments = tracker::memfd_names(&procs)?;
        segments.truncate(MOST_SEGMENTS);
        let named = |(inode, name)| NamedSegment { inode, name };
        Ok(segments.into_iter().map(named).collect())
    }

    /// It runs here: gate open, tasks thawed, nothing of the migration left. Idempotent.
    pub fn go_on(&self) -> Result<(), Cause> {
        let cgroup = self.cgroup();
        if !cgroup.path().exists() {
            return self.has_ended();
        }
        remains::wait_until_untraced(&cgroup, LET_GO_WITHIN);
        match end_repair(&cgroup) {
            Ok(0) => {}
            Ok(count) => {
                tracing::warn!(container = %self.name(), count, "connections that CRIU has left in repair were mended")
            }
            Err(error) => {
                tracing::error!(container = %self.name(), "a connection that CRIU has left in repair is lost: {error}")
            }
        }
        // The gate first: what arrives before the tasks run waits in their sockets.
        let attached = self.home.attach(&self.context);
        let unthrottled = self.home.unthrottle(&self.context);
        let thawed = cgroup.thaw();
        let stays = self.home.stays(&self.context);
        // What is known of a container of a bundle goes when it is the command line's again.
        let cleared = remains::remove_directory(&self.directory());
        stays?;
        thawed?;
        unthrottled?;
        attached?;
        cleared?;
        Ok(())
    }

    /// Its host went down while it was on its way, and nothing of it is left here but its files: whoever watches it from
    /// now on draws the conclusion, and starts it again where that is its policy.
    fn has_ended(&self) -> Result<(), Cause> {
        tracing::warn!(container = %self.name(), "it has ended with its host before it could move");
        self.home.stays(&self.context)?;
        Ok(remains::remove_directory(&self.directory())?)
    }
}

impl Movable for Departure {
    type Held = HeldDeparture;

    fn offer(&mut self) -> Result<Offer, Cause> {
        remains::wait_until_whole(&self.parts.context, self.parts.name())?;
        let (context, home) = (&self.parts.context, &self.parts.home);
        self.stdio = Some(match home {
            Home::Own(_) => stdio_inodes(&context.host.run(self.parts.name()), self.parts.pid)?,
            Home::Bundle(_) => streams::pipes(self.parts.pid),
        });
        Ok(Offer {
            migration: self.parts.id,
            spec: home.spec().clone(),
            generation: home.generation(),
            created_at: home.created_at(),
            facts: context.facts.clone(),
            memory: self.parts.memory()?,
            files: tree_bytes(&home.layer(context))?,
            options: MigrationOptions::default(),
            segments: self.parts.segments()?,
        })
    }

    fn findings(&mut self) -> Result<Vec<Finding>, Cause> {
        let mut findings = self.findings.clone();
        findings.extend(super::obstacle::find(&Scene {
            procs: self.parts.cgroup().procs()?,
            first: self.parts.pid,
            stdio: self.stdio,
            null: streams::null(self.parts.pid),
        }));
        findings.extend(self.untracked());
        if self.parts.context.criu.is_none() {
            let why = self
                .parts
                .context
                .facts
                .criu_problem
                .as_deref()
                .unwrap_or("it was not found");
            let text = format!("CRIU cannot be used on this host: {why}; run scripts/setup");
            findings.push(Finding::blocking("criu-incompatible", text));
        }
        Ok(findings)
    }

    fn send_image(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        let lower = self.parts.home.image(&self.parts.context)?;
        send_all(&lower, &mut |record| into(outbox, Kind::Image, record))?;
        Ok(())
    }

    fn send_files(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        let layer = self.parts.home.layer(&self.parts.context);
        let (snapshot, _) = send_all(&layer, &mut |record| into(outbox, Kind::Storage, record))?;
        self.snapshot = Some(snapshot);
        Ok(())
    }

    fn can_precopy(&self) -> bool {
        true
    }

    fn tracker(&self) -> TrackerChoice {
        self.kind()
    }

    fn round(&mut self, _: u32, outbox: &Outbox) -> Result<RoundStats, Cause> {
        let rounds = self.rounds()?;
        let round = rounds
            .precopy
            .round(&|frame| into(outbox, Kind::Pages, frame))?;
        Ok(RoundStats {
            scanned: round.scanned,
            sent: round.changed,
        })
    }

    fn throttle(&mut self, percent: Option<u32>) -> Result<bool, Cause> {
        if self.parts.home.is_bundle() {
            // Its limits are its engine's, and may be finer than what is known of them here.
            return Ok(false);
        }
        Ok(self.throttle.set(percent)?)
    }

    fn fixed_blackout(&self) -> Duration {
        FIXED
    }

    fn cannot_leave_behind(&self) -> Option<String> {
        if self.kind() == TrackerChoice::Criu {
            return Some("the tracker criu has CRIU dump all memory".to_owned());
        }
        let hides = &self.parts.context.facts.hides_pages;
        let why = format!(
            "CRIU here cannot be kept from reading all memory: {}",
            hides.why
        );
        (!hides.usable).then_some(why)
    }

    fn freeze(mut self) -> Result<HeldDeparture, Cause> {
        // Before anything stands still: what the dump needs is there, and what hardly changes is read. Without its
        // neighbours it asks for them anew, and its first answers are late.
        self.rounds()?;
        let neighbours = self.parts.home.neighbours(&self.parts.context);
        let spans = Spans::new(Instant::now);
        let step = spans.begin("freeze");
        if let Err(error) = self.parts.cgroup().freeze(FREEZE_WITHIN) {
            self.parts.go_on()?;
            return Err(error.into());
        }
        drop(step);
        let Self {
            parts,
            rounds,
            listeners,
            snapshot,
            stdio,
            null,
            ..
        } = self;
        Ok(Frozen {
            parts,
            snapshot,
            stdio,
            rounds,
            listeners,
            early: Vec::new(),
            neighbours,
            null,
            precopy: None,
            dump: None,
            behind: false,
            spans,
        }
        .held())
    }
}

impl Departure {
    /// How changed pages are found: as is wished, or the best way that this kernel has.
    fn kind(&self) -> TrackerChoice {
        let offered = &self.parts.context.facts.trackers;
        match self.options.tracker {
            TrackerChoice::Auto => offered
                .iter()
                .find(|offer| offer.usable)
                .map_or(TrackerChoice::Hash, |offer| offer.kind),
            wished => wished,
        }
    }

    /// Why changed pages cannot be found as is wished.
    fn untracked(&self) -> Option<Finding> {
        let wished = self.kind();
        let offered = &self.parts.context.facts.trackers;
        let offer = offered.iter().find(|offer| offer.kind == wished);
        if offer.is_some_and(|offer| offer.usable) {
            return None;
        }
        let why = offer.map_or("this Godwit does not have it here", |offer| &offer.why);
        let text = format!("the tracker {wished} cannot be used: {why}; leave --tracker out");
        Some(Finding::blocking("tracker-unusable", text))
    }

    /// What copies its memory; made when it is needed first.
    fn rounds(&mut self) -> Result<&mut Rounds, Cause> {
        if self.rounds.is_none() {
            let context = &self.parts.context;
            let criu = context
                .criu
                .as_ref()
                .ok_or("CRIU cannot be used on this host")?;
            let images = self.parts.directory().join("images");
            fs::create_dir_all(&images)?;
            let cgroup = self.parts.cgroup();
            let root = PathBuf::from(format!("/proc/{}/root", self.parts.pid));
            self.null = streams::null(self.parts.pid);
            let (watched, _) = watches::names(&root, &watches::watches(&cgroup.procs()?))?;
            let subject = Subject {
                pid: self.parts.pid,
                cgroup: cgroup.clone(),
                images,
                netns_inode: fs::metadata(self.parts.home.netns(context))?.ino(),
                bound: restored::outside(self.parts.home.spec()),
                null: self.null.map(|name| name.to_string()),
                watched,
            };
            self.listeners = Some(Listeners::of(self.parts.pid));
            let compress = self.options.compress;
            let precopy = match self.kind() {
                TrackerChoice::Criu => Precopy::by_criu(criu, &subject, compress)?,
                kind => Precopy::new(cgroup, tracker::choose(kind), compress)?
                    .with_flags(criu.mapping_flags().ok()),
            };
            let standby = match precopy.parent() {
                Some(parent) => Standby::after(criu, &subject, parent)?,
                None => Standby::start(criu, criu.hides_pages().is_ok(), &subject)?,
            };
            self.rounds = Some(Rounds { standby, precopy });
        }
        Ok(self.rounds.as_mut().expect("made above"))
    }
}

pub fn into(outbox: &Outbox, kind: Kind, payload: Vec<u8>) -> io::Result<()> {
    outbox.send(kind, payload).map_err(io::Error::other)
}

/// The inode numbers of the pipes of a container's output, as its shim knows them. A shim that had to take over
/// without them knows none: then those of its first process, whose output goes on where it arrives.
fn stdio_inodes(run: &Path, first: i32) -> Result<[u64; 2], Cause> {
    let pipes = Client::connect(run)?.pipes()?;
    let inode = |at: usize| -> Result<u64, Cause> {
        let path = match pipes.get(at) {
            Some(pipe) if pipes.len() > 2 => format!("/proc/self/fd/{}", pipe.as_raw_fd()),
            _ => format!("/proc/{first}/fd/{}", at + 1),
        };
        Ok(fs::metadata(path)?.ino())
    };
    Ok([inode(0)?, inode(1)?])
}

/// The resident memory of a process (`statm`, proc_pid_statm(5)); none when it is gone.
fn resident(pid: i32) -> Option<Bytes> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Pages(pages).bytes())
}
