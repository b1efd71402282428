//! Printing what was asked for, and telling failures.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::{Format, Session};
use crate::api::ClientError;
use crate::api::types::ApiError;
use crate::daemon::DaemonError;

/// What failed, why, and what to do next.
#[derive(Debug)]
pub struct Failure {
    what: String,
    remedy: Option<String>,
}

impl Failure {
    /// A failure of the command line's own.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// Tells it on standard error.
    pub fn tell(&self) -> ExitCode {
        eprintln!("godwit: {}", self.what);
        if let Some(remedy) = &self.remedy {
            eprintln!("  what to do: {remedy}");
        }
        ExitCode::FAILURE
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self {
            remedy: error.remedy(),
            what: crate::daemon::chain(&error),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self {
            what: error.message,
            remedy: error.remedy,
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        Self {
            what: error.chain(),
            remedy: error.remedy(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            what: format!("cannot print: {error}"),
            remedy: None,
        }
    }
}

impl Session {
    /// Prints one value: as JSON, or as `table` makes it.
    pub fn print<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<ExitCode, Failure> {
        let text = match self.format {
            Format::Table => table(value),
            Format::Json => {
                let json = serde_json::to_string_pretty(value);
                json.map_err(|e| Failure::new(format!("cannot print: {e}"), "report this defect"))?
            }
        };
        if !text.is_empty() {
            put(text.trim_end())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Prints one value of a stream, on one line.
    pub fn print_line<T: Serialize>(
        &self,
        value: &T,
        line: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table => line(value),
            Format::Json => {
                let json = serde_json::to_string(value);
                json.map_err(|e| Failure::new(format!("cannot print: {e}"), "report this defect"))?
            }
        };
        Ok(put(&text)?)
    }

    /// Says that something was done, to people only.
    pub fn done(&self, text: &str) -> Result<ExitCode, Failure> {
        if self.format == Format::Table {
            put(text)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a text and the end of its line in one write: a reader that stops at the line it wanted (`grep -q`)
/// then does not end us in the middle of the rest.
fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes())?;
    out.flush()
}
