//! A migration's report, for people.

use super::table::{or_dash, right, span, table};
use crate::model::{Finding, MigrationReport, Outcome};

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
    let mut table = table(&["ROUND", "LENGTH", "SCANNED", "SENT", "BYTES", "RATE"]);
    right(&mut table, &[0, 1, 2, 3, 4, 5]);
    for round in &report.rounds {
        table.add_row([
            round.number.to_string(),
            span(round.duration),
            round.scanned.to_string(),
            round.sent.to_string(),
            round.wire.to_string(),
            or_dash(round.wire.per(round.duration)),
        ]);
    }
    table.trim_fmt()
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
    use std::time::Duration;

    use super::*;
    use crate::model::{Bytes, MigrationId, Pages, Phase, PhaseSpan, RestoreChoice, Round};

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
            phases: vec![PhaseSpan {
                phase: Phase::Memory,
                begin: Duration::from_millis(20),
                length: Duration::from_secs(1),
                wire: Bytes(8 << 20),
            }],
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
            spans: Vec::new(),
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
            "freeze:",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
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
