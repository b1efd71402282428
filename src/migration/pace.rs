//! At most so many bytes per second, all connections of a migration together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Rate;

/// Who slept longer than he had to may catch up so much: what timers are late.
const SLACK: Duration = Duration::from_millis(10);
/// The longest piece that is let go at once.
const LONGEST: usize = 64 << 10;
/// How long a piece may be on its way.
const PIECE: f64 = 0.01;

/// A token bucket that holds next to nothing: in any second no more goes out than the rate, a piece, and [`SLACK`].
#[derive(Debug, Default)]
pub struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    rate: Option<Rate>,
    /// When everything that was let go is out at this rate.
    free: Option<Instant>,
}

impl Pace {
    /// From now on at this rate; none: as fast as it goes.
    pub fn set(&self, rate: Option<Rate>) {
        self.state().rate = rate.filter(|rate| rate.0 > 0);
    }

    /// How many bytes may be let go at once; none: any number.
    pub fn piece(&self) -> Option<usize> {
        let rate = self.state().rate?;
        Some(((rate.0 as f64 * PIECE) as usize).clamp(512, LONGEST))
    }

    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: usize) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Counts bytes that do not wait: words between the hosts, of which there are few.
    pub fn spend(&self, bytes: usize) {
        self.reserve(bytes, Instant::now());
    }

    /// How long so many bytes must wait.
    fn reserve(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = self.state();
        let Some(rate) = state.rate else {
            return Duration::ZERO;
        };
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let begin = state.free.map_or(now, |free| free.max(earliest));
        state.free = Some(begin + Duration::from_secs_f64(bytes as f64 / rate.0 as f64));
        begin.saturating_duration_since(now)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn no_second_has_more_than_the_rate() {
        let pace = Pace::default();
        pace.set(Some(Rate(1_000_000)));
        let piece = pace.piece().unwrap();
        let begin = Instant::now();
        let mut now = begin;
        let mut sent = Vec::new();
        // Sleeps that are late by up to 3 ms, and a pause in the middle, which must not be caught up.
        for number in 0u64..1000 {
            if number == 500 {
                now += Duration::from_secs(5);
            }
            now += pace.reserve(piece, now);
            sent.push((now, piece));
            now += Duration::from_micros(number * 7919 % 3000);
        }
        for (from, _) in &sent {
            let second = *from..*from + Duration::from_secs(1);
            let bytes = sent.iter().filter(|(at, _)| second.contains(at));
            let bytes: usize = bytes.map(|(_, bytes)| bytes).sum();
            assert!(bytes <= 1_000_000 + 10_000 + piece, "{bytes}");
        }
        let whole = (now - begin - Duration::from_secs(5)).as_secs_f64();
        let rate = (sent.len() * piece) as f64 / whole;
        assert!(rate > 950_000.0, "{rate}");
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let pace = Pace::default();
        let now = Instant::now();
        assert!((0..100).all(|_| pace.reserve(1 << 30, now).is_zero()));
        assert_eq!(pace.piece(), None);
    }
}
