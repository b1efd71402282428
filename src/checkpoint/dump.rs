//! A dump that stops at the last moment: everything is written, and the tasks may still go either way.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use caps::{CapSet, Capability};

use super::CheckpointError;
use crate::cgroup::Cgroup;
use crate::criu::{Criu, CriuError, DumpDone, DumpRequest, Leave, Notify, Session, Spawn, Verdict};
use crate::memory::{DumpSink, MemoryError, Out, PageServer, Pool, Sender, Sent, SentPages};
use crate::model::Pages;

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
    /// Pages it has, as CRIU listed them.
    pub pages: Pages,
    /// What was sent of them.
    pub sent: Sent,
}

impl Held {
    /// Dumps a frozen container. Memory goes through `pool` and `out` as page frames, less what `known` says was sent;
    /// the rest into the directory for images. On failure the tasks are in their frozen cgroup as before.
    ///
    /// # Errors
    /// When CRIU refuses, names the reason out of its log; when `out` fails, with its error.
    pub fn dump(
        criu: &Criu,
        subject: &Subject,
        known: &SentPages,
        pool: &Pool,
        out: &mut Out<'_>,
    ) -> Result<Self, CheckpointError> {
        let memory = |source| CheckpointError::Memory {
            operation: "sent",
            source,
        };
        let (server, theirs) = PageServer::pair(criu.version()).map_err(memory)?;
        let mut spawn = Spawn {
            limits_from_proc: !may_read_limits(),
            ..Spawn::default()
        };
        let request = DumpRequest {
            page_server: Some(spawn.pass(theirs)),
            freeze_cgroup: Some(subject.cgroup.path().to_owned()),
            external: vec![format!("net[{}]:{NETNS_KEY}", subject.netns_inode)],
            leave: Leave::Dead,
            ..DumpRequest::new(subject.pid, &subject.images)
        };
        let (arrived, at_the_end) = mpsc::sync_channel(1);
        let (verdict, wait) = mpsc::sync_channel(1);
        let session = Session::start(criu, spawn).map_err(|source| CheckpointError::Criu {
            operation: "dump",
            source,
        })?;
        let cgroup = subject.cgroup.clone();
        let conversation =
            thread::spawn(move || converse(session, &request, &cgroup, &arrived, &wait));
        let mut held = Self {
            verdict: Some(verdict),
            conversation: Some(conversation),
            pages: Pages(0),
            sent: Sent::default(),
        };
        let mut sender = Sender::new(pool, out);
        let served = server.serve(&mut DumpSink::new(&mut sender, known, false));
        held.sent = sender.sent();
        // CRIU says why it ended more clearly than its broken connection does; our own failure is the cause
        // of CRIU's, though.
        match (served, at_the_end.recv()) {
            (Ok(served), Ok(())) => {
                held.pages = served.pages + served.holes;
                Ok(held)
            }
            (Err(source @ MemoryError::Send { .. }), _) => {
                held.end(Verdict::Refuse).ok();
                Err(memory(source))
            }
            (served, _) => match held.end(Verdict::Refuse) {
                Err(error) => Err(error),
                Ok(_) => Err(served.map_or_else(memory, |_| CheckpointError::Silent)),
            },
        }
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

/// Whether the kernel tells this process the limits of other users' tasks. Where that cannot be found out it is
/// taken for granted, as it is for root nearly everywhere.
fn may_read_limits() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap_or(true)
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
