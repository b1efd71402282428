//! `godwit migrations`: look at migrations, cancel them, decide those in doubt.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::output::Failure;
use super::table::{table, word};
use super::{Session, progress, report};
use crate::api::types::{MigrationState, MigrationStatus, ResolveRequest};
use crate::model::{MigrationId, Side};

/// Look at migrations, cancel them, decide those in doubt.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit migrations list\n  godwit migrations show 000102abcdef09ff"
)]
pub struct Migrations {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the migrations this host takes or took part in.
    #[command(after_help = "Example:\n  godwit migrations list")]
    List,
    /// Show how a migration stands or was.
    #[command(after_help = "Example:\n  godwit migrations show 000102abcdef09ff")]
    Show {
        /// The migration.
        id: MigrationId,
    },
    /// Ask a migration to end with the container where it was.
    #[command(after_help = "Example:\n  godwit migrations cancel 000102abcdef09ff")]
    Cancel {
        /// The migration.
        id: MigrationId,
    },
    /// Decide a migration that is in doubt, after the other host has been fenced.
    ///
    /// The container is let run on the side that is kept. If the other side has a running copy, there are
    /// two from then on: make sure that it is powered off or cut from the network.
    #[command(after_help = "Example:\n  godwit migrations resolve 000102abcdef09ff --keep source")]
    Resolve {
        /// The migration.
        id: MigrationId,
        /// The side whose copy shall live.
        #[arg(long, value_enum)]
        keep: Keep,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Keep {
    /// The host the container was leaving.
    Source,
    /// The host the container was coming to.
    Destination,
}

impl Migrations {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self.verb {
            Verb::List => list(session).await,
            Verb::Show { id } => {
                let path = format!("/v1/migrations/{id}");
                let status: MigrationStatus = session.client.get(&path).await?;
                session.print(&status, describe)
            }
            Verb::Cancel { id } => {
                session
                    .client
                    .delete(&format!("/v1/migrations/{id}"))
                    .await?;
                session.done(&format!("migration {id} was asked to end; `godwit migrations show {id}` tells how it ended"))
            }
            Verb::Resolve { id, keep } => {
                let keep = match keep {
                    Keep::Source => Side::Source,
                    Keep::Destination => Side::Destination,
                };
                let path = format!("/v1/migrations/{id}/resolve");
                session.client.tell(&path, &ResolveRequest { keep }).await?;
                session.done(&format!(
                    "migration {id} is decided: the {} keeps the container",
                    word(keep)
                ))
            }
        }
    }
}

async fn list(session: &Session) -> Result<ExitCode, Failure> {
    let all: Vec<MigrationStatus> = session.client.get("/v1/migrations").await?;
    session.print(&all, |all| {
        let mut table = table(&[
            "ID",
            "CONTAINER",
            "SOURCE",
            "DESTINATION",
            "THIS HOST",
            "STATE",
        ]);
        for status in all {
            table.add_row([
                status.id.to_string(),
                status.container.to_string(),
                status.source.to_string(),
                status.destination.to_string(),
                word(status.side),
                state(status),
            ]);
        }
        table.trim_fmt()
    })
}

fn state(status: &MigrationStatus) -> String {
    match (&status.report, status.state, &status.progress) {
        (_, MigrationState::InDoubt, _) => "in doubt".to_owned(),
        (_, MigrationState::Serving, _) => format!(
            "runs on {}, which fetches the rest of its memory from here",
            status.destination
        ),
        (Some(report), _, _) => report::verdict(report),
        (None, MigrationState::Filling, _) => format!(
            "runs on {}, the rest of its memory is on {}",
            status.destination, status.source
        ),
        (None, MigrationState::Lost, _) => {
            format!(
                "lost: {}",
                status.why.as_deref().unwrap_or("the reason is not known")
            )
        }
        (None, MigrationState::Moved, _) => format!("moved to {}", status.destination),
        (None, MigrationState::Stayed, _) => format!("stayed on {}", status.source),
        (None, MigrationState::UnderWay, Some(progress)) => progress::line(progress),
        (None, MigrationState::UnderWay, None) => "under way".to_owned(),
    }
}

fn describe(status: &MigrationStatus) -> String {
    match &status.report {
        Some(report) => report::report(report),
        None => format!(
            "migration {} of {} from {} to {} ({} here): {}",
            status.id,
            status.container,
            status.source,
            status.destination,
            word(status.side),
            state(status)
        ),
    }
}
