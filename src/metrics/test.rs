use std::time::Duration;

use tokio::sync::broadcast;

use super::*;
use crate::model::{
    Bytes, ContainerState, CpuUsage, IoUsage, MemoryUsage, MigrationId, Name, Pages, PidsUsage,
    Pressure, Pressures, Reading, RestoreChoice, Stall,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn report(outcome: Outcome, blackout: Option<u64>) -> MigrationReport {
    MigrationReport {
        id: MigrationId([1; 8]),
        container: name("web"),
        source: name("alpha"),
        destination: name("beta"),
        started_at: 1,
        outcome,
        total: Duration::from_secs(2),
        blackout: blackout.map(Duration::from_millis),
        phases: vec![],
        rounds: vec![],
        pages: Pages(10),
        wire: Bytes(1000),
        decisions: vec![],
        tracker: String::new(),
        restore: RestoreChoice::default(),
        spans: vec![],
        post_copy: None,
    }
}

fn missing<T>() -> Reading<T> {
    Reading::Missing {
        missing: "it is not there".to_owned(),
    }
}

fn usage() -> Usage {
    let stall = Stall {
        avg10_bp: 0,
        total_us: 2_500_000,
    };
    Usage {
        name: name("web"),
        state: ContainerState::Running,
        at_us: 1,
        cpu: Reading::Value(CpuUsage {
            total_us: 1_500_000,
            ..CpuUsage::default()
        }),
        memory: Reading::Value(MemoryUsage {
            current: Bytes(4096),
            ..MemoryUsage::default()
        }),
        pids: Reading::Value(PidsUsage {
            current: 3,
            limit: None,
        }),
        io: Reading::Value(IoUsage {
            read: Bytes(5),
            ..IoUsage::default()
        }),
        pressure: Pressures {
            cpu: Reading::Value(Pressure {
                some: stall,
                full: Stall::default(),
            }),
            memory: missing(),
            io: missing(),
        },
    }
}

/// The sample of this name and these labels.
fn sample<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(what)?.strip_prefix(' ');
    text.lines().find_map(value)
}

#[tokio::test]
async fn what_happens_is_counted() {
    let (events, listener) = broadcast::channel(8);
    let metrics = Arc::new(Metrics::new());
    let stayed = Outcome::StayedHere {
        why: "it had to".to_owned(),
        findings: vec![],
    };
    for report in [
        report(Outcome::Moved, Some(40)),
        report(Outcome::Moved, Some(250)),
        report(stayed, None),
    ] {
        let kind = EventKind::MigrationEnded {
            report: Box::new(report),
        };
        events.send(Event { at_ms: 1, kind }).unwrap();
    }
    drop(events);
    Arc::clone(&metrics).listen(listener).await;
    let text = metrics.text(&[]).unwrap();
    for (what, value) in [
        ("godwit_migration_ended_total{outcome=\"moved\"}", "2"),
        ("godwit_migration_ended_total{outcome=\"stayed\"}", "1"),
        ("godwit_migration_ended_total{outcome=\"in_doubt\"}", "0"),
        ("godwit_migration_blackout_seconds_count", "2"),
        ("godwit_migration_blackout_seconds_bucket{le=\"0.05\"}", "1"),
        ("godwit_migration_blackout_seconds_bucket{le=\"0.3\"}", "2"),
        ("godwit_migration_sent_bytes_total", "3000"),
        ("godwit_migration_pages_total", "30"),
        ("godwit_containers{state=\"running\"}", "0"),
    ] {
        assert_eq!(sample(&text, what), Some(value), "{what} in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(text.matches("# EOF").count(), 1);
}

#[tokio::test]
async fn events_that_were_missed_are_counted_too() {
    let (events, listener) = broadcast::channel(1);
    for _ in 0..3 {
        let kind = EventKind::Removed { name: name("web") };
        events.send(Event { at_ms: 1, kind }).unwrap();
    }
    drop(events);
    let metrics = Arc::new(Metrics::new());
    Arc::clone(&metrics).listen(listener).await;
    let text = metrics.text(&[]).unwrap();
    assert_eq!(sample(&text, "godwit_events_missed_total"), Some("2"));
}

#[test]
fn what_containers_use_is_told_and_what_is_missing_is_absent() {
    let text = Metrics::new().text(&[usage()]).unwrap();
    for (what, value) in [
        ("godwit_containers{state=\"running\"}", "1"),
        (
            "godwit_container_cpu_seconds_total{container=\"web\"}",
            "1.5",
        ),
        ("godwit_container_memory_bytes{container=\"web\"}", "4096"),
        ("godwit_container_pids{container=\"web\"}", "3"),
        (
            "godwit_container_io_bytes_total{container=\"web\",direction=\"read\"}",
            "5",
        ),
        (
            "godwit_container_pressure_seconds_total{container=\"web\",resource=\"cpu\",tasks=\"some\"}",
            "2.5",
        ),
    ] {
        assert_eq!(sample(&text, what), Some(value), "{what} in:\n{text}");
    }
    assert!(!text.contains("resource=\"memory\""));
    assert!(!text.contains("memory_limit_bytes{"));
}
