//! When to freeze: a function of values, the clock included.
//!
//! 1. No pre-copy on this host, or no rounds wished: freeze, everything is copied in the blackout.
//! 2. Over the total time limit: give up; the container has never been frozen.
//! 3. The predicted blackout is within the limit: freeze.
//! 4. The prediction does not fall any more (by at least a tenth per round): freeze, more rounds are waste.
//! 5. The last round is done: freeze.
//! 6. Otherwise: another round.
//!
//! The prediction is the fixed cost plus the residual over the measured rate. The residual is what the
//! container dirties while a round runs: the pages the last round had to send, scaled by how much longer
//! or shorter the last round was than the one in which these pages became dirty.

use std::time::Duration;

use crate::model::{Bytes, MigrationOptions, PAGE_SIZE, Round};

/// What the policy looks at.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// The rounds so far, in order.
    pub rounds: &'a [Round],
    /// What the caller wishes.
    pub options: &'a MigrationOptions,
    /// Whether memory can be copied while the container runs.
    pub can_precopy: bool,
    /// The blackout of a container without a residual.
    pub fixed: Duration,
    /// Since the begin of the migration.
    pub elapsed: Duration,
}

/// What to do next, and why, for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Another(String),
    /// Freeze now.
    Freeze(String),
    /// Leave the container where it is.
    GiveUp(String),
}

/// Decides; the criteria are at the head of this file.
pub fn decide(view: &View<'_>) -> Decision {
    let limit = Duration::from_millis(view.options.max_blackout_ms);
    let time = Duration::from_millis(view.options.timeout_ms);
    if view.elapsed > time {
        return Decision::GiveUp(format!(
            "not frozen after {:.1} s, the time limit is {:.1} s; raise --timeout or --max-blackout",
            view.elapsed.as_secs_f64(),
            time.as_secs_f64()
        ));
    }
    if !view.can_precopy {
        return Decision::Freeze(
            "this kernel tracks no dirty pages: all memory is copied in the blackout".into(),
        );
    }
    if view.options.max_rounds == 0 {
        return Decision::Freeze(
            "no rounds are wished: all memory is copied in the blackout".into(),
        );
    }
    let Some(now) = predict(view.rounds, view.fixed) else {
        return Decision::Another("round 0 copies all memory".into());
    };
    let ms = now.as_millis();
    if now <= limit {
        return Decision::Freeze(format!(
            "predicted blackout {ms} ms is within {} ms",
            limit.as_millis()
        ));
    }
    let before = predict(&view.rounds[..view.rounds.len() - 1], view.fixed);
    if before.is_some_and(|before| now.as_secs_f64() > 0.9 * before.as_secs_f64()) {
        return Decision::Freeze(format!("predicted blackout {ms} ms does not fall any more"));
    }
    if view.rounds.len() as u64 >= u64::from(view.options.max_rounds) {
        return Decision::Freeze(format!(
            "predicted blackout {ms} ms after the last of {} rounds",
            view.rounds.len()
        ));
    }
    Decision::Another(format!(
        "predicted blackout {ms} ms is above {} ms",
        limit.as_millis()
    ))
}

/// The blackout to expect when the container is frozen after these rounds; none before the first.
pub fn predict(rounds: &[Round], fixed: Duration) -> Option<Duration> {
    let last = rounds.last()?;
    let rate = Bytes(last.sent.0 * PAGE_SIZE).per(last.duration);
    let residual = residual(rounds);
    let copy = rate
        .and_then(|r| r.time_for(residual))
        .unwrap_or(Duration::ZERO);
    Some(fixed + copy)
}

fn residual(rounds: &[Round]) -> Bytes {
    let last = rounds[rounds.len() - 1];
    let sent = last.sent.bytes();
    // Round 0 sends everything and tells nothing of the dirty rate: expect the worst, all of it again.
    let Some(before) = rounds.len().checked_sub(2).map(|i| rounds[i]) else {
        return sent;
    };
    let scale = last.duration.as_secs_f64() / before.duration.as_secs_f64().max(1e-6);
    let scaled = sent.0 as f64 * scale;
    // Never expect more than all pages there are.
    Bytes((scaled as u64).min(last.scanned.bytes().0.max(sent.0)))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::Pages;

    fn round(number: u32, ms: u64, sent: u64) -> Round {
        Round {
            number,
            duration: Duration::from_millis(ms),
            scanned: Pages(100_000),
            sent: Pages(sent),
            wire: Bytes(0),
            dirty: None,
            dirty_rate: None,
            predicted_blackout: None,
        }
    }

    fn view<'a>(rounds: &'a [Round], options: &'a MigrationOptions) -> View<'a> {
        View {
            rounds,
            options,
            can_precopy: true,
            fixed: Duration::from_millis(60),
            elapsed: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_first_decision_is_a_round() {
        let options = MigrationOptions::default();
        assert!(matches!(decide(&view(&[], &options)), Decision::Another(_)));
    }

    #[test]
    fn a_quiet_container_is_frozen_after_two_rounds() {
        let options = MigrationOptions::default();
        let rounds = [round(0, 1000, 100_000), round(1, 20, 100)];
        assert!(matches!(
            decide(&view(&rounds[..1], &options)),
            Decision::Another(_)
        ));
        assert!(matches!(
            decide(&view(&rounds, &options)),
            Decision::Freeze(_)
        ));
    }

    #[test]
    fn a_container_that_dirties_as_fast_as_we_copy_is_frozen_without_more_rounds() {
        let options = MigrationOptions::default();
        let rounds = [
            round(0, 1000, 100_000),
            round(1, 1000, 99_000),
            round(2, 1000, 98_000),
        ];
        let Decision::Freeze(why) = decide(&view(&rounds, &options)) else {
            panic!("another round")
        };
        assert!(why.contains("does not fall"), "{why}");
    }

    #[test]
    fn the_limits_of_time_and_rounds_hold() {
        let options = MigrationOptions {
            max_rounds: 2,
            ..MigrationOptions::default()
        };
        let rounds = [round(0, 4000, 100_000), round(1, 2000, 60_000)];
        assert!(matches!(
            decide(&view(&rounds, &options)),
            Decision::Freeze(_)
        ));
        let late = View {
            elapsed: Duration::from_secs(31),
            ..view(&rounds, &options)
        };
        assert!(matches!(decide(&late), Decision::GiveUp(_)));
    }

    #[test]
    fn without_a_tracker_everything_is_copied_in_the_blackout() {
        let options = MigrationOptions::default();
        let none = View {
            can_precopy: false,
            ..view(&[], &options)
        };
        assert!(matches!(decide(&none), Decision::Freeze(_)));
        let unwished = MigrationOptions {
            max_rounds: 0,
            ..options
        };
        assert!(matches!(decide(&view(&[], &unwished)), Decision::Freeze(_)));
    }

    #[test]
    fn an_instant_round_divides_by_nothing() {
        let rounds = [round(0, 0, 0), round(1, 0, 0)];
        assert_eq!(
            predict(&rounds, Duration::from_millis(60)),
            Some(Duration::from_millis(60))
        );
    }
}
