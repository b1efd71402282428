//! Two hosts made of values: one container, two journals, a link, and what may go wrong with them.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use godwit::migration::behind::HandOn;
use godwit::migration::behind::wire::Run;
use godwit::migration::codec::{Chunk, Frame, Kind};
use godwit::migration::conclude::{self, Dial, DialFuture};
use godwit::migration::destination::{self, Served, greet};
use godwit::migration::message::Purpose;
use godwit::migration::source::{self, MoreStreams, Services};
use godwit::migration::stream::{Door, TakePages};
use godwit::migration::{
    Arriving, Cause, Destination, Duplex, Entry, HandedOver, Held, Hook, Journal, JournalState,
    Later, Left, Link, Message, Movable, Offer, Outbox, Remainder, Restored, RoundStats, RunError,
    Shelf, Summary,
};
use godwit::model::{
    Ability, Bytes, ContainerSpec, CpuFacts, Digest, Finding, Generation, HostFacts, Lease, Limits,
    Mac, MigrationId, MigrationOptions, MigrationReport, Name, OnNoConvergence, Outcome, PAGE_SIZE,
    Pages, Phase, Progress, Restart, Side, Step, User, Userns,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The part of this side in this phase reports an error.
    Error { side: Side, phase: Phase },
    /// The link breaks when this side comes to this phase.
    Cut { side: Side, phase: Phase },
    /// The daemon of this side dies when it comes to this phase, and is started again.
    Crash { side: Side, phase: Phase },
    /// Both daemons die when this side comes to this phase, and are started again.
    CrashBoth { side: Side, phase: Phase },
    /// This journal refuses this state, once.
    Journal { side: Side, state: JournalState },
    /// Somebody cancels when the source comes to this phase.
    Cancel { phase: Phase },
    /// The destination has objections.
    Refuse,
    /// The restored container cannot be let run.
    NeverRuns,
    /// The streams of pages, and nothing else, break again and again in the middle of the first round.
    CutStreams,
    /// The frozen copy dies while its memory is fetched.
    LosePages,
    /// When this side comes to this phase the hosts never hear of each other again.
    CutForGood { side: Side, phase: Phase },
    /// The container ends by itself while its memory is fetched.
    Ends,
}

/// How many frames of pages the first round has when streams break in it.
pub const MANY: usize = 120;

/// For how long a source may not be heard of.
pub const LOST_AFTER: Duration = Duration::from_millis(600);

/// What a busy container dirties in every round.
const BUSY: Pages = Pages(100_000_000);

/// What there is of the container on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    None,
    Parts,
    Frozen,
    Held,
    Running,
    Gone,
    /// Killed, for what it has lost.
    Killed,
}

/// How many pages are left behind.
pub const BEHIND: u64 = 400;

struct State {
    source: Copy,
    destination: Copy,
    gate: bool,
    generation: u64,
    /// How often the destination has begun to take it.
    attempts: u32,
    seen: Vec<String>,
    two_ran: bool,
    fault: Option<Fault>,
    journals: [Vec<Entry>; 2],
    busy: bool,
    throttles: Vec<Option<u32>>,
    told: Vec<String>,
    options: MigrationOptions,
    stay_dead: [bool; 2],
    /// Of what was left behind, what has come.
    behind: Option<BTreeSet<u64>>,
    asked: BTreeSet<u64>,
    apart: bool,
    lost: Option<String>,
    fetched_twice: bool,
}

impl State {
    fn set(&mut self, side: Side, copy: Copy) {
        match side {
            Side::Source => self.source = copy,
            Side::Destination => self.destination = copy,
        }
        if copy == Copy::Running && side == Side::Source {
            // As the real one does, which sets the limits of its record again.
            self.slow_down(None);
        }
        self.two_ran |= self.source == Copy::Running && self.destination == Copy::Running;
    }
}

impl State {
    fn throttled(&self) -> Option<u32> {
        self.throttles.last().copied().flatten()
    }

    fn slow_down(&mut self, share: Option<u32>) {
        if self.throttled() != share {
            self.throttles.push(share);
        }
    }

    /// What goes wrong with the memory of a busy container goes wrong while it is slowed down.
    fn too_early(&self, phase: Phase) -> bool {
        phase == Phase::Memory && self.busy && self.throttled().is_none()
    }
}

/// A process: its tasks, and whether it lives. What a dead one would still do is not done.
struct Process {
    side: Side,
    alive: AtomicBool,
    died: Notify,
    decisions: Mutex<Option<mpsc::Sender<Side>>>,
    door: Arc<Door>,
    shelf: Arc<Shelf>,
}

pub struct World {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    processes: [Mutex<Arc<Process>>; 2],
    cut: Notify,
    /// The same for what was dialled in the middle of a migration alone.
    cut_dialled: Notify,
    dialled: AtomicUsize,
    cancel: Mutex<CancellationToken>,
    open: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

fn index(side: Side) -> usize {
    usize::from(side == Side::Destination)
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn process(&self, side: Side) -> Arc<Process> {
        self.processes[index(side)].lock().unwrap().clone()
    }

    fn fails(&self, side: Side, phase: Phase) -> Result<(), Cause> {
        let state = self.state();
        if state.fault == Some(Fault::Error { side, phase }) && !state.too_early(phase) {
            return Err(format!("{side:?} fails in {phase:?} because the test says so").into());
        }
        Ok(())
    }

    /// A daemon that has nothing to do with the migration any more is started again, too.
    fn restart_whoever_is_idle(self: &Arc<Self>) {
        let inner = self.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            for side in [Side::Source, Side::Destination] {
                if !inner.process(side).alive() {
                    restart(inner.clone(), side).await;
                }
            }
        });
        self.open.lock().unwrap().push(task);
    }

    fn kill(&self, side: Side) {
        let process = self.process(side);
        process.alive.store(false, Ordering::SeqCst);
        process.died.notify_waiters();
        process.died.notify_one();
    }
}

impl Process {
    fn new(side: Side) -> Arc<Self> {
        Arc::new(Self {
            side,
            alive: AtomicBool::new(true),
            died: Notify::new(),
            decisions: Mutex::new(None),
            door: Arc::default(),
            shelf: Arc::default(),
        })
    }

    fn alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }
}

/// What the pieces of a process share. Every deed of a dead process is an error and changes nothing.
#[derive(Clone)]
struct Part {
    inner: Arc<Inner>,
    process: Arc<Process>,
}

impl Part {
    fn live(&self) -> Result<MutexGuard<'_, State>, Cause> {
        if self.process.alive() {
            Ok(self.inner.state())
        } else {
            Err("this process is dead".into())
        }
    }

    fn set(&self, copy: Copy) -> Result<(), Cause> {
        let side = self.process.side;
        self.live()?.set(side, copy);
        Ok(())
    }

    /// Far more than a report has room for, where the test says so.
    fn steps(&self) -> Vec<Step> {
        let step = |name: &String| Step {
            name: name.clone(),
            begin: Instant::now(),
            length: Duration::from_millis(1),
        };
        self.inner.state().told.iter().map(step).collect()
    }

    /// Frames that are longer than a link holds, and streams that break between them.
    fn send_many(&self, outbox: &Outbox) -> Result<(), Cause> {
        for number in 0..MANY {
            let mut frame = format!("page:{number}").into_bytes();
            frame.resize(20_000, b' ');
            outbox.send(Kind::Pages, frame)?;
            if number % 30 == 20 {
                self.inner.cut_dialled.notify_waiters();
            }
        }
        Ok(())
    }

    fn see(&self, what: impl Into<String>) {
        self.inner.state().seen.push(what.into());
    }
}

// ── the container on its source ──────────────────────────────────────────────────────────────────

struct Container(Part);
struct Frozen(Option<Part>);
struct Handed(Part);

impl Movable for Container {
    type Held = Frozen;

    fn offer(&mut self) -> Result<Offer, Cause> {
        self.0.inner.fails(Side::Source, Phase::Preflight)?;
        let generation = Generation(self.0.live()?.generation);
        Ok(Offer {
            migration: MigrationId([7; 8]),
            spec: spec(),
            generation,
            created_at: 1,
            facts: facts("alpha"),
            memory: Bytes(1 << 20),
            files: Bytes(0),
            options: MigrationOptions::default(),
            segments: Vec::new(),
        })
    }

    fn findings(&mut self) -> Result<Vec<Finding>, Cause> {
        Ok(Vec::new())
    }

    fn send_image(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        Ok(outbox.send(Kind::Image, b"image".to_vec())?)
    }

    fn send_files(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        self.0.inner.fails(Side::Source, Phase::Storage)?;
        Ok(outbox.send(Kind::Storage, b"files".to_vec())?)
    }

    fn can_precopy(&self) -> bool {
        true
    }

    fn round(&mut self, number: u32, outbox: &Outbox) -> Result<RoundStats, Cause> {
        self.0.inner.fails(Side::Source, Phase::Memory)?;
        outbox.send(Kind::Pages, format!("round:{number}").into_bytes())?;
        if number == 0 && self.0.inner.state().fault == Some(Fault::CutStreams) {
            self.0.send_many(outbox)?;
        }
        let (busy, throttled) = {
            let state = self.0.inner.state();
            (state.busy, state.throttled())
        };
        if busy {
            if throttled.is_some() {
                let (runtime, trap) = (Handle::current(), Trap(self.0.inner.clone()));
                runtime.block_on(trap.reached(Side::Source, Phase::Memory));
                runtime.block_on(trap.reached(Side::Destination, Phase::Memory));
            }
            std::thread::sleep(Duration::from_millis(15));
            return Ok(RoundStats {
                scanned: BUSY,
                sent: BUSY,
            });
        }
        // Slow enough that the policy wishes another round.
        std::thread::sleep(Duration::from_millis(if number == 0 { 15 } else { 0 }));
        let sent = if number == 0 { 100_000_000 } else { 1 };
        Ok(RoundStats {
            scanned: Pages(sent),
            sent: Pages(sent),
        })
    }

    fn dirty_now(&mut self) -> Option<Pages> {
        self.0.inner.state().busy.then_some(BUSY)
    }

    fn throttle(&mut self, percent: Option<u32>) -> Result<bool, Cause> {
        self.0.live()?.slow_down(percent);
        Ok(true)
    }

    fn cannot_leave_behind(&self) -> Option<String> {
        None
    }

    fn fixed_blackout(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn freeze(self) -> Result<Frozen, Cause> {
        assert_eq!(self.0.inner.state().throttled(), None, "CRIU would wait");
        self.0.inner.fails(Side::Source, Phase::Freeze)?;
        self.0.set(Copy::Frozen)?;
        Ok(Frozen(Some(self.0)))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(part) = self.0.take().filter(|part| part.process.alive()) {
            let _ = part.set(Copy::Running);
            part.inner.state().gate = true;
        }
    }
}

impl Frozen {
    fn part(&self) -> &Part {
        self.0.as_ref().expect("held until handed over")
    }
}

impl Held for Frozen {
    type HandedOver = Handed;

    fn leave_behind(&mut self) {
        self.part().inner.state().behind = Some(BTreeSet::new());
    }

    fn remainder(&self) -> Option<Arc<dyn Remainder>> {
        Some(Arc::new(Memory(self.part().clone())))
    }

    fn look(&mut self) -> Result<(), Cause> {
        assert!(self.part().live()?.gate, "nothing has to wait for this");
        Ok(())
    }

    fn close_gate(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        self.part().live()?.gate = false;
        Ok(outbox.send(Kind::Pages, b"".to_vec())?)
    }

    fn dump(&mut self, outbox: &Outbox) -> Result<Summary, Cause> {
        assert!(!self.part().live()?.gate, "its sockets change meanwhile");
        self.part().inner.fails(Side::Source, Phase::Dump)?;
        outbox.send(Kind::Pages, b"".to_vec())?;
        outbox.send(
            Kind::Dump,
            Chunk {
                name: "dump",
                offset: 0,
                bytes: b"d",
            }
            .encode(),
        )?;
        Ok(Summary {
            pages: Pages(7),
            behind: Pages(if self.part().inner.state().behind.is_some() {
                BEHIND
            } else {
                0
            }),
            ..Summary::default()
        })
    }

    fn send_changes(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        self.part().inner.fails(Side::Source, Phase::Residual)?;
        Ok(outbox.send(Kind::Storage, b"changes".to_vec())?)
    }

    fn steps(&mut self) -> Vec<Step> {
        self.part().steps()
    }

    fn resume(mut self) -> Result<(), Cause> {
        let part = self.0.take().expect("held until handed over");
        part.set(Copy::Running)?;
        part.live()?.gate = true;
        Ok(())
    }

    fn hand_over(mut self) -> Handed {
        Handed(self.0.take().expect("held until handed over"))
    }
}

/// The memory of the frozen copy.
struct Memory(Part);

impl Remainder for Memory {
    fn open(&self) -> Result<(), Cause> {
        self.0.live().map(drop)
    }

    fn read(&self, run: Run, out: &mut HandOn<'_>) -> Result<(), Cause> {
        std::thread::sleep(Duration::from_millis(3));
        if !self.0.process.alive() {
            // The dead say nothing.
            std::thread::sleep(Duration::from_millis(50));
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        let state = self.0.inner.state();
        let half = state
            .behind
            .as_ref()
            .is_some_and(|here| here.len() as u64 > BEHIND / 2);
        if state.source != Copy::Frozen || state.fault == Some(Fault::LosePages) && half {
            return Err("it is not frozen any more".into());
        }
        drop(state);
        let first = run.address / PAGE_SIZE;
        let numbers: Vec<String> = (first..first + u64::from(run.pages))
            .map(|n| n.to_string())
            .collect();
        Ok(out(numbers.join(" ").into_bytes())?)
    }
}

impl HandedOver for Handed {
    fn remainder(&self) -> Option<Arc<dyn Remainder>> {
        Some(Arc::new(Memory(self.0.clone())))
    }

    fn settle(self) -> Result<(), Cause> {
        assert_ne!(
            self.0.inner.state().source,
            Copy::Running,
            "a copy that runs is never handed over"
        );
        {
            let state = self.0.live()?;
            let here = state
                .behind
                .as_ref()
                .map_or(BEHIND, |here| here.len() as u64);
            assert!(
                here == BEHIND || state.destination != Copy::Running,
                "the frozen copy goes, and {here} of {BEHIND} pages have come"
            );
        }
        self.0
            .inner
            .fails(Side::Source, Phase::Settle)
            .or(Ok::<(), Cause>(()))?;
        self.0.set(Copy::Gone)
    }

    fn take_back(self) -> Result<(), Cause> {
        self.0.set(Copy::Running)?;
        self.0.live()?.gate = true;
        Ok(())
    }
}

// ── the container on its destination ─────────────────────────────────────────────────────────────

struct Host(Part);
/// What arrives, and at which attempt.
struct Parts(Part, u32);
struct Restoree(Part);

impl Destination for Host {
    type Arriving = Parts;

    fn findings(&self, _: &Offer) -> Result<Vec<Finding>, Cause> {
        self.0.inner.fails(Side::Destination, Phase::Preflight)?;
        if self.0.inner.state().fault != Some(Fault::Refuse) {
            return Ok(Vec::new());
        }
        Ok(vec![
            Finding::blocking("name-in-use", "there is one already"),
            Finding::blocking("no-room", "there is no room"),
        ])
    }

    fn reserve(&self, offer: &Offer) -> Result<Parts, Cause> {
        assert_eq!(offer.spec, spec());
        self.0.inner.fails(Side::Destination, Phase::Negotiate)?;
        self.0.set(Copy::Parts)?;
        let mut state = self.0.live()?;
        state.attempts += 1;
        Ok(Parts(self.0.clone(), state.attempts))
    }
}

struct PageStore(Part);

impl TakePages for PageStore {
    fn take(&self, batch: &[u8]) -> Result<(), Cause> {
        let phase = if self.0.inner.state().source == Copy::Frozen {
            Phase::Dump
        } else {
            Phase::Memory
        };
        self.0.inner.fails(Side::Destination, phase)?;
        if !batch.is_empty() {
            self.0.see(String::from_utf8(batch.to_vec())?);
        }
        Ok(())
    }
}

impl Arriving for Parts {
    type Restored = Restoree;

    fn needs_image(&self) -> bool {
        true
    }

    fn takes_later(&self) -> bool {
        true
    }

    fn pages(&self) -> Result<Arc<dyn TakePages>, Cause> {
        Ok(Arc::new(PageStore(self.0.clone())))
    }

    fn take(&mut self, frame: Frame) -> Result<(), Cause> {
        let phase = match frame.kind {
            Kind::Dump => Phase::Dump,
            _ if self.0.inner.state().source == Copy::Frozen => Phase::Residual,
            _ => Phase::Storage,
        };
        self.0.inner.fails(Side::Destination, phase)?;
        if frame.kind == Kind::Dump {
            self.0.see("frozen");
            let chunk = Chunk::decode(&frame.payload)?;
            self.0.see(chunk.name);
        } else if !frame.payload.is_empty() {
            self.0.see(String::from_utf8(frame.payload)?);
        }
        Ok(())
    }

    fn image_end(&mut self) -> Result<(), Cause> {
        Ok(())
    }

    fn files_end(&mut self) -> Result<(), Cause> {
        Ok(())
    }

    fn frozen(&mut self) {}

    fn gate_closed(&mut self) {
        let state = self.0.inner.state();
        // The source may have gone on meanwhile, and may have been frozen again by a later attempt.
        let reachable = state.attempts == self.1 && state.source == Copy::Frozen && state.gate;
        drop(state);
        assert!(!reachable, "frames still reach the frozen copy");
    }

    fn complete(&mut self, summary: &Summary) -> Result<Option<Left>, Cause> {
        let behind = self.0.inner.state().behind.is_some();
        assert_eq!(summary.behind, Pages(if behind { BEHIND } else { 0 }));
        Ok(behind.then(|| rest(&self.0)))
    }

    fn restore(self, summary: &Summary) -> Result<Restoree, Cause> {
        // Who restores touches memory.
        loop {
            let state = self.0.live()?;
            if state.behind.as_ref().is_none_or(|here| here.contains(&0)) {
                break;
            }
            if state.destination == Copy::Killed {
                drop(state);
                self.0.set(Copy::Gone)?;
                return Err("it was killed meanwhile".into());
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(error) = self.0.inner.fails(Side::Destination, Phase::Restore) {
            self.0.set(Copy::Gone)?;
            return Err(error);
        }
        assert_eq!(summary.pages, Pages(7));
        self.0.set(Copy::Held)?;
        self.0.see("restored");
        Ok(Restoree(self.0))
    }

    fn discard(self) -> Result<(), Cause> {
        self.0.set(Copy::Gone)
    }
}

/// What is still to come.
struct Rest(Part, Arc<Notify>);

impl Rest {
    fn pick(&self, most: u32) -> Option<Run> {
        let mut state = self.0.live().ok()?;
        let here = state.behind.clone().unwrap_or_default();
        let first = (0..BEHIND).find(|n| !here.contains(n) && !state.asked.contains(n))?;
        let mut pages = 0;
        while pages < most && first + u64::from(pages) < BEHIND {
            state.asked.insert(first + u64::from(pages));
            pages += 1;
        }
        let (process, address) = (1, first * PAGE_SIZE);
        Some(Run {
            process,
            address,
            pages,
        })
    }
}

impl Later for Rest {
    fn missing(&self) -> Pages {
        let state = self.0.inner.state();
        Pages(
            BEHIND
                - state
                    .behind
                    .as_ref()
                    .map_or(BEHIND, |here| here.len() as u64),
        )
    }

    fn is_over(&self) -> Result<bool, Cause> {
        let half = self.missing().0 < BEHIND / 2;
        let mut state = self.0.live()?;
        if half && state.fault == Some(Fault::Ends) && state.destination == Copy::Running {
            state.set(Side::Destination, Copy::Gone);
        }
        let ended = matches!(state.destination, Copy::Gone | Copy::Killed);
        drop(state);
        Ok(ended || self.missing() == Pages(0))
    }

    fn begin(&self) {
        self.0.inner.state().asked.clear();
    }

    fn wake(&self) -> Arc<Notify> {
        self.1.clone()
    }

    /// Somebody waits for one now and then.
    fn wanted(&self) -> Vec<Run> {
        let waits = self.missing().0.is_multiple_of(3);
        let wanted = if waits { self.pick(1) } else { None };
        wanted.into_iter().collect()
    }

    fn next(&self, most: u32) -> Option<Run> {
        self.pick(most)
    }

    fn take(&self, batch: &[u8]) -> Result<Pages, Cause> {
        let mut state = self.0.live()?;
        let mut taken = 0;
        for number in String::from_utf8(batch.to_vec())?.split(' ') {
            let number = number.parse()?;
            let new = state
                .behind
                .as_mut()
                .is_some_and(|here| here.insert(number));
            state.fetched_twice |= !new;
            taken += 1;
        }
        Ok(Pages(taken))
    }

    fn lose(&self, why: &str) -> Result<(), Cause> {
        self.0.set(Copy::Killed)?;
        self.0.live()?.lost = Some(why.to_owned());
        Ok(())
    }
}

fn rest(part: &Part) -> Left {
    let later: Arc<dyn Later> = Arc::new(Rest(part.clone(), Arc::default()));
    Left { later, rate: None }
}

impl Restored for Restoree {
    fn later(&mut self) -> Result<Option<Left>, Cause> {
        let left = self.0.live()?.behind.is_some();
        Ok(left.then(|| rest(&self.0)))
    }

    fn run(&mut self, generation: Generation) -> Result<Instant, RunError> {
        let error = self.0.inner.fails(Side::Destination, Phase::Handover).err();
        let never = self.0.inner.state().fault == Some(Fault::NeverRuns);
        if let Some(cause) = error.or_else(|| never.then(|| "it cannot".into())) {
            return Err(RunError::NeverRan(cause));
        }
        self.0.set(Copy::Running).map_err(RunError::NeverRan)?;
        let mut state = self.0.live().map_err(RunError::NeverRan)?;
        state.generation = generation.0;
        state.gate = true;
        Ok(Instant::now())
    }

    fn steps(&mut self) -> Vec<Step> {
        self.0.steps()
    }

    fn settle(self) -> Result<(), Cause> {
        self.0.inner.fails(Side::Destination, Phase::Settle)
    }

    fn discard(self) -> Result<(), Cause> {
        self.0.set(Copy::Gone)
    }
}

// ── journals, hooks, links ───────────────────────────────────────────────────────────────────────

struct Ledger(Part);

impl Journal for Ledger {
    fn write(&self, entry: &Entry) -> io::Result<()> {
        let side = self.0.process.side;
        let mut state = self.0.live().map_err(io::Error::other)?;
        if state.fault
            == Some(Fault::Journal {
                side,
                state: entry.state,
            })
        {
            state.fault = None;
            return Err(io::Error::other(
                "the disk is full because the test says so",
            ));
        }
        let entries = &mut state.journals[index(side)];
        entries.retain(|e| e.id != entry.id);
        entries.push(entry.clone());
        Ok(())
    }

    fn read(&self, id: MigrationId) -> io::Result<Option<Entry>> {
        let state = self.0.live().map_err(io::Error::other)?;
        Ok(state.journals[index(self.0.process.side)]
            .iter()
            .find(|e| e.id == id)
            .cloned())
    }

    fn all(&self) -> io::Result<Vec<Entry>> {
        let state = self.0.live().map_err(io::Error::other)?;
        Ok(state.journals[index(self.0.process.side)].clone())
    }
}

struct Trap(Arc<Inner>);

impl Hook for Trap {
    fn reached(&self, side: Side, phase: Phase) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let apart = self.0.state().fault == Some(Fault::CutForGood { side, phase });
            if apart {
                self.0.state().apart = true;
                self.0.cut.notify_waiters();
            }
            let fault = {
                let state = self.0.state();
                state.fault.filter(|_| !state.too_early(phase))
            };
            match fault {
                Some(Fault::Cut { side: s, phase: p }) if (s, p) == (side, phase) => {
                    self.0.state().fault = None;
                    self.0.cut.notify_waiters();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Some(Fault::Crash { side: s, phase: p }) if (s, p) == (side, phase) => {
                    self.0.state().fault = None;
                    self.0.kill(side);
                    // Whatever the dead process still tries fails; a thread must not wait for ever.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Some(Fault::CrashBoth { side: s, phase: p }) if (s, p) == (side, phase) => {
                    self.0.state().fault = None;
                    self.0.kill(Side::Source);
                    self.0.kill(Side::Destination);
                    self.0.restart_whoever_is_idle();
                    // Whatever the dead process still tries fails; a thread must not wait for ever.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Some(Fault::Cancel { phase: p }) if (Side::Source, p) == (side, phase) => {
                    self.0.state().fault = None;
                    self.0.cancel.lock().unwrap().cancel();
                }
                _ => {}
            }
        })
    }
}

/// Copies bytes between two streams until the test cuts the link or one of the processes dies.
async fn wire(mut a: DuplexStream, mut b: DuplexStream, inner: Arc<Inner>, dialled: bool) {
    let (source, destination) = (
        inner.process(Side::Source),
        inner.process(Side::Destination),
    );
    tokio::select! {
        _ = inner.cut.notified() => {}
        _ = inner.cut_dialled.notified(), if dialled => {}
        () = gone(&source) => {}
        () = gone(&destination) => {}
        _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
    }
    let _ = (a.shutdown().await, b.shutdown().await);
}

async fn gone(process: &Process) {
    while process.alive() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Wire(Part);

impl Dial for Wire {
    fn dial<'a>(&'a self, _: &'a Name) -> DialFuture<'a> {
        Box::pin(async move {
            let there = match self.0.process.side {
                Side::Source => Side::Destination,
                Side::Destination => Side::Source,
            };
            let process = self.0.inner.process(there);
            let apart = self.0.inner.state().apart;
            if !process.alive() || !self.0.process.alive() || apart {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            self.0.inner.dialled.fetch_add(1, Ordering::Relaxed);
            let stream = connect(&self.0.inner, true, |link| {
                tokio::spawn(question(self.0.inner.clone(), process, link));
            });
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

fn connect(inner: &Arc<Inner>, dialled: bool, accept: impl FnOnce(DuplexStream)) -> DuplexStream {
    let (near, near_wire) = tokio::io::duplex(1 << 16);
    let (far, far_wire) = tokio::io::duplex(1 << 16);
    tokio::spawn(wire(near_wire, far_wire, inner.clone(), dialled));
    accept(far);
    near
}

/// A daemon answers a question of the other.
async fn question(inner: Arc<Inner>, process: Arc<Process>, stream: DuplexStream) {
    let journal = Ledger(Part {
        inner: inner.clone(),
        process: process.clone(),
    });
    let mut stream = stream;
    let Ok(greeting) = greet(&mut stream).await else {
        return;
    };
    if let Purpose::Stream { token, index } = greeting.purpose {
        let _ = process
            .door
            .enter(
                stream,
                |_| Ok(()),
                &name("alpha"),
                greeting.migration,
                token,
                index,
            )
            .await;
        return;
    }
    if let Purpose::Fetch { rate } = greeting.purpose {
        let entry = journal.read(greeting.migration).ok().flatten();
        let (id, peer) = (greeting.migration, name("beta"));
        let shelf = process.shelf.clone();
        let _ = shelf.serve(stream, &peer, id, rate, entry.as_ref()).await;
        return;
    }
    let link = Link::new(stream, CancellationToken::new());
    let peer = name(if process.side == Side::Source {
        "beta"
    } else {
        "alpha"
    });
    let _ = conclude::answer(link, &peer, greeting.migration, greeting.purpose, &journal).await;
}

// ── the test's view ──────────────────────────────────────────────────────────────────────────────

impl World {
    pub fn new(fault: Option<Fault>) -> Self {
        let state = State {
            source: Copy::Running,
            destination: Copy::None,
            gate: true,
            generation: 0,
            attempts: 0,
            seen: Vec::new(),
            two_ran: false,
            fault,
            journals: [Vec::new(), Vec::new()],
            busy: false,
            throttles: Vec::new(),
            told: Vec::new(),
            options: MigrationOptions {
                max_blackout_ms: 60,
                ..MigrationOptions::default()
            },
            stay_dead: [false; 2],
            behind: None,
            asked: BTreeSet::new(),
            apart: false,
            lost: None,
            fetched_twice: false,
        };
        let inner = Inner {
            state: Mutex::new(state),
            processes: [
                Mutex::new(Process::new(Side::Source)),
                Mutex::new(Process::new(Side::Destination)),
            ],
            cut: Notify::new(),
            cut_dialled: Notify::new(),
            dialled: AtomicUsize::new(0),
            cancel: Mutex::new(CancellationToken::new()),
            open: Mutex::new(Vec::new()),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A container that dirties its memory as fast as it is copied.
    pub fn busy(fault: Option<Fault>, on_no_convergence: OnNoConvergence) -> Self {
        let world = Self::new(fault);
        {
            let mut state = world.inner.state();
            state.busy = true;
            state.options.max_rounds = 50;
            state.options.on_no_convergence = on_no_convergence;
        }
        world
    }

    /// Both sides tell of these steps whenever they are asked.
    pub fn tells(&self, steps: Vec<String>) {
        self.inner.state().told = steps;
    }

    /// To what share the container was slowed down, one after the other.
    pub fn throttles(&self) -> Vec<Option<u32>> {
        self.inner.state().throttles.clone()
    }

    /// The report of the last migration.
    pub fn report(&self) -> MigrationReport {
        let entries = self.entries(Side::Source);
        entries
            .last()
            .and_then(|e| e.report.clone())
            .expect("a report")
    }

    /// One migration from begin to end; none when the source's daemon died in it.
    pub async fn migrate(&self) -> Option<Outcome> {
        *self.inner.cancel.lock().unwrap() = CancellationToken::new();
        let stream = connect(&self.inner, false, |stream| {
            let task = tokio::spawn(serve(self.inner.clone(), stream));
            self.inner.open.lock().unwrap().push(task);
        });
        let process = self.inner.process(Side::Source);
        let inner = self.inner.clone();
        let (tell, outcome) = tokio::sync::oneshot::channel();
        let watched = process.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = leave(inner.clone(), process.clone(), stream, tell) => {}
                () = watched.died.notified() => {}
            }
            if !watched.alive() {
                restart(inner, Side::Source).await;
            }
        });
        self.inner.open.lock().unwrap().push(task);
        outcome.await.ok()
    }

    pub async fn dry_run(&self) -> Vec<Finding> {
        let stream = connect(&self.inner, false, |stream| {
            tokio::spawn(serve(self.inner.clone(), stream));
        });
        let part = Part {
            inner: self.inner.clone(),
            process: self.inner.process(Side::Source),
        };
        let link = Link::new(stream, CancellationToken::new());
        let options = MigrationOptions::default();
        source::dry_run(MigrationId([9; 8]), Container(part), options, link)
            .await
            .expect("a dry run")
    }

    pub async fn greet_with_versions(&self, oldest: u16, newest: u16) -> String {
        let mut stream = connect(&self.inner, false, |stream| {
            tokio::spawn(serve(self.inner.clone(), stream));
        });
        let hello = Message::Hello {
            oldest,
            newest,
            migration: MigrationId([1; 8]),
            purpose: Purpose::Migrate,
        };
        let payload = serde_json::to_vec(&hello).unwrap();
        let header = godwit::migration::codec::header(Kind::Control, &payload).unwrap();
        stream.write_all(&header).await.unwrap();
        stream.write_all(&payload).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[8..]).into_owned()
    }

    /// Waits until both hosts have nothing more to do.
    pub async fn settled(&self) {
        loop {
            let next = self.inner.open.lock().unwrap().pop();
            match next {
                Some(task) => task.await.expect("no task panics"),
                None => return,
            }
        }
    }

    pub fn copies(&self) -> (Copy, Copy) {
        let state = self.inner.state();
        (state.source, state.destination)
    }

    pub fn two_ran(&self) -> bool {
        self.inner.state().two_ran
    }

    /// How many of the pages that were left behind have come; none where none were.
    pub fn fetched(&self) -> Option<u64> {
        let state = self.inner.state();
        assert!(
            !state.fetched_twice || state.fault.is_none(),
            "a page came twice"
        );
        state.behind.as_ref().map(|here| here.len() as u64)
    }

    /// Why the container was killed, where it was.
    pub fn lost(&self) -> Option<String> {
        self.inner.state().lost.clone()
    }

    /// The hosts hear of each other again.
    pub fn together(&self) {
        self.inner.state().apart = false;
    }

    pub fn generation(&self) -> u64 {
        self.inner.state().generation
    }

    pub fn seen(&self) -> String {
        self.inner.state().seen.join(" ")
    }

    /// How many connections were dialled in the middle of migrations.
    pub fn dialled(&self) -> usize {
        self.inner.dialled.load(Ordering::Relaxed)
    }

    pub fn entries(&self, side: Side) -> Vec<Entry> {
        self.inner.state().journals[index(side)].clone()
    }

    pub fn never_restart(&self, side: Side) {
        self.inner.state().stay_dead[index(side)] = true;
    }

    /// No more faults.
    pub fn heal(&self) {
        let mut state = self.inner.state();
        state.fault = None;
        state.busy = false;
        state.behind = None;
        state.options.on_no_convergence = OnNoConvergence::Throttle;
        state.destination = Copy::None;
    }

    /// A person wishes what is not carried out.
    pub async fn wish(&self, keep: Side) {
        let process = self.inner.process(Side::Source);
        let sender = loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if let Some(sender) = process.decisions.lock().unwrap().clone() {
                break sender;
            }
        };
        sender.send(keep).await.expect("somebody listens");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    /// A person decides on the host that is left, once it is in doubt.
    pub async fn decide(&self, keep: Side) {
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            for side in [Side::Source, Side::Destination] {
                let process = self.inner.process(side);
                let sender = process.decisions.lock().unwrap().clone();
                if let Some(sender) = sender.filter(|_| process.alive()) {
                    let _ = sender.send(keep).await;
                }
            }
            let open = |side| self.entries(side).iter().any(|e| !e.state.is_final());
            let done = |side| self.inner.state().stay_dead[index(side)] || !open(side);
            if done(Side::Source) && done(Side::Destination) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                return;
            }
        }
        panic!("a decision was not carried out: {:?}", self.copies());
    }
}

/// The source's daemon moves its container.
async fn leave(
    inner: Arc<Inner>,
    process: Arc<Process>,
    stream: DuplexStream,
    tell: tokio::sync::oneshot::Sender<Outcome>,
) {
    let part = Part {
        inner: inner.clone(),
        process: process.clone(),
    };
    let cancel = inner.cancel.lock().unwrap().clone();
    let number = inner.state().journals[0].len() as u8;
    let entry = Entry {
        id: MigrationId([number; 8]),
        container: name("web"),
        side: Side::Source,
        peer: name("beta"),
        generation: Generation(inner.state().generation + 1),
        started_at: u64::from(number),
        state: JournalState::Began,
        report: None,
        why: None,
    };
    let world = concluding(&part);
    let services = Services {
        options: inner.state().options.clone(),
        cancel: cancel.clone(),
        journal: world.journal.clone(),
        observer: Arc::new(|_: Progress| {}),
        hook: Arc::new(Trap(inner.clone())),
        lost_after: LOST_AFTER,
        shelf: process.shelf.clone(),
        streams: Some(MoreStreams {
            count: 2,
            dial: world.dial.clone(),
        }),
    };
    let link = Link::new(stream, cancel);
    let job = source::Job {
        entry,
        host: name("alpha"),
        container: Container(part),
        link,
        services,
    };
    let ended = source::run(job).await;
    let _ = tell.send(ended.report.outcome);
    let entry = ended.entry;
    match ended.in_doubt {
        Some(handed) => {
            let mut decisions = decisions(&process);
            let _ = conclude::source(entry, handed, &world, &mut decisions).await;
        }
        // Its copy is gone, but the journal could not say so: the next start settles again.
        None if world
            .journal
            .read(entry.id)
            .is_ok_and(|entry| entry.is_some_and(|entry| !entry.state.is_final())) =>
        {
            inner.kill(Side::Source)
        }
        None => {}
    }
}

/// The destination's daemon takes a container in.
async fn serve(inner: Arc<Inner>, stream: DuplexStream) {
    let process = inner.process(Side::Destination);
    tokio::select! {
        () = take_in(inner.clone(), process.clone(), stream) => {}
        () = process.died.notified() => {}
    }
    if !process.alive() {
        restart(inner, Side::Destination).await;
    }
}

async fn take_in(inner: Arc<Inner>, process: Arc<Process>, stream: DuplexStream) {
    let part = Part {
        inner: inner.clone(),
        process: process.clone(),
    };
    let world = concluding(&part);
    let mut stream = stream;
    let Ok(greeting) = greet(&mut stream).await else {
        return;
    };
    let link = Link::new(stream, CancellationToken::new());
    let hook = Arc::new(Trap(inner.clone()));
    hook.reached(Side::Destination, Phase::Negotiate).await;
    let (host, source) = (Arc::new(Host(part)), name("alpha"));
    let job = destination::Job {
        greeting,
        source,
        host,
        link,
        door: process.door.clone(),
        world: world.clone(),
        hook,
        now: 1,
    };
    match destination::serve(job).await {
        Served::Nothing => {}
        Served::Over(entry) => {
            // What the journal does not know yet, the next start finds out.
            if !entry.state.is_final() {
                inner.kill(Side::Destination);
            }
        }
        Served::InDoubt(entry, restored) => {
            let mut decisions = decisions(&process);
            let ended = conclude::destination(entry, restored, &world, &mut decisions).await;
            if ended.is_err() {
                inner.kill(Side::Destination);
            }
        }
    }
}

/// What a daemon does with its journal when it starts again.
async fn restart(inner: Arc<Inner>, side: Side) {
    tokio::time::sleep(Duration::from_millis(20)).await;
    if inner.state().stay_dead[index(side)] {
        return;
    }
    let process = Process::new(side);
    *inner.processes[index(side)].lock().unwrap() = process.clone();
    let part = Part {
        inner: inner.clone(),
        process: process.clone(),
    };
    let world = concluding(&part);
    let entries: Vec<Entry> = inner.state().journals[index(side)].clone();
    for entry in entries.into_iter().filter(|e| !e.state.is_final()) {
        let mut decisions = decisions(&process);
        let ended = match side {
            Side::Source => {
                let held = Frozen(Some(part.clone()));
                conclude::source_after_restart(entry, held, &world, &mut decisions).await
            }
            Side::Destination => {
                let restored = Restoree(part.clone());
                conclude::destination_after_restart(entry, restored, &world, &mut decisions).await
            }
        };
        ended.expect("recovery succeeds");
    }
}

fn decisions(process: &Process) -> mpsc::Receiver<Side> {
    let (sender, receiver) = mpsc::channel(1);
    *process.decisions.lock().unwrap() = Some(sender);
    receiver
}

fn concluding(part: &Part) -> conclude::World {
    conclude::World {
        dial: Arc::new(Wire(part.clone())),
        journal: Arc::new(Ledger(part.clone())),
        pause: Duration::from_millis(10),
        lost_after: LOST_AFTER,
        shelf: part.process.shelf.clone(),
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn facts(host: &str) -> HostFacts {
    HostFacts {
        name: name(host),
        godwit: "0.1.0".into(),
        kernel: "6.18".into(),
        cpu: CpuFacts {
            arch: "x86_64".into(),
            vendor: String::new(),
            flags: Default::default(),
        },
        criu: Some("4.2.1".parse().unwrap()),
        criu_problem: None,
        soft_dirty: false,
        memory_available: Bytes(1 << 30),
        trackers: Vec::new(),
        lazy_restore: Ability::default(),
        userns: Ability::default(),
        lazy_userns: Ability::default(),
        hides_pages: Ability::default(),
        spares_smaps: Ability::default(),
        throttle: Ability::default(),
    }
}

fn spec() -> ContainerSpec {
    let address = "10.88.0.10".parse().unwrap();
    ContainerSpec {
        name: name("web"),
        template: "redis".into(),
        image: Digest([3; 32]),
        command: vec!["redis-server".into()],
        env: Vec::new(),
        cwd: "/".into(),
        user: User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        },
        ports: vec![6379],
        limits: Limits::default(),
        restart: Restart::No,
        userns: Userns::Host,
        lease: Lease {
            address,
            prefix: 24,
            gateway: None,
            mac: Mac::of(address),
        },
        bundle: None,
    }
}
