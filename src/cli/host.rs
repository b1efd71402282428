//! `godwit host`: what this host is.

use std::process::ExitCode;

use clap::Args;

use super::Session;
use super::output::Failure;
use super::table::table;
use crate::model::HostFacts;

/// Show what this host is.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit host\n  godwit host --format json")]
pub struct Host {}

impl Host {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let facts: HostFacts = session.client.get("/v1/host").await?;
        session.print(&facts, |facts| {
            let mut table = table(&["FACT", "VALUE"]);
            let criu = match (&facts.criu, &facts.criu_problem) {
                (_, Some(problem)) => format!("cannot be used: {problem}"),
                (Some(version), None) => version.to_string(),
                (None, None) => "missing".to_owned(),
            };
            let tracked = if facts.soft_dirty { "yes" } else { "no" };
            let flags = facts.cpu.flags.len();
            let rows = [
                ("name", facts.name.to_string()),
                ("godwit", facts.godwit.clone()),
                ("kernel", facts.kernel.clone()),
                (
                    "processor",
                    format!("{} {}, {flags} flags", facts.cpu.arch, facts.cpu.vendor),
                ),
                ("criu", criu),
                ("soft-dirty pages", tracked.to_owned()),
                ("memory available", facts.memory_available.to_string()),
            ];
            for (fact, value) in rows {
                table.add_row([fact.to_owned(), value]);
            }
            table.trim_fmt()
        })
    }
}
