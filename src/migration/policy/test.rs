//! The criteria one by one, and what holds whatever the container does.

use super::*;
use crate::model::{Bytes, Pages};
use proptest::prelude::*;

const FIXED: Duration = Duration::from_millis(60);

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

fn view<'a>(rounds: &'a [Round], options: &'a MigrationOptions) -> View<'a> {
    View {
        rounds,
        options,
        can_precopy: true,
        fixed: FIXED,
        elapsed: Duration::from_secs(1),
        throttle: Throttle::Off,
    }
}

fn on(on_no_convergence: OnNoConvergence) -> MigrationOptions {
    MigrationOptions {
        on_no_convergence,
        ..MigrationOptions::default()
    }
}

/// It dirties as fast as it is copied.
fn busy() -> [Round; 3] {
    [
        round(1000, 100_000, None),
        round(1000, 99_000, None),
        round(1000, 98_000, None),
    ]
}

#[track_caller]
fn check_says(decision: &Decision, kind: &str, words: &[&str]) {
    let text = decision.to_string();
    assert!(text.starts_with(kind), "{kind} was expected: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

#[test]
fn the_first_decision_is_a_round() {
    let options = MigrationOptions::default();
    check_says(&decide(&view(&[], &options)), "another round: ", &[]);
}

#[test]
fn a_quiet_container_is_frozen_after_two_rounds_and_a_counted_one_after_one() {
    let options = MigrationOptions::default();
    let rounds = [round(1000, 100_000, None), round(20, 100, None)];
    check_says(
        &decide(&view(&rounds[..1], &options)),
        "another",
        &["1060 ms"],
    );
    check_says(
        &decide(&view(&rounds, &options)),
        "freeze",
        &["60 fixed", "within the 300 ms"],
    );
    let counted = [round(1000, 100_000, Some(100))];
    check_says(&decide(&view(&counted, &options)), "freeze", &["61 ms"]);
}

#[test]
fn a_short_round_more_is_done_when_it_shortens_a_blackout_that_is_short_enough() {
    let options = MigrationOptions::default();
    let rounds = [
        round(1000, 100_000, Some(20_000)),
        round(200, 20_000, Some(4000)),
    ];
    check_says(
        &decide(&view(&rounds[..1], &options)),
        "another",
        &["260 ms", "shorter"],
    );
    check_says(
        &decide(&view(&rounds, &options)),
        "another",
        &["100 ms", "shorter"],
    );
    let fast = [
        round(1000, 100_000, Some(20_000)),
        round(100, 10_000, Some(9000)),
    ];
    check_says(&decide(&view(&fast, &options)), "freeze", &["150 ms"]);
    let late = View {
        elapsed: Duration::from_secs(20),
        ..view(&rounds, &options)
    };
    check_says(&decide(&late), "freeze", &["100 ms"]);
}

#[test]
fn memory_that_does_not_converge_is_answered_as_was_wished() {
    let rounds = busy();
    let says = |what, kind, words: &[&str]| {
        check_says(&decide(&view(&rounds, &on(what))), kind, words);
    };
    let stalled = "does not fall any more";
    says(
        OnNoConvergence::Throttle,
        "slow it down to 80 %",
        &[stalled],
    );
    says(OnNoConvergence::StopCopy, "freeze", &[stalled]);
    says(OnNoConvergence::PostCopy, "post-copy", &[stalled]);
    says(
        OnNoConvergence::Abort,
        "give up",
        &[stalled, "--max-blackout"],
    );
}

#[test]
fn throttling_goes_down_step_by_step_and_then_freezes() {
    let (rounds, options) = (busy(), MigrationOptions::default());
    let mut throttle = Throttle::Off;
    for step in STEPS {
        let at = View {
            throttle,
            ..view(&rounds, &options)
        };
        assert!(matches!(decide(&at), Decision::Throttle(share, _) if share == step));
        throttle = Throttle::At(step);
    }
    let at = |throttle| View {
        throttle,
        ..view(&rounds, &options)
    };
    check_says(&decide(&at(throttle)), "freeze", &["slowed down to 20 %"]);
    let decision = decide(&at(Throttle::Impossible));
    check_says(&decision, "freeze", &["no cpu controller"]);
}

#[test]
fn a_limit_below_the_fixed_cost_throttles_nobody() {
    let options = MigrationOptions {
        max_blackout_ms: 10,
        ..MigrationOptions::default()
    };
    let rounds = [round(1000, 100_000, Some(10)), round(2, 10, Some(10))];
    check_says(
        &decide(&view(&rounds, &options)),
        "freeze",
        &["above the 10 ms", "fixed cost"],
    );
}

#[test]
fn the_limits_of_time_and_rounds_hold() {
    let options = MigrationOptions {
        max_rounds: 2,
        ..on(OnNoConvergence::StopCopy)
    };
    let rounds = [round(4000, 100_000, None), round(2000, 60_000, None)];
    check_says(
        &decide(&view(&rounds, &options)),
        "freeze",
        &["the last of 2 rounds"],
    );
    let late = |seconds| View {
        elapsed: Duration::from_secs(seconds),
        ..view(&rounds[..1], &options)
    };
    check_says(&decide(&late(31)), "give up", &["--timeout"]);
    check_says(&decide(&late(28)), "freeze", &["--timeout"]);
}

#[test]
fn without_a_tracker_everything_is_copied_in_the_blackout() {
    let options = MigrationOptions::default();
    let none = View {
        can_precopy: false,
        ..view(&[], &options)
    };
    check_says(&decide(&none), "freeze", &[]);
    let unwished = MigrationOptions {
        max_rounds: 0,
        ..options
    };
    check_says(&decide(&view(&[], &unwished)), "freeze", &[]);
}

/// A container made of numbers.
#[derive(Debug, Clone)]
struct Workload {
    pages: u64,
    dirty_per_second: u64,
    pages_per_second: u64,
    scan_ms: u64,
    counts: bool,
    can_throttle: bool,
}

prop_compose! {
    fn workloads()(
        pages in 0..1_000_000_u64,
        dirty_per_second in 0..2_000_000_u64,
        pages_per_second in 1..1_000_000_u64,
        scan_ms in 0..2000_u64,
        counts: bool,
        can_throttle: bool,
    ) -> Workload {
        Workload { pages, dirty_per_second, pages_per_second, scan_ms, counts, can_throttle }
    }
}

prop_compose! {
    fn wishes()(
        max_blackout_ms in 0..5000_u64,
        timeout_ms in 1..60_000_u64,
        max_rounds in 0..12_u32,
        which in 0..OnNoConvergence::ALL.len(),
    ) -> MigrationOptions {
        MigrationOptions {
            max_blackout_ms,
            timeout_ms,
            max_rounds,
            on_no_convergence: OnNoConvergence::ALL[which],
            ..MigrationOptions::default()
        }
    }
}

prop_compose! {
    fn histories()(
        rounds in prop::collection::vec(
            (0..5000_u64, 0..200_000_u64, prop::option::of(0..200_000_u64)),
            0..10,
        ),
    ) -> Vec<Round> {
        rounds.into_iter().map(|(ms, sent, dirty)| round(ms, sent, dirty)).collect()
    }
}

impl Workload {
    /// Migrates it, as [`super::super::source`] would. The last decision, the rounds, the time it took.
    fn migrate(&self, options: &MigrationOptions) -> (Decision, usize, Duration) {
        let (mut rounds, mut throttle) = (Vec::<Round>::new(), Throttle::Off);
        let (mut elapsed, mut dirty) = (Duration::ZERO, self.pages);
        loop {
            let decision = decide(&View {
                elapsed,
                throttle,
                ..view(&rounds, options)
            });
            match decision {
                Decision::Another(_) => {}
                Decision::Throttle(..) if !self.can_throttle => {
                    throttle = Throttle::Impossible;
                    continue;
                }
                Decision::Throttle(share, _) => {
                    assert!(!matches!(throttle, Throttle::At(before) if before <= share));
                    throttle = Throttle::At(share);
                }
                last => return (last, rounds.len(), elapsed),
            }
            let share = if let Throttle::At(share) = throttle {
                share
            } else {
                100
            };
            let time = Duration::from_secs_f64(dirty as f64 / self.pages_per_second as f64)
                + Duration::from_millis(self.scan_ms);
            let sent = dirty;
            let rate = self.dirty_per_second as f64 * f64::from(share) / 100.0;
            dirty = ((rate * time.as_secs_f64()) as u64).min(self.pages);
            elapsed += time;
            rounds.push(Round {
                duration: time,
                ..round(0, sent, self.counts.then_some(dirty))
            });
            assert!(rounds.len() < 100, "it does not end");
        }
    }
}

proptest! {
    #[test]
    fn every_migration_ends_within_its_rounds(workload in workloads(), options in wishes()) {
        let (last, rounds, elapsed) = workload.migrate(&options);
        prop_assert!(rounds <= options.max_rounds as usize);
        if elapsed > Duration::from_millis(options.timeout_ms) {
            prop_assert!(matches!(last, Decision::GiveUp(_)));
        }
        if options.on_no_convergence == OnNoConvergence::Abort && rounds > 0
            && let Decision::Freeze(why) = &last
        {
            prop_assert!(why.contains("within"), "{}", why);
        }
        let post_copy = matches!(last, Decision::PostCopy(_));
        prop_assert!(!post_copy || options.on_no_convergence == OnNoConvergence::PostCopy);
    }

    #[test]
    fn a_longer_limit_never_freezes_later(rounds in histories(), options in wishes(), more in 0..5000_u64) {
        let patient = MigrationOptions {
            max_blackout_ms: options.max_blackout_ms + more,
            ..options.clone()
        };
        if matches!(decide(&view(&rounds, &options)), Decision::Freeze(_)) {
            let then = decide(&view(&rounds, &patient));
            prop_assert!(matches!(then, Decision::Freeze(_)), "{}", then);
        }
    }

    #[test]
    fn after_the_time_limit_there_is_nothing_but_giving_up(rounds in histories(), options in wishes()) {
        let late = View {
            elapsed: Duration::from_millis(options.timeout_ms + 1),
            ..view(&rounds, &options)
        };
        prop_assert!(matches!(decide(&late), Decision::GiveUp(_)));
    }

    #[test]
    fn a_container_that_writes_nothing_is_frozen_for_its_fixed_cost(pages in 1..1_000_000_u64) {
        let workload = Workload {
            pages,
            dirty_per_second: 0,
            pages_per_second: 250_000,
            scan_ms: 0,
            counts: true,
            can_throttle: true,
        };
        let (last, rounds, _) = workload.migrate(&MigrationOptions::default());
        prop_assert!(matches!(last, Decision::Freeze(_)));
        prop_assert_eq!(rounds, 1);
    }
}
