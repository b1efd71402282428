//! A dump that stops at the last moment: everything is written, and the tasks may still go either way.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use super::precopy::SharedOut;
use super::{CheckpointError, Precopy, Standby};
use crate::cgroup::Cgroup;
use crate::criu::{CriuError, DumpDone, DumpRequest, Leave, Notify, Session, Verdict};
use crate::memory::{
    DumpSink, Entry, MemoryError, PageServer, Pool, Residual, Sender, Sent, SentPages, Space,
};
use crate::model::{Pages, Spans};

/// What is dumped, and where to.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The host process id of the container's first process.
    pub pid: i32,
    /// Its cgroup, frozen.
    pub cgroup: Cgroup,
    /// The directory for the images: exists, is empty, best on a tmpfs.
    pub images: PathBuf,
    /// The inode number of its network namespace, which stays outside of the images.
    pub netns_inode: u64,
}

/// The name under which images know the network namespace that stays outside.
pub(super) const NETNS_KEY: &str = "godwit-netns";

/// A container whose dump is complete. Its tasks stand still: CRIU holds them, and their cgroup is frozen, so
/// that they go on standing still if CRIU or this process dies. Dropping it releases them into the frozen
/// cgroup: thawing it resumes them.
#[derive(Debug)]
pub struct Held {
    verdict: Option<SyncSender<Verdict>>,
    conversation: Option<JoinHandle<Result<DumpDone, CriuError>>>,
    /// Pages it has.
    pub pages: Pages,
    /// What was sent of them since the freeze.
    pub sent: Sent,
}

impl Held {
    /// Dumps a frozen container. Memory goes through `out` as page frames, less what the rounds have sent; the
    /// rest into the directory for images. On failure the tasks are in their frozen cgroup as before.
    ///
    /// CRIU never sees the private memory of the tasks where it can be kept from it ([`Standby::start`]): what
    /// [`Precopy::look`] has found unsent of it is sent while CRIU dumps everything else. `rounds` must live until
    /// the tasks are dead or about to go on: see [`Precopy::release`].
    ///
    /// # Errors
    /// When CRIU refuses, names the reason out of its log; when `out` fails, with its error.
    pub fn dump(
        standby: Standby,
        subject: &Subject,
        rounds: &mut Precopy,
        out: &SharedOut<'_>,
        spans: &Spans,
    ) -> Result<Self, CheckpointError> {
        let Standby {
            session,
            server,
            page_server,
            ..
        } = standby;
        let residual = rounds.take_residual();
        let _step = spans.begin("criu dump");
        let request = DumpRequest {
            page_server: Some(page_server),
            freeze_cgroup: Some(subject.cgroup.path().to_owned()),
            external: vec![format!("net[{}]:{NETNS_KEY}", subject.netns_inode)],
            leave: Leave::Dead,
            ..DumpRequest::new(subject.pid, &subject.images)
        };
        let (arrived, at_the_end) = mpsc::sync_channel(1);
        let (verdict, wait) = mpsc::sync_channel(1);
        let cgroup = subject.cgroup.clone();
        let conversation =
            thread::spawn(move || converse(session, &request, &cgroup, &arrived, &wait));
        let mut held = Self {
            verdict: Some(verdict),
            conversation: Some(conversation),
            pages: Pages(0),
            sent: Sent::default(),
        };
        match held.pages_through(server, residual, rounds, out, &at_the_end, spans) {
            Ok(()) => Ok(held),
            // CRIU says why it ended more clearly than its broken connection does; our own failure is the cause
            // of CRIU's, though.
            Err(source @ MemoryError::Send { .. }) => {
                held.end(Verdict::Refuse).ok();
                Err(memory(source))
            }
            Err(source) => match held.end(Verdict::Refuse) {
                Err(error) => Err(error),
                Ok(_) => Err(memory(source)),
            },
        }
    }

    /// Sends what CRIU tells, and beside it the residual, until both are through and CRIU is at its last step.
    fn pages_through(
        &mut self,
        server: PageServer,
        residual: Option<Residual>,
        rounds: &Precopy,
        out: &SharedOut<'_>,
        at_the_end: &Receiver<()>,
        spans: &Spans,
    ) -> Result<(), MemoryError> {
        let (known, pool) = (rounds.sent(), rounds.pool());
        let lists: Vec<(Space, Vec<Entry>)> = residual
            .iter()
            .flat_map(|residual| &residual.spaces)
            .map(|owned| (owned.space, owned.list.clone()))
            .collect();
        let owned: Pages = lists
            .iter()
            .flat_map(|(_, list)| list)
            .map(|entry| Pages(entry.pages.into()))
            .sum();
        let stopper = server.stopper()?;
        thread::scope(|scope| {
            let rest = residual.as_ref().map(|residual| {
                scope.spawn(|| {
                    let _step = spans.begin("send the residual");
                    let sent = send_residual(residual, known, pool, out);
                    if sent.is_err() {
                        stopper.stop();
                    }
                    sent
                })
            });
            let mut piece = |frame| out(frame);
            let mut sender = Sender::new(pool, &mut piece);
            let mut sink = DumpSink::new(&mut sender, known, false).with_owned(lists);
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
            at_the_end
                .recv()
                .map_err(|_| MemoryError::PageServerUnfinished)
        })
    }

    /// It runs elsewhere: CRIU kills every task. What CRIU could not kill any more, because it was killed
    /// itself, is left to whoever removes the cgroup.
    ///
    /// # Errors
    /// What CRIU said.
    pub fn kill(mut self) -> Result<(), CheckpointError> {
        self.end(Verdict::Continue).map(drop)
    }

    /// It goes on here: CRIU lets go of the tasks, undoes its traces and leaves them in their frozen cgroup.
    pub fn release(mut self) {
        // Refusing is how CRIU is told, so an error is what it answers.
        self.end(Verdict::Refuse).ok();
    }

    fn end(&mut self, verdict: Verdict) -> Result<Option<DumpDone>, CheckpointError> {
        if let Some(sender) = self.verdict.take() {
            // Nobody listens when CRIU has failed before.
            sender.send(verdict).ok();
        }
        let Some(thread) = self.conversation.take() else {
            return Ok(None);
        };
        let result = thread.join().map_err(|_| CheckpointError::Silent)?;
        result.map(Some).map_err(|source| CheckpointError::Criu {
            operation: "dump",
            source,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end(Verdict::Refuse).ok();
    }
}

/// Sends what of the frozen memory is unsent.
fn send_residual(
    residual: &Residual,
    known: &SentPages,
    pool: &Pool,
    out: &SharedOut<'_>,
) -> Result<Sent, MemoryError> {
    let mut piece = |frame| out(frame);
    let mut sender = Sender::new(pool, &mut piece);
    residual.send(known, &mut sender)?;
    sender.flush()?;
    Ok(sender.sent())
}

fn memory(source: MemoryError) -> CheckpointError {
    CheckpointError::Memory {
        operation: "sent",
        source,
    }
}

/// Speaks with CRIU to the end. At the last step the cgroup is frozen again, which fences the tasks whatever
/// becomes of CRIU, and only then the owner is told.
fn converse(
    session: Session,
    request: &DumpRequest,
    cgroup: &Cgroup,
    arrived: &SyncSender<()>,
    verdict: &Receiver<Verdict>,
) -> Result<DumpDone, CriuError> {
    let mut judge = |step| match step {
        Notify::PostDump => {
            if let Err(error) = cgroup.request_freeze() {
                tracing::error!(%error, "a dumped container could not be fenced");
                return Verdict::Refuse;
            }
            if arrived.send(()).is_err() {
                return Verdict::Refuse;
            }
            // An owner that is gone has not handed over.
            verdict.recv().unwrap_or(Verdict::Refuse)
        }
        _ => Verdict::Continue,
    };
    session.dump(request, &mut judge)
}
