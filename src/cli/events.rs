//! `godwit events`: what happens, as it happens.

use std::process::ExitCode;

use clap::Args;

use super::output::Failure;
use super::table::word;
use super::{Session, oci, progress};
use crate::api::ClientError;
use crate::api::types::EventLine;
use crate::model::{Event, EventKind};

/// Print what happens, as it happens; or, with a container of a bundle, what it uses.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit events\n  godwit events --format json\n  godwit events --stats web"
)]
pub struct Events {
    #[command(flatten)]
    pub of: oci::usage::Usage,
}

impl Events {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let mut lines = session.client.lines::<EventLine>("/v1/events").await?;
        while let Some(line) = lines.next().await? {
            session.print_line(&line, describe)?;
        }
        // It has no end of its own.
        Err(ClientError::CutShort { what: "the events" }.into())
    }
}

fn describe(line: &EventLine) -> String {
    match line {
        EventLine::Missed { missed } => format!("--:--:--.---  {missed} events were missed"),
        EventLine::Event(event) => format!("{}  {}", time_of_day(event), what(&event.kind)),
    }
}

/// The time of day, UTC.
fn time_of_day(event: &Event) -> String {
    let (seconds, millis) = (event.at_ms / 1000 % 86400, event.at_ms % 1000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{millis:03}Z", seconds % 60)
}

fn what(kind: &EventKind) -> String {
    match kind {
        EventKind::Container { name, state } => format!("container {name} is {}", word(state)),
        EventKind::Removed { name } => format!("container {name} is deleted"),
        EventKind::Migration {
            id,
            container,
            side,
            progress,
        } => {
            let line = progress::line(progress);
            format!("migration {id} of {container} ({}): {line}", word(side))
        }
        EventKind::MigrationEnded { report } => format!(
            "migration {} of {}: {}",
            report.id,
            report.container,
            super::report::verdict(report)
        ),
        EventKind::Peer { peer, what } => format!("peer {peer}: {what}"),
    }
}
