//! `godwit run`: make a container and start it.

use std::process::ExitCode;

use clap::Args;

use super::Session;
use super::create::Wish;
use super::oci::create::{Bundle, RunOptions};
use super::output::Failure;

/// Make a container from a template and start it.
///
/// Builds the template's image first where that has not been done. When anything fails, nothing is left of
/// the container.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit run --template redis --name cache
  godwit run --template busybox --name ticker --ip 10.87.0.20 --env TZ=UTC -- sleep 3600
  godwit run --template redis --name web --restart on-failure:5
  godwit run --bundle /tmp/bundle web")]
pub struct Run {
    // First: its id is the first word, and the template's command the last ones.
    #[command(flatten)]
    pub bundle: Bundle,
    #[command(flatten)]
    wish: Wish,
    #[command(flatten)]
    pub run: RunOptions,
}

impl Run {
    /// Whether the container is one of a bundle.
    pub fn is_of_a_bundle(&self) -> bool {
        self.bundle.id.is_some()
    }

    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        self.wish.carry_out(session, true).await
    }
}
