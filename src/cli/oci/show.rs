//! `state`, `features`, `spec`: what is printed or written as JSON.

use std::path::PathBuf;

use clap::Args;

use super::{Place, print};
use crate::runtime::{self, Ended, Id, RuntimeError, state};

/// Print the state of a container of a bundle, as the OCI specification has it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit state web")]
pub struct State {
    /// The container.
    id: Id,
}

impl State {
    /// Prints it.
    pub fn show(&self, place: &Place) -> Result<Ended, RuntimeError> {
        let record = place.root.read(&self.id)?;
        let status = place.root.status(&record);
        print(&json(&state::shown(&record, status)))
    }
}

/// Print which features of the OCI specification there are.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit features")]
pub struct Features {}

impl Features {
    /// Prints them.
    pub fn show(&self) -> Result<Ended, RuntimeError> {
        print(&json(&runtime::features()))
    }
}

/// Write a configuration to start from into a bundle.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit spec --bundle /tmp/bundle")]
pub struct Spec {
    /// The bundle's directory.
    #[arg(short, long, value_name = "DIRECTORY", default_value = ".")]
    bundle: PathBuf,
}

impl Spec {
    /// Writes `config.json`, which must not be there.
    pub fn write(&self) -> Result<Ended, RuntimeError> {
        runtime::write_spec(&self.bundle)?;
        Ok(Ended::With(0))
    }
}

fn json(value: &impl serde::Serialize) -> String {
    // These values have string keys and nothing that can fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
