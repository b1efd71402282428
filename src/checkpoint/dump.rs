//! A dump that stops at the last moment: everything is written, and the tasks may still go either way.

use std::path::PathBuf;
use std::thread;

use super::conversation::Conversation;
use super::precopy::{SharedOut, memory};
use super::{CheckpointError, Precopy, Standby};
use crate::cgroup::Cgroup;
use crate::criu::{DumpRequest, Leave, Server, Verdict};
use crate::memory::{
    DumpSink, Entry, MemoryError, PageServer, Pool, Residual, Sender, Sent, SentPages, Space,
};
use crate::model::{Pages, Spans};

/// What is dumped, and where to.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The host process id of the container's first process.
    pub pid: i32,
    /// Its cgroup, frozen when CRIU begins.
    pub cgroup: Cgroup,
    /// The directory for the images: exists, is empty, best on a tmpfs.
    pub images: PathBuf,
    /// The inode number of its network namespace, which stays outside of the images.
    pub netns_inode: u64,
    /// What is mounted in it and stays outside of the images: where, and the name that they have for it.
    pub bound: Vec<(PathBuf, PathBuf)>,
    /// The name of the `/dev/null` among its streams, where that is in none of its mounts.
    pub null: Option<String>,
    /// The paths of what it watches, in it, for those that CRIU would not find.
    pub watched: Vec<PathBuf>,
}

impl Subject {
    /// What is asked of CRIU.
    pub(super) fn request(&self, page_server: i32) -> DumpRequest {
        let mut external = vec![format!("net[{}]:{NETNS_KEY}", self.netns_inode)];
        let mount = |(place, name): &(PathBuf, PathBuf)| {
            format!("mnt[{}]:{}", place.display(), name.display())
        };
        external.extend(self.bound.iter().map(mount));
        external.extend(self.null.clone());
        DumpRequest {
            page_server: Some(Server::Passed(page_server)),
            freeze_cgroup: Some(self.cgroup.path().to_owned()),
            external,
            watched: self.watched.clone(),
            leave: Leave::Dead,
            ..DumpRequest::new(self.pid, &self.images)
        }
    }
}

/// The name under which images know the network namespace that stays outside.
pub(super) const NETNS_KEY: &str = "godwit-netns";

/// A container whose dump is complete. Its tasks stand still: CRIU holds them, and their cgroup is frozen, so
/// that they go on standing still if CRIU or this process dies. Dropping it releases them into the frozen
/// cgroup: thawing it resumes them.
#[derive(Debug)]
pub struct Held {
    conversation: Conversation,
    /// Pages it has.
    pub pages: Pages,
    /// What was sent of them since the freeze, and how many were left behind.
    pub sent: Sent,
}

impl Held {
    /// Dumps a frozen container that no frame reaches any more. Memory goes through `out` as page frames, less what the
    /// rounds have sent; the rest into the directory for images. On failure the tasks are in their frozen cgroup as
    /// before.
    ///
    /// CRIU never sees the private and the shared memory of the tasks where it can be kept from it ([`Standby::start`]): what
    /// [`Precopy::look`] has found unsent of it is sent while CRIU dumps everything else. `rounds` must live until
    /// the tasks are dead or about to go on: see [`Precopy::release`].
    ///
    /// With `behind` what may come after the restore is not sent but left behind, to be read of the frozen tasks
    /// ([`frozen_memory`](super::frozen_memory)).
    ///
    /// # Errors
    /// When CRIU refuses, names the reason out of its log; when `out` fails, with its error.
    pub fn dump(
        standby: Standby,
        rounds: &mut Precopy,
        out: &SharedOut<'_>,
        spans: &Spans,
        behind: bool,
    ) -> Result<Self, CheckpointError> {
        let Standby {
            conversation,
            server,
            ..
        } = standby;
        let residual = rounds.take_residual().map(|residual| (residual, behind));
        let _step = spans.begin("criu dump");
        let mut held = Self {
            conversation,
            pages: Pages(0),
            sent: Sent::default(),
        };
        held.conversation.unreached();
        match held.pages_through(server, residual, rounds, out, spans) {
            Ok(()) => Ok(held),
            // CRIU says why it ended more clearly than its broken connection does; our own failure is the cause
            // of CRIU's, though.
            Err(source @ MemoryError::Send { .. }) => {
                held.conversation.end(Verdict::Refuse).ok();
                Err(memory(source))
            }
            Err(source) => match held.conversation.end(Verdict::Refuse) {
                Err(error) => Err(error),
                Ok(_) => Err(memory(source)),
            },
        }
    }

    /// Sends what CRIU tells, and beside it the residual, until both are through and CRIU is at its last step.
    fn pages_through(
        &mut self,
        server: PageServer,
        residual: Option<(Residual, bool)>,
        rounds: &Precopy,
        out: &SharedOut<'_>,
        spans: &Spans,
    ) -> Result<(), MemoryError> {
        let (known, pool) = (rounds.sent(), rounds.pool());
        let lists: Vec<(Space, Vec<Entry>)> = residual
            .iter()
            .flat_map(|(residual, _)| lists(residual))
            .collect();
        let owned: Pages = lists
            .iter()
            .flat_map(|(_, list)| list)
            .map(|entry| Pages(entry.pages.into()))
            .sum();
        let stopper = server.stopper()?;
        thread::scope(|scope| {
            let rest = residual.as_ref().map(|(residual, behind)| {
                scope.spawn(|| {
                    let _step = spans.begin("send the residual");
                    let sent = send_residual(residual, known, pool, out, *behind);
                    if sent.is_err() {
                        stopper.stop();
                    }
                    sent
                })
            });
            let mut piece = |frame| out(frame);
            let mut sender = Sender::new(pool, &mut piece);
            let mut sink = DumpSink::new(&mut sender, known, false).with_owned(lists);
            if let Some(spaces) = rounds.pre_dumped() {
                sink = sink.after(spaces);
            }
            let served = server.serve(&mut sink);
            self.sent = sender.sent();
            let rest = rest.map(|rest| match rest.join() {
                Ok(sent) => sent,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            // A residual that could not be sent is why CRIU was stopped.
            self.sent = self.sent.with(rest.transpose()?.unwrap_or_default());
            let served = served?;
            self.pages = served.pages + served.holes + owned;
            self.conversation
                .wait_for_the_end()
                .map_err(|_| MemoryError::PageServerUnfinished)
        })
    }

    /// It runs elsewhere: CRIU kills every task. What CRIU could not kill any more, because it was killed
    /// itself, is left to whoever removes the cgroup.
    ///
    /// # Errors
    /// What CRIU said.
    pub fn kill(mut self) -> Result<(), CheckpointError> {
        self.conversation.end(Verdict::Continue).map(drop)
    }

    /// It goes on here: CRIU lets go of the tasks, undoes its traces and leaves them in their frozen cgroup.
    pub fn release(mut self) {
        // Refusing is how CRIU is told, so an error is what it answers.
        self.conversation.end(Verdict::Refuse).ok();
    }
}

/// Every page that CRIU does not see.
fn lists(residual: &Residual) -> impl Iterator<Item = (Space, Vec<Entry>)> + '_ {
    let spaces = residual
        .spaces
        .iter()
        .map(|owned| (owned.space, owned.list.clone()));
    let segments = residual
        .segments
        .iter()
        .map(|owned| (owned.space, owned.list.clone()));
    spaces.chain(segments)
}

/// Sends what of the frozen memory is unsent.
fn send_residual(
    residual: &Residual,
    known: &SentPages,
    pool: &Pool,
    out: &SharedOut<'_>,
    behind: bool,
) -> Result<Sent, MemoryError> {
    let mut piece = |frame| out(frame);
    let mut sender = Sender::new(pool, &mut piece);
    residual.send(known, &mut sender, behind)?;
    sender.flush()?;
    Ok(sender.sent())
}
