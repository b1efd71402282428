//! What a freeze would cost now: arithmetic over the rounds so far and the migrations before.
//!
//! ```text
//! blackout = fixed + scan + residual ÷ rate
//! ```
//!
//! - *fixed*: all that does not depend on memory (freeze, CRIU's dump and restore, the handover), learned from
//!   earlier migrations to the same host;
//! - *scan*: what a round takes before its first page, since the last pass over the frozen tasks takes it too;
//! - *residual*: the pages that are dirty now, counted by the tracker or else estimated;
//! - *rate*: the best that a round has reached. A round with little to send says little about the rate.
//!
//! Nothing here looks at a clock or a file.

use std::time::Duration;

use crate::model::{Bytes, MigrationReport, Outcome, Pages, Rate, RestoreChoice, Round};

/// What a freeze would cost now, in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// What does not depend on memory.
    pub fixed: Duration,
    /// Finding the pages that are dirty.
    pub scan: Duration,
    /// Sending them.
    pub copy: Duration,
    /// How many they are.
    pub residual: Pages,
    /// How fast pages travel; none where no round has sent any.
    pub rate: Option<Rate>,
    /// How many become dirty per second; none where that is not known yet.
    pub dirty_rate: Option<Pages>,
}

impl Forecast {
    /// The whole.
    pub fn blackout(&self) -> Duration {
        self.fixed
            .saturating_add(self.scan)
            .saturating_add(self.copy)
    }

    /// Whether the pages are a part of the blackout worth speaking of.
    pub fn pages_matter(&self) -> bool {
        self.copy > (self.fixed / 4).max(Duration::from_millis(5))
    }

    /// Whether pages become dirty at half the rate of their sending or faster: another round then gains little.
    pub fn dirties_fast(&self) -> bool {
        match (self.dirty_rate, self.rate) {
            (Some(dirty), Some(rate)) => dirty.bytes().0 >= rate.0 / 2,
            _ => false,
        }
    }
}

/// What to expect after these rounds; none before the first.
pub fn forecast(rounds: &[Round], fixed: Duration) -> Option<Forecast> {
    let last = rounds.last()?;
    let rate = rounds
        .iter()
        .filter_map(|r| r.sent.bytes().per(r.duration))
        .max()
        .filter(|rate| rate.0 > 0);
    let time = |pages: Pages| {
        rate.and_then(|rate| rate.time_for(pages.bytes()))
            .unwrap_or_default()
    };
    let residual = residual(rounds);
    Some(Forecast {
        fixed,
        scan: last.duration.saturating_sub(time(last.sent)),
        copy: time(residual),
        residual,
        rate,
        dirty_rate: dirty_rate(rounds),
    })
}

/// The pages that are dirty at the end of the last round.
fn residual(rounds: &[Round]) -> Pages {
    let Some(last) = rounds.last() else {
        return Pages(0);
    };
    if let Some(counted) = last.dirty {
        return counted;
    }
    // Round 0 sends everything and tells nothing of the dirty rate: expect the worst, all of it again.
    let Some(rate) = dirty_rate(rounds) else {
        return last.sent;
    };
    let expected = rate.0 as f64 * last.duration.as_secs_f64();
    // Never expect more than all pages there are.
    Pages((expected as u64).min(last.scanned.0.max(last.sent.0)))
}

/// Pages that become dirty per second. What a round finds became dirty while the one before it ran.
fn dirty_rate(rounds: &[Round]) -> Option<Pages> {
    let per_second = |pages: Pages, time: Duration| {
        let seconds = time.as_secs_f64();
        (seconds > 0.0).then(|| Pages((pages.0 as f64 / seconds) as u64))
    };
    let last = rounds.last()?;
    if let Some(counted) = last.dirty {
        return per_second(counted, last.duration);
    }
    let before = rounds.len().checked_sub(2).map(|at| &rounds[at])?;
    per_second(last.sent, before.duration.max(Duration::from_micros(1)))
}

/// How many migrations back what was learned still counts.
const REMEMBERED: usize = 9;
/// With fewer of them than this the default has a voice.
const ENOUGH: usize = 3;
/// How fast an eager restore brings memory back, roughly: what a container of another size costs more or less.
const EAGER_RATE: Rate = Rate(600 << 20);

/// The fixed cost to expect, and how many migrations it was learned from.
///
/// The median: a migration that met a busy host, or a residual that was foreseen badly, moves it little. `earlier`:
/// reports of migrations to this destination, oldest first. `memory`: what the container has.
pub fn learn<'a>(
    earlier: impl DoubleEndedIterator<Item = &'a MigrationReport>,
    way: RestoreChoice,
    memory: Bytes,
    default: Duration,
) -> (Duration, usize) {
    let eager = way == RestoreChoice::Eager;
    let alike = earlier.filter(|report| (report.restore == RestoreChoice::Eager) == eager);
    let mut samples: Vec<Duration> = alike
        .rev()
        .filter_map(|report| {
            let fixed = fixed_part(report)?;
            Some(if eager {
                resized(fixed, report.pages.bytes(), memory)
            } else {
                fixed
            })
        })
        .take(REMEMBERED)
        .collect();
    let learned = samples.len();
    if learned < ENOUGH {
        samples.push(default);
    }
    samples.sort_unstable();
    // Of an even number the greater: a blackout that is shorter than foretold annoys nobody.
    (samples[samples.len() / 2], learned)
}

/// The part of a past blackout that its pages do not explain.
fn fixed_part(report: &MigrationReport) -> Option<Duration> {
    let blackout = report
        .blackout
        .filter(|_| report.outcome == Outcome::Moved)?;
    let pages = match forecast(&report.rounds, Duration::ZERO) {
        Some(forecast) => forecast.blackout(),
        // All memory was copied in the blackout, and nothing is known of how long that took.
        None => return None,
    };
    // Pages that were foretold dearer than the whole tell nothing but that there is a fixed cost.
    Some(blackout.saturating_sub(pages).max(blackout / 4))
}

/// An eager restore's cost, for a container of another size.
fn resized(fixed: Duration, from: Bytes, to: Bytes) -> Duration {
    let time = |bytes: u64| EAGER_RATE.time_for(Bytes(bytes)).unwrap_or_default();
    let more = time(to.0.saturating_sub(from.0));
    let less = time(from.0.saturating_sub(to.0));
    fixed.saturating_add(more).saturating_sub(less)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::MigrationId;

    fn round(ms: u64, sent: u64, dirty: Option<u64>) -> Round {
        Round {
            number: 0,
            duration: Duration::from_millis(ms),
            scanned: Pages(100_000),
            sent: Pages(sent),
            wire: Bytes(0),
            dirty: dirty.map(Pages),
            dirty_rate: None,
            predicted_blackout: None,
        }
    }

    fn report(blackout_ms: u64, rounds: Vec<Round>, restore: RestoreChoice) -> MigrationReport {
        MigrationReport {
            id: MigrationId([1; 8]),
            container: "web".parse().unwrap(),
            source: "alpha".parse().unwrap(),
            destination: "beta".parse().unwrap(),
            started_at: 0,
            outcome: Outcome::Moved,
            total: Duration::from_secs(1),
            blackout: Some(Duration::from_millis(blackout_ms)),
            phases: Vec::new(),
            rounds,
            pages: Pages(100_000),
            wire: Bytes(0),
            decisions: Vec::new(),
            tracker: "hash".to_owned(),
            restore,
            spans: Vec::new(),
            post_copy: None,
        }
    }

    const FIXED: Duration = Duration::from_millis(60);

    #[test]
    fn what_the_tracker_counts_is_the_residual() {
        let now = forecast(&[round(1000, 100_000, Some(500))], FIXED).unwrap();
        assert_eq!(now.residual, Pages(500));
        assert_eq!(now.dirty_rate, Some(Pages(500)));
        assert_eq!(now.blackout(), Duration::from_millis(65));
    }

    #[test]
    fn without_a_count_round_0_expects_the_worst_and_the_next_knows_the_rate() {
        let rounds = [round(1000, 100_000, None), round(100, 1000, None)];
        let first = forecast(&rounds[..1], FIXED).unwrap();
        assert_eq!(first.residual, Pages(100_000));
        // 1000 pages a second, for a tenth of a second.
        let second = forecast(&rounds, FIXED).unwrap();
        assert_eq!(second.residual, Pages(100));
        // 10 ms of the round went to the pages at the rate of round 0, the rest to the search.
        assert_eq!(second.scan, Duration::from_millis(90));
        assert_eq!(second.copy, Duration::from_millis(1));
    }

    #[test]
    fn an_instant_round_divides_by_nothing() {
        let now = forecast(&[round(0, 0, None), round(0, 0, None)], FIXED).unwrap();
        assert_eq!(now.blackout(), FIXED);
        assert_eq!(forecast(&[], FIXED), None);
    }

    #[test]
    fn the_fixed_cost_is_a_median_of_what_was_and_one_outlier_moves_it_little() {
        let quiet = || vec![round(1000, 100_000, Some(1000))];
        let lazy = |ms| report(ms, quiet(), RestoreChoice::Lazy);
        // 10 ms of each are pages.
        let seen = [lazy(80), lazy(5000), lazy(70), lazy(75), lazy(85)];
        let default = Duration::from_millis(120);
        let learned = |reports: &[MigrationReport]| {
            learn(reports.iter(), RestoreChoice::Lazy, Bytes(0), default)
        };
        assert_eq!(learned(&seen), (Duration::from_millis(70), 5));
        assert_eq!(learned(&[]), (default, 0));
        assert_eq!(learned(&seen[..1]), (default, 1));
        let eager = [report(900, quiet(), RestoreChoice::Eager)];
        assert_eq!(learned(&eager), (default, 0));
        let mut stayed = lazy(10);
        stayed.outcome = Outcome::InDoubt { why: String::new() };
        assert_eq!(learned(&[stayed]), (default, 0));
    }

    #[test]
    fn an_eager_restore_costs_by_the_size() {
        let rounds = vec![round(1000, 100_000, Some(0))];
        let seen = vec![report(900, rounds, RestoreChoice::Eager); 3];
        let learned = |pages: u64| {
            let memory = Pages(pages).bytes();
            learn(seen.iter(), RestoreChoice::Eager, memory, Duration::ZERO).0
        };
        assert_eq!(learned(100_000), Duration::from_millis(900));
        assert!(learned(200_000) > Duration::from_millis(1500));
        assert!(learned(50_000) < Duration::from_millis(600));
    }
}
