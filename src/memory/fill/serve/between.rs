//! What is done between one fault and the next.

use std::time::{Duration, Instant};

use super::{Filler, SOON};
use crate::memory::MemoryError;
use crate::memory::fill::member::Outcome;
use crate::memory::fill::work::Job;
use crate::sys::scheduling::{self, Attributes};

/// How many pages are placed before it is looked again whether somebody waits for another …
const STEP: u64 = 16;
/// … and how many while faults come one after the other: so much later each of them is answered.
const SHORT_STEP: u64 = 4;
/// Who has waited so short a time ago may be about to wait again.
const RECENT: Duration = Duration::from_micros(300);
/// Who never has to leave its processor to others rests as long as it has worked, so that they have half of it; but no
/// longer than this.
const LONGEST_REST: Duration = Duration::from_micros(200);
/// Less nice than the container's threads, which wait for this one.
const NICENESS: i32 = -10;
/// The shortest slice there is (Linux 6.12; before it means nothing): who has a shorter one than whoever runs goes
/// before it.
const SLICE: Duration = Duration::from_micros(100);

impl Filler<'_> {
    /// Places a few pages that nobody waits for, or does what else is next. Returns whether there is more.
    pub(super) fn place_some(&mut self) -> Result<bool, MemoryError> {
        if self.rests.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        self.rests = None;
        let batch = match self.batch.take() {
            Some(batch) => Some(batch),
            None if !self.begun => None,
            None => match self.work.turn(&mut self.placed) {
                Some(Job::Fill(batch)) => Some(batch),
                Some(Job::Give(..) | Job::Sweep(_) | Job::Ask) => {
                    self.rests = Some(Instant::now() + SOON);
                    return Ok(false);
                }
                None => None,
            },
        };
        let Some(mut batch) = batch else {
            return Ok(false);
        };
        let begin = Instant::now();
        let recent = self.answered.is_some_and(|at| at.elapsed() < RECENT);
        let outcome = batch.step(if recent { SHORT_STEP } else { STEP })?;
        if batch.is_over() {
            self.placed.push(batch);
        } else {
            self.batch = Some(batch);
        }
        if outcome == Outcome::Again {
            self.rests = Some(Instant::now() + SOON);
        } else if self.works_in_shifts {
            self.rests = Some(Instant::now() + begin.elapsed().min(LONGEST_REST));
        }
        Ok(self.rests.is_none())
    }

    /// How long it still rests.
    pub(super) fn rest(&self) -> Duration {
        let now = Instant::now();
        self.rests
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

/// Lets the calling thread run as soon as it has something to do, whoever else runs. Where that is not allowed, it goes
/// first among equals. Returns whether nobody else runs on its processor until it rests.
pub(super) fn come_first() -> bool {
    let real_time = Attributes {
        policy: libc::SCHED_RR as u32,
        priority: 1,
        ..Attributes::default()
    };
    let ordinary = Attributes {
        nice: NICENESS,
        runtime: SLICE.as_nanos() as u64,
        ..Attributes::default()
    };
    if scheduling::schedule(0, real_time).is_ok() {
        return true;
    }
    // Where even that is not allowed it is as important as others.
    let _ = scheduling::schedule(0, ordinary);
    false
}
