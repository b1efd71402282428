//! The conversation with a CRIU that dumps, on a thread of its own, and the places where it waits for its owner.

use std::sync::mpsc::{self, Receiver, RecvError, SyncSender};
use std::thread::{self, JoinHandle};

use super::CheckpointError;
use crate::cgroup::Cgroup;
use crate::criu::{CriuError, DumpDone, DumpRequest, Notify, Session, Verdict};

/// A dump that was asked for. CRIU waits in three places: before it touches the tasks, until they stand still
/// ([`Self::begin`]); when it has them, until no frame reaches them ([`Self::unreached`]); and at its last step, for a
/// verdict. Dropping this anywhere before undoes what was done.
#[derive(Debug)]
pub(super) struct Conversation {
    begin: Option<SyncSender<()>>,
    unreached: Option<SyncSender<()>>,
    verdict: Option<SyncSender<Verdict>>,
    at_the_end: Receiver<()>,
    thread: Option<JoinHandle<Result<DumpDone, CriuError>>>,
}

impl Conversation {
    /// Asks for the dump of the tasks of a cgroup.
    pub(super) fn start(session: Session, request: DumpRequest, cgroup: Cgroup) -> Self {
        let (begin, may_begin) = mpsc::sync_channel(1);
        let (unreached, are_unreached) = mpsc::sync_channel(1);
        let (verdict, judged) = mpsc::sync_channel(1);
        let (arrived, at_the_end) = mpsc::sync_channel(1);
        let mut converse = Converse {
            cgroup,
            begin: Some(may_begin),
            unreached: Some(are_unreached),
            arrived,
            verdict: judged,
        };
        let thread =
            thread::spawn(move || session.dump(&request, &mut |step| converse.judge(step)));
        Self {
            begin: Some(begin),
            unreached: Some(unreached),
            verdict: Some(verdict),
            at_the_end,
            thread: Some(thread),
        }
    }

    /// The tasks stand still: CRIU takes hold of them.
    pub(super) fn begin(&mut self) {
        tell(self.begin.take());
    }

    /// No frame reaches the tasks any more: CRIU writes down what they are.
    pub(super) fn unreached(&mut self) {
        self.begin();
        tell(self.unreached.take());
    }

    /// Waits for the last step; an error when CRIU has ended before.
    pub(super) fn wait_for_the_end(&self) -> Result<(), RecvError> {
        self.at_the_end.recv()
    }

    /// Gives the verdict, and waits until CRIU is through; none when that has been done before.
    pub(super) fn end(&mut self, verdict: Verdict) -> Result<Option<DumpDone>, CheckpointError> {
        // Wherever it waits without having been told to go on, it gives up.
        (self.begin, self.unreached) = (None, None);
        if let Some(sender) = self.verdict.take() {
            // Nobody listens when CRIU has failed before.
            sender.send(verdict).ok();
        }
        let Some(thread) = self.thread.take() else {
            return Ok(None);
        };
        let result = thread.join().map_err(|_| CheckpointError::Silent)?;
        result.map(Some).map_err(|source| CheckpointError::Criu {
            operation: "dump",
            source,
        })
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.end(Verdict::Refuse).ok();
    }
}

fn tell(sender: Option<SyncSender<()>>) {
    if let Some(sender) = sender {
        // Nobody listens when CRIU has failed before.
        sender.send(()).ok();
    }
}

/// The other end of it.
struct Converse {
    cgroup: Cgroup,
    begin: Option<Receiver<()>>,
    unreached: Option<Receiver<()>>,
    arrived: SyncSender<()>,
    verdict: Receiver<Verdict>,
}

impl Converse {
    /// Answers a step. At the last one the cgroup is frozen again, which fences the tasks whatever becomes of CRIU, and
    /// only then the owner is told.
    fn judge(&mut self, step: Notify) -> Verdict {
        match step {
            Notify::PreDump => wait(self.begin.take()),
            // The second comes always, and the first only where tasks have a network of their own.
            Notify::NetworkLock | Notify::QueryExternalFiles => wait(self.unreached.take()),
            Notify::PostDump => {
                if self.begin.is_some() || self.unreached.is_some() {
                    return Verdict::Refuse;
                }
                if let Err(error) = self.cgroup.request_freeze() {
                    tracing::error!(%error, "a dumped container could not be fenced");
                    return Verdict::Refuse;
                }
                if self.arrived.send(()).is_err() {
                    return Verdict::Refuse;
                }
                // An owner that is gone has not handed over.
                self.verdict.recv().unwrap_or(Verdict::Refuse)
            }
            _ => Verdict::Continue,
        }
    }
}

/// Waits for a word, where it is still to come; one that never comes is a no.
fn wait(word: Option<Receiver<()>>) -> Verdict {
    match word.map(|word| word.recv()) {
        None | Some(Ok(())) => Verdict::Continue,
        Some(Err(_)) => Verdict::Refuse,
    }
}
