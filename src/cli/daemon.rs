//! `godwit daemon`: be the daemon of this host.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::Failure;
use crate::daemon::{Config, DaemonError, config, run};

/// Be the daemon of this host.
///
/// Serves the API until it is asked to end (SIGTERM). Containers run on without it, and the next daemon
/// takes them over.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit daemon --config /etc/godwit/godwit.toml
  godwit daemon --check --config /etc/godwit/godwit.toml")]
pub struct Daemon {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Only say whether the configuration is right.
    #[arg(long)]
    check: bool,
}

impl Daemon {
    pub fn run(self) -> ExitCode {
        let done = Config::read(&self.config)
            .map_err(DaemonError::from)
            .and_then(|config| {
                if self.check {
                    println!(
                        "{} is right: this host is {}",
                        self.config.display(),
                        config.name
                    );
                    Ok(())
                } else {
                    run::run(config)
                }
            });
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => Failure::from(e).tell(),
        }
    }
}
