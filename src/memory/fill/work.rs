//! The threads that fill, while faults are answered elsewhere.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::member::{CHUNK, Member, Outcome};
use super::source::Source;
use crate::memory::MemoryError;
use crate::sys::process;

/// How nice the threads are: who answers faults, and the container itself, go first.
const NICENESS: i32 = 10;
/// The most words that wait to be filled before all others.
const MOST_URGENT: usize = 1024;
/// How long a space that is being changed is left alone.
const PAUSE: Duration = Duration::from_micros(200);
/// How often a thread without work looks for some.
const LOOK: Duration = Duration::from_millis(20);

/// What is to be filled.
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
    /// What may have become free of the store.
    sweeps: Vec<Arc<Source>>,
    begun: bool,
    over: bool,
    failed: Option<MemoryError>,
}

/// What a thread does next.
enum Job {
    /// A word of a member.
    Fill(Arc<Member>, u64),
    /// What may be free of a source.
    Sweep(Arc<Source>),
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

    /// Fill this word next.
    pub fn urgent(&self, member: &Arc<Member>, word: u64) {
        let mut state = self.state();
        if state.begun && state.urgent.len() < MOST_URGENT {
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

    /// Whether words of this one wait to be filled before others.
    pub fn is_urgent(&self, number: u64) -> bool {
        let state = self.state();
        state
            .urgent
            .iter()
            .any(|(member, _)| member.number() == number)
    }

    /// Lets the threads end.
    pub fn end(&self) {
        self.state().over = true;
        self.ready.notify_all();
    }

    /// Why a thread could not go on.
    pub fn failure(&self) -> Option<MemoryError> {
        self.state().failed.take()
    }

    /// What a thread does.
    pub fn run(&self) {
        // Where it is not allowed it is as important as others.
        let _ = process::be_nicer(NICENESS);
        let mut buffer = vec![0; CHUNK];
        while let Some(job) = self.next() {
            if let Err(error) = self.one(job, &mut buffer) {
                self.state().failed.get_or_insert(error);
                return;
            }
        }
    }

    fn one(&self, job: Job, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let released = self.released.load(Ordering::Relaxed);
        match job {
            Job::Fill(member, word) => match member.fill(word, buffer)? {
                Outcome::Done if released => member.source().give_back(word),
                Outcome::Done => Ok(()),
                Outcome::Again => {
                    thread::sleep(PAUSE);
                    self.state().urgent.push_back((member, word));
                    Ok(())
                }
            },
            Job::Sweep(source) if released => source.sweep(),
            Job::Sweep(_) => Ok(()),
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.over {
                return None;
            }
            if let Some(next) = state.urgent.pop_front() {
                return Some(Job::Fill(next.0, next.1));
            }
            let waiting = state.members.iter().filter(|m| state.begun && !m.is_gone());
            let next = waiting
                .filter_map(|member| Some(Job::Fill(Arc::clone(member), member.take_word()?)))
                .next();
            let next = next.or_else(|| state.sweeps.pop().map(Job::Sweep));
            if next.is_some() {
                return next;
            }
            let waited = self.ready.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
