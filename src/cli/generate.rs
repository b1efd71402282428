//! `godwit generate`: what a package brings beside the program, made by the program itself, so that the two never
//! differ.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory, Subcommand};
use clap_complete::Shell;

use super::Cli;
use super::output::Failure;
use crate::api::openapi::document;

/// Write man pages, shell completions or what the API is.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit generate man --out /tmp/man\n  godwit generate completions --out /tmp/shells"
)]
pub struct Generate {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write a page of section 1 for each verb.
    #[command(after_help = "Example:\n  godwit generate man --out /tmp/man")]
    Man(Out),
    /// Write completions, each named as its shell looks for it.
    #[command(after_help = "Example:\n  godwit generate completions --out /tmp/shells")]
    Completions(Out),
    /// Write the OpenAPI document of the API, `openapi.json`.
    #[command(after_help = "Example:\n  godwit generate openapi --out /tmp/api")]
    Openapi(Out),
}

/// Where to.
#[derive(Debug, Args)]
struct Out {
    /// The directory; made where it does not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Generate {
    pub fn run(self) -> ExitCode {
        let written = match &self.what {
            What::Man(Out { out }) => pages(out),
            What::Completions(Out { out }) => completions(out),
            What::Openapi(Out { out }) => openapi(out),
        };
        match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => Failure::new(
                format!("cannot write what is generated: {e}"),
                "name a directory that can be written with --out",
            )
            .tell(),
        }
    }
}

fn openapi(out: &Path) -> std::io::Result<()> {
    fs::create_dir_all(out)?;
    let text = serde_json::to_string_pretty(&document())?;
    fs::write(out.join("openapi.json"), text + "\n")
}

fn pages(out: &Path) -> std::io::Result<()> {
    fs::create_dir_all(out)?;
    let mut command = Cli::command();
    command.build();
    page(&command, "godwit".to_owned(), out)
}

/// One page for a command, and one for each below it that is not hidden.
fn page(command: &Command, name: String, out: &Path) -> std::io::Result<()> {
    for sub in command.get_subcommands() {
        if !sub.is_hide_set() && sub.get_name() != "help" {
            page(sub, format!("{name}-{}", sub.get_name()), out)?;
        }
    }
    let page = clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .source(format!("godwit {}", env!("CARGO_PKG_VERSION")))
        .manual("Godwit");
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(out.join(format!("{name}.1")), text)
}

fn completions(out: &Path) -> std::io::Result<()> {
    fs::create_dir_all(out)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "godwit", out)?;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_verb_has_a_page_and_every_shell_completes_it() {
        let out = tempfile::tempdir().unwrap();
        pages(out.path()).unwrap();
        completions(out.path()).unwrap();
        let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
        let main = read("godwit.1");
        for sub in Cli::command().get_subcommands() {
            let name = sub.get_name();
            assert_eq!(
                out.path().join(format!("godwit-{name}.1")).exists(),
                !sub.is_hide_set(),
                "{name}"
            );
            assert_eq!(
                main.contains(&format!("godwit\\-{name}(1)")),
                !sub.is_hide_set(),
                "{name}"
            );
        }
        assert!(read("godwit-migrate.1").contains("max\\-blackout"));
        assert!(out.path().join("godwit-peer-join.1").exists());
        for shell in ["godwit.bash", "_godwit", "godwit.fish"] {
            assert!(read(shell).contains("max-blackout"), "{shell}");
        }
    }
}
