//! `godwit peer`: the other hosts.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::Failure;
use super::table::{span, table};
use super::{Session, values};
use crate::api::types::{JoinRequest, PeerInfo, TokenAnswer, TokenRequest};
use crate::model::Name;

/// Manage the other hosts.
///
/// Two hosts trust each other once one of them has joined the other with a token.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit peer token
  godwit peer join 192.0.2.1:7447 --token TOKEN
  godwit peer list")]
pub struct Peer {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a token, with which one other host may join this one, once.
    #[command(after_help = "Example:\n  godwit peer token --ttl 5m")]
    Token {
        /// How long it is good for.
        #[arg(long, default_value = "10m", value_parser = values::duration)]
        ttl: Duration,
    },
    /// Join another host, with a token that it has made.
    #[command(after_help = "Example:\n  godwit peer join 192.0.2.1:7447 --token TOKEN")]
    Join {
        /// Where the other host listens for its peers.
        address: String,
        /// The token; otherwise the variable GODWIT_TOKEN, which other users do not see.
        #[arg(long, env = "GODWIT_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// List the hosts that this one trusts.
    #[command(after_help = "Example:\n  godwit peer list")]
    List,
    /// Trust a host no longer.
    #[command(after_help = "Example:\n  godwit peer remove beta")]
    Remove {
        /// The host.
        name: Name,
    },
}

impl Peer {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self.verb {
            Verb::Token { ttl } => token(session, ttl).await,
            Verb::Join { address, token } => join(session, address, token).await,
            Verb::List => list(session).await,
            Verb::Remove { name } => {
                session.client.delete(&format!("/v1/peers/{name}")).await?;
                session.done(&format!("{name} is trusted no longer"))
            }
        }
    }
}

async fn token(session: &Session, ttl: Duration) -> Result<ExitCode, Failure> {
    let request = TokenRequest { ttl: ttl.as_secs() };
    let answer: TokenAnswer = session.client.post("/v1/peers/token", &request).await?;
    session.print(&answer, |answer| {
        eprintln!(
            "Good for {}, once. On the other host:",
            span(Duration::from_secs(answer.ttl))
        );
        format!(
            "godwit peer join {} --token {}",
            answer.address, answer.token
        )
    })
}

async fn join(session: &Session, address: String, token: String) -> Result<ExitCode, Failure> {
    let request = JoinRequest { address, token };
    let peer: PeerInfo = session.client.post("/v1/peers/join", &request).await?;
    session.print(&peer, |peer| {
        format!(
            "this host and {} trust each other\n{}'s certificate is {}",
            peer.name, peer.name, peer.fingerprint
        )
    })
}

async fn list(session: &Session) -> Result<ExitCode, Failure> {
    let all: Vec<PeerInfo> = session.client.get("/v1/peers").await?;
    session.print(&all, |all| {
        let mut table = table(&["NAME", "ADDRESS", "CERTIFICATE"]);
        for peer in all {
            let certificate = peer.fingerprint.chars().take(16).collect();
            table.add_row([peer.name.to_string(), peer.address.clone(), certificate]);
        }
        table.trim_fmt()
    })
}
