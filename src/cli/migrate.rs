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
use crate::model::{
    Compress, Finding, MigrationId, MigrationOptions, MigrationReport, Name, OnNoConvergence,
    Outcome, Rate, RestoreChoice, TrackerChoice,
};

/// Move a container, running, to another host.
///
/// Memory and files are copied while it runs; then it is frozen for a moment and goes on at the
/// destination, with its address and its open connections. Whatever fails before that leaves it running
/// where it is. Ctrl-C cancels and waits for the outcome. Exits with 0 only when it has moved.
///
/// How short the moment is, is foretold after each round in which memory was copied. The report says what was
/// foretold and decided, and where the blackout went.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit migrate cache --to beta --dry-run
  godwit migrate cache --to beta --max-blackout 100ms
  godwit migrate cache --to beta --bandwidth 1Gbit --compress 3
  godwit migrate cache --to beta --on-no-convergence abort --timeout 2m
  godwit migrate cache --to beta --tracker hash --restore eager --format json")]
pub struct Migrate {
    /// The container; one of an OCI bundle by its id.
    #[arg(value_parser = values::container)]
    name: Name,
    /// The destination, by its name among the peers.
    #[arg(long, value_name = "HOST")]
    to: Name,
    /// Only say what would prevent it.
    #[arg(long)]
    dry_run: bool,
    /// Freeze it as soon as the blackout is expected to be no longer than this.
    ///
    /// It is frozen a little later where a short round more makes the blackout noticeably shorter.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = values::duration)]
    max_blackout: Duration,
    /// Give up when it is not frozen by then.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
    /// The most rounds in which memory is copied while it runs; 0: all of it is copied while it is frozen.
    #[arg(long, alias = "max-rounds", value_name = "NUMBER", default_value_t = MigrationOptions::default().max_rounds)]
    rounds: u32,
    /// How changed memory is found: auto, soft-dirty, uffd-wp, hash, or criu (its own pre-dumps, which stop the
    /// container in each round).
    ///
    /// `godwit host check` shows which of them this host has. Hash reads all memory in every round: it works
    /// everywhere and is slow.
    #[arg(long, value_name = "HOW", default_value_t)]
    tracker: TrackerChoice,
    /// How memory is compressed: auto, none or a zstd level 1 to 19.
    ///
    /// Auto weighs the measured link against the measured processor.
    #[arg(long, value_name = "HOW", default_value_t = Compress::Auto)]
    compress: Compress,
    /// At most this much over the wire each second: 100M (bytes, as for memory), or 1Gbit, 500Mbit (bits).
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    bandwidth: Option<Rate>,
    /// How memory comes back: auto, lazy or eager.
    ///
    /// Lazy lets it run at once and fills its memory in behind it, all of it from the destination itself. Eager
    /// waits until all memory is in place, and needs twice the memory for that. Auto is lazy where the destination
    /// can.
    #[arg(long, value_name = "HOW", default_value_t)]
    restore: RestoreChoice,
    /// What to do when it changes memory faster than that can be copied: throttle, post-copy, stop-copy or abort.
    ///
    /// throttle: slow it down, to 80, 60, 40 and 20 % of the processor time it uses, and freeze it when that does
    /// not help either, or where the host has no cpu controller. Its time comes back however the migration ends.
    ///
    /// stop-copy: freeze it anyway, for longer than --max-blackout.
    ///
    /// abort: leave it where it is.
    ///
    /// post-copy: let it run at the destination while part of its memory is still here, and send that behind it.
    /// DANGER: until all of it has arrived the container needs both hosts and the network between them; if the
    /// source or the link is lost in that time, the container is killed and what it had in memory is gone. Every
    /// other answer can lose nothing.
    #[arg(long, value_name = "WHAT", default_value_t, verbatim_doc_comment)]
    on_no_convergence: OnNoConvergence,
}

impl Migrate {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let request = MigrateRequest {
            to: self.to,
            options: MigrationOptions {
                max_blackout_ms: millis(self.max_blackout),
                timeout_ms: millis(self.timeout),
                max_rounds: self.rounds,
                tracker: self.tracker,
                compress: self.compress,
                restore: self.restore,
                bandwidth: self.bandwidth,
                on_no_convergence: self.on_no_convergence,
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
                    Outcome::StayedHere { .. } | Outcome::InDoubt { .. } | Outcome::Lost { .. } => {
                        ExitCode::FAILURE
                    }
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
                Ok(MigrationLine::Report(report)) => break Ok(*report),
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
