//! `godwit create`: make a container and do not start it. Its options are those of `run`.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use clap::Args;

use super::oci::create::Bundle;
use super::output::Failure;
use super::values;
use super::{Session, progress, table};
use crate::api::types::CreateRequest;
use crate::model::{Bytes, ContainerStatus, Digest, Limits, Name, Restart, Userns};

/// What a container is to be.
#[derive(Debug, Args)]
pub struct Wish {
    /// Its name.
    #[arg(long, required_unless_present = "id", conflicts_with = "id")]
    name: Option<Name>,
    /// The template to make it from.
    #[arg(long, required_unless_present_any = ["image", "id"], conflicts_with = "id")]
    template: Option<Name>,
    /// An image of this host's store instead of a template.
    #[arg(long, conflicts_with_all = ["template", "id"], requires = "command")]
    image: Option<Digest>,
    /// Its address; the first free one of the pool otherwise.
    #[arg(long, conflicts_with = "id", value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// A line of its environment; can be given again.
    #[arg(long, conflicts_with = "id", value_name = "KEY=VALUE", value_parser = values::env)]
    env: Vec<String>,
    /// The most memory it may use, like 512M.
    #[arg(long, conflicts_with = "id", value_name = "AMOUNT", value_parser = values::bytes)]
    memory: Option<Bytes>,
    /// The most cores it may use, like 1.5.
    #[arg(long, conflicts_with = "id", value_name = "CORES", value_parser = values::cpus)]
    cpus: Option<u64>,
    /// The most processes and threads it may have.
    #[arg(long, value_name = "NUMBER", conflicts_with = "id", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    /// When its command is started again after it has ended: no, on-failure, on-failure:N (at most N times), always.
    ///
    /// One that was stopped with `godwit stop` is not. The pause before is a tenth of a second, and twice as long each
    /// time that it ended soon again, up to a minute. The template says so where nothing is said, else it is "no".
    #[arg(long, value_name = "POLICY", conflicts_with = "id")]
    restart: Option<Restart>,
    /// Whether it has a user namespace of its own: auto (it has) or host (root inside is root outside, less what else
    /// confines it). The template says so where nothing is said, else it is "auto".
    #[arg(long, value_name = "CHOICE", conflicts_with = "id")]
    userns: Option<Userns>,
    /// The command and its arguments, instead of the template's.
    #[arg(last = true, conflicts_with = "id", value_name = "COMMAND")]
    command: Vec<String>,
}

impl Wish {
    /// Builds the image where it must be, showing how that goes; then makes the container.
    pub async fn carry_out(self, session: &Session, start: bool) -> Result<ExitCode, Failure> {
        if let Some(template) = &self.template {
            progress::build(session, template, false).await?;
        }
        let name = self.name.ok_or_else(|| {
            let remedy = "give --name and --template, or the ID and --bundle of a bundle";
            Failure::new("the container has no name", remedy)
        })?;
        let request = CreateRequest {
            name,
            template: self.template,
            image: self.image,
            command: Some(self.command).filter(|command| !command.is_empty()),
            env: self.env,
            ip: self.ip,
            limits: Limits {
                memory: self.memory,
                cpu_millis: self.cpus,
                pids: self.pids,
            },
            restart: self.restart,
            userns: self.userns,
            start,
        };
        let status: ContainerStatus = session.client.post("/v1/containers", &request).await?;
        session.print(&status, |status| {
            let spec = &status.spec;
            let state = table::word(status.state);
            format!("{} is {state} at {}", spec.name, spec.lease.address)
        })
    }
}

/// Make a container and do not start it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit create --template redis --name cache --memory 512M\n  godwit start cache\n  godwit create --bundle /tmp/bundle web"
)]
pub struct Create {
    // First: its id is the first word, and the template's command the last ones.
    #[command(flatten)]
    pub bundle: Bundle,
    #[command(flatten)]
    wish: Wish,
}

impl Create {
    /// Whether the container is one of a bundle.
    pub fn is_of_a_bundle(&self) -> bool {
        self.bundle.id.is_some()
    }

    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        self.wish.carry_out(session, false).await
    }
}
