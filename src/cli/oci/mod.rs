//! The verbs for containers of OCI bundles, which need no daemon: option by option and text by text as runc has
//! them, because programs call them.
//!
//! **Invariant:** they run before any thread exists, for they fork.

pub mod change;
pub mod checkpoint;
pub mod create;
pub mod exec;
pub mod list;
mod log;
pub mod show;
pub mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{Cli, Format, Verb};
use crate::runtime::{self, DEFAULT_ROOT, Ended, Id, Root, RuntimeError};
use log::Log;

/// What stands before the verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options for containers of OCI bundles")]
pub struct Globals {
    /// Where the state of containers of bundles is kept.
    #[arg(long, value_name = "DIRECTORY")]
    root: Option<PathBuf>,
    /// A file that gets errors, and with --debug more.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How that file is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Say more in that file.
    #[arg(long)]
    debug: bool,
    /// Let systemd make the cgroups; cgroupsPath is then "slice:prefix:name".
    #[arg(long)]
    systemd_cgroup: bool,
    /// The CRIU for `checkpoint` and `restore`: the host's, if not given.
    #[arg(long, value_name = "PROGRAM")]
    criu: Option<PathBuf>,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time="…" level=error msg="…"`.
    Text,
    /// One JSON object a line.
    Json,
}

/// What every verb is given.
pub struct Place {
    /// Where the containers are.
    pub root: Root,
    /// Whether systemd makes cgroups.
    pub systemd: bool,
    /// How to print.
    pub format: Format,
    /// Which CRIU is used, if not the host's.
    pub criu: Option<PathBuf>,
}

/// Does the verb if it is about containers of bundles; gives the command line back if the daemon is to do it.
pub fn take(cli: Cli) -> Result<ExitCode, Box<Cli>> {
    let named = cli.common.globals.root.clone();
    let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT));
    let log = Log::open(&cli.common.globals);
    let root = match Root::at(&path) {
        Ok(root) => root,
        Err(error) => return Ok(log.fatal(&error.to_string(), 1)),
    };
    // Without a daemon there is nobody else to ask.
    let named = named.is_some();
    let alone = named || !cli.common.socket.exists();
    let listed = named && matches!(cli.verb, Verb::List(_));
    if !listed && !is_ours(&cli.verb, &root, alone) {
        return Err(Box::new(cli));
    }
    let place = Place {
        root,
        systemd: cli.common.globals.systemd_cgroup,
        format: cli.common.format,
        criu: cli.common.globals.criu,
    };
    let code = match &cli.verb {
        Verb::Exec(_) => 255,
        _ => 1,
    };
    Ok(match act(cli.verb, &place) {
        Ok(Ended::With(code)) => ExitCode::from(code),
        Ok(Ended::RunsOn) => ExitCode::SUCCESS,
        Err(error) => log.fatal(&runtime::in_one_line(&error), code),
    })
}

/// Whether the verb is for a container of a bundle: it always is, or the container is one, or it must be one
/// because a root was named, or because there
/// is no daemon.
fn is_ours(verb: &Verb, root: &Root, alone: bool) -> bool {
    let here = |id: &Id| alone || root.has(id);
    match verb {
        Verb::State(_)
        | Verb::Pause(_)
        | Verb::Resume(_)
        | Verb::Update(_)
        | Verb::Checkpoint(_)
        | Verb::Restore(_)
        | Verb::Features(_)
        | Verb::Spec(_) => true,
        Verb::Create(verb) => verb.is_of_a_bundle(),
        Verb::Run(verb) => verb.is_of_a_bundle(),
        Verb::Events(verb) => verb.of.id.is_some(),
        Verb::Start(verb) => here(&verb.id),
        Verb::Kill(verb) => here(&verb.id),
        Verb::Ps(verb) => here(&verb.id),
        Verb::Exec(verb) => here(&verb.id),
        Verb::Delete(verb) => verb.ids.iter().all(here),
        _ => false,
    }
}

fn act(verb: Verb, place: &Place) -> Result<Ended, RuntimeError> {
    let root = &place.root;
    match verb {
        Verb::Create(verb) => verb.bundle.create(place),
        Verb::Run(verb) => verb.bundle.run(place, &verb.run),
        Verb::Start(verb) => runtime::start(root, &verb.id).map(done),
        Verb::State(verb) => verb.show(place),
        Verb::Kill(verb) => {
            let signal = runtime::signal(verb.signal())?;
            runtime::kill(root, &verb.id, signal, verb.all).map(done)
        }
        Verb::Delete(verb) => {
            let each = |id| runtime::delete(root, id, verb.force);
            verb.ids.iter().try_for_each(each).map(done)
        }
        Verb::Ps(verb) => list::processes(place, &verb.id, &verb.options),
        Verb::List(verb) => list::all(place, verb.quiet),
        Verb::Exec(verb) => verb.in_bundle(place),
        Verb::Pause(verb) => runtime::manage::pause(root, &verb.id).map(done),
        Verb::Resume(verb) => runtime::manage::resume(root, &verb.id).map(done),
        Verb::Update(verb) => verb.carry_out(place),
        Verb::Checkpoint(verb) => verb.carry_out(place),
        Verb::Restore(verb) => verb.carry_out(place),
        Verb::Events(verb) => verb.of.watch(place),
        Verb::Features(verb) => verb.show(),
        Verb::Spec(verb) => verb.write(),
        _ => unreachable!("only verbs for containers of bundles come here"),
    }
}

fn done((): ()) -> Ended {
    Ended::With(0)
}

/// Prints what was asked for.
pub fn print(text: &str) -> Result<Ended, RuntimeError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let printed = match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Who wanted only the beginning has it.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    };
    printed.map(done).map_err(|source| RuntimeError::System {
        operation: "print",
        source,
    })
}
