//! Why what a user wrote cannot become a container.

use std::io;
use std::path::PathBuf;

use crate::model::id::IdError;

/// Why what a user wrote cannot become a container. `origin` is where it was written: a template's file,
/// or the request.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The name of a template is none.
    #[error("a template cannot have this name")]
    TemplateName {
        /// The rule that it breaks.
        #[source]
        source: IdError,
    },
    /// There is no such template.
    #[error("there is no template {name:?} in {directory:?}; there are: {known}")]
    NoTemplate {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
        /// The templates that exist, joined by commas.
        known: String,
    },
    /// A file could not be read.
    #[error("cannot read {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file is bigger than anything sensible.
    #[error("{path:?} has more than {most} bytes: this is not the file it should be")]
    TooBig {
        /// Which.
        path: PathBuf,
        /// How many bytes it may have.
        most: u64,
    },
    /// The text is no TOML, has a field it may not have, or one of the wrong type.
    #[error("{origin} is not a template")]
    Toml {
        /// Where it was written.
        origin: String,
        /// Which line, which field, and what may stand there.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Something that must be there is missing.
    #[error("{origin} has no {field}: {remedy}")]
    Missing {
        /// Where it was not written.
        origin: String,
        /// The field.
        field: &'static str,
        /// What to write.
        remedy: &'static str,
    },
    /// A value breaks a rule.
    #[error("{origin}: {field} cannot be {value:?}: {rule}")]
    Value {
        /// Where it was written.
        origin: String,
        /// The field.
        field: &'static str,
        /// The value, or the part of it that is wrong.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// Two fields exclude each other.
    #[error("{origin} has both {one} and {other}: remove one of them")]
    Conflict {
        /// Where they were written.
        origin: String,
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// The image does not know this user or group.
    #[error(
        "{origin}: container.user names the {kind} {name:?}, which {file} of the image does not have: {remedy}"
    )]
    NoAccount {
        /// Where it was written.
        origin: String,
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
        /// What to write instead.
        remedy: &'static str,
    },
    /// The directory to start in is not in the image.
    #[error(
        "{origin}: container.cwd is {cwd:?}, which is not a directory in the image: name one that is, or add it with rootfs.files"
    )]
    NoDirectory {
        /// Where it was written.
        origin: String,
        /// The directory.
        cwd: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
