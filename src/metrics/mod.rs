//! What happens and what is used, for Prometheus: text in the OpenMetrics format.
//!
//! ```text
//! events ──▶ listen ──▶ counters, histograms ──┐
//! a scrape ── what containers use just now ────┴──▶ text
//! ```
//!
//! **Invariant:** nobody calls this room to tell it something: it listens to the events that everybody may listen to.
//! What is only true at one moment (states, usage) is handed to it by whoever asks for the text.
//!
//! Counters count since the daemon began, and begin anew with it, which Prometheus understands. Names and units are
//! those of its conventions: base units, `_total` for what only grows.

mod now;

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::model::{Event, EventKind, MigrationReport, Outcome, Usage};

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Blackouts are told in these steps, in seconds: from what is hardly noticed to what nobody wants.
const BLACKOUTS: [f64; 12] = [
    0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0,
];
/// Whole migrations in these.
const TOTALS: [f64; 10] = [0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// What is counted.
pub struct Metrics {
    registry: Registry,
    migrations: Family<OutcomeLabel, Counter>,
    blackout: Histogram,
    total: Histogram,
    wire: Counter,
    pages: Counter,
    refused: Counter,
    missed: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Ended,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
enum Ended {
    moved,
    stayed,
    in_doubt,
    lost,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    version: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("godwit"),
            migrations: Family::default(),
            blackout: Histogram::new(BLACKOUTS),
            total: Histogram::new(TOTALS),
            wire: Counter::default(),
            pages: Counter::default(),
            refused: Counter::default(),
            missed: Counter::default(),
        };
        // There from the beginning, so that what never happened is 0 and not unknown.
        for outcome in [Ended::moved, Ended::stayed, Ended::in_doubt] {
            drop(this.migrations.get_or_create(&OutcomeLabel { outcome }));
        }
        this.register();
        this
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        registry.register(
            "build",
            "The daemon's version",
            Info::new(Version { version }),
        );
        let sub = registry.sub_registry_with_prefix("migration");
        sub.register(
            "ended",
            "Migrations from this host that have ended, or were left in doubt",
            self.migrations.clone(),
        );
        sub.register_with_unit(
            "blackout",
            "From the freeze on this host until the container ran at the destination",
            Unit::Seconds,
            self.blackout.clone(),
        );
        sub.register_with_unit(
            "duration",
            "From the begin to the end of migrations in which a container moved",
            Unit::Seconds,
            self.total.clone(),
        );
        sub.register_with_unit(
            "sent",
            "What has gone over the wire in migrations that have ended",
            Unit::Bytes,
            self.wire.clone(),
        );
        sub.register(
            "pages",
            "Pages that containers had when they were dumped",
            self.pages.clone(),
        );
        registry.register(
            "peer_events",
            "Peers that were added or removed, and strangers that were refused",
            self.refused.clone(),
        );
        registry.register(
            "events_missed",
            "Events that came faster than they were counted: the numbers here are then too low",
            self.missed.clone(),
        );
    }

    /// Counts what happens, until nobody tells any more.
    pub async fn listen(self: Arc<Self>, mut events: Receiver<Event>) {
        loop {
            match events.recv().await {
                Ok(event) => self.count(&event.kind),
                Err(RecvError::Lagged(missed)) => {
                    self.missed.inc_by(missed);
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn count(&self, kind: &EventKind) {
        match kind {
            EventKind::MigrationEnded { report } => self.count_migration(report),
            EventKind::Peer { .. } => {
                self.refused.inc();
            }
            // What is so now is told by whoever knows it.
            EventKind::Container { .. }
            | EventKind::Removed { .. }
            | EventKind::Migration { .. } => {}
        }
    }

    fn count_migration(&self, report: &MigrationReport) {
        let outcome = match report.outcome {
            Outcome::Moved => Ended::moved,
            Outcome::StayedHere { .. } => Ended::stayed,
            Outcome::InDoubt { .. } => Ended::in_doubt,
            Outcome::Lost { .. } => Ended::lost,
        };
        let moved = outcome == Ended::moved;
        self.migrations
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
        if let (true, Some(blackout)) = (moved, report.blackout) {
            self.blackout.observe(blackout.as_secs_f64());
            self.total.observe(report.total.as_secs_f64());
        }
        self.wire.inc_by(report.wire.0);
        self.pages.inc_by(report.pages.0);
    }

    /// Everything, as a scrape wants it; `usage` is what the containers of this host use now.
    ///
    /// # Errors
    ///
    /// A value cannot be written as text.
    pub fn text(&self, usage: &[Usage]) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &now::registry(usage))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod test;
