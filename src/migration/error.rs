//! Why a migration did not go on. Before the handover every one of these leaves the container running on
//! the source; after it there is none of these, only an [`crate::model::Outcome`].

use crate::model::{Finding, MigrationId, Phase};

use super::codec::CodecError;

/// What another room reported, whatever its type.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a migration ended before its handover.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The destination said no, before anything happened.
    #[error("the destination refused: {}", texts(findings))]
    Refused {
        /// Its reasons.
        findings: Vec<Finding>,
    },
    /// This host found that it cannot move.
    #[error("it cannot move: {}", texts(findings))]
    Prevented {
        /// The reasons.
        findings: Vec<Finding>,
    },
    /// Somebody asked to stop.
    #[error("cancelled in phase {}", phase.as_str())]
    Cancelled {
        /// In which phase.
        phase: Phase,
    },
    /// The policy gave up.
    #[error("given up: {why}")]
    GivenUp {
        /// Why.
        why: String,
    },
    /// The other host gave up.
    #[error("the other host gave up: {why}")]
    OtherSide {
        /// What it said.
        why: String,
    },
    /// The other host fell silent or the connection broke.
    #[error("the connection to the other host was lost in phase {}{}", phase.as_str(), unheard(source.as_ref()))]
    LinkLost {
        /// In which phase.
        phase: Phase,
        /// What the transport said, where it said something.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The other host sent bytes that are not of this protocol.
    #[error("the other host sent a malformed frame")]
    Codec {
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// The other host sent something that has no place here.
    #[error("the other host sent {what} in phase {}", phase.as_str())]
    Unexpected {
        /// What it sent.
        what: String,
        /// In which phase.
        phase: Phase,
    },
    /// This host could not do its part.
    #[error("{} failed on this host", phase.as_str())]
    Local {
        /// In which phase.
        phase: Phase,
        /// What the room in charge reported.
        #[source]
        source: Cause,
    },
    /// The journal could not be written, so nothing that depends on it was done.
    #[error(
        "the journal of migration {id} could not be written; is the state directory full or read-only?"
    )]
    Journal {
        /// Which migration.
        id: MigrationId,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
}

impl MigrationError {
    /// A failure of this host's own part.
    pub fn local(phase: Phase, source: impl Into<Cause>) -> Self {
        Self::Local {
            phase,
            source: source.into(),
        }
    }

    /// A message that has no place in this phase.
    pub fn unexpected(message: &super::Message, phase: Phase) -> Self {
        let text = serde_json::to_string(message).unwrap_or_default();
        Self::Unexpected {
            what: text.chars().take(200).collect(),
            phase,
        }
    }

    /// The whole chain in one line, for reports and for the other host.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }

    /// The reasons of a refusal.
    pub fn findings(&self) -> Vec<Finding> {
        match self {
            Self::Refused { findings } | Self::Prevented { findings } => findings.clone(),
            _ => Vec::new(),
        }
    }
}

fn texts(findings: &[Finding]) -> String {
    let blocking: Vec<&str> = findings
        .iter()
        .filter(|f| f.blocking)
        .map(|f| f.text.as_str())
        .collect();
    blocking.join("; ")
}

/// What may be wrong where the kernel says that nothing sent was acknowledged any more (`ETIMEDOUT`, tcp(7)).
fn unheard(source: Option<&std::io::Error>) -> &'static str {
    match source.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::TimedOut) => {
            "; what was sent did not get there (is that host up, and do frames of full length reach it? MTU)"
        }
        _ => "",
    }
}
