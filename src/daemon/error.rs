//! Why the daemon did not do what it was asked.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::config::ConfigError;
use super::requests::Refusal;
use crate::cgroup::CgroupError;
use crate::container::ContainerError;
use crate::container::shim::ShimError;
use crate::migration::MigrationError;
use crate::model::{MigrationId, Name};
use crate::net::NetError;
use crate::oci::OciError;
use crate::peer::PeerError;
use crate::rootfs::StoreError;
use crate::runtime::RuntimeError;

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
    /// Another host did not do its part.
    Elsewhere,
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
    /// There is no such container of a bundle here.
    #[error("there is no container {id} of a bundle on this host")]
    NoSuchBundle {
        /// Its id.
        id: String,
    },
    /// A container of a bundle could not be looked at.
    #[error(transparent)]
    Runtime(Box<RuntimeError>),
    /// There is one already.
    #[error("there is already a container {name} on this host")]
    NameTaken {
        /// Its name.
        name: Name,
    },
    /// There is no such migration.
    #[error("there is no migration {id} on this host")]
    NoSuchMigration {
        /// Its id.
        id: MigrationId,
    },
    /// It has ended.
    #[error("the migration {id} is over")]
    MigrationOver {
        /// Its id.
        id: MigrationId,
    },
    /// It is handed over: this host cannot end it any more.
    #[error("the migration {id} is handed over and cannot be cancelled")]
    HandedOver {
        /// Its id.
        id: MigrationId,
    },
    /// It is not in doubt.
    #[error("the migration {id} is not in doubt")]
    NotInDoubt {
        /// Its id.
        id: MigrationId,
    },
    /// It has run at the destination: its frozen copy is stale.
    #[error("the container of migration {id} has run at the destination, and is not resumed here")]
    RanThere {
        /// Its id.
        id: MigrationId,
    },
    /// A destination does not decide.
    #[error("the migration {id} is cancelled on its source, {source_host}")]
    CancelAtSource {
        /// Its id.
        id: MigrationId,
        /// The host to ask.
        source_host: Name,
    },
    /// A migration could not be asked about.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// The cgroups of this host cannot be used.
    #[error("the cgroups of this host cannot be used")]
    Cgroup(#[from] CgroupError),
    /// A container's room said no.
    #[error(transparent)]
    Container(#[from] ContainerError),
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
    /// The work was given up, because it panicked: a defect of Godwit.
    #[error("a defect stopped the work on {what}; the daemon's log has the details")]
    Defect {
        /// What was being done.
        what: String,
    },
    /// The network said no.
    #[error(transparent)]
    Network(#[from] NetError),
    /// The link to other hosts said no.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// What was written in a template or a request cannot become a container.
    #[error(transparent)]
    Template(#[from] OciError),
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] StoreError),
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

/// What programs are told of an error.
struct Class {
    kind: Kind,
    code: &'static str,
    /// The field of the request that is wrong, where one is.
    field: Option<&'static str>,
}

impl Class {
    const fn new(kind: Kind, code: &'static str) -> Self {
        Self {
            kind,
            code,
            field: None,
        }
    }

    const fn field(self, field: &'static str) -> Self {
        Self {
            field: Some(field),
            ..self
        }
    }
}

impl From<RuntimeError> for DaemonError {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(Box::new(error))
    }
}

impl DaemonError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        self.class().code
    }

    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        self.class().kind
    }

    /// The field of the request that is wrong, where one is.
    pub fn field(&self) -> Option<&'static str> {
        self.class().field
    }

    fn class(&self) -> Class {
        use Kind::{Absent, Conflict, Elsewhere, Failed, Invalid, Unavailable};
        match self {
            Self::Refused(refusal) => Class::new(Conflict, refusal.code),
            Self::Config(_) => Class::new(Failed, "bad-configuration"),
            Self::Field { field, .. } => Class::new(Invalid, "bad-field").field(field),
            Self::NoSuchContainer { .. } => Class::new(Absent, "no-such-container"),
            Self::NoSuchBundle { .. } => Class::new(Absent, "no-such-container"),
            Self::Runtime(error) => match **error {
                RuntimeError::Leaving { .. } => Class::new(Conflict, "migrating"),
                RuntimeError::Status { .. } => Class::new(Conflict, "not-running"),
                _ => Class::new(Failed, "runtime"),
            },
            Self::NameTaken { .. } => Class::new(Conflict, "name-in-use").field("name"),
            Self::NoSuchMigration { .. } => Class::new(Absent, "no-such-migration"),
            Self::MigrationOver { .. } => Class::new(Conflict, "migration-over"),
            Self::HandedOver { .. } => Class::new(Conflict, "handed-over"),
            Self::NotInDoubt { .. } => Class::new(Conflict, "not-in-doubt"),
            Self::RanThere { .. } => Class::new(Conflict, "ran-there"),
            Self::CancelAtSource { .. } => Class::new(Conflict, "cancel-at-source"),
            Self::Migration(_) => Class::new(Elsewhere, "migration"),
            Self::Cgroup(_) => Class::new(Failed, "cgroup"),
            Self::Container(e) => of_container(e),
            Self::NoSuchPeer { .. } => Class::new(Absent, "no-such-peer"),
            Self::Busy { .. } => Class::new(Conflict, "busy"),
            Self::Alone => Class::new(Unavailable, "no-peers"),
            Self::AnotherDaemon { .. } => Class::new(Conflict, "another-daemon"),
            Self::Defect { .. } => Class::new(Failed, "defect"),
            Self::Io { .. } => Class::new(Failed, "system"),
            Self::Network(e) => of_network(e),
            Self::Peer(PeerError::UnknownPeer { .. }) => Class::new(Absent, "no-such-peer"),
            Self::Peer(_) => Class::new(Elsewhere, "peer"),
            Self::Template(e) => of_template(e),
            Self::Image(StoreError::NoImage { .. }) => {
                Class::new(Absent, "no-such-image").field("image")
            }
            Self::Image(_) => Class::new(Failed, "image"),
        }
    }

    /// What to do about it, where that is known and the text does not say so itself.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Refused(refusal) => refusal.remedy.clone(),
            Self::Field { remedy, .. } => remedy.clone(),
            Self::NoSuchContainer { .. } | Self::NoSuchBundle { .. } => {
                "`godwit list` shows those that are here".to_owned()
            }
            Self::NameTaken { name } => {
                format!("choose another name, or `godwit delete {name}` first")
            }
            Self::NoSuchMigration { .. } => {
                "`godwit migrations list` shows those known here".to_owned()
            }
            Self::MigrationOver { id } | Self::NotInDoubt { id } => {
                format!("`godwit migrations show {id}` tells how it ended")
            }
            Self::HandedOver { id } => format!(
                "it ends when the two hosts speak, or with `godwit migrations resolve {id}`"
            ),
            Self::RanThere { id } => format!(
                "`godwit migrations resolve {id} --keep destination` gives the frozen copy up, and with it what the \
                 destination has not fetched"
            ),
            Self::CancelAtSource { id, source_host } => {
                format!("run `godwit migrations cancel {id}` on {source_host}")
            }
            Self::NoSuchPeer { .. } => {
                "`godwit peer list` shows the peers; `godwit peer join` adds one".to_owned()
            }
            Self::Busy { .. } => "try again in a while".to_owned(),
            Self::AnotherDaemon { .. } => {
                "stop that one first, or give this one another run_dir".to_owned()
            }
            Self::Network(
                NetError::NameMovedAway { name, host }
                | NetError::AddressHeldAway {
                    holder: name, host, ..
                },
            ) => format!(
                "once it is gone from {host}, `godwit delete --force {name}` here frees its name and address"
            ),
            Self::Network(NetError::AddressAnswers { .. } | NetError::AddressHeld { .. }) => {
                "choose another address, or none to have one chosen".to_owned()
            }
            Self::Template(OciError::NoTemplate { .. }) => {
                "`godwit template list` shows what each one is made of".to_owned()
            }
            Self::Image(StoreError::NoImage { .. }) => {
                "build it from its template with `godwit template build`".to_owned()
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

fn of_container(error: &ContainerError) -> Class {
    use Kind::{Absent, Conflict, Failed, Invalid, Unavailable};
    match error {
        ContainerError::NotFound { .. } => Class::new(Absent, "no-such-container"),
        ContainerError::Exists { .. } => Class::new(Conflict, "name-in-use").field("name"),
        ContainerError::State(_) => Class::new(Conflict, "wrong-state"),
        ContainerError::NoProcess { .. } => Class::new(Conflict, "not-running"),
        ContainerError::OfABundle { .. } => Class::new(Conflict, "of-a-bundle"),
        ContainerError::NoImage { .. } => Class::new(Absent, "no-such-image"),
        ContainerError::Wish { .. } => Class::new(Invalid, "bad-field"),
        ContainerError::Cgroup {
            source: CgroupError::Controller { .. },
            ..
        } => Class::new(Unavailable, "no-controller").field("limits"),
        ContainerError::Shim {
            operation: "start",
            source: ShimError::Refused { .. },
            ..
        } => Class::new(Invalid, "command-not-run").field("command"),
        ContainerError::Network { source, .. } => of_network(source),
        // What was taken back does not matter to whoever asked.
        ContainerError::Undo { cause, .. } => of_container(cause),
        _ => Class::new(Failed, "container"),
    }
}

fn of_network(error: &NetError) -> Class {
    use Kind::{Conflict, Failed, Invalid, Unavailable};
    match error {
        NetError::AddressAnswers { .. }
        | NetError::AddressHeld { .. }
        | NetError::AddressHeldAway { .. }
        | NetError::MacHeld { .. } => Class::new(Conflict, "address-in-use").field("ip"),
        NetError::NameHolds { .. } | NetError::NameMovedAway { .. } => {
            Class::new(Conflict, "name-in-use").field("name")
        }
        NetError::OutsideNetwork { .. } | NetError::Reserved { .. } => {
            Class::new(Invalid, "bad-field").field("ip")
        }
        NetError::PoolExhausted { .. } => Class::new(Unavailable, "no-address"),
        _ => Class::new(Failed, "network"),
    }
}

fn of_template(error: &OciError) -> Class {
    use Kind::{Absent, Failed, Invalid};
    match error {
        OciError::NoTemplate { .. } => Class::new(Absent, "no-such-template").field("template"),
        OciError::Value { field, .. } => Class::new(Invalid, "bad-field").field(field),
        OciError::TemplateName { .. } => Class::new(Invalid, "bad-field").field("template"),
        _ => Class::new(Failed, "bad-template"),
    }
}

/// An error and its causes, joined by colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        let more = more.trim();
        // A transparent error and its source say the same.
        if !text.ends_with(more) {
            text.push_str(": ");
            text.push_str(more);
        }
        cause = error.source();
    }
    text
}
