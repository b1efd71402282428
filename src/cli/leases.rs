//! `godwit leases`: which container has which address.

use std::process::ExitCode;

use clap::Args;

use super::Session;
use super::output::Failure;
use super::table::{or_dash, table};
use crate::api::types::LeaseInfo;

/// Show which container has which address.
///
/// One that moved to another host keeps its address, which is not given to another here.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit leases")]
pub struct Leases {}

impl Leases {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let all: Vec<LeaseInfo> = session.client.get("/v1/leases").await?;
        session.print(&all, |all| {
            let mut table = table(&["NAME", "ADDRESS", "ETHERNET", "MOVED TO"]);
            for entry in all {
                table.add_row([
                    entry.name.to_string(),
                    entry.lease.address.to_string(),
                    entry.lease.mac.to_string(),
                    or_dash(entry.moved_to.as_ref()),
                ]);
            }
            table.trim_fmt()
        })
    }
}
