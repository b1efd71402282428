//! A container of this host on its way to another: the rooms' side of [`Movable`] and of what follows it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::checkpoint::{
    Held as HeldDump, Precopy, Standby, Subject, end_repair, for_each_chunk, mapped_files,
};
use crate::container::shim::Client;
use crate::container::{Record, place};
use crate::daemon::Context;
use crate::memory::{HashTracker, Tracker};
use crate::migration::codec::{Chunk, Kind};
use crate::migration::{Cause, HandedOver, Held, Movable, Offer, Outbox, RoundStats, Summary};
use crate::model::{
    Bytes, ContainerState, Finding, MigrationId, MigrationOptions, Name, Pages, Spans, Step,
    TrackerChoice,
};
use crate::storage::{Snapshot, send_all, send_changes, tree_bytes};

use super::remains;

/// How long a container may take to stand still.
const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// How long CRIU may hold tasks after its client has gone.
const LET_GO_WITHIN: Duration = Duration::from_secs(20);
/// The blackout of an empty container, as measured with these namespaces.
const FIXED: Duration = Duration::from_millis(60);

/// A running container that may leave.
pub struct Departure {
    parts: Parts,
    options: MigrationOptions,
    rounds: Option<Rounds>,
    snapshot: Option<Snapshot>,
    /// The inode numbers of the pipes of its output. Asked for at the begin, so that it can do without its
    /// shim from then on.
    stdio: Option<[u64; 2]>,
}

/// What copies its memory, from the first round to the dump.
struct Rounds {
    precopy: Precopy,
    standby: Standby,
}

/// What is known of a container that leaves, whatever has become of it.
#[derive(Clone)]
struct Parts {
    context: Arc<Context>,
    id: MigrationId,
    to: Name,
    record: Record,
    pid: i32,
}

impl Departure {
    /// The container of this record, which runs.
    pub fn new(
        context: &Arc<Context>,
        id: MigrationId,
        to: &Name,
        record: Record,
        pid: i32,
        options: MigrationOptions,
    ) -> Self {
        let context = Arc::clone(context);
        let to = to.clone();
        Self {
            parts: Parts {
                context,
                id,
                to,
                record,
                pid,
            },
            options,
            rounds: None,
            snapshot: None,
            stdio: None,
        }
    }
}

impl Parts {
    fn name(&self) -> &Name {
        &self.record.spec.name
    }

    fn directory(&self) -> PathBuf {
        remains::directory(&self.context, self.id)
    }

    fn memory(&self) -> Result<Bytes, Cause> {
        let procs = self.context.host.cgroup(self.name()).procs()?;
        Ok(procs.into_iter().filter_map(resident).sum())
    }

    /// It runs here: gate open, tasks thawed, nothing of the migration left. Idempotent.
    fn go_on(&self) -> Result<(), Cause> {
        let host = &self.context.host;
        let cgroup = host.cgroup(self.name());
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
        let attached = host.network.attach(self.name());
        let thawed = cgroup.thaw();
        let announced = host
            .network
            .announce(&self.record.spec.lease, &host.netns(self.name()));
        let cleared = remains::remove_directory(&self.directory());
        let mut record = Record::load(host, self.name())?;
        record.state = ContainerState::Running;
        record.migration = None;
        record.save(host)?;
        thawed?;
        attached?;
        announced?;
        cleared?;
        Ok(())
    }

    fn frozen(self, dump: Option<HeldDump>) -> HeldDeparture {
        HeldDeparture(Some(Frozen {
            parts: self,
            snapshot: None,
            stdio: None,
            rounds: None,
            dump,
            spans: Spans::new(Instant::now),
        }))
    }
}

impl Movable for Departure {
    type Held = HeldDeparture;

    fn offer(&mut self) -> Result<Offer, Cause> {
        let host = &self.parts.context.host;
        self.stdio = Some(stdio_inodes(&host.run(self.parts.name()), self.parts.pid)?);
        Ok(Offer {
            migration: self.parts.id,
            spec: self.parts.record.spec.clone(),
            generation: self.parts.record.generation,
            created_at: self.parts.record.created_at,
            facts: self.parts.context.facts.clone(),
            memory: self.parts.memory()?,
            files: tree_bytes(&host.upper(self.parts.name()))?,
            options: MigrationOptions::default(),
        })
    }

    fn findings(&mut self) -> Result<Vec<Finding>, Cause> {
        let cgroup = self.parts.context.host.cgroup(self.parts.name());
        let mut findings = super::obstacle::find(&cgroup.procs()?, self.parts.pid);
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
        let lower = self
            .parts
            .context
            .images
            .lower(self.parts.record.spec.image);
        send_all(&lower, &mut |record| into(outbox, Kind::Image, record))?;
        Ok(())
    }

    fn send_files(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        let upper = self.parts.context.host.upper(self.parts.name());
        let (snapshot, _) = send_all(&upper, &mut |record| into(outbox, Kind::Storage, record))?;
        self.snapshot = Some(snapshot);
        Ok(())
    }

    fn can_precopy(&self) -> bool {
        true
    }

    fn tracker(&self) -> TrackerChoice {
        TrackerChoice::Hash
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

    fn fixed_blackout(&self) -> Duration {
        FIXED
    }

    fn freeze(mut self) -> Result<HeldDeparture, Cause> {
        // Before anything stands still: what the dump needs is there.
        self.rounds()?;
        let spans = Spans::new(Instant::now);
        let host = &self.parts.context.host;
        let name = self.parts.name();
        let step = spans.begin("close the gate");
        host.network.detach(name)?;
        drop(step);
        let step = spans.begin("freeze");
        if let Err(error) = host.cgroup(name).freeze(FREEZE_WITHIN) {
            self.parts.go_on()?;
            return Err(error.into());
        }
        drop(step);
        let Self {
            parts,
            rounds,
            snapshot,
            stdio,
            ..
        } = self;
        Ok(HeldDeparture(Some(Frozen {
            parts,
            snapshot,
            stdio,
            rounds,
            dump: None,
            spans,
        })))
    }
}

impl Departure {
    /// What copies its memory; made when it is needed first.
    fn rounds(&mut self) -> Result<&mut Rounds, Cause> {
        if self.rounds.is_none() {
            let context = &self.parts.context;
            let criu = context
                .criu
                .as_ref()
                .ok_or("CRIU cannot be used on this host")?;
            fs::create_dir_all(self.parts.directory().join("images"))?;
            let cgroup = context.host.cgroup(self.parts.name());
            let tracker: Box<dyn Tracker> = Box::new(HashTracker::new());
            self.rounds = Some(Rounds {
                precopy: Precopy::new(cgroup, tracker, self.options.compress)?,
                standby: Standby::start(criu, criu.hides_pages().is_ok())?,
            });
        }
        Ok(self.rounds.as_mut().expect("made above"))
    }
}

struct Frozen {
    parts: Parts,
    snapshot: Option<Snapshot>,
    stdio: Option<[u64; 2]>,
    rounds: Option<Rounds>,
    dump: Option<HeldDump>,
    spans: Spans,
}

/// A container that is frozen, its gate closed. Dropping it resumes it.
pub struct HeldDeparture(Option<Frozen>);

impl HeldDeparture {
    /// What a daemon before this one may have left of a container that was leaving.
    pub fn after_restart(
        context: &Arc<Context>,
        id: MigrationId,
        to: &Name,
        record: Record,
    ) -> Self {
        let (context, to) = (Arc::clone(context), to.clone());
        Parts {
            context,
            id,
            to,
            record,
            pid: 0,
        }
        .frozen(None)
    }

    fn frozen(&mut self) -> &mut Frozen {
        self.0
            .as_mut()
            .expect("held until it is resumed or handed over")
    }
}

impl Frozen {
    fn resume(self) -> Result<(), Cause> {
        if let Some(dump) = self.dump {
            dump.release();
        }
        self.parts.go_on()
    }
}

impl Held for HeldDeparture {
    type HandedOver = HandedOverDeparture;

    fn dump(&mut self, outbox: &Outbox) -> Result<Summary, Cause> {
        let frozen = self.frozen();
        let (parts, spans) = (&frozen.parts, &frozen.spans);
        let host = &parts.context.host;
        let images = parts.directory().join("images");
        let netns = host.netns(parts.name());
        let subject = Subject {
            pid: parts.pid,
            cgroup: host.cgroup(parts.name()),
            images: images.clone(),
            netns_inode: fs::metadata(&netns)?.ino(),
        };
        let stdio_inodes = frozen.stdio.ok_or("the container's output is not known")?;
        let Rounds {
            mut precopy,
            standby,
        } = frozen
            .rounds
            .take()
            .ok_or("the rounds of this migration are lost")?;
        let out = |frame| into(outbox, Kind::Pages, frame);
        let dump = HeldDump::dump(standby, &subject, &mut precopy, &out, spans)?;
        let pages = dump.pages;
        frozen.dump = Some(dump);
        // Without them it asks anew, and its first answers are late.
        let step = spans.begin("read the neighbours");
        let neighbours = parts.context.network.neighbours(&netns);
        drop(step);
        let _step = spans.begin("send the images");
        let images = for_each_chunk(&images, &mut |name, offset, bytes| {
            let chunk = Chunk {
                name,
                offset,
                bytes,
            };
            into(outbox, Kind::Dump, chunk.encode())
        })?;
        Ok(Summary {
            images,
            pages,
            stdio_inodes,
            neighbours: neighbours.unwrap_or_default(),
        })
    }

    fn send_changes(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        let frozen = self.frozen();
        let _step = frozen.spans.begin("send changed files");
        let parts = &frozen.parts;
        let snapshot = frozen
            .snapshot
            .as_ref()
            .ok_or("the first pass of files is lost")?;
        let suspects = mapped_files(&parts.context.host.cgroup(parts.name()))?;
        let upper = parts.context.host.upper(parts.name());
        let mut sink = |record| into(outbox, Kind::Storage, record);
        send_changes(&upper, snapshot, &suspects, &mut sink)?;
        Ok(())
    }

    fn steps(&mut self) -> Vec<Step> {
        self.0
            .as_ref()
            .map_or_else(Vec::new, |frozen| frozen.spans.take())
    }

    fn resume(mut self) -> Result<(), Cause> {
        self.0.take().map_or(Ok(()), Frozen::resume)
    }

    fn hand_over(mut self) -> HandedOverDeparture {
        HandedOverDeparture(
            self.0
                .take()
                .expect("held until it is resumed or handed over"),
        )
    }
}

impl Drop for HeldDeparture {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Frozen::resume) {
            tracing::error!(%error, "a frozen container could not be resumed");
        }
    }
}

/// The frozen copy of a container that was handed over.
pub struct HandedOverDeparture(Frozen);

impl HandedOver for HandedOverDeparture {
    fn settle(self) -> Result<(), Cause> {
        let Frozen { parts, dump, .. } = self.0;
        if let Some(Err(error)) = dump.map(HeldDump::kill) {
            // A CRIU that was killed kills nobody; the cgroup's removal does.
            tracing::warn!(container = %parts.name(), "CRIU did not kill the copy that was handed over: {error}");
        }
        parts.context.outputs().remove(parts.name());
        place::remove(&parts.context.host, parts.name())?;
        parts.context.leases.moved_away(parts.name(), &parts.to)?;
        remains::remove_directory(&parts.directory())?;
        Ok(())
    }

    fn take_back(self) -> Result<(), Cause> {
        self.0.resume()
    }
}

fn into(outbox: &Outbox, kind: Kind, payload: Vec<u8>) -> io::Result<()> {
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
