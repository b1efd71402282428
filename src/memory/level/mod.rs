//! The level pages are compressed at: fixed, or measured and chosen anew a few times a second.

mod policy;

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::policy::{Measured, Policy};
use crate::model::{Bytes, Compress};

/// How often the level is chosen anew.
const INTERVAL: Duration = Duration::from_millis(250);

/// What was measured, and the level that follows from it.
#[derive(Debug)]
pub(super) struct Level {
    now: AtomicI32,
    workers: usize,
    plain: AtomicU64,
    wire: AtomicU64,
    waited: AtomicU64,
    compressing: AtomicU64,
    auto: Option<Mutex<Auto>>,
}

#[derive(Debug)]
struct Auto {
    policy: Policy,
    since: Instant,
}

impl Level {
    pub(super) fn new(compress: Compress, workers: usize) -> Self {
        let auto = Auto {
            policy: Policy::default(),
            since: Instant::now(),
        };
        let (level, auto) = match compress {
            Compress::None => (0, None),
            Compress::Level(level) => (level, None),
            Compress::Auto => (auto.policy.level(), Some(Mutex::new(auto))),
        };
        Self {
            now: level.into(),
            workers,
            plain: 0.into(),
            wire: 0.into(),
            waited: 0.into(),
            compressing: 0.into(),
            auto,
        }
    }

    /// The level now; 0 is not at all.
    pub(super) fn now(&self) -> i32 {
        self.now.load(Ordering::Relaxed)
    }

    /// A batch was packed.
    pub(super) fn packed(&self, plain: usize, compressing: Duration) {
        self.plain.fetch_add(plain as u64, Ordering::Relaxed);
        self.compressing
            .fetch_add(nanos(compressing), Ordering::Relaxed);
    }

    /// Bytes were handed on, which took so long.
    pub(super) fn sent(&self, wire: usize, waited: Duration) {
        self.wire.fetch_add(wire as u64, Ordering::Relaxed);
        self.waited.fetch_add(nanos(waited), Ordering::Relaxed);
        self.choose();
    }

    /// What came before was another round: the time since then was nobody's.
    pub(super) fn begin(&self) {
        if let Some(auto) = &self.auto {
            let mut auto = auto.lock().unwrap_or_else(PoisonError::into_inner);
            self.take();
            auto.since = Instant::now();
        }
    }

    fn choose(&self) {
        let Some(auto) = &self.auto else {
            return;
        };
        let mut auto = auto.lock().unwrap_or_else(PoisonError::into_inner);
        let time = auto.since.elapsed();
        if time < INTERVAL {
            return;
        }
        auto.since = Instant::now();
        let measured = Measured {
            time,
            workers: self.workers,
            ..self.take()
        };
        let level = auto.policy.next(&measured);
        let before = self.now.swap(level, Ordering::Relaxed);
        if before != level {
            tracing::debug!(before, level, ?measured, wire = %auto.policy.wire(), "pages are compressed at another level");
        }
    }

    fn take(&self) -> Measured {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Measured {
            plain: Bytes(take(&self.plain)),
            wire: Bytes(take(&self.wire)),
            waited: Duration::from_nanos(take(&self.waited)),
            compressing: Duration::from_nanos(take(&self.compressing)),
            ..Measured::default()
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
