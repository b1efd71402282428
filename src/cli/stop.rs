//! `godwit stop`: have the commands of containers end.

use std::process::ExitCode;

use clap::Args;
use futures_util::future::join_all;

use super::Session;
use super::output::Failure;
use crate::api::ClientError;
use crate::api::types::StopRequest;
use crate::model::{ContainerState, ContainerStatus, Name};

/// Have the commands of containers end.
///
/// The first process of each is asked to (SIGTERM); what still runs after the time is killed. Files and log are kept,
/// and `godwit start` runs the command again.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit stop cache
  godwit stop --time 60 cache web
  godwit stop --all")]
pub struct Stop {
    /// The containers.
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<Name>,
    /// All that run, or may be started again.
    #[arg(short, long, conflicts_with = "names")]
    all: bool,
    /// How long they may take to end by themselves, in seconds.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=3600))]
    time: u64,
}

impl Stop {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let names = if self.all {
            let all: Vec<ContainerStatus> = session.client.get("/v1/containers").await?;
            let to_stop = all.into_iter().filter(|status| match status.state {
                ContainerState::Running => true,
                // It may be about to be started again.
                ContainerState::Stopped => !status.spec.restart.is_no(),
                _ => false,
            });
            to_stop.map(|status| status.spec.name).collect()
        } else {
            self.names
        };
        let request = StopRequest {
            patience_ms: self.time * 1000,
        };
        let mut exit = ExitCode::SUCCESS;
        // At once: who has many does not wait for each.
        for (name, stopped) in names
            .iter()
            .zip(join_all(names.iter().map(|name| stop(session, name, request))).await)
        {
            match stopped {
                Ok(()) => {
                    session.done(&format!("{name} is stopped"))?;
                }
                Err(e) => exit = Failure::from(e).tell(),
            }
        }
        Ok(exit)
    }
}

async fn stop(session: &Session, name: &Name, request: StopRequest) -> Result<(), ClientError> {
    let path = format!("/v1/containers/{name}/stop");
    session.client.tell(&path, &request).await
}
