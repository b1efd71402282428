//! When to freeze: a function of values, the clock included.
//!
//! 1. Over the total time limit: give up; the container has never been frozen.
//! 2. No pre-copy on this host, or no rounds wished: freeze, everything is copied in the blackout.
//! 3. The predicted blackout is within the limit: freeze; but where another short round would shorten it noticeably,
//!    another round first. The limit is what the caller bears, not what he wants.
//! 4. Above the limit, and the prediction fell by a tenth or more, and there are rounds and time left: another round.
//! 5. Above the limit, and it does not fall any more, or nothing is left to wait for: memory does not converge, and
//!    [`OnNoConvergence`] says what then. Throttling goes down by [`STEPS`], a step whenever the prediction has
//!    stopped falling, and freezes after the last.
//!
//! The prediction is explained in [`super::forecast`]. Every decision carries its reason, in a sentence for the report.
//!
//! **Invariant:** there are never more than `max_rounds` rounds; where it says freeze, it says freeze with a longer
//! limit too; after the time limit it says nothing but give up.

use std::fmt;
use std::time::Duration;

use super::forecast::{Forecast, forecast};
use crate::model::{MigrationOptions, OnNoConvergence, Round};

/// The shares of its processor time that a throttled container is given, in percent, one after the other.
pub const STEPS: [u32; 4] = [80, 60, 40, 20];

/// A round that is expected to take longer is not begun for a blackout that is short enough already.
const SHORT_ROUND: Duration = Duration::from_secs(1);

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
    /// What the container is slowed down to.
    pub throttle: Throttle,
}

/// How far a container is slowed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Throttle {
    /// It has all its limits allow.
    #[default]
    Off,
    /// It has this share, in percent.
    At(u32),
    /// This host cannot throttle.
    Impossible,
}

/// What to do next, and why, for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Another(String),
    /// Give it this share of the processor time it uses, in percent; then another round.
    Throttle(u32, String),
    /// Freeze now.
    Freeze(String),
    /// Let it run at the destination, and send the rest behind it.
    PostCopy(String),
    /// Leave the container where it is.
    GiveUp(String),
}

impl Decision {
    /// The reason alone.
    pub fn why(&self) -> &str {
        match self {
            Self::Another(why)
            | Self::Throttle(_, why)
            | Self::Freeze(why)
            | Self::PostCopy(why)
            | Self::GiveUp(why) => why,
        }
    }
}

impl fmt::Display for Decision {
    /// The whole sentence, as the report has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Another(why) => write!(f, "another round: {why}"),
            Self::Throttle(percent, why) => {
                write!(f, "slow it down to {percent} % and do another round: {why}")
            }
            Self::Freeze(why) => write!(f, "freeze: {why}"),
            Self::PostCopy(why) => write!(f, "post-copy: {why}"),
            Self::GiveUp(why) => write!(f, "give up: {why}"),
        }
    }
}

/// Decides; the criteria are at the head of this file.
pub fn decide(view: &View<'_>) -> Decision {
    let options = view.options;
    let time = Duration::from_millis(options.timeout_ms);
    if view.elapsed > time {
        return Decision::GiveUp(format!(
            "not frozen after {:.1} s, the time limit is {:.1} s; raise --timeout or --max-blackout",
            view.elapsed.as_secs_f64(),
            time.as_secs_f64()
        ));
    }
    if !view.can_precopy {
        return Decision::Freeze(
            "this kernel tracks no dirty pages, so all memory is copied in the blackout".into(),
        );
    }
    if options.max_rounds == 0 {
        return Decision::Freeze(
            "no rounds are wished, so all memory is copied in the blackout".into(),
        );
    }
    let Some(now) = forecast(view.rounds, view.fixed) else {
        return Decision::Another("the first copies all memory".into());
    };
    let limit = Duration::from_millis(options.max_blackout_ms);
    let state = State::of(view, &now);
    let cost = format!("a freeze now costs {}", said(&now));
    if now.blackout() <= limit {
        return if state == State::Falling && worthwhile(view, &now) {
            Decision::Another(format!(
                "{cost}; that is short enough, but a short round makes it shorter"
            ))
        } else {
            Decision::Freeze(format!(
                "{cost}, within the {} ms that are wished",
                limit.as_millis()
            ))
        };
    }
    let above = format!("{cost}, above the {} ms that are wished", limit.as_millis());
    match state {
        State::Falling => Decision::Another(above),
        State::Stalled => diverged(
            view,
            &now,
            format!("{above}, and it does not fall any more"),
            true,
        ),
        State::LastRound => {
            let why = format!("{above}, after the last of {} rounds", view.rounds.len());
            diverged(view, &now, why, false)
        }
        State::LastMinute => {
            let why = format!("{above}, and another round would not end within --timeout");
            diverged(view, &now, why, false)
        }
    }
}

/// Whether another round makes sense at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The prediction still falls, or there is only one.
    Falling,
    /// It does not fall any more.
    Stalled,
    /// There are no rounds left.
    LastRound,
    /// There is no time left for one.
    LastMinute,
}

impl State {
    fn of(view: &View<'_>, now: &Forecast) -> Self {
        let time = Duration::from_millis(view.options.timeout_ms);
        let next = now.scan.saturating_add(now.copy);
        let before = forecast(&view.rounds[..view.rounds.len() - 1], view.fixed);
        if view.rounds.len() as u64 >= u64::from(view.options.max_rounds) {
            Self::LastRound
        } else if view.elapsed.saturating_add(next) > time {
            Self::LastMinute
        } else if before.is_some_and(|before| {
            now.blackout().as_secs_f64() > 0.9 * before.blackout().as_secs_f64()
        }) {
            Self::Stalled
        } else {
            Self::Falling
        }
    }
}

/// Whether a blackout that is short enough is worth another round.
fn worthwhile(view: &View<'_>, now: &Forecast) -> bool {
    let next = now.scan.saturating_add(now.copy);
    let time = Duration::from_millis(view.options.timeout_ms);
    now.pages_matter()
        && !now.dirties_fast()
        && next <= SHORT_ROUND
        && view.elapsed.saturating_add(next) <= time / 2
}

/// Memory does not converge. `more`: there is room for another round.
fn diverged(view: &View<'_>, now: &Forecast, why: String, more: bool) -> Decision {
    let fixed = "nearly all of it is the fixed cost, which fewer dirty pages do not lower";
    match view.options.on_no_convergence {
        OnNoConvergence::Abort => Decision::GiveUp(format!(
            "{why}; raise --max-blackout, or choose another --on-no-convergence"
        )),
        _ if !now.pages_matter() => Decision::Freeze(format!("{why}; {fixed}")),
        OnNoConvergence::StopCopy => Decision::Freeze(why),
        OnNoConvergence::PostCopy => Decision::PostCopy(why),
        OnNoConvergence::Throttle => throttle(view.throttle, why, more),
    }
}

fn throttle(now: Throttle, why: String, more: bool) -> Decision {
    let lower = |share: u32| STEPS.into_iter().find(|&step| step < share);
    match now {
        _ if !more => Decision::Freeze(why),
        Throttle::Impossible => Decision::Freeze(format!(
            "{why}, and this host cannot slow it down: its cgroups have no cpu controller"
        )),
        Throttle::Off => Decision::Throttle(STEPS[0], why),
        Throttle::At(share) => match lower(share) {
            Some(step) => Decision::Throttle(step, why),
            None => Decision::Freeze(format!("{why}, although it is slowed down to {share} %")),
        },
    }
}

/// `123 ms (62 fixed, 1 to find and 60 to send 4000 pages)`.
fn said(now: &Forecast) -> String {
    format!(
        "{} ms ({} fixed, {} to find and {} to send {} pages)",
        now.blackout().as_millis(),
        now.fixed.as_millis(),
        now.scan.as_millis(),
        now.copy.as_millis(),
        now.residual
    )
}

#[cfg(test)]
mod test;
