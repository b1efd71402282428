//! `godwit template`: list templates and build their images.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::Failure;
use super::table::table;
use super::{Session, progress};
use crate::api::types::TemplateInfo;
use crate::model::Name;

/// List templates and build their images.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit template list\n  godwit template build redis")]
pub struct Template {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the templates of this host.
    #[command(after_help = "Example:\n  godwit template list")]
    List,
    /// Build a template's image, or find it built.
    #[command(after_help = "Example:\n  godwit template build redis")]
    Build {
        /// The template.
        name: Name,
    },
}

impl Template {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self.verb {
            Verb::List => list(session).await,
            Verb::Build { name } => {
                progress::build(session, &name, true).await?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

async fn list(session: &Session) -> Result<ExitCode, Failure> {
    let all: Vec<TemplateInfo> = session.client.get("/v1/templates").await?;
    session.print(&all, |all| {
        let mut table = table(&["NAME", "IMAGE", "PORTS", "COMMAND", "MADE OF"]);
        for template in all {
            let image = match &template.image {
                Some(digest) => digest.to_string()[..12].to_owned(),
                None => "not built".to_owned(),
            };
            let about = match &template.problem {
                Some(problem) => format!("cannot be used: {problem}"),
                None => template.rootfs.clone(),
            };
            let command = template.command.join(" ");
            let ports: Vec<String> = template.ports.iter().map(u16::to_string).collect();
            table.add_row([
                template.name.to_string(),
                image,
                ports.join(" "),
                command,
                about,
            ]);
        }
        table.trim_fmt()
    })
}
