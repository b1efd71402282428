//! `godwit logs`: what a container has printed.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::Session;
use super::output::Failure;
use crate::model::Name;

/// Print what a container has printed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit logs cache\n  godwit logs -f --tail 20 cache")]
pub struct Logs {
    /// The container.
    name: Name,
    /// Go on until its command ends.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
}

impl Logs {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let mut path = format!("/v1/containers/{}/logs?follow={}", self.name, self.follow);
        if let Some(lines) = self.tail {
            path.push_str(&format!("&tail={lines}"));
        }
        let mut bytes = session.client.bytes(&path).await?;
        let mut out = io::stdout().lock();
        while let Some(chunk) = bytes.next().await? {
            out.write_all(&chunk)?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
