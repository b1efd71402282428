//! A restore in progress: it runs on a thread of its own, so that the shim goes on listening.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::process::Process;
use super::wire::RestoreRequest;
use super::{Reached, Restorer, ShimStdio};

/// What the thread tells.
pub enum Step {
    /// The processes are there and wait for the verdict; the first has this id.
    Held(i32),
    /// They run; the restorer is not through yet.
    Running(i32),
    /// It is over: the first process's id, or why there is none.
    Over(Result<i32, String>),
}

/// The shim's end of a restore.
pub struct Restoring {
    steps: Receiver<Step>,
    verdict: Sender<bool>,
    /// The first process, once it runs.
    pub process: Option<Process>,
    /// Readable when there is a step to take.
    pub wake: Arc<EventFd>,
}

impl Restoring {
    /// Begins to restore.
    pub fn begin<'scope>(
        scope: &'scope Scope<'scope, '_>,
        restorer: &'scope dyn Restorer,
        request: RestoreRequest,
        stdio: ShimStdio,
    ) -> std::io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let (telling, steps) = channel();
        let (verdict, hearing) = channel::<bool>();
        let waker = wake.clone();
        scope.spawn(move || {
            let tell = |step| {
                // The shim listens for as long as this thread lives: both are in one scope.
                let _ = telling.send(step);
                let _ = waker.write(1);
            };
            let mut reached = |reached| match reached {
                Reached::Held(pid) => {
                    tell(Step::Held(pid));
                    // A shim that goes away without a verdict has not let it run.
                    hearing.recv().unwrap_or(false)
                }
                Reached::Running(pid) => {
                    tell(Step::Running(pid));
                    true
                }
            };
            let result = restorer.restore(&request, &stdio, &mut reached);
            // Before anybody hears of it: the processes must be the only ones that can write to their pipes.
            drop(stdio);
            tell(Step::Over(result));
        });
        Ok(Self {
            steps,
            verdict,
            process: None,
            wake,
        })
    }

    /// The next step, if there is one.
    pub fn next(&self) -> Option<Step> {
        self.steps.try_recv().ok()
    }

    /// Takes note of a wake-up: until the next step there is nothing to read.
    pub fn acknowledge(&self) {
        // It is only called when there is something to read.
        let _ = self.wake.read();
    }

    /// Gives the verdict.
    pub fn decide(&self, go: bool) {
        // A thread that is over already needs no verdict.
        let _ = self.verdict.send(go);
    }
}
