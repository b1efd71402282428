//! A migration's report, for people.

use std::cmp::Reverse;
use std::time::Duration;

use super::table::{or_dash, right, span, table, word};
use crate::model::{Finding, MigrationReport, Outcome, Phase, RestoreChoice, Side, Span, Spans};

/// How it ended, on one line.
pub fn verdict(report: &MigrationReport) -> String {
    match &report.outcome {
        Outcome::Moved => match report.blackout {
            Some(blackout) => format!(
                "moved to {} in {}, blackout {}",
                report.destination,
                span(report.total),
                span(blackout)
            ),
            None => format!("moved to {} in {}", report.destination, span(report.total)),
        },
        Outcome::StayedHere { why, .. } => format!("stayed on {}: {why}", report.source),
        Outcome::InDoubt { why } => format!("in doubt: {why}"),
        Outcome::Lost { why } => format!("lost on {}: {why}", report.destination),
    }
}

/// Everything: the verdict, the timeline, the rounds, the reasons.
pub fn report(report: &MigrationReport) -> String {
    let mut text = format!("{} {}\n", report.container, verdict(report));
    if let Outcome::StayedHere { findings, why } = &report.outcome {
        // A single reason is most often the verdict's own words.
        let more: Vec<Finding> = findings
            .iter()
            .filter(|finding| !why.contains(&finding.text))
            .cloned()
            .collect();
        text.push_str(&self::findings(&more));
    }
    if matches!(report.outcome, Outcome::InDoubt { .. }) {
        text.push_str(&format!(
            "It runs on neither host until the two have spoken; that ends it by itself. If one of them will \
             not come back: fence it, then on the other\n  godwit migrations resolve {} --keep \
             source|destination\n",
            report.id
        ));
    }
    if !report.phases.is_empty() {
        text.push_str(&format!("\n{}\n", phases(report)));
    }
    if !report.rounds.is_empty() {
        text.push_str(&format!("\n{}\n", rounds(report)));
    }
    if let Some(table) = blackout(report) {
        text.push_str(&format!("\n{table}\n"));
    }
    text.push_str(&format!(
        "\nmigration {}: {} → {}, total {}, blackout {}, {} pages, {} over the wire\n",
        report.id,
        report.source,
        report.destination,
        span(report.total),
        or_dash(report.blackout.map(span)),
        report.pages,
        report.wire,
    ));
    if let Some(post_copy) = &report.post_copy {
        text.push_str(&format!(
            "left behind at the freeze {} pages; fetched on demand {}, pushed {}, complete {}\n",
            post_copy.behind,
            post_copy.on_demand,
            post_copy.pushed,
            or_dash(post_copy.complete.map(span)),
        ));
    }
    if !report.tracker.is_empty() {
        let way = match report.restore {
            RestoreChoice::Auto => String::new(),
            way => format!(", restored {way}"),
        };
        text.push_str(&format!("tracker {}{way}\n", report.tracker));
    }
    if !report.decisions.is_empty() {
        text.push_str("decisions:\n");
    }
    for decision in &report.decisions {
        text.push_str(&format!("  {decision}\n"));
    }
    text
}

fn phases(report: &MigrationReport) -> String {
    let mut table = table(&["PHASE", "BEGIN", "LENGTH", "BYTES", "RATE"]);
    right(&mut table, &[1, 2, 3, 4]);
    for phase in &report.phases {
        table.add_row([
            phase.phase.as_str().to_owned(),
            span(phase.begin),
            span(phase.length),
            phase.wire.to_string(),
            or_dash(phase.wire.per(phase.length).filter(|_| phase.wire.0 > 0)),
        ]);
    }
    table.trim_fmt()
}

fn rounds(report: &MigrationReport) -> String {
    let mut table = table(&[
        "ROUND",
        "LENGTH",
        "SCANNED",
        "SENT",
        "BYTES",
        "THROUGHPUT",
        "DIRTIED",
        "BLACKOUT THEN",
    ]);
    right(&mut table, &[0, 1, 2, 3, 4, 5, 6, 7]);
    for round in &report.rounds {
        table.add_row([
            round.number.to_string(),
            span(round.duration),
            round.scanned.to_string(),
            round.sent.to_string(),
            round.wire.to_string(),
            or_dash(round.sent.bytes().per(round.duration)),
            or_dash(round.dirty_rate.map(|pages| format!("{pages}/s"))),
            or_dash(round.predicted_blackout.map(span)),
        ]);
    }
    table.trim_fmt()
}

/// Where the blackout went: the source's phases and both sides' steps, by their begin. None where there was none.
fn blackout(report: &MigrationReport) -> Option<String> {
    let whole = report.blackout.filter(|whole| !whole.is_zero())?;
    let freeze = report.phases.iter().find(|p| p.phase == Phase::Freeze)?;
    let phases = report
        .phases
        .iter()
        .filter(|p| (Phase::Freeze..=Phase::Handover).contains(&p.phase))
        .map(|p| Span {
            side: Side::Source,
            name: format!("phase {}", p.phase.as_str()),
            begin: p.begin.saturating_sub(freeze.begin),
            length: p.length,
        });
    let mut rows: Vec<Span> = phases.chain(report.spans.iter().cloned()).collect();
    rows.sort_by_key(|row| (row.begin, Reverse(row.length)));
    let mut table = table(&["BLACKOUT", "SIDE", "BEGIN", "LENGTH", "SHARE"]);
    right(&mut table, &[2, 3, 4]);
    for row in rows {
        // What goes on after it ran is no part of the blackout.
        let length = row.length.min(whole.saturating_sub(row.begin));
        table.add_row([
            Spans::plain(&row.name),
            word(row.side),
            span(row.begin),
            span(length),
            share(length, whole),
        ]);
    }
    let rest = whole.saturating_sub(covered(&report.spans, whole));
    if !report.spans.is_empty() {
        table.add_row([
            "in no step".to_owned(),
            String::new(),
            String::new(),
            span(rest),
            share(rest, whole),
        ]);
    }
    Some(table.trim_fmt())
}

fn share(part: Duration, whole: Duration) -> String {
    format!("{:.0} %", 100.0 * part.as_secs_f64() / whole.as_secs_f64())
}

/// How much of the first `whole` lies in at least one of these steps, which are in the order of their begin.
fn covered(spans: &[Span], whole: Duration) -> Duration {
    let (mut sum, mut until) = (Duration::ZERO, Duration::ZERO);
    for span in spans {
        let end = span.begin.saturating_add(span.length).min(whole);
        sum += end.saturating_sub(span.begin.max(until));
        until = until.max(end);
    }
    sum
}

/// What was found, a line each.
pub fn findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = if finding.blocking {
            "prevents it"
        } else {
            "note"
        };
        text.push_str(&format!("  {mark}: {} [{}]\n", finding.text, finding.code));
    }
    text
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Bytes, MigrationId, Pages, PhaseSpan, Round};

    fn phase(phase: Phase, begin: u64, length: u64) -> PhaseSpan {
        PhaseSpan {
            phase,
            begin: Duration::from_millis(begin),
            length: Duration::from_millis(length),
            wire: Bytes(8 << 20),
        }
    }

    fn step(side: Side, name: &str, begin: u64, length: u64) -> Span {
        Span {
            side,
            name: name.to_owned(),
            begin: Duration::from_millis(begin),
            length: Duration::from_millis(length),
        }
    }

    fn given_report(outcome: Outcome) -> MigrationReport {
        MigrationReport {
            id: MigrationId([7; 8]),
            container: "web".parse().unwrap(),
            source: "alpha".parse().unwrap(),
            destination: "beta".parse().unwrap(),
            started_at: 0,
            outcome,
            total: Duration::from_millis(1500),
            blackout: Some(Duration::from_millis(123)),
            phases: vec![
                phase(Phase::Memory, 20, 1000),
                phase(Phase::Freeze, 1020, 3),
                phase(Phase::Handover, 1130, 400),
            ],
            rounds: vec![Round {
                number: 0,
                duration: Duration::from_secs(1),
                scanned: Pages(4096),
                sent: Pages(2048),
                wire: Bytes(8 << 20),
                dirty: Some(Pages(300)),
                dirty_rate: Some(Pages(300)),
                predicted_blackout: Some(Duration::from_millis(100)),
            }],
            tracker: "uffd-wp".to_owned(),
            restore: RestoreChoice::Lazy,
            post_copy: None,
            spans: vec![
                step(Side::Source, "criu dump", 3, 40),
                step(Side::Destination, "take images", 20, 30),
                step(Side::Destination, "restore", 60, 50),
            ],
            pages: Pages(4096),
            wire: Bytes(9 << 20),
            decisions: vec!["freeze: predicted blackout 100 ms".to_owned()],
        }
    }

    #[test]
    fn a_report_tells_the_whole_story() {
        let text = report(&given_report(Outcome::Moved));
        for part in [
            "web moved to beta in 1.50 s, blackout 123 ms",
            "memory",
            "8.00 MiB/s",
            "2048",
            "300/s",
            "tracker uffd-wp, restored lazy",
            "freeze:",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn a_report_tells_where_the_blackout_went() {
        let text = report(&given_report(Outcome::Moved));
        let rows: Vec<String> = text
            .lines()
            .skip_while(|line| !line.starts_with("BLACKOUT"))
            .take_while(|line| !line.is_empty())
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            rows,
            [
                "BLACKOUT SIDE BEGIN LENGTH SHARE",
                "phase freeze source 0.0 ms 3.0 ms 2 %",
                "criu dump source 3.0 ms 40 ms 33 %",
                "take images destination 20 ms 30 ms 24 %",
                "restore destination 60 ms 50 ms 41 %",
                "phase handover source 110 ms 13 ms 11 %",
                "in no step 26 ms 21 %",
            ]
        );
    }

    #[test]
    fn a_report_in_doubt_says_what_to_do() {
        let why = "the link was cut".to_owned();
        let text = report(&given_report(Outcome::InDoubt { why }));
        assert!(
            text.contains("godwit migrations resolve 0707070707070707 --keep"),
            "{text}"
        );
    }

    #[test]
    fn a_refusal_lists_its_reasons() {
        let outcome = Outcome::StayedHere {
            why: "beta refused".to_owned(),
            findings: vec![Finding::blocking("no-room", "too little memory")],
        };
        let text = report(&given_report(outcome));
        assert!(
            text.contains("prevents it: too little memory [no-room]"),
            "{text}"
        );
    }
}
