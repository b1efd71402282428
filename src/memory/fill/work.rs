//! What is to be filled, and the threads that help the one that places it: they read ahead, and give back what was
//! used of the store.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::index::WORD;
use super::member::{Member, Outcome};
use super::source::Source;
use crate::memory::MemoryError;
use crate::model::PAGE_SIZE;
use crate::sys::process;

/// How nice the threads are: who answers faults, and the container itself, go first.
const NICENESS: i32 = 5;
/// The most words that wait to be filled before all others.
const MOST_URGENT: usize = 1024;
/// The most words that are read ahead: 4 MiB.
const MOST_AHEAD: usize = 16;
/// The most words that are used and not given back: 32 MiB. Beyond them only what somebody waits for is placed. Who
/// places does not give back itself: of one file only one at a time may, and the other may not be running.
const MOST_USED: usize = 128;
/// How often a thread without work looks for some.
const LOOK: Duration = Duration::from_millis(20);

/// What is to be filled.
///
/// Who answers faults never waits for the lock in here: a thread that has it may not be running.
#[derive(Debug, Default)]
pub struct Work {
    state: Mutex<State>,
    ready: Condvar,
    /// Whether the store's memory may be given back.
    released: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Arc<Member>>,
    /// Words in whose pages somebody has waited just now: who touches one touches the next.
    urgent: VecDeque<(Arc<Member>, u64)>,
    /// Words that were read.
    ahead: VecDeque<Batch>,
    /// How many words are being read.
    reading: usize,
    /// Words that were placed.
    used: VecDeque<(Arc<Source>, u64)>,
    /// What may have become free of the store.
    sweeps: Vec<Arc<Source>>,
    /// Buffers that nobody uses.
    spare: Vec<Vec<u8>>,
    begun: bool,
    over: bool,
    failed: Option<MemoryError>,
}

/// What is done next.
#[derive(Debug)]
pub enum Job {
    /// A word is to be read, or to be placed.
    Fill(Batch),
    /// A word of a source may not be needed any more.
    Give(Arc<Source>, u64),
    /// What may be free of a source.
    Sweep(Arc<Source>),
    /// Not just now; ask again soon.
    Ask,
}

/// A word on its way into a member.
#[derive(Debug)]
pub struct Batch {
    member: Arc<Member>,
    word: u64,
    bytes: Vec<u8>,
    /// Which pages were read. None: they are read as they are placed.
    fetched: Option<u64>,
    /// How many of its pages were placed.
    placed: u64,
    urgent: bool,
}

impl Batch {
    /// Places the next pages, at most so many.
    pub fn step(&mut self, pages: u64) -> Result<Outcome, MemoryError> {
        let pages = pages.min(WORD - self.placed);
        let first = self.word * WORD + self.placed;
        let numbers = first..first + pages;
        let bytes = &mut self.bytes[(self.placed * PAGE_SIZE) as usize..];
        let bytes = &mut bytes[..(pages * PAGE_SIZE) as usize];
        let fetched = match self.fetched {
            Some(fetched) => fetched,
            None => self.member.fetch(numbers.clone(), bytes)?,
        };
        let outcome = self.member.place(numbers, bytes, fetched)?;
        if outcome == Outcome::Done {
            self.placed += pages;
        }
        Ok(outcome)
    }

    /// Whether nothing of it is left to be placed.
    pub fn is_over(&self) -> bool {
        self.placed >= WORD || self.member.is_gone()
    }

    /// The number of its member.
    pub fn number(&self) -> u64 {
        self.member.number()
    }

    fn fetch(&mut self) -> Result<(), MemoryError> {
        let first = self.word * WORD;
        let fetched = self.member.fetch(first..first + WORD, &mut self.bytes)?;
        self.fetched = Some(fetched);
        Ok(())
    }
}

impl Work {
    /// There is one more to be filled. Processes that were restored come before children, many of which are gone
    /// again soon.
    pub fn add(&self, member: Arc<Member>) {
        let mut state = self.state();
        let place = state.members.partition_point(|other| !other.is_child());
        let place = if member.is_child() {
            state.members.len()
        } else {
            place
        };
        state.members.insert(place, member);
        self.ready.notify_all();
    }

    /// This one needs nothing any more.
    pub fn remove(&self, number: u64) {
        let mut state = self.state();
        state.members.retain(|member| member.number() != number);
        state.urgent.retain(|(member, _)| member.number() != number);
        state.ahead.retain(|batch| batch.number() != number);
    }

    /// From now on everything is filled, and not only what is asked for.
    pub fn begin(&self) {
        self.state().begun = true;
        self.ready.notify_all();
    }

    /// The store's memory may be given back.
    pub fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// Fill this word soon.
    pub fn urgent(&self, member: &Arc<Member>, word: u64) {
        // Where that cannot be noted at once it comes in its turn.
        let Some(mut state) = self.state_now() else {
            return;
        };
        let last = state.urgent.back();
        let known = last.is_some_and(|(other, last)| *last == word && Arc::ptr_eq(other, member));
        let wanted = state.begun && !known && !member.done().is_full(word);
        if wanted && state.urgent.len() < MOST_URGENT {
            state.urgent.push_back((Arc::clone(member), word));
            self.ready.notify_one();
        }
    }

    /// Give back what is free of this source, when there is time.
    pub fn sweep(&self, source: &Arc<Source>) {
        let mut state = self.state();
        if !state.sweeps.iter().any(|other| Arc::ptr_eq(other, source)) {
            state.sweeps.push(Arc::clone(source));
        }
    }

    /// Whether words of this one may be on their way.
    pub fn is_busy(&self, number: u64) -> bool {
        self.state_now().is_none_or(|state| {
            let mut urgent = state.urgent.iter().map(|(member, _)| member.number());
            let mut ahead = state.ahead.iter().map(Batch::number);
            state.reading > 0 || urgent.any(|n| n == number) || ahead.any(|n| n == number)
        })
    }

    /// The threads have nothing to do any more.
    pub fn end(&self) {
        self.state().over = true;
        self.ready.notify_all();
    }

    /// Why a thread could not go on.
    pub fn failure(&self) -> Option<MemoryError> {
        self.state_now()?.failed.take()
    }

    /// What a thread does.
    pub fn run(&self) {
        // Where it is not allowed it is as important as others.
        let _ = process::be_nicer(NICENESS);
        while let Some(job) = self.next() {
            if let Err(error) = self.one(job) {
                self.state().failed.get_or_insert(error);
                return;
            }
        }
    }

    /// What who places pages does next; none where there is nothing. Takes what it has placed.
    pub fn turn(&self, placed: &mut Vec<Batch>) -> Option<Job> {
        let Some(mut state) = self.state_now() else {
            return Some(Job::Ask);
        };
        for batch in placed.drain(..) {
            if self.released.load(Ordering::Relaxed) {
                let source = Arc::clone(batch.member.source());
                state.used.push_back((source, batch.word));
            }
            state.spare.push(batch.bytes);
        }
        self.ready.notify_one();
        if state.used.len() > MOST_USED {
            return Some(Job::Ask);
        }
        let ahead = state.ahead.pop_front().map(Job::Fill);
        ahead.or_else(|| state.fill().map(Job::Fill))
    }

    fn one(&self, job: Job) -> Result<(), MemoryError> {
        match job {
            Job::Fill(mut batch) => {
                let fetched = batch.fetch();
                let mut state = self.state();
                state.reading -= 1;
                fetched?;
                if batch.urgent {
                    state.ahead.push_front(batch);
                } else {
                    state.ahead.push_back(batch);
                }
                Ok(())
            }
            Job::Give(source, word) => source.give_back(word),
            Job::Sweep(source) if self.released.load(Ordering::Relaxed) => source.sweep(),
            Job::Sweep(_) | Job::Ask => Ok(()),
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.over {
                return None;
            }
            if let Some(job) = state.give() {
                return Some(job);
            }
            if state.ahead.len() + state.reading < MOST_AHEAD
                && let Some(batch) = state.fill()
            {
                state.reading += 1;
                return Some(Job::Fill(batch));
            }
            if let Some(source) = state.sweeps.pop() {
                return Some(Job::Sweep(source));
            }
            let waited = self.ready.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without waiting for it.
    fn state_now(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl State {
    fn give(&mut self) -> Option<Job> {
        let (source, word) = self.used.pop_front()?;
        Some(Job::Give(source, word))
    }

    /// The next word to be filled, not read yet.
    fn fill(&mut self) -> Option<Batch> {
        let urgent = self.urgent.pop_front();
        let is_urgent = urgent.is_some();
        let (member, word) = urgent.or_else(|| {
            let mut waiting = self.members.iter().filter(|m| self.begun && !m.is_gone());
            waiting.find_map(|member| Some((Arc::clone(member), member.take_word()?)))
        })?;
        let spare = self.spare.pop();
        Some(Batch {
            member,
            word,
            bytes: spare.unwrap_or_else(|| vec![0; (WORD * PAGE_SIZE) as usize]),
            fetched: None,
            placed: 0,
            urgent: is_urgent,
        })
    }
}
