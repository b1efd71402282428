//! The short verbs: `start`, `list`, `inspect`, `ps`, `kill`, `delete`.

use std::process::ExitCode;

use clap::Args;

use super::output::Failure;
use super::table::{ago, or_dash, right, table, word};
use super::{Format, Session};
use crate::api::ClientError;
use crate::api::types::{Bundle, KillRequest, Process};
use crate::model::{Bytes, ContainerStatus, Name};
use crate::runtime::Id;

/// The id as a name of the daemon's: those are fewer.
pub(super) fn name(id: &Id) -> Result<Name, Failure> {
    let name = id.as_str().parse::<Name>();
    name.map_err(|error| {
        let what = format!("container does not exist: {error}");
        Failure::new(
            what,
            "see `godwit list` for the names of the containers there are",
        )
    })
}

/// Start a container that was made.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit start cache")]
pub struct Start {
    /// The container.
    #[arg(value_name = "NAME")]
    pub id: Id,
}

impl Start {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let path = format!("/v1/containers/{}/start", name(&self.id)?);
        let status: ContainerStatus = session.client.post(&path, &()).await?;
        session.print(&status, |status| {
            format!("{} is {}", status.spec.name, word(status.state))
        })
    }
}

/// List the containers of this host.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit list\n  godwit list --format json\n  godwit --root /run/containers list"
)]
pub struct List {
    /// Only the names.
    #[arg(short, long)]
    pub quiet: bool,
}

impl List {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let all: Vec<ContainerStatus> = session.client.get("/v1/containers").await?;
        let bundles: Vec<Bundle> = session.client.get("/v1/bundles").await?;
        if self.quiet {
            let names = all.iter().map(|status| status.spec.name.to_string());
            let names: Vec<String> = names.chain(bundles.iter().map(|b| b.id.clone())).collect();
            return session.print(&names, |names| names.join("\n"));
        }
        if session.format == Format::Json && !bundles.is_empty() {
            let ours = all.iter().map(serde_json::to_value);
            let both = ours.chain(bundles.iter().map(serde_json::to_value));
            let both: Vec<serde_json::Value> = both.filter_map(Result::ok).collect();
            return session.print(&both, |_| String::new());
        }
        session.print(&all, |all| {
            let headings = [
                "NAME", "STATE", "ADDRESS", "TEMPLATE", "PID", "CREATED", "COMMAND",
            ];
            let mut table = table(&headings);
            for status in all {
                let spec = &status.spec;
                let state = match status.exit_code {
                    Some(code) => format!("{} ({code})", word(status.state)),
                    None => word(status.state),
                };
                table.add_row([
                    spec.name.to_string(),
                    state,
                    spec.lease.address.to_string(),
                    spec.template.clone(),
                    or_dash(status.pid),
                    ago(status.created_at),
                    shorten(&spec.command.join(" "), 40),
                ]);
            }
            for bundle in &bundles {
                table.add_row([
                    bundle.id.clone(),
                    bundle.status.clone(),
                    "-".to_owned(),
                    "-".to_owned(),
                    or_dash(bundle.pid),
                    bundle.created.clone(),
                    shorten(&bundle.command.join(" "), 40),
                ]);
            }
            table.trim_fmt()
        })
    }
}

/// At most `length` characters.
fn shorten(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let start: String = text.chars().take(length - 1).collect();
    format!("{start}…")
}

/// Show everything about a container.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit inspect cache\n  godwit inspect cache --format json")]
pub struct Inspect {
    /// The container; of the daemon or of a bundle.
    #[arg(value_name = "NAME")]
    id: Id,
}

impl Inspect {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let path = format!("/v1/containers/{}", self.id);
        let missing = match self.id.as_str().parse::<Name>() {
            Ok(_) => match session.client.get::<ContainerStatus>(&path).await {
                Ok(status) => return session.print(&status, describe),
                Err(ClientError::Refused(error)) if error.code == "no-such-container" => {
                    Some(error)
                }
                Err(error) => return Err(error.into()),
            },
            // Those of bundles have more letters.
            Err(_) => None,
        };
        let path = format!("/v1/bundles/{}", self.id);
        match session.client.get::<Bundle>(&path).await {
            Ok(bundle) => session.print(&bundle, describe_bundle),
            Err(error) => Err(missing.map_or_else(|| error.into(), Failure::from)),
        }
    }
}

fn describe_bundle(bundle: &Bundle) -> String {
    let mut table = table(&["FIELD", "VALUE"]);
    let rows = [
        ("id", bundle.id.clone()),
        ("status", bundle.status.clone()),
        ("pid", or_dash(bundle.pid)),
        ("created", bundle.created.clone()),
        ("command", format!("{:?}", bundle.command)),
        ("bundle", bundle.bundle.display().to_string()),
        ("root", bundle.rootfs.display().to_string()),
        ("cgroup", bundle.cgroup.display().to_string()),
    ];
    for (field, value) in rows {
        table.add_row([field.to_owned(), value]);
    }
    for (key, value) in &bundle.annotations {
        table.add_row(["annotation".to_owned(), format!("{key}={value}")]);
    }
    table.trim_fmt()
}

fn describe(status: &ContainerStatus) -> String {
    let spec = &status.spec;
    let mut table = table(&["FIELD", "VALUE"]);
    let mut row = |field: &str, value: String| {
        table.add_row([field.to_owned(), value]);
    };
    row("name", spec.name.to_string());
    row("state", word(status.state));
    row("exit code", or_dash(status.exit_code));
    if let Some(why) = &status.why {
        row("ended because", why.clone());
    }
    row("pid", or_dash(status.pid));
    row("created", ago(status.created_at));
    row("template", spec.template.clone());
    row("image", spec.image.to_string());
    row("command", format!("{:?}", spec.command));
    for line in &spec.env {
        row("env", line.clone());
    }
    row("directory", spec.cwd.display().to_string());
    row("user", format!("{}:{}", spec.user.uid, spec.user.gid));
    row(
        "address",
        format!("{}/{}", spec.lease.address, spec.lease.prefix),
    );
    row("gateway", or_dash(spec.lease.gateway));
    row("ethernet", spec.lease.mac.to_string());
    let ports: Vec<String> = spec.ports.iter().map(u16::to_string).collect();
    row("ports", ports.join(" "));
    row("memory limit", or_dash(spec.limits.memory));
    let cores = spec.limits.cpu_millis.map(|m| m as f64 / 1000.0);
    row("core limit", or_dash(cores));
    row("process limit", or_dash(spec.limits.pids));
    row(
        "restart",
        format!("{} ({} times)", spec.restart, status.restarts),
    );
    row("user namespace", spec.userns.to_string());
    row("handed over", format!("{} times", status.generation.0));
    row("migration", or_dash(status.migration));
    table.trim_fmt()
}

/// List the processes of a container.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit ps cache")]
pub struct Ps {
    /// The container.
    #[arg(value_name = "NAME")]
    pub id: Id,
    /// For a container of a bundle: options of ps(1).
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTION"
    )]
    pub options: Vec<String>,
}

impl Ps {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let path = format!("/v1/containers/{}/ps", name(&self.id)?);
        let all: Vec<Process> = session.client.get(&path).await?;
        session.print(&all, |all| {
            let mut table = table(&[
                "PID", "HOST PID", "USER", "STATE", "THREADS", "MEMORY", "COMMAND",
            ]);
            right(&mut table, &[0, 1, 2, 4, 5]);
            for process in all {
                table.add_row([
                    process.inner_pid.to_string(),
                    process.pid.to_string(),
                    process.uid.to_string(),
                    process.state.to_string(),
                    process.threads.to_string(),
                    process.memory.to_string(),
                    process.command.clone(),
                ]);
            }
            let total: Bytes = all.iter().map(|process| process.memory).sum();
            format!("{}\n{} processes, {total}", table.trim_fmt(), all.len())
        })
    }
}

/// Send a signal to a container.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit kill cache\n  godwit kill --all cache KILL")]
pub struct Kill {
    /// The container.
    #[arg(value_name = "NAME")]
    pub id: Id,
    /// The signal, by name or number; TERM otherwise.
    #[arg(value_name = "SIGNAL", conflicts_with = "signal")]
    number: Option<String>,
    /// The same.
    #[arg(short, long)]
    signal: Option<String>,
    /// To every process, not to the first alone.
    #[arg(short, long)]
    pub all: bool,
}

impl Kill {
    /// Which signal is meant.
    pub fn signal(&self) -> &str {
        let given = self.number.as_deref().or(self.signal.as_deref());
        given.unwrap_or("TERM")
    }
}

impl Kill {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let name = name(&self.id)?;
        let path = format!("/v1/containers/{name}/kill");
        let request = KillRequest {
            signal: self.signal().to_owned(),
            all: self.all,
        };
        session.client.tell(&path, &request).await?;
        session.done(&format!("{name} was sent {}", request.signal))
    }
}

/// Delete a container and everything of it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit delete cache\n  godwit delete --force cache")]
pub struct Delete {
    /// The containers.
    #[arg(required = true, value_name = "NAME")]
    pub ids: Vec<Id>,
    /// Even while they run.
    #[arg(short, long)]
    pub force: bool,
}

impl Delete {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let mut exit = ExitCode::SUCCESS;
        for id in &self.ids {
            let name = name(id)?;
            let path = format!("/v1/containers/{name}?force={}", self.force);
            match session.client.delete(&path).await {
                Ok(()) => {
                    session.done(&format!("{name} is deleted"))?;
                }
                Err(e) => exit = Failure::from(e).tell(),
            }
        }
        Ok(exit)
    }
}
