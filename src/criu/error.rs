//! What can go wrong between Godwit and CRIU.

use std::io;
use std::path::PathBuf;

use super::{BadRange, LogTail};
use crate::model::CriuVersion;

/// Why a request to CRIU was not done.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// There is no CRIU.
    #[error("no CRIU at {searched}: install CRIU 4.1.1 or newer, or name it in the configuration")]
    Missing {
        /// Where it was looked for.
        searched: String,
    },
    /// CRIU is too old.
    #[error("CRIU {version} is too old: {oldest} or newer is needed", oldest = CriuVersion::OLDEST)]
    TooOld {
        /// Its version.
        version: CriuVersion,
    },
    /// CRIU could not be started.
    #[error("cannot start {}: {operation}", program.display())]
    Start {
        /// What was being done.
        operation: &'static str,
        /// Which CRIU.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory of a request cannot be used.
    #[error("cannot open the {purpose} directory {}", path.display())]
    Directory {
        /// What it is for.
        purpose: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A path goes over the wire as text.
    #[error("the path {} for the option {option} is not UTF-8, which CRIU's requests must be", path.display())]
    NotText {
        /// The option.
        option: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The connection to CRIU broke.
    #[error("cannot {operation} a {request} request of CRIU")]
    Connection {
        /// What was being done.
        operation: &'static str,
        /// Which request.
        request: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// CRIU sent bytes that are no message.
    #[error("CRIU's answer to a {request} request is no message of its protocol")]
    Garbled {
        /// Which request.
        request: &'static str,
        /// Where decoding stopped.
        #[source]
        source: prost::DecodeError,
    },
    /// CRIU sent a message that answers something else.
    #[error("CRIU answered a {request} request with {got}")]
    Unexpected {
        /// Which request.
        request: &'static str,
        /// What came.
        got: String,
    },
    /// CRIU asked something we have never heard of.
    #[error(
        "CRIU sent the notification {name:?}, which is not known: this CRIU is newer than Godwit"
    )]
    UnknownNotification {
        /// Its name.
        name: String,
    },
    /// A notification came without what it must carry.
    #[error("CRIU sent the notification {name:?} without its {what}")]
    NotificationLacks {
        /// Its name.
        name: String,
        /// What is missing.
        what: &'static str,
    },
    /// CRIU ended without an answer.
    #[error("CRIU ended ({status}) before it answered a {request} request{log}")]
    Ended {
        /// Which request.
        request: &'static str,
        /// How it ended.
        status: String,
        /// What it had logged.
        log: LogTail,
    },
    /// We refused at a notification, and CRIU undid its work.
    #[error("the {request} was given up at CRIU's step {step}, as Godwit told it")]
    Refused {
        /// Which request.
        request: &'static str,
        /// The step.
        step: String,
    },
    /// CRIU failed.
    #[error("CRIU's {request} failed: {message}{log}")]
    Failed {
        /// Which request.
        request: &'static str,
        /// The first error, in CRIU's words.
        message: String,
        /// Further relevant lines of its log.
        log: LogTail,
    },
    /// The table of hidden memory could not be made.
    #[error("cannot {operation} the table of memory that CRIU is not to find")]
    HideTable {
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The table of mappings could not be made.
    #[error("cannot {operation} the table of mappings that CRIU is told")]
    SmapsTable {
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Memory that cannot be hidden from CRIU.
    #[error("cannot hide memory from CRIU")]
    Hide {
        /// Why not.
        #[source]
        source: BadRange,
    },
    /// The self-test's own task could not be handled.
    #[error("the self-test of CRIU cannot {operation}")]
    SelfTest {
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The self-test's task did not come back.
    #[error("the self-test of CRIU restored a task that does not run (state {state})")]
    NotRestored {
        /// Its state.
        state: String,
    },
}
