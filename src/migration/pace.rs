//! At most so many bytes per second.

use std::time::{Duration, Instant};

use crate::model::Rate;

/// Who slept longer than he had to may catch up so much: what timers are late.
const SLACK: Duration = Duration::from_millis(10);
/// The longest piece that is let go at once.
const LONGEST: usize = 64 << 10;
/// How long a piece may be on its way.
const PIECE: f64 = 0.01;

/// A token bucket that holds next to nothing: in any second no more goes out than the rate, a piece, and [`SLACK`].
#[derive(Debug)]
pub struct Pace {
    rate: Option<Rate>,
    /// When everything that was let go is out at this rate.
    free: Option<Instant>,
}

impl Pace {
    /// At this rate; none: as fast as it goes.
    pub fn new(rate: Option<Rate>) -> Self {
        let rate = rate.filter(|rate| rate.0 > 0);
        Self { rate, free: None }
    }

    /// How many bytes may be let go at once.
    pub fn piece(&self) -> usize {
        self.rate.map_or(usize::MAX, |rate| {
            ((rate.0 as f64 * PIECE) as usize).clamp(512, LONGEST)
        })
    }

    /// Waits until so many bytes may go.
    pub async fn take(&mut self, bytes: usize) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How long so many bytes must wait.
    fn reserve(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let begin = self.free.map_or(now, |free| free.max(earliest));
        self.free = Some(begin + Duration::from_secs_f64(bytes as f64 / rate.0 as f64));
        begin.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn no_second_has_more_than_the_rate() {
        let mut pace = Pace::new(Some(Rate(1_000_000)));
        let piece = pace.piece();
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
        let mut pace = Pace::new(None);
        let now = Instant::now();
        assert!((0..100).all(|_| pace.reserve(1 << 30, now).is_zero()));
        assert_eq!(pace.piece(), usize::MAX);
    }
}
