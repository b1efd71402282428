//! Why an image cannot be made, kept or removed.

use std::io;
use std::path::PathBuf;

use crate::model::Digest;
use crate::storage::DigestError;

/// Why an image cannot be made, kept or removed. Whatever failed, the store is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel said no.
    #[error("cannot {operation} {path:?}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The tree has no digest.
    #[error("the image has no digest")]
    Digest {
        /// Why.
        #[source]
        source: DigestError,
    },
    /// What arrived is not what was announced.
    #[error(
        "the image that arrived is {found}, not {expected}: it was changed or damaged on its way, or on the disk of the host that sent it"
    )]
    Mismatch {
        /// What was announced.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// There is no such image here.
    #[error("there is no image {digest} on this host")]
    NoImage {
        /// Which.
        digest: Digest,
    },
    /// A template names a directory that it does not have.
    #[error(
        "template {template}: {field} is {path:?}, which cannot be opened as a directory beneath the template's own"
    )]
    NoDirectory {
        /// The template.
        template: String,
        /// `rootfs.directory` or `rootfs.files`.
        field: &'static str,
        /// What it names.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A template that names no suite, on a host that has none.
    #[error(
        "template {template} names no rootfs.suite and this host's /etc/os-release no VERSION_CODENAME: write suite = \"bookworm\" (or another release) under [rootfs]"
    )]
    NoSuite {
        /// The template.
        template: String,
    },
    /// A program that builds images is missing.
    #[error(
        "template {template} cannot be built: this host has no {program}; install the package {package}, or import the image from a host that has it"
    )]
    NoProgram {
        /// The template.
        template: String,
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The archive has no such package.
    #[error(
        "template {template}: rootfs.packages names {package:?}, which the archive of {suite} does not have: correct the name, or the suite"
    )]
    UnknownPackage {
        /// The template.
        template: String,
        /// The package, with its version where one was asked for.
        package: String,
        /// The release that was looked in.
        suite: String,
    },
    /// The archive did not answer.
    #[error(
        "template {template} cannot be built: the archive of {suite} cannot be reached ({line}); check the host's network and apt sources, or import the image from a host that has it"
    )]
    Unreachable {
        /// The template.
        template: String,
        /// The release.
        suite: String,
        /// What apt said.
        line: String,
    },
    /// The build failed for another reason.
    #[error(
        "template {template} cannot be built for {suite}: mmdebstrap ended with {status}; its last words were:\n{tail}"
    )]
    Build {
        /// The template.
        template: String,
        /// The release.
        suite: String,
        /// How it ended.
        status: String,
        /// The last lines of its output.
        tail: String,
    },
    /// Something lies where a mount point must be.
    #[error("/{name} in the image is no directory: a container needs one there, to mount on")]
    NoMountPoint {
        /// Its name.
        name: &'static str,
    },
}

impl StoreError {
    /// For `map_err`: a failed operation on a path.
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}
