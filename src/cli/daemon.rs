//! `godwit daemon`: be the daemon of this host.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::Failure;
use crate::daemon::{Config, DaemonError, clear, config, run};

/// Be the daemon of this host.
///
/// Serves the API until it is asked to end (SIGTERM). Containers run on without it, and the next daemon
/// takes them over.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit daemon --config /etc/godwit/godwit.toml
  godwit daemon --check --config /etc/godwit/godwit.toml
  godwit daemon --clear")]
pub struct Daemon {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Only say whether the configuration is right.
    #[arg(long)]
    check: bool,
    /// End every container, and take everything from this host that daemons have put there, but for the records and
    /// files below state_dir. No daemon may run.
    #[arg(long, conflicts_with = "check")]
    clear: bool,
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
                } else if self.clear {
                    clear::clear(&config).map(|left| tell(&left))
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

/// What stays, and why, to people.
fn tell(left: &clear::Left) {
    if let Some(bridge) = &left.bridge {
        eprintln!("the bridge {bridge} stays: it was not made by godwit");
    }
    for place in &left.places {
        eprintln!("{} stays: something of others is in it", place.display());
    }
}
