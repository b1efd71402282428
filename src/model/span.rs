//! Where the time of a blackout goes: steps, as those who do them note them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Side;

/// A step of the blackout, in a report. Steps may lie within each other and beside each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Span {
    /// The host it happened on.
    pub side: Side,
    /// What was done.
    pub name: String,
    /// Its begin, from the freeze. What the destination did is placed by the moment the source's word left: half a
    /// round trip, which no clock can tell, is not in it.
    pub begin: Duration,
    /// Its length.
    pub length: Duration,
}

/// A step as it was noted on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// When it began.
    pub begin: Instant,
    /// How long it took.
    pub length: Duration,
}

/// Notes steps. Clones note into the same list, from any thread.
///
/// ```
/// # use godwit::model::Spans;
/// let spans = Spans::new(std::time::Instant::now);
/// {
///     let _step = spans.begin("criu dump");
///     // … what takes the time …
/// }
/// assert_eq!(spans.take()[0].name, "criu dump");
/// ```
#[derive(Debug, Clone)]
pub struct Spans {
    clock: fn() -> Instant,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Spans {
    /// The most steps that are kept until they are taken; what comes later is not noted.
    pub const MOST: usize = 64;
    /// The longest name of a step, in characters.
    pub const LONGEST_NAME: usize = 40;

    /// An empty list. The clock is `Instant::now`, but for a test's own.
    pub fn new(clock: fn() -> Instant) -> Self {
        Self {
            clock,
            steps: Arc::default(),
        }
    }

    /// Begins a step, which ends when the value is dropped.
    #[must_use = "the step ends when this is dropped"]
    pub fn begin(&self, name: &str) -> OpenStep {
        OpenStep {
            spans: self.clone(),
            name: Self::plain(name),
            begin: (self.clock)(),
        }
    }

    /// Notes a step that was measured otherwise.
    pub fn add(&self, step: Step) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() < Self::MOST {
            steps.push(step);
        }
    }

    /// A name as a report has it: short, and nothing that a terminal would obey.
    pub fn plain(name: &str) -> String {
        let plain = |c: char| if c.is_control() { '?' } else { c };
        name.chars().take(Self::LONGEST_NAME).map(plain).collect()
    }

    /// What was noted since it was taken last.
    pub fn take(&self) -> Vec<Step> {
        std::mem::take(&mut *self.steps.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A step under way.
#[derive(Debug)]
pub struct OpenStep {
    spans: Spans,
    name: String,
    begin: Instant,
}

impl Drop for OpenStep {
    fn drop(&mut self) {
        let length = (self.spans.clock)().saturating_duration_since(self.begin);
        self.spans.add(Step {
            name: std::mem::take(&mut self.name),
            begin: self.begin,
            length,
        });
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_step_is_noted_when_it_ends_and_no_more_than_there_is_room_for() {
        let spans = Spans::new(Instant::now);
        let outer = spans.begin("outer");
        let long = "x".repeat(1000);
        drop(spans.clone().begin(&long));
        drop(outer);
        let steps = spans.take();
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].name.len(), Spans::LONGEST_NAME);
        assert_eq!(steps[1].name, "outer");
        assert!(steps[1].begin <= steps[0].begin && steps[1].length >= steps[0].length);
        assert!(spans.take().is_empty());
        for _ in 0..1000 {
            drop(spans.begin("again"));
        }
        assert_eq!(spans.take().len(), Spans::MOST);
    }
}
