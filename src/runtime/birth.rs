//! How a container's first process comes to be, in its cgroup and its namespaces.
//!
//! ```text
//! nothing to join:   creator ──clone3──▶ the process
//!
//! else:              creator ──fork──▶ helper    joins what is shared, leaves the time namespace
//!                       └───────────────┴─clone3 (as a sibling)──▶ the process
//! ```
//!
//! The helper exists because there is no way back from some namespaces, and the creator has more to do on the
//! host. The process is the creator's child either way, and so later that of whoever reaps for the creator.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxNamespaceType;

use super::RuntimeError;
use super::error::{file, in_one_line, system};
use super::plan::{Joined, Plan};
use super::talk::{hear, say, say_failed};
use super::wire::FromProcess;
use crate::sys::clone::{self, Clone, Forked};
use crate::sys::{fdpass, namespace, process};

/// The namespaces to be joined, held open, and those to be made.
#[derive(Debug)]
pub(super) struct Birth {
    joined: Vec<(LinuxNamespaceType, OwnedFd)>,
    new: i32,
    /// Whether it gets a time namespace, with these offsets.
    time: Option<String>,
}

impl Birth {
    /// Opens what is to be joined.
    pub fn of(plan: &Plan) -> Result<Self, RuntimeError> {
        let elsewhere = [LinuxNamespaceType::Cgroup, LinuxNamespaceType::Time];
        let new = plan.namespaces.new.iter();
        let new = new.filter(|kind| !elsewhere.contains(kind));
        let joined = plan.namespaces.joined.iter();
        let joined = joined.filter(|joined| joined.kind != LinuxNamespaceType::Cgroup);
        Ok(Self {
            new: new.fold(0, |all, kind| all | *kind as i32),
            joined: joined
                .map(|joined| Ok((joined.kind, open(joined)?)))
                .collect::<Result<_, RuntimeError>>()?,
            time: plan
                .namespaces
                .is_new(LinuxNamespaceType::Time)
                .then(|| plan.time_offsets.clone()),
        })
    }

    /// Makes the process, which does `child`; returns what it is called on the host.
    pub fn give(&self, cgroup: BorrowedFd<'_>, child: impl FnOnce()) -> io::Result<i32> {
        if self.joined.is_empty() && self.time.is_none() {
            return match self.clone(cgroup, false)? {
                Forked::Parent(pid) => Ok(pid),
                Forked::Child => {
                    child();
                    process::leave(1)
                }
            };
        }
        let (ours, theirs) = fdpass::pair()?;
        match clone::clone(&Clone::default())? {
            Forked::Parent(helper) => {
                drop(theirs);
                let answer = hear::<FromProcess>(ours.as_fd());
                let _ = waitpid(Pid::from_raw(helper), None);
                match answer? {
                    Some(FromProcess::Born { pid }) => Ok(pid),
                    Some(FromProcess::Failed { why }) => Err(io::Error::other(why)),
                    _ => Err(io::Error::other("its helper has ended")),
                }
            }
            Forked::Child => {
                drop(ours);
                match self.enter().and_then(|()| self.clone(cgroup, true)) {
                    Ok(Forked::Child) => {
                        drop(theirs);
                        child();
                    }
                    Ok(Forked::Parent(pid)) => {
                        // Without a listener there is nobody to tell.
                        let _ = say(theirs.as_fd(), &FromProcess::Born { pid });
                    }
                    Err(error) => say_failed(theirs.as_fd(), &in_one_line(&error)),
                }
                process::leave(1)
            }
        }
    }

    fn clone(&self, cgroup: BorrowedFd<'_>, sibling: bool) -> io::Result<Forked> {
        clone::clone(&Clone {
            namespaces: self.new,
            sibling,
            cgroup: Some(cgroup),
            ..Clone::default()
        })
    }

    /// Joins what is shared. A namespace may belong to the user namespace that is joined, or to one above it: what
    /// is refused before it is joined is tried again after.
    fn enter(&self) -> io::Result<()> {
        if let Some(offsets) = &self.time {
            namespace::leave(namespace::TIME).map_err(why("make a time namespace"))?;
            if !offsets.is_empty() {
                fs::write("/proc/self/timens_offsets", offsets)
                    .map_err(why("set linux.timeOffsets"))?;
            }
        }
        let (user, others): (Vec<_>, Vec<_>) = self
            .joined
            .iter()
            .partition(|(kind, _)| *kind == LinuxNamespaceType::User);
        let mut later = Vec::new();
        for (kind, namespace) in others {
            match namespace::enter(namespace.as_fd(), *kind as i32) {
                Err(e) if e.raw_os_error() == Some(libc::EPERM) && !user.is_empty() => {
                    later.push((kind, namespace));
                }
                other => other.map_err(why(&format!("join the {kind} namespace")))?,
            }
        }
        for (_, namespace) in user {
            namespace::enter(namespace.as_fd(), namespace::USER)
                .map_err(why("join the user namespace"))?;
        }
        for (kind, namespace) in later {
            namespace::enter(namespace.as_fd(), *kind as i32)
                .map_err(why(&format!("join the {kind} namespace")))?;
        }
        Ok(())
    }
}

/// Opens a namespace by its path.
pub(super) fn open(joined: &Joined) -> Result<OwnedFd, RuntimeError> {
    let file_at = File::open(&joined.path).map_err(file("open the namespace", &joined.path))?;
    Ok(file_at.into())
}

fn why(what: &str) -> impl FnOnce(io::Error) -> io::Error {
    let what = what.to_owned();
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The creator's side of a user namespace: writes its maps.
pub(super) fn map_ids(pid: i32, plan: &Plan) -> Result<(), RuntimeError> {
    if !plan.namespaces.is_new(LinuxNamespaceType::User) {
        return Ok(());
    }
    let maps = [("uid_map", &plan.uid_map), ("gid_map", &plan.gid_map)];
    for (name, map) in maps {
        let path = std::path::PathBuf::from(format!("/proc/{pid}/{name}"));
        fs::write(&path, map).map_err(file("write", &path))?;
    }
    Ok(())
}

/// Says of a failed clone what it was for.
pub(super) fn failed(error: io::Error) -> RuntimeError {
    system("make the container's process")(error)
}
