//! `create` and `run` of a bundle.

use std::path::PathBuf;

use clap::Args;

use super::Place;
use crate::runtime::{self, Ended, Id, Request, RuntimeError};

/// A container of a bundle: instead of --template.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options for containers of OCI bundles")]
pub struct Bundle {
    /// The container's id: it is made from a bundle, without the daemon.
    pub id: Option<Id>,
    /// The bundle's directory.
    #[arg(short, long, value_name = "DIRECTORY", requires = "id")]
    bundle: Option<PathBuf>,
    /// A unix socket that gets the master of the container's terminal.
    #[arg(long, value_name = "PATH", requires = "id")]
    console_socket: Option<PathBuf>,
    /// A unix socket that gets a pidfd of the container's process.
    #[arg(long, value_name = "PATH", requires = "id")]
    pidfd_socket: Option<PathBuf>,
    /// A file that gets the id of the container's process.
    #[arg(long, value_name = "FILE", requires = "id")]
    pid_file: Option<PathBuf>,
    /// Do not use pivot_root, where the root is a ramdisk.
    #[arg(long, requires = "id")]
    no_pivot: bool,
    /// Leave the session keyring as it is.
    #[arg(long, requires = "id")]
    no_new_keyring: bool,
    /// Pass this many descriptors after the first three to the container.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    preserve_fds: u32,
}

/// What only `run` has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options for containers of OCI bundles")]
pub struct RunOptions {
    /// Do not wait for the container's end.
    #[arg(short, long, requires = "id")]
    detach: bool,
    /// Do not delete the container after its end.
    #[arg(long, requires = "id")]
    keep: bool,
    /// Leave processes that lose their parent to others.
    #[arg(long, requires = "id")]
    no_subreaper: bool,
}

impl Bundle {
    /// `create`.
    pub fn create(self, place: &Place) -> Result<Ended, RuntimeError> {
        runtime::seal()?;
        runtime::create(&place.root, &self.request(place)?)?;
        Ok(Ended::RunsOn)
    }

    /// `run`.
    pub fn run(self, place: &Place, options: &RunOptions) -> Result<Ended, RuntimeError> {
        runtime::seal()?;
        let request = self.request(place)?;
        if !options.detach && !options.no_subreaper {
            reap()?;
        }
        runtime::run(&place.root, &request, options.detach, options.keep)
    }

    fn request(self, place: &Place) -> Result<Request, RuntimeError> {
        let id = self.id.ok_or_else(|| RuntimeError::Option {
            option: "ID",
            why: "is missing".to_owned(),
        })?;
        Ok(Request {
            id,
            bundle: self.bundle.unwrap_or_else(|| PathBuf::from(".")),
            console_socket: self.console_socket,
            pidfd_socket: self.pidfd_socket,
            pid_file: self.pid_file,
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserve_fds: self.preserve_fds,
            systemd: place.systemd,
        })
    }
}

/// From now on processes of the container that lose their parent are ours.
pub fn reap() -> Result<(), RuntimeError> {
    nix::sys::prctl::set_child_subreaper(true).map_err(|errno| RuntimeError::System {
        operation: "reap for the container",
        source: errno.into(),
    })
}
