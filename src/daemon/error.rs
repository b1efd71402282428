//! Why the daemon did not do what it was asked.

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::config::ConfigError;
use super::requests::Refusal;
use crate::model::{Digest, MigrationId, Name};
use crate::net::NetError;
use crate::peer::PeerError;

/// Whose fault it is, roughly: what HTTP wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be right.
    Invalid,
    /// What it names is not there.
    Absent,
    /// It does not fit what is there.
    Conflict,
    /// It cannot be done now, or not by this daemon.
    Unavailable,
    /// It was tried and failed.
    Failed,
}

/// Why the daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Not in this state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A field of the request is wrong.
    #[error("{field} is wrong: {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        remedy: String,
    },
    /// There is no such container here.
    #[error("there is no container {name} on this host")]
    NoSuchContainer {
        /// Its name.
        name: Name,
    },
    /// There is one already.
    #[error("there is already a container {name} on this host")]
    NameTaken {
        /// Its name.
        name: Name,
    },
    /// There is no such template.
    #[error("there is no template {name} in {}", dir.display())]
    NoSuchTemplate {
        /// Its name.
        name: Name,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// There is no such image.
    #[error("there is no image {digest} on this host")]
    NoSuchImage {
        /// Its digest.
        digest: Digest,
    },
    /// Somebody on the network answers for this address.
    #[error("the address {address} is in use: somebody on the network answers for it")]
    AddressInUse {
        /// The address.
        address: Ipv4Addr,
    },
    /// There is no such migration.
    #[error("there is no migration {id} on this host")]
    NoSuchMigration {
        /// Its id.
        id: MigrationId,
    },
    /// There is no such peer.
    #[error("there is no peer {name}")]
    NoSuchPeer {
        /// Its name.
        name: Name,
    },
    /// Another request has been working on the container for long.
    #[error("another request is still working on {name}")]
    Busy {
        /// The container.
        name: Name,
    },
    /// This daemon knows no other hosts.
    #[error("this daemon has no link to other hosts")]
    Alone,
    /// Another daemon has the run directory.
    #[error("another daemon already serves {}", run_dir.display())]
    AnotherDaemon {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// It is not built in yet.
    #[error("{what} is not possible yet")]
    NotYet {
        /// What.
        what: &'static str,
    },
    /// The work was given up, because it panicked: a defect of Godwit.
    #[error("a defect stopped the work on {what}; the daemon's log has the details")]
    Defect {
        /// What was being done.
        what: String,
    },
    /// The network said no.
    #[error("the network refused")]
    Network(#[source] NetError),
    /// The link to other hosts said no.
    #[error("the link to other hosts refused")]
    Peer(#[source] PeerError),
    /// The operating system said no.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl DaemonError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code,
            Self::Config(_) => "bad-configuration",
            Self::Field { .. } => "bad-field",
            Self::NoSuchContainer { .. } => "no-such-container",
            Self::NameTaken { .. } => "name-in-use",
            Self::NoSuchTemplate { .. } => "no-such-template",
            Self::NoSuchImage { .. } => "no-such-image",
            Self::AddressInUse { .. } => "address-in-use",
            Self::NoSuchMigration { .. } => "no-such-migration",
            Self::NoSuchPeer { .. } => "no-such-peer",
            Self::Busy { .. } => "busy",
            Self::Alone => "no-peers",
            Self::AnotherDaemon { .. } => "another-daemon",
            Self::NotYet { .. } => "not-yet",
            Self::Defect { .. } => "defect",
            Self::Network(_) => "network",
            Self::Peer(_) => "peer",
            Self::Io { .. } => "system",
        }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Field { .. } => Kind::Invalid,
            Self::NoSuchContainer { .. }
            | Self::NoSuchTemplate { .. }
            | Self::NoSuchImage { .. }
            | Self::NoSuchMigration { .. }
            | Self::NoSuchPeer { .. } => Kind::Absent,
            Self::Refused(_)
            | Self::NameTaken { .. }
            | Self::AddressInUse { .. }
            | Self::Busy { .. }
            | Self::AnotherDaemon { .. } => Kind::Conflict,
            Self::Alone | Self::NotYet { .. } => Kind::Unavailable,
            Self::Config(_)
            | Self::Defect { .. }
            | Self::Network(_)
            | Self::Peer(_)
            | Self::Io { .. } => Kind::Failed,
        }
    }

    /// The field of the request that is wrong, where one is.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Field { field, .. } => Some(field),
            Self::NameTaken { .. } => Some("name"),
            Self::NoSuchTemplate { .. } => Some("template"),
            Self::NoSuchImage { .. } => Some("image"),
            Self::AddressInUse { .. } => Some("ip"),
            _ => None,
        }
    }

    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Refused(refusal) => refusal.remedy.clone(),
            Self::Field { remedy, .. } => remedy.clone(),
            Self::NoSuchContainer { .. } => "`godwit list` shows those that are here".to_owned(),
            Self::NameTaken { name } => {
                format!("choose another name, or `godwit delete {name}` first")
            }
            Self::NoSuchTemplate { .. } => "`godwit template list` shows those that are".to_owned(),
            Self::NoSuchImage { .. } => {
                "build it from its template with `godwit template build`".to_owned()
            }
            Self::AddressInUse { .. } => {
                "choose another address, or none to have one chosen".to_owned()
            }
            Self::NoSuchMigration { .. } => {
                "`godwit migrations list` shows those known here".to_owned()
            }
            Self::NoSuchPeer { .. } => {
                "`godwit peer list` shows the peers; `godwit peer join` adds one".to_owned()
            }
            Self::Busy { .. } => "try again in a while".to_owned(),
            Self::AnotherDaemon { .. } => {
                "stop that one first, or give this one another run_dir".to_owned()
            }
            _ => return None,
        };
        Some(text)
    }

    /// The whole story on one line: this error, and what caused it.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes, joined by colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        let more = more.trim();
        if !text.ends_with(more) {
            text.push_str(": ");
            text.push_str(more);
        }
        cause = error.source();
    }
    text
}
