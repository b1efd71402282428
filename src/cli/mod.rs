//! One verb per file: asks the daemon, prints, exits.
//!
//! **Invariant:** what was asked for goes to standard output, everything else to standard error; the exit
//! code is 0 only when what was asked has been done, 2 for a usage that cannot be, 1 otherwise.

#![allow(clippy::print_stdout)]

pub mod cni;
mod containers;
mod create;
mod daemon;
mod events;
mod exec;
mod generate;
mod host;
mod leases;
mod logs;
mod migrate;
mod migrations;
mod oci;
mod output;
mod peer;
mod progress;
mod report;
mod run;
mod stats;
mod stop;
mod table;
mod template;
mod values;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, ValueEnum};

use crate::api::Client;
use output::Failure;
use verbs::Verb;

/// Runs isolated containers and moves them, running, to another host.
#[derive(Debug, Parser)]
#[command(
    name = "godwit",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Example:\n  godwit run --template redis --name cache\n  godwit migrate cache --to beta"
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// What may stand before the verb, and much of it after.
#[derive(Debug, Args)]
struct Common {
    /// The daemon's socket.
    #[arg(
        long,
        global = true,
        env = "GODWIT_SOCKET",
        default_value = "/run/godwit/api.sock"
    )]
    socket: PathBuf,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    globals: oci::Globals,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs: the API's JSON; streams print one value a line.
    Json,
}

/// What every verb is given.
struct Session {
    client: Client,
    format: Format,
}

/// Reads the command line, does what it says, and says how to exit. Nothing has been started before.
pub fn run() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let cli = verbs::read(&words);
    match cli.verb {
        Verb::Daemon(verb) => return verb.run(),
        Verb::Generate(verb) => return verb.run(),
        _ => {}
    }
    let cli = match oci::take(cli) {
        Ok(code) => return code,
        Err(cli) => *cli,
    };
    // Programs that stop reading our output end us silently, as they do any other program.
    crate::sys::signal::restore_sigpipe();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("godwit: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let session = Session {
        client: Client::new(&cli.common.socket),
        format: cli.common.format,
    };
    let done = runtime.block_on(dispatch(cli.verb, &session));
    // A read of standard input may still be under way; it must not keep the program alive.
    runtime.shutdown_background();
    done.unwrap_or_else(|failure| failure.tell())
}

async fn dispatch(verb: Verb, session: &Session) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Run(verb) => verb.run(session).await,
        Verb::Create(verb) => verb.run(session).await,
        Verb::Start(verb) => verb.run(session).await,
        Verb::List(verb) => verb.run(session).await,
        Verb::Inspect(verb) => verb.run(session).await,
        Verb::Logs(verb) => verb.run(session).await,
        Verb::Ps(verb) => verb.run(session).await,
        Verb::Exec(verb) => verb.run(session).await,
        Verb::Stats(verb) => verb.run(session).await,
        Verb::Stop(verb) => verb.run(session).await,
        Verb::Kill(verb) => verb.run(session).await,
        Verb::Delete(verb) => verb.run(session).await,
        Verb::Migrate(verb) => verb.run(session).await,
        Verb::Migrations(verb) => verb.run(session).await,
        Verb::Peer(verb) => verb.run(session).await,
        Verb::Template(verb) => verb.run(session).await,
        Verb::Leases(verb) => verb.run(session).await,
        Verb::Events(verb) => verb.run(session).await,
        Verb::Host(verb) => verb.run(session).await,
        Verb::State(_)
        | Verb::Pause(_)
        | Verb::Resume(_)
        | Verb::Update(_)
        | Verb::Checkpoint(_)
        | Verb::Restore(_)
        | Verb::Features(_)
        | Verb::Spec(_)
        | Verb::Daemon(_)
        | Verb::Generate(_) => unreachable!("they have been done before"),
    }
}

#[cfg(test)]
mod test {
    use clap::{Command, CommandFactory};

    use super::*;

    fn check_help(command: &mut Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        let help = command.render_long_help().to_string();
        assert!(help.contains("Example"), "`{path} --help` has no example");
        for sub in command
            .get_subcommands_mut()
            .filter(|sub| sub.get_name() != "help")
        {
            check_help(sub, &path);
        }
    }

    #[test]
    fn every_help_has_an_example() {
        let mut command = Cli::command();
        command.build();
        check_help(&mut command, "");
    }

    #[test]
    fn every_example_parses() {
        fn walk(command: &mut Command) {
            let help = command.render_long_help().to_string();
            let examples = help
                .lines()
                .map(str::trim)
                .filter(|line| line.starts_with("godwit "));
            for example in examples {
                let words = example.split_whitespace();
                if let Err(e) = Cli::try_parse_from(words) {
                    panic!("{example}: {e}");
                }
            }
            for sub in command
                .get_subcommands_mut()
                .filter(|sub| sub.get_name() != "help")
            {
                walk(sub);
            }
        }
        let mut command = Cli::command();
        command.build();
        walk(&mut command);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bad_name_is_refused_before_anything_is_asked() {
        for line in [
            "godwit run --template redis --name UPPER",
            "godwit start ../x",
            "godwit migrate web --to a.b",
            "godwit migrations show xyz",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
