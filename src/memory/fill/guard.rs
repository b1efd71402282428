//! Watches over a filler: has a duplicate of everything it works with, and starts another when it dies.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::place;
use super::wire::{ToFiller, ToGuard};
use crate::memory::MemoryError;
use crate::sys::{fdpass, pidfd};

/// How long a filler may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// How often a filler that dies is replaced.
const MOST_SUCCESSORS: u32 = 50;

/// Longer from successor to successor.
const PAUSE: Duration = Duration::from_millis(2);

/// What a fill needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FillPlan {
    /// The godwit program.
    pub program: PathBuf,
    /// The directory of CRIU's images; see [`link_images`](crate::memory::link_images).
    pub images: PathBuf,
    /// The container's cgroup: what is killed when its memory cannot be brought.
    pub cgroup: PathBuf,
}

/// Watches over a filler.
///
/// **Invariant:** from [`Self::sync`] on a filler that dies is replaced, and where that is impossible every process of
/// the container is killed *before* this lets go of the last duplicates of its userfaultfds.
#[derive(Debug)]
pub struct Guard {
    /// Until it is dropped.
    asking: Option<Sender<ToFiller>>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    listens: bool,
    synced: bool,
    over: Option<Result<(), String>>,
}

impl Guard {
    /// Starts a filler and waits until CRIU may come. Nothing of it is left on failure.
    pub fn start(plan: FillPlan) -> Result<Self, MemoryError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = wake.map_err(|e| failed("wake", &plan.program)(e.into()))?;
        let (asking, asked) = channel();
        let guard = Self {
            asking: Some(asking),
            wake: Arc::new(wake),
            shared: Arc::default(),
        };
        let watch = Watch {
            plan,
            asked,
            wake: Arc::clone(&guard.wake),
            shared: Arc::clone(&guard.shared),
            held: BTreeMap::new(),
            connection: None,
            keepers: Vec::new(),
            released: false,
            here: None,
        };
        thread::spawn(move || watch.run());
        guard.wait(LISTENS_WITHIN, |state| state.listens)?;
        Ok(guard)
    }

    /// Whether there is a filler, or has been until all was filled.
    pub fn is_well(&self) -> bool {
        !matches!(self.shared.state().over, Some(Err(_)))
    }

    /// To be called when CRIU has restored everything and nothing runs: waits until everything it has told of is in
    /// safe hands. Only then may the container run.
    pub fn sync(&self, patience: Duration) -> Result<(), MemoryError> {
        self.ask(ToFiller::Sync);
        self.wait(patience, |state| state.synced)
    }

    /// To be called when the container runs: from now on the store is used up.
    pub fn release(&self) {
        self.ask(ToFiller::Release);
    }

    fn ask(&self, message: ToFiller) {
        if let Some(asking) = &self.asking {
            // A watch that is over needs no word.
            let _ = asking.send(message);
        }
        let _ = self.wake.write(1);
    }

    fn wait(&self, patience: Duration, there: impl Fn(&State) -> bool) -> Result<(), MemoryError> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        loop {
            if there(&state) {
                return Ok(());
            }
            if let Some(Err(why)) = &state.over {
                return Err(MemoryError::FillStuck { what: why.clone() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("the filler is silent for {patience:?}");
                return Err(MemoryError::FillStuck { what });
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

/// The thread that watches.
struct Watch {
    plan: FillPlan,
    asked: Receiver<ToFiller>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
    /// The userfaultfds, by the number of their progress.
    held: BTreeMap<u64, OwnedFd>,
    connection: Option<OwnedFd>,
    /// Those of the filler that has last been ready, and of those after it, which were not.
    keepers: Vec<OwnedFd>,
    released: bool,
    /// Says that somebody is here.
    here: Option<Flock<std::fs::File>>,
}

/// How a filler ended.
enum End {
    Filled,
    /// It was killed, or could not go on.
    Died(String),
    /// Whoever owns the guard has dropped it before anything was restored.
    Unwanted,
}

impl Watch {
    fn run(mut self) {
        let mut last = String::new();
        for attempt in 0..=MOST_SUCCESSORS {
            let end = match self.one(attempt > 0) {
                Ok(end) => end,
                Err(error) => End::Died(error.to_string()),
            };
            match end {
                End::Filled => return self.over(Ok(())),
                End::Unwanted => return self.over(Err("it was not wanted any more".to_owned())),
                // Its last word was lost with it.
                End::Died(_) if place::is_over(&self.plan.images) => return self.over(Ok(())),
                End::Died(why) => last = why,
            }
            if !self.shared.state().synced {
                break;
            }
            eprintln!("the filler died and is replaced: {last}");
            thread::sleep(PAUSE * attempt);
        }
        // Before the last duplicates go: what is missing would turn into zeros.
        match place::kill_all(&self.plan.cgroup) {
            Ok(()) => eprintln!("the container was killed: its memory cannot be brought: {last}"),
            Err(error) => eprintln!("the container could not be killed: {error}: {last}"),
        }
        self.over(Err(last));
    }

    fn over(self, result: Result<(), String>) {
        // One that was filled to the end has ended its keeper itself.
        dismiss(&self.keepers);
        self.shared.change(|state| state.over = Some(result));
    }

    /// The life of one filler.
    fn one(&mut self, successor: bool) -> Result<End, MemoryError> {
        let (socket, theirs) = fdpass::pair().map_err(self.failed("speak with"))?;
        let mut child = start(&self.plan, theirs, successor).map_err(self.failed("start"))?;
        let watched = self.watch(&mut child, &socket, successor);
        if !matches!(watched, Ok(End::Filled)) {
            // Whatever it does, it is not to do it beside another.
            let _ = child.kill();
        }
        let status = child.wait().map_err(self.failed("reap"))?;
        match watched? {
            End::Died(why) if why.is_empty() => Ok(End::Died(status.to_string())),
            end => Ok(end),
        }
    }

    fn watch(
        &mut self,
        child: &mut Child,
        socket: &OwnedFd,
        successor: bool,
    ) -> Result<End, MemoryError> {
        if successor {
            self.hand_over(socket)?;
        }
        let process = pidfd::open(child.id().cast_signed()).map_err(self.failed("watch"))?;
        loop {
            let [said, ended, asked] = ready([socket.as_fd(), process.as_fd(), self.wake.as_fd()])
                .map_err(self.failed("watch"))?;
            // What it has said before it ended counts.
            if said {
                match fdpass::receive(socket.as_fd()) {
                    Ok(Some((bytes, mut fds))) => {
                        if let Some(end) = self.hear(&bytes, fds.pop())? {
                            return Ok(end);
                        }
                        continue;
                    }
                    Ok(None) => return Ok(End::Died(String::new())),
                    // It has ended without hearing our last word. That is told before what it has said itself.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                    Err(error) => return Err(self.failed("hear")(error)),
                }
            }
            if ended {
                return Ok(End::Died(String::new()));
            }
            if asked {
                // It is only read when there is something to read.
                let _ = self.wake.read();
                loop {
                    match self.asked.try_recv() {
                        Ok(message) => {
                            self.released |= message == ToFiller::Release;
                            self.say(socket, &message, None)?;
                        }
                        Err(TryRecvError::Disconnected) if !self.released => {
                            return Ok(End::Unwanted);
                        }
                        Err(_) => break,
                    }
                }
            }
        }
    }

    /// Takes what a filler says; how it ends, if it says that.
    fn hear(&mut self, bytes: &[u8], fd: Option<OwnedFd>) -> Result<Option<End>, MemoryError> {
        let message = serde_json::from_slice(bytes);
        let message: ToGuard = message.map_err(|e| self.failed("understand")(e.into()))?;
        match (message, fd) {
            (ToGuard::Ready, _) => {
                let directory = place::directory(&self.plan.images);
                let here = place::be_here(&directory).map_err(self.failed("guard"))?;
                self.here = Some(here);
                // It has whatever they were kept for.
                let last = self.keepers.len().saturating_sub(1);
                dismiss(&self.keepers[..last]);
                self.keepers.drain(..last);
                self.shared.change(|state| state.listens = true);
            }
            (ToGuard::Keeper, Some(fd)) => self.keepers.push(fd),
            (ToGuard::Hold { number }, Some(fd)) => {
                self.held.insert(number, fd);
            }
            (ToGuard::Connection, Some(fd)) => self.connection = Some(fd),
            (ToGuard::Drop { number }, _) => {
                self.held.remove(&number);
            }
            (ToGuard::Synced, _) => self.shared.change(|state| state.synced = true),
            (ToGuard::Refused { why }, _) => return Ok(Some(End::Died(why))),
            (ToGuard::Left { pages }, _) => {
                eprintln!(
                    "filling: {} of memory to come",
                    crate::model::Pages(pages).bytes()
                );
            }
            (ToGuard::Filled, _) => return Ok(Some(End::Filled)),
            (ToGuard::Hold { .. } | ToGuard::Connection | ToGuard::Keeper, None) => {
                let what = "the filler held something out that did not arrive".to_owned();
                return Err(MemoryError::FillStuck { what });
            }
        }
        Ok(None)
    }

    /// Gives a successor what the one before it worked with.
    fn hand_over(&self, socket: &OwnedFd) -> Result<(), MemoryError> {
        for (number, uffd) in &self.held {
            let number = *number;
            self.say(socket, &ToFiller::Uffd { number }, Some(uffd.as_fd()))?;
        }
        if let Some(connection) = &self.connection {
            self.say(socket, &ToFiller::Connection, Some(connection.as_fd()))?;
        }
        // Those after the first had nothing yet that the others have not.
        if let Some(keeper) = self.keepers.first() {
            self.say(socket, &ToFiller::Keeper, Some(keeper.as_fd()))?;
        }
        let go = ToFiller::Go {
            released: self.released,
        };
        self.say(socket, &go, None)
    }

    fn say(
        &self,
        socket: &OwnedFd,
        message: &ToFiller,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), MemoryError> {
        let text = serde_json::to_vec(message).unwrap_or_default();
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        fdpass::send(socket.as_fd(), &text, &fds, true).map_err(self.failed("tell"))
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> MemoryError + use<> {
        failed(operation, &self.plan.images)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.asking = None;
        let _ = self.wake.write(1);
    }
}

/// Ends keepers. What they alone kept open is closed.
fn dismiss(keepers: &[OwnedFd]) {
    for keeper in keepers {
        // It may have ended by itself.
        let _ = pidfd::signal(keeper.as_fd(), libc::SIGKILL);
    }
}

fn failed(operation: &'static str, images: &Path) -> impl FnOnce(io::Error) -> MemoryError + use<> {
    let path = images.to_owned();
    move |source| MemoryError::Fill {
        operation,
        path,
        source,
    }
}

fn start(plan: &FillPlan, control: OwnedFd, successor: bool) -> io::Result<Child> {
    // Of a program that was replaced meanwhile, too: by its descriptor it is the same.
    let mut command = Command::new(&plan.program);
    command
        .arg0("godwit")
        .arg("fill")
        .arg("--images")
        .arg(&plan.images)
        .arg("--cgroup")
        .arg(&plan.cgroup);
    if successor {
        command.arg("--successor");
    }
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .spawn()
}

/// Waits until one of these can be read; which can.
fn ready<const N: usize>(fds: [BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) => Ok(polled.map(|fd| fd.any().unwrap_or(true))),
        Err(nix::errno::Errno::EINTR) => Ok([false; N]),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_last_word_of_a_filler_that_hears_nothing_more_is_heard() {
        let (ours, theirs) = fdpass::pair().unwrap();
        fdpass::send(ours.as_fd(), b"release", &[], true).unwrap();
        fdpass::send(theirs.as_fd(), b"filled", &[], true).unwrap();
        drop(theirs);
        let first = fdpass::receive(ours.as_fd()).map(|said| said.map(|(bytes, _)| bytes));
        let reset = first
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
        assert!(reset, "{first:?}");
        let then = fdpass::receive(ours.as_fd()).unwrap().map(|said| said.0);
        assert_eq!(then.as_deref(), Some(&b"filled"[..]));
        assert!(matches!(fdpass::receive(ours.as_fd()), Ok(None)));
    }

    #[test]
    fn a_place_that_was_taken_away_as_a_whole_was_filled() {
        let images = tempfile::tempdir().unwrap();
        assert!(place::is_over(images.path()));
        let directory = place::make(images.path()).unwrap();
        place::mark(&directory, "begun").unwrap();
        assert!(!place::is_over(images.path()));
        place::mark(&directory, "filled").unwrap();
        assert!(place::is_over(images.path()));
    }
}
