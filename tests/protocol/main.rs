//! Source and destination in one process over a link in memory: whatever fails in whichever phase on
//! whichever side, exactly one copy of the container runs afterwards.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod world;

use std::time::{Duration, Instant};

use godwit::migration::{Entry, JournalState};
use godwit::model::{OnNoConvergence, Outcome, Pages, Phase, RestoreChoice, Side, Spans};
use world::{BEHIND, Copy, Fault, MANY, World};

const SIDES: [Side; 2] = [Side::Source, Side::Destination];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undisturbed_container_moves_once() {
    let world = World::new(None);
    let outcome = world.migrate().await.expect("nothing crashes");
    assert_eq!(outcome, Outcome::Moved);
    world.settled().await;
    assert_eq!(world.copies(), (Copy::Gone, Copy::Running));
    assert_eq!(world.generation(), 1);
    // Pages have streams of their own: they may come before files that were sent before them.
    let seen = world.seen();
    let (files, rest): (Vec<&str>, Vec<&str>) = seen
        .split(' ')
        .partition(|what| ["image", "files"].contains(what));
    assert_eq!(files, ["image", "files"]);
    assert_eq!(
        rest.join(" "),
        "round:0 round:1 frozen dump changes restored"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_either_side_in_any_phase_leaves_one_copy() {
    matrix(|side, phase| Fault::Error { side, phase }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_link_in_any_phase_leaves_one_copy() {
    matrix(|side, phase| Fault::Cut { side, phase }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_either_side_in_any_phase_leaves_one_copy() {
    matrix(|side, phase| Fault::Crash { side, phase }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_both_sides_in_any_phase_leaves_one_copy() {
    matrix(|side, phase| Fault::CrashBoth { side, phase }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_be_written_leaves_one_copy() {
    for (side, state) in [
        (Side::Source, JournalState::Began),
        (Side::Source, JournalState::HandedOver),
        (Side::Source, JournalState::Moved),
        (Side::Destination, JournalState::Reserved),
        (Side::Destination, JournalState::Ready),
        (Side::Destination, JournalState::Accepted),
        (Side::Destination, JournalState::Moved),
    ] {
        check(Fault::Journal { side, state }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_in_any_phase_before_the_handover_leaves_it_on_the_source() {
    for phase in Phase::ALL.into_iter().take_while(|p| *p <= Phase::Handover) {
        let world = World::new(Some(Fault::Cancel { phase }));
        let outcome = world.migrate().await.expect("nothing crashes");
        assert!(
            matches!(outcome, Outcome::StayedHere { .. }),
            "{phase:?}: {outcome:?}"
        );
        world.settled().await;
        assert!(
            matches!(world.copies(), (Copy::Running, Copy::None | Copy::Gone)),
            "{phase:?}"
        );
        second_attempt(&world, &format!("cancel in {phase:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_decides_when_the_other_host_never_comes_back() {
    for (lost, keep) in [
        (Side::Destination, Side::Source),
        (Side::Destination, Side::Destination),
        (Side::Source, Side::Source),
        (Side::Source, Side::Destination),
    ] {
        let world = World::new(Some(Fault::Crash {
            side: lost,
            phase: Phase::Handover,
        }));
        world.never_restart(lost);
        let _ = world.migrate().await;
        world.decide(keep).await;
        let (source, destination) = world.copies();
        let here = if lost == Side::Destination {
            source
        } else {
            destination
        };
        let wanted = if lost == keep {
            Copy::Gone
        } else {
            Copy::Running
        };
        assert_eq!(here, wanted, "lost {lost:?}, keep {keep:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_every_reason_and_changes_nothing() {
    let world = World::new(Some(Fault::Refuse));
    let Some(Outcome::StayedHere { why, findings }) = world.migrate().await else {
        panic!("not refused")
    };
    assert!(
        why.contains("there is one already") && findings.len() == 2,
        "{why}"
    );
    assert_eq!(world.copies(), (Copy::Running, Copy::None));
    assert!(world.entries(Side::Destination).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_tells_the_reasons_and_changes_nothing() {
    let world = World::new(Some(Fault::Refuse));
    assert_eq!(world.dry_run().await.len(), 2);
    let world = World::new(None);
    assert!(world.dry_run().await.is_empty());
    assert_eq!(world.copies(), (Copy::Running, Copy::None));
    assert!(world.entries(Side::Source).is_empty() && world.entries(Side::Destination).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_outside_the_window_is_refused_with_a_reason() {
    let why = World::new(None).greet_with_versions(7, 9).await;
    assert!(
        why.contains("versions 7 to 9") && why.contains("upgrade"),
        "{why}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_never_ran_at_the_destination_goes_on_at_the_source() {
    let world = World::new(Some(Fault::NeverRuns));
    let outcome = world.migrate().await.expect("nothing crashes");
    assert!(matches!(outcome, Outcome::StayedHere { .. }), "{outcome:?}");
    world.settled().await;
    assert_eq!(world.copies(), (Copy::Running, Copy::Gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_does_not_converge_is_slowed_down_and_then_frozen_at_its_own_pace() {
    let world = World::busy(None, OnNoConvergence::Throttle);
    assert_eq!(world.migrate().await, Some(Outcome::Moved));
    world.settled().await;
    let steps = [Some(80), Some(60), Some(40), Some(20), None];
    assert_eq!(world.throttles(), steps);
    let report = world.report();
    let text = report.decisions.join("\n");
    assert!(text.contains("slow it down to 80 %"), "{text}");
    assert!(
        text.contains("freeze: ") && text.contains("slowed down to 20 %"),
        "{text}"
    );
    assert!(
        report
            .rounds
            .iter()
            .all(|r| r.predicted_blackout.is_some() && r.dirty_rate.is_some())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_was_slowed_down_gets_its_time_back_whatever_fails() {
    let phases = [Phase::Memory, Phase::Freeze, Phase::Dump, Phase::Restore];
    let faults = SIDES.into_iter().flat_map(|side| {
        phases.into_iter().flat_map(move |phase| {
            [
                Fault::Error { side, phase },
                Fault::Cut { side, phase },
                Fault::Crash { side, phase },
                Fault::Cancel { phase },
            ]
        })
    });
    for fault in faults {
        let world = World::busy(Some(fault), OnNoConvergence::Throttle);
        let outcome = world.migrate().await;
        world.settled().await;
        let throttles = world.throttles();
        assert!(
            throttles.contains(&Some(80)),
            "{fault:?} came too early: {throttles:?}"
        );
        assert_eq!(
            throttles.last(),
            Some(&None),
            "{fault:?}: {outcome:?} {throttles:?}"
        );
        let copies = world.copies();
        let one = matches!(
            copies,
            (Copy::Running, Copy::None | Copy::Gone) | (Copy::Gone, Copy::Running)
        );
        assert!(one, "{fault:?}: {copies:?}");
        if copies.0 == Copy::Running {
            second_attempt(&world, &format!("{fault:?}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_gives_up_leaves_the_container_alone() {
    for (answer, word) in [(OnNoConvergence::Abort, "does not fall any more")] {
        let world = World::busy(None, answer);
        let Some(Outcome::StayedHere { why, findings }) = world.migrate().await else {
            panic!("{answer}: it did not stay")
        };
        assert!(why.contains(word), "{answer}: {why}");
        assert!(findings.is_empty());
        world.settled().await;
        assert_eq!(world.copies(), (Copy::Running, Copy::Gone), "{answer}");
        assert!(world.throttles().is_empty(), "{answer}");
        assert!(!world.seen().contains("frozen"), "{answer}");
        second_attempt(&world, &answer.to_string()).await;
    }
    let world = World::busy(None, OnNoConvergence::StopCopy);
    assert_eq!(world.migrate().await, Some(Outcome::Moved));
    world.settled().await;
    assert!(world.throttles().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_both_sides_are_in_the_report_and_never_too_many() {
    let world = World::new(None);
    world.tells(vec!["\u{1b}[2J".to_owned() + &"x".repeat(1000); 500]);
    assert_eq!(world.migrate().await, Some(Outcome::Moved));
    world.settled().await;
    let report = world.report();
    let of = |side| report.spans.iter().filter(move |span| span.side == side);
    // The last look's, the gate's, the dump's and the changed files'; `Ready`'s and `Running`'s.
    assert_eq!(of(Side::Source).count(), 4 * Spans::MOST);
    assert_eq!(of(Side::Destination).count(), 2 * Spans::MOST);
    for span in &report.spans {
        assert!(
            span.name.chars().count() <= Spans::LONGEST_NAME,
            "{}",
            span.name
        );
        assert!(!span.name.contains('\u{1b}'));
        assert!(span.begin <= report.total);
    }
    assert!(report.spans.is_sorted_by_key(|span| span.begin));
    assert!(of(Side::Destination).any(|span| span.name == "restore"));
    assert_eq!(report.restore, RestoreChoice::Eager);
    assert_eq!(report.tracker, "hash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_break_in_the_middle_of_a_round_lose_nothing_and_repeat_nothing() {
    let world = World::new(Some(Fault::CutStreams));
    assert_eq!(world.migrate().await, Some(Outcome::Moved));
    world.settled().await;
    assert_eq!(world.copies(), (Copy::Gone, Copy::Running));
    assert!(world.dialled() > 2, "no stream broke: {}", world.dialled());
    let seen = world.seen();
    let end = seen.find("round:1").expect("there was another round");
    let pages = |text: &str| -> Vec<usize> {
        let pages = text.split_whitespace();
        let numbers = pages.filter_map(|page| page.strip_prefix("page:")?.parse().ok());
        let mut numbers: Vec<usize> = numbers.collect();
        numbers.sort_unstable();
        numbers
    };
    // Before the next round begins, and nothing of it later.
    assert_eq!(pages(&seen[..end]), (0..MANY).collect::<Vec<_>>());
    assert_eq!(pages(&seen).len(), MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_left_behind_is_fetched_and_then_the_frozen_copy_goes() {
    let world = World::busy(None, OnNoConvergence::PostCopy);
    assert_eq!(world.migrate().await, Some(Outcome::Moved));
    world.settled().await;
    assert_eq!(world.copies(), (Copy::Gone, Copy::Running));
    assert_eq!(world.fetched(), Some(BEHIND));
    let report = world.report();
    let post_copy = report.post_copy.expect("it was post-copy");
    assert_eq!(post_copy.behind, Pages(BEHIND));
    assert_eq!(post_copy.on_demand + post_copy.pushed, Pages(BEHIND));
    assert!(post_copy.on_demand > Pages(0) && post_copy.pushed > Pages(0));
    assert!(post_copy.complete.is_some() && report.blackout < Some(report.total));
    assert!(
        report
            .decisions
            .iter()
            .any(|d| d.starts_with("post-copy: "))
    );
    assert!(report.phases.iter().any(|span| span.phase == Phase::Fill));
    assert!(world.throttles().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_in_a_post_copy_one_copy_runs_and_has_all_of_its_memory() {
    for side in SIDES {
        for phase in Phase::ALL {
            for fault in [
                Fault::Error { side, phase },
                Fault::Cut { side, phase },
                Fault::Crash { side, phase },
                Fault::CrashBoth { side, phase },
            ] {
                let world = World::busy(Some(fault), OnNoConvergence::PostCopy);
                check_in(world, fault).await;
            }
        }
    }
    for (side, state) in [
        (Side::Source, JournalState::HandedOver),
        (Side::Source, JournalState::Serving),
        (Side::Source, JournalState::Moved),
        (Side::Destination, JournalState::Accepted),
        (Side::Destination, JournalState::Filling),
        (Side::Destination, JournalState::Moved),
    ] {
        let fault = Fault::Journal { side, state };
        check_in(World::busy(Some(fault), OnNoConvergence::PostCopy), fault).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_source_has_lost_its_memory_is_killed_and_runs_nowhere() {
    let world = World::busy(Some(Fault::LosePages), OnNoConvergence::PostCopy);
    let Some(Outcome::Lost { why }) = world.migrate().await else {
        panic!("it was not lost")
    };
    assert!(
        why.contains("not frozen any more") && why.contains("alpha"),
        "{why}"
    );
    world.settled().await;
    assert_eq!(world.copies(), (Copy::Gone, Copy::Killed));
    assert_eq!(world.lost().as_deref(), Some(&*why));
    for side in SIDES {
        let entry = world.entries(side).pop().expect("it was journalled");
        assert_eq!(
            (entry.state, entry.why.as_ref()),
            (JournalState::Lost, Some(&why))
        );
    }
    assert!(world.fetched() < Some(BEHIND));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_never_hear_of_each_other_again_leave_a_killed_container_and_a_frozen_copy() {
    for side in SIDES {
        let phase = Phase::Fill;
        let fault = Fault::CutForGood { side, phase };
        let world = World::busy(Some(fault), OnNoConvergence::PostCopy);
        let Some(Outcome::InDoubt { why }) = world.migrate().await else {
            panic!("{fault:?}: the source cannot know")
        };
        // The answer that it runs there may be lost with the cable, and with it that it is being fetched.
        let known = ["has not fetched", "no answer came"];
        assert!(known.iter().any(|known| why.contains(known)), "{why}");
        // Then the source gives up before the destination has waited long enough.
        let deadline = Instant::now() + Duration::from_secs(30);
        while world.copies() == (Copy::Frozen, Copy::Running) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.copies(), (Copy::Frozen, Copy::Killed), "{fault:?}");
        assert!(world.lost().expect("told").contains("was silent"));
        // They do hear of each other again: the frozen copy goes.
        world.together();
        world.settled().await;
        assert_eq!(world.copies(), (Copy::Gone, Copy::Killed), "{fault:?}");
        let entry = world
            .entries(Side::Source)
            .pop()
            .expect("it was journalled");
        assert_eq!(entry.state, JournalState::Lost);
        let outcome = entry.report.expect("a report").outcome;
        assert!(matches!(outcome, Outcome::Lost { .. }), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_may_give_the_frozen_copy_up_and_never_gets_it_back() {
    let fault = Fault::CutForGood {
        side: Side::Source,
        phase: Phase::Fill,
    };
    let world = World::busy(Some(fault), OnNoConvergence::PostCopy);
    let outcome = world.migrate().await;
    assert!(matches!(outcome, Some(Outcome::InDoubt { .. })));
    world.wish(Side::Source).await;
    assert_eq!(world.copies(), (Copy::Frozen, Copy::Killed));
    world.decide(Side::Destination).await;
    assert_eq!(world.copies(), (Copy::Gone, Copy::Killed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_ends_before_all_of_it_came_needs_no_more() {
    let world = World::busy(Some(Fault::Ends), OnNoConvergence::PostCopy);
    assert_eq!(world.migrate().await, Some(Outcome::Moved));
    world.settled().await;
    assert_eq!(world.copies(), (Copy::Gone, Copy::Gone));
    assert!(world.fetched() < Some(BEHIND) && world.lost().is_none());
}

/// Every phase on every side with one kind of fault.
async fn matrix(fault: impl Fn(Side, Phase) -> Fault) {
    for side in SIDES {
        for phase in Phase::ALL {
            check(fault(side, phase)).await;
        }
    }
}

async fn check(fault: Fault) {
    check_in(World::new(Some(fault)), fault).await;
}

async fn check_in(world: World, fault: Fault) {
    let text = format!("{fault:?}");
    let outcome = world.migrate().await;
    let settled = tokio::time::timeout(Duration::from_secs(20), world.settled()).await;
    assert!(
        settled.is_ok(),
        "{text}: not settled; outcome {outcome:?}, copies {:?}",
        world.copies()
    );
    let copies = world.copies();
    let one = matches!(
        copies,
        (Copy::Running, Copy::None | Copy::Gone) | (Copy::Gone, Copy::Running)
    );
    assert!(one, "{text}: {copies:?} after {outcome:?}");
    assert!(!world.two_ran(), "{text}: two copies ran at once");
    if copies.1 == Copy::Running {
        assert!(
            matches!(world.fetched(), None | Some(BEHIND)),
            "{text}: {:?}",
            world.fetched()
        );
    }
    match outcome {
        Some(Outcome::Moved) => assert_eq!(copies.1, Copy::Running, "{text}"),
        Some(Outcome::StayedHere { .. }) => assert_eq!(copies.0, Copy::Running, "{text}"),
        Some(Outcome::Lost { why }) => panic!("{text}: {why}"),
        Some(Outcome::InDoubt { .. }) | None => {}
    }
    for side in SIDES {
        let open: Vec<Entry> = world
            .entries(side)
            .into_iter()
            .filter(|e| !e.state.is_final())
            .collect();
        assert!(open.is_empty(), "{text}: {open:?}");
    }
    if copies.0 == Copy::Running {
        second_attempt(&world, &text).await;
    }
}

/// What stayed here can still be moved.
async fn second_attempt(world: &World, text: &str) {
    world.heal();
    let outcome = world.migrate().await;
    assert_eq!(outcome, Some(Outcome::Moved), "second attempt after {text}");
    world.settled().await;
    assert_eq!(
        world.copies(),
        (Copy::Gone, Copy::Running),
        "second attempt after {text}"
    );
}
