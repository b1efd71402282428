//! Which verbs there are, and how a command line becomes one of them.
//!
//! An orchestrator calls this program many times for one container, and the grammar of all verbs costs more than many
//! a verb. So a command line is first read by the grammar of those verbs alone whose names stand in it. What that
//! accepts, the whole grammar would have accepted as the same; what it does not, the whole grammar is asked about,
//! for its words on what is wrong, its help and its suggestions.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Parser, Subcommand};

use super::{
    Cli, Common, containers, create, daemon, events, exec, generate, host, leases, logs, migrate,
    migrations, oci, peer, run, stats, stop, template,
};

/// What clap's derive makes of an enum of verbs, and beside it [`Verb::add`], which can leave verbs out.
macro_rules! verbs {
    ($($(#[doc = $about:literal])+ $name:literal $(or $alias:literal)? $(and $hidden:ident)? => $verb:ident($what:ty),)+) => {
        /// A verb and what it was given.
        #[derive(Debug)]
        pub enum Verb {
            $($(#[doc = $about])+ $verb($what),)+
        }

        impl Verb {
            /// Adds the grammar of the verbs that are wanted.
            fn add(mut to: Command, wanted: impl Fn(&str) -> bool) -> Command {
                $(if wanted($name) $(|| wanted($alias))? {
                    let verb = <$what as Args>::augment_args(Command::new($name));
                    let about = concat!($($about),+).trim().trim_end_matches('.');
                    let verb = verb.about(about).long_about(None);
                    $(let verb = verb.visible_alias($alias);)?
                    $(let verb = verb.$hidden(true);)?
                    to = to.subcommand(verb);
                })+
                to
            }
        }

        impl FromArgMatches for Verb {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
                Self::from_arg_matches_mut(&mut matches.clone())
            }

            fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
                let Some((name, mut given)) = matches.remove_subcommand() else {
                    return Err(Error::raw(ErrorKind::MissingSubcommand, "a verb is needed\n"));
                };
                match name.as_str() {
                    $($name => <$what>::from_arg_matches_mut(&mut given).map(Self::$verb),)+
                    other => {
                        let why = format!("there is no verb {other:?}\n");
                        Err(Error::raw(ErrorKind::InvalidSubcommand, why))
                    }
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Subcommand for Verb {
            fn augment_subcommands(to: Command) -> Command {
                Self::add(to, |_| true)
            }

            fn augment_subcommands_for_update(to: Command) -> Command {
                Self::add(to, |_| true)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),+].contains(&name)
            }
        }
    };
}

verbs! {
    /// Make a container from a template or a bundle and start it.
    "run" => Run(Box<run::Run>),
    /// Make a container from a template or a bundle and do not start it.
    "create" => Create(Box<create::Create>),
    /// Start a container that was made.
    "start" => Start(containers::Start),
    /// List the containers of this host.
    "list" or "ls" => List(containers::List),
    /// Show everything about a container.
    "inspect" => Inspect(containers::Inspect),
    /// Print what a container has printed.
    "logs" => Logs(logs::Logs),
    /// List the processes of a container.
    "ps" => Ps(containers::Ps),
    /// Show what containers use.
    "stats" => Stats(stats::Stats),
    /// Run a command in a container.
    "exec" => Exec(Box<exec::Exec>),
    /// Have the commands of containers end.
    "stop" => Stop(stop::Stop),
    /// Send a signal to a container.
    "kill" => Kill(containers::Kill),
    /// Delete a container and everything of it.
    "delete" or "rm" => Delete(containers::Delete),
    /// Move a container, running, to another host.
    "migrate" => Migrate(migrate::Migrate),
    /// Look at migrations, cancel them, decide those in doubt.
    "migrations" => Migrations(migrations::Migrations),
    /// Manage the other hosts.
    "peer" => Peer(peer::Peer),
    /// List templates and build their images.
    "template" => Template(template::Template),
    /// Show which container has which address.
    "leases" => Leases(leases::Leases),
    /// Print the state of a container of a bundle.
    "state" => State(oci::show::State),
    /// Freeze a container of a bundle.
    "pause" => Pause(oci::change::Pause),
    /// Let a paused container go on.
    "resume" => Resume(oci::change::Resume),
    /// Change the limits of a container of a bundle.
    "update" => Update(Box<oci::change::Update>),
    /// Write a running container of a bundle to images.
    "checkpoint" => Checkpoint(Box<oci::checkpoint::Checkpoint>),
    /// Make a container of the images that `checkpoint` has written.
    "restore" => Restore(Box<oci::checkpoint::Restore>),
    /// Print which features of the OCI specification there are.
    "features" => Features(oci::show::Features),
    /// Write a configuration to start from into a bundle.
    "spec" => Spec(oci::show::Spec),
    /// Print what happens, as it happens; or what a container of a bundle uses.
    "events" => Events(events::Events),
    /// Show what this host is.
    "host" => Host(host::Host),
    /// Be the daemon of this host.
    "daemon" => Daemon(daemon::Daemon),
    /// Write man pages or shell completions.
    "generate" and hide => Generate(generate::Generate),
}

/// Reads a command line. What is wrong with it, or its help, is printed, and the program ends.
pub fn read(words: &[OsString]) -> Cli {
    quickly(words).unwrap_or_else(|| Cli::parse_from(words))
}

/// Reads it by the grammar of the verbs that it names; nothing if there is anything to say about it.
fn quickly(words: &[OsString]) -> Option<Cli> {
    let grammar = Command::new("godwit")
        .subcommand_required(true)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true);
    let wanted = |name: &str| words.iter().skip(1).any(|word| word == name);
    let grammar = Verb::add(Common::augment_args(grammar), wanted);
    let mut matches = grammar.try_get_matches_from(words).ok()?;
    Cli::from_arg_matches_mut(&mut matches).ok()
}

#[cfg(test)]
mod test {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn both_grammars_say_the_same() {
        for line in [
            "godwit --root /x create --bundle /b run",
            "godwit --root create --debug run --detach create",
            "godwit exec -t a ls run -- exec --help",
            "godwit ls -q --format json",
            "godwit list --format json",
            "godwit rm --force list",
            "godwit peer list",
            "godwit migrate a --to b --tracker hash",
            "godwit start a --socket /s",
        ] {
            let words = words(line);
            let quick = quickly(&words).unwrap_or_else(|| panic!("{line}: not read quickly"));
            let whole = Cli::try_parse_from(&words).unwrap();
            assert_eq!(format!("{quick:?}"), format!("{whole:?}"), "{line}");
        }
    }

    #[test]
    fn what_is_to_be_said_is_said_by_the_whole_grammar() {
        for line in [
            "godwit",
            "godwit strat a",
            "godwit help start",
            "godwit start",
            "godwit start --help",
            "godwit start -V",
            "godwit --version",
            "godwit start a --sock",
            "godwit peer",
        ] {
            assert!(quickly(&words(line)).is_none(), "{line}");
            assert!(Cli::try_parse_from(words(line)).is_err(), "{line}");
        }
    }
}
