//! Whether, and when, a command that has ended is started again. Pure.
//!
//! The pauses are those of others (Docker's restart policies): a tenth of a second, and twice as long each time that
//! it ended soon again, up to a minute; who has run for ten seconds begins anew.

use std::time::Duration;

use super::record::Life;
use crate::model::Restart;

/// The first pause.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);
/// Who has run for less than this has ended soon, in seconds.
const SOON: u64 = 10;

/// After which pause a command is started again that ended with this exit code (none: nobody knows how); or none, when
/// it is not.
pub fn pause(restart: Restart, life: &Life, exit_code: Option<i32>) -> Option<Duration> {
    let again = match restart {
        Restart::No => false,
        Restart::Always => true,
        Restart::OnFailure { most } => {
            exit_code != Some(0) && most.is_none_or(|most| life.restarts < most)
        }
    };
    // 2^10 tenths of a second are more than the longest.
    let pause = SHORTEST * (1 << life.quick.min(10));
    (again && life.wanted).then(|| pause.min(LONGEST))
}

/// What is remembered once it has ended and is about to be started again at `now`, seconds since the epoch.
pub fn next(life: &Life, now: u64) -> Life {
    let ran = life.ended_at.saturating_sub(life.started_at);
    Life {
        restarts: life.restarts.saturating_add(1),
        quick: if ran < SOON {
            life.quick.saturating_add(1)
        } else {
            0
        },
        started_at: now,
        ..*life
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const WANTED: Life = Life {
        wanted: true,
        started_at: 1000,
        ended_at: 1001,
        restarts: 0,
        quick: 0,
    };

    #[test]
    fn each_policy_restarts_what_it_says() {
        let most = |most| Restart::OnFailure { most };
        for (restart, exit_code, again) in [
            (Restart::No, Some(1), false),
            (Restart::No, None, false),
            (most(None), Some(0), false),
            (most(None), Some(1), true),
            (most(None), Some(137), true),
            (most(None), None, true),
            (most(Some(1)), Some(1), true),
            (Restart::Always, Some(0), true),
            (Restart::Always, None, true),
        ] {
            let found = pause(restart, &WANTED, exit_code).is_some();
            assert_eq!(found, again, "{restart} after {exit_code:?}");
            let stopped = Life {
                wanted: false,
                ..WANTED
            };
            assert_eq!(pause(restart, &stopped, exit_code), None);
        }
        let tried = Life {
            restarts: 3,
            ..WANTED
        };
        assert_eq!(pause(most(Some(3)), &tried, Some(1)), None);
        assert!(pause(most(Some(4)), &tried, Some(1)).is_some());
    }

    #[test]
    fn pauses_grow_until_it_has_run_for_a_while() {
        let mut life = WANTED;
        let mut pauses = Vec::new();
        for _ in 0..13 {
            let pause = pause(Restart::Always, &life, Some(1)).unwrap();
            pauses.push(pause.as_millis());
            // The pause is none of its time.
            life = next(&life, life.ended_at + pause.as_secs());
            life.ended_at = life.started_at + 1;
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[8..], [25_600, 51_200, 60_000, 60_000, 60_000]);
        assert_eq!(life.restarts, 13);
        life.ended_at = life.started_at + SOON;
        let life = next(&life, life.ended_at);
        assert_eq!((life.quick, life.restarts), (0, 14));
        // A clock that was set back is no reason to hurry.
        let back = Life {
            ended_at: 0,
            ..life
        };
        assert_eq!(next(&back, 0).quick, 1);
    }
}
