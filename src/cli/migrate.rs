//! `godwit migrate`: move a container, running, to another host.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::output::Failure;
use super::progress::Ticker;
use super::{Session, progress, report, values};
use crate::api::ClientError;
use crate::api::client::LineReader;
use crate::api::types::{MigrateAnswer, MigrateRequest, MigrationLine};
use crate::model::{Finding, MigrationId, MigrationOptions, MigrationReport, Name, Outcome};

/// Move a container, running, to another host.
///
/// Memory and files are copied while it runs; then it is frozen for a moment and goes on at the
/// destination, with its address and its open connections. Whatever fails before that leaves it running
/// where it is. Ctrl-C cancels and waits for the outcome. Exits with 0 only when it has moved.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit migrate cache --to beta --dry-run
  godwit migrate cache --to beta --max-blackout 100ms")]
pub struct Migrate {
    /// The container.
    name: Name,
    /// The destination, by its name among the peers.
    #[arg(long, value_name = "HOST")]
    to: Name,
    /// Only say what would prevent it.
    #[arg(long)]
    dry_run: bool,
    /// Freeze it as soon as the blackout is expected to be no longer than this.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = values::duration)]
    max_blackout: Duration,
    /// Give up when it is not frozen by then.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
    /// The most rounds in which memory is copied while it runs.
    #[arg(long, value_name = "NUMBER", default_value_t = MigrationOptions::default().max_rounds)]
    max_rounds: u32,
}

impl Migrate {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let request = MigrateRequest {
            to: self.to,
            options: MigrationOptions {
                max_blackout_ms: millis(self.max_blackout),
                timeout_ms: millis(self.timeout),
                max_rounds: self.max_rounds,
                ..MigrationOptions::default()
            },
            dry_run: self.dry_run,
        };
        let path = format!("/v1/containers/{}/migrate", self.name);
        match session.client.post(&path, &request).await? {
            MigrateAnswer::DryRun { findings } => tell_findings(session, &findings),
            MigrateAnswer::Started { id } => {
                let report = follow(session, id).await?;
                session.print(&report, report::report)?;
                Ok(match report.outcome {
                    Outcome::Moved => ExitCode::SUCCESS,
                    Outcome::StayedHere { .. } | Outcome::InDoubt { .. } => ExitCode::FAILURE,
                })
            }
        }
    }
}

fn tell_findings(session: &Session, findings: &[Finding]) -> Result<ExitCode, Failure> {
    let prevented = findings.iter().any(|finding| finding.blocking);
    session.print(&findings, |findings| {
        let verdict = if prevented {
            "it cannot move"
        } else {
            "nothing prevents it"
        };
        format!("{verdict}\n{}", report::findings(findings))
    })?;
    Ok(if prevented {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Shows how it goes until it has ended. The first Ctrl-C cancels it, the second leaves it alone.
async fn follow(session: &Session, id: MigrationId) -> Result<MigrationReport, Failure> {
    let path = format!("/v1/migrations/{id}/progress");
    let mut lines = session.client.lines::<MigrationLine>(&path).await?;
    let ticker = Ticker::new(session.format);
    let mut cancelled = false;
    let ended = loop {
        tokio::select! {
            line = next(&mut lines) => match line {
                Ok(MigrationLine::Progress(progress)) => ticker.say(&progress::line(&progress)),
                Ok(MigrationLine::Report(report)) => break Ok(report),
                Ok(MigrationLine::Gone { why }) => {
                    break Err(Failure::new(format!("the outcome of migration {id} is not known: {why}"), look(id)));
                }
                Err(e) => break Err(e),
            },
            _ = tokio::signal::ctrl_c() => {
                if cancelled {
                    break Err(Failure::new(format!("left migration {id} before its outcome was known"), look(id)));
                }
                cancelled = true;
                ticker.note("cancelling; waiting for the outcome (Ctrl-C again: do not wait)");
                if let Err(e) = session.client.delete(&format!("/v1/migrations/{id}")).await {
                    ticker.note(&format!("it could not be cancelled: {}", crate::daemon::chain(&e)));
                }
            }
        }
    };
    ticker.end();
    ended
}

async fn next(lines: &mut LineReader<MigrationLine>) -> Result<MigrationLine, Failure> {
    let what = "the migration";
    lines
        .next()
        .await?
        .ok_or_else(|| ClientError::CutShort { what }.into())
}

fn look(id: MigrationId) -> String {
    format!(
        "`godwit migrations show {id}` tells how it stands; `godwit list` on both hosts, where it runs"
    )
}
