//! `godwit logs`: what a container has printed.

use std::io::{self, Write};
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use super::output::Failure;
use super::{Format, Session};
use crate::api::ClientError;
use crate::api::types::{LogLine, Output};
use crate::model::{ContainerState, ContainerStatus, Name};

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
    /// Tell when each line was printed.
    #[arg(short, long)]
    timestamps: bool,
}

impl Logs {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let mut path = format!("/v1/containers/{}/logs?follow={}", self.name, self.follow);
        if let Some(lines) = self.tail {
            path.push_str(&format!("&tail={lines}"));
        }
        let mut lines = session.client.lines::<LogLine>(&path).await?;
        while let Some(line) = lines.next().await? {
            if session.format == Format::Json {
                session.print_line(&line, |_| String::new())?;
            } else {
                self.print(&line)?;
            }
        }
        if self.follow && self.still_runs(session).await? {
            return Err(ClientError::CutShort { what: "the log" }.into());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Whether the log ended before its container: the daemon has, then.
    async fn still_runs(&self, session: &Session) -> Result<bool, Failure> {
        let path = format!("/v1/containers/{}", self.name);
        match session.client.get::<ContainerStatus>(&path).await {
            Ok(status) => Ok(status.state != ContainerState::Stopped),
            // Deleted, or moved away.
            Err(ClientError::Refused(_)) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The bytes as they were printed, each on the output that it was printed on.
    fn print(&self, line: &LogLine) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        if self.timestamps {
            bytes.extend_from_slice(format!("{} ", line.at).as_bytes());
        }
        match (&line.text, &line.data) {
            (Some(text), _) => bytes.extend_from_slice(text.as_bytes()),
            (None, Some(data)) => bytes.extend(STANDARD.decode(data).unwrap_or_default()),
            (None, None) => {}
        }
        if !line.partial {
            bytes.push(b'\n');
        }
        match line.stream {
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes)?;
                out.flush()?;
            }
            Output::Stderr => io::stderr().write_all(&bytes)?,
        }
        Ok(())
    }
}
