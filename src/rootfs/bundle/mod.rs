//! What a container of an OCI bundle sees as `/`: its mounts, devices, protected paths and kernel settings.
//!
//! **Invariant:** a configuration that cannot be done is refused by [`Plan::of`], before anything exists.
//!
//! **Invariant:** no path inside the container's tree is given to the kernel to mount on: `place` has the
//! argument. No file of the container's `/proc` is ever written: kernel settings go through the host's, before
//! the root changes.
//!
//! **Invariant:** what comes from the host is opened in the container's own mount namespace, where a user
//! namespace has locked what the host had protected, and not in the host's, where it would come without the lock.
//!
//! ```text
//! parent (host)                                  child (all namespaces new, cgroup joined)
//! Plan::of
//! clone ───────────────────────────────────────▶ Plan::separate   mounts are not the host's any more
//! Plan::sources_in ── Sources::send ───────────▶ Plan::receive_sources     (user namespace, id-mapped mounts)
//!                                          or    Plan::sources             (all others)
//!                                                Plan::build      mounts, devices, links, settings
//!                                                Root::console    where there is a terminal
//!                                                  hooks of the kind createContainer
//!                                                Root::enter      covered paths, read-only, the change of the root
//! ```

pub mod console;
mod cover;
mod device;
mod enter;
mod idmap;
mod mount;
mod option;
mod outside;
mod place;
pub mod plan;
mod setting;
mod source;
#[cfg(test)]
mod test;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::Spec;

use crate::sys::mount::{Change, change_mount};
pub use console::Console;
pub use option::known_options;
pub use outside::{COVER, Outside, Places, Stage};
use plan::Kind;
pub use plan::{Options, Plan};
pub use source::Sources;

/// What went wrong with a bundle's file systems.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The configuration asks for what cannot be.
    #[error("config.json: {field} {problem}")]
    Refused {
        /// Which field.
        field: String,
        /// What is wrong with it, and the remedy.
        problem: String,
    },
    /// One of `mounts`.
    #[error("cannot {operation} mounts[{index}] at /{}", .destination.display())]
    Mount {
        /// What was tried.
        operation: &'static str,
        /// Its place in the list.
        index: usize,
        /// Where it was to be mounted.
        destination: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A device, a link in `/dev`, or a covered or protected path.
    #[error("cannot {operation} /{} in the container", .path.display())]
    Path {
        /// What was tried.
        operation: &'static str,
        /// The path, relative to the root.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The root as a whole.
    #[error("cannot {operation} {}", .root.display())]
    Root {
        /// What was tried.
        operation: &'static str,
        /// The root directory, on the host.
        root: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A kernel setting.
    #[error("cannot write linux.sysctl {}", .setting.display())]
    Setting {
        /// Its path beneath `/proc/sys`.
        setting: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The terminal.
    #[error("cannot {operation}; a terminal needs a mount of type devpts at /dev/pts")]
    Console {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A container's tree: mounted, and not yet the root.
#[derive(Debug)]
pub struct Root<'a> {
    plan: &'a Plan,
    /// The root of the container's tree.
    fd: OwnedFd,
    /// Mounts that become read-only when everything else is done.
    later: Vec<(PathBuf, OwnedFd)>,
}

impl Plan {
    /// Reads a configuration, and looks whether what it names is there.
    ///
    /// On failure nothing has happened.
    pub fn of(spec: &Spec, bundle: &Path, options: Options) -> Result<Self, RootfsError> {
        let refused = |field: String, problem: String| RootfsError::Refused { field, problem };
        let bundle =
            std::path::absolute(bundle).map_err(|source| root_error("find", bundle)(source))?;
        let mut plan = plan::of(spec, &bundle, options)?;
        plan.root = match fs::canonicalize(&plan.root) {
            Ok(root) if root.is_dir() => root,
            Ok(root) => {
                let problem = format!("is {}, which is no directory", root.display());
                return Err(refused("root.path".to_owned(), problem));
            }
            Err(error) => {
                let problem = format!("is {}: {error}", plan.root.display());
                return Err(refused("root.path".to_owned(), problem));
            }
        };
        for mount in &plan.mounts {
            let Kind::Bind { source, .. } = &mount.kind else {
                continue;
            };
            if let Err(error) = fs::metadata(source) {
                let field = format!("mounts[{}].source", mount.index);
                return Err(refused(field, format!("is {}: {error}", source.display())));
            }
        }
        if plan.label.is_some() && !Path::new("/sys/fs/selinux/enforce").exists() {
            let problem = "is given, and SELinux is off on this host".to_owned();
            return Err(refused("linux.mountLabel".to_owned(), problem));
        }
        Ok(plan)
    }

    /// Whether the parent has to open what comes from the host, because the child may not.
    pub fn needs_parent(&self) -> bool {
        let mapped = |kind: &Kind| {
            matches!(
                kind,
                Kind::Bind {
                    id_map: Some(_),
                    ..
                }
            )
        };
        self.user_namespace || self.mounts.iter().any(|mount| mapped(&mount.kind))
    }

    /// Makes the new mount namespace of the calling process its own: what is mounted from now on stays in it,
    /// unless the configuration has the root shared.
    pub fn separate(&self) -> Result<(), RootfsError> {
        let kind = match self.propagation.map(|p| p.kind) {
            // What is shared with the host stays shared; what is mounted meanwhile, see `Plan::build`, does not.
            Some(MsFlags::MS_SHARED) => return Ok(()),
            Some(MsFlags::MS_PRIVATE | MsFlags::MS_UNBINDABLE) => MsFlags::MS_PRIVATE,
            _ => MsFlags::MS_SLAVE,
        };
        let separated = place::hold(Path::new("/")).and_then(|root| {
            let change = Change {
                propagation: kind.bits(),
                ..Change::default()
            };
            change_mount(root.as_fd(), &change, true)
        });
        separated.map_err(root_error(
            "separate the mounts of the host from",
            &self.root,
        ))
    }
}

fn root_error(
    operation: &'static str,
    root: &Path,
) -> impl FnOnce(io::Error) -> RootfsError + use<> {
    let root = root.to_owned();
    move |source| RootfsError::Root {
        operation,
        root,
        source,
    }
}

fn path_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> RootfsError + use<> {
    let path = path.to_owned();
    move |source| RootfsError::Path {
        operation,
        path,
        source,
    }
}
