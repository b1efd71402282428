//! `godwit exec`: a command in a container.

use std::io::{self, Write};
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use super::containers::name;
use super::oci::Place;
use super::oci::exec::{Common, ExecOptions};
use super::output::Failure;
use super::{Session, values};
use crate::api::ClientError;
use crate::api::types::{ExecLine, ExecRequest, Output};
use crate::runtime::{Ended, Id, RuntimeError};

/// Run a command in a container. Exits as the command does.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit exec cache -- redis-cli INFO\n  godwit exec --user 0:0 --cwd /tmp cache -- ls -l"
)]
pub struct Exec {
    /// The container.
    #[arg(value_name = "NAME")]
    pub id: Id,
    /// A line of its environment; can be given again.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = values::env)]
    env: Vec<String>,
    /// Whom to run as, instead of the container's user.
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Where to run, instead of the container's directory.
    #[arg(long, value_name = "DIRECTORY")]
    cwd: Option<String>,
    /// The command and its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "process",
        value_name = "COMMAND"
    )]
    command: Vec<String>,
    #[command(flatten)]
    options: ExecOptions,
}

impl Exec {
    /// In a container of a bundle.
    pub fn in_bundle(self, place: &Place) -> Result<Ended, RuntimeError> {
        let common = Common {
            env: &self.env,
            user: self.user.as_deref(),
            cwd: self.cwd.as_deref(),
            command: &self.command,
        };
        self.options.run(place, self.id, &common)
    }

    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let path = format!("/v1/containers/{}/exec", name(&self.id)?);
        let request = ExecRequest {
            command: self.command,
            env: self.env,
            user: self.user,
            cwd: self.cwd,
        };
        let mut lines = session
            .client
            .post_lines::<ExecLine>(&path, &request)
            .await?;
        while let Some(line) = lines.next().await? {
            match line {
                ExecLine::Output { stream, data } => {
                    let bytes = STANDARD.decode(data).map_err(|e| {
                        let text = format!("the daemon sent output that cannot be read: {e}");
                        Failure::new(text, "see whether both are of the same version")
                    })?;
                    match stream {
                        Output::Stdout => {
                            io::stdout().write_all(&bytes)?;
                            io::stdout().flush()?;
                        }
                        Output::Stderr => io::stderr().write_all(&bytes)?,
                    }
                }
                ExecLine::Exit { exit } => {
                    return Ok(ExitCode::from(u8::try_from(exit & 0xff).unwrap_or(1)));
                }
                ExecLine::Failed { error } => return Err(error.into()),
            }
        }
        Err(ClientError::CutShort {
            what: "the command",
        }
        .into())
    }
}
