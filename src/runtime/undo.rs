//! What has been made of a container so far, and how it is taken away again.

use std::os::fd::AsFd;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::create::Wish;
use super::error::in_one_line;
use super::state::{self, Identity, Record, Status};
use super::store::{self, Home, Root};
use super::{RuntimeError, delete, owner};
use crate::cgroup::manage::{Group, Planned};
use crate::net::Moved;
use crate::sys::pidfd;

/// What is there of a container that is not finished.
pub(super) struct Undo<'a> {
    root: &'a Root,
    home: Option<Home>,
    cgroup: Option<Group>,
    record: Option<Record>,
    /// Devices of the host that it has.
    pub devices: Vec<Moved>,
    begun: bool,
}

impl<'a> Undo<'a> {
    /// Nothing, in a home of its own.
    pub fn new(root: &'a Root, home: Home) -> Self {
        Self {
            root,
            home: Some(home),
            cgroup: None,
            record: None,
            devices: Vec::new(),
            begun: false,
        }
    }

    /// Makes the cgroup. Before, there is a record, so that `delete` knows of the cgroup, whoever is killed when.
    pub fn make(&mut self, wish: &Wish<'_>, cgroup: Planned) -> Result<Group, RuntimeError> {
        cgroup.check_free()?;
        let nobody = Identity {
            pid: 0,
            start_time: 0,
        };
        self.record = Some(wish.record(nobody, cgroup.path()));
        self.save()?;
        let group = cgroup.create()?;
        self.cgroup = Some(group.clone());
        if let Some(owner) = owner::of_cgroup(&wish.spec, &wish.plan.namespaces) {
            group.give_to(owner)?;
        }
        Ok(group)
    }

    /// It has been restored as this process.
    pub fn restored(&mut self, init: Identity) -> Result<(), RuntimeError> {
        if let Some(record) = &mut self.record {
            record.init = init;
        }
        self.ready()
    }

    /// Its directory.
    pub fn home(&self) -> Result<&Home, RuntimeError> {
        self.home.as_ref().ok_or_else(|| RuntimeError::Missing {
            id: String::new(),
            root: self.root.path().to_owned(),
        })
    }

    /// What is written about it.
    pub fn record(&self) -> Result<&Record, RuntimeError> {
        self.record.as_ref().ok_or_else(|| RuntimeError::Child {
            why: "there is none".to_owned(),
        })
    }

    /// From now on there is a process, of this id.
    pub fn born(&mut self, pid: i32) {
        if let Some(record) = &mut self.record {
            record.init = store::identity(pid).unwrap_or(Identity { pid, start_time: 0 });
        }
        self.begun();
    }

    /// From now on hooks are run, and so in the end those of the kind poststop.
    pub fn begun(&mut self) {
        self.begun = true;
    }

    /// Writes what is written about it.
    pub fn save(&self) -> Result<(), RuntimeError> {
        match &self.record {
            Some(record) => self.home()?.save(record),
            None => Ok(()),
        }
    }

    /// It is prepared, and that is written.
    pub fn ready(&mut self) -> Result<(), RuntimeError> {
        if let Some(record) = &mut self.record {
            record.ready = true;
        }
        self.save()
    }

    /// Its state, as hooks are told it.
    pub fn state(&self, status: Status) -> Result<serde_json::Value, RuntimeError> {
        let record = self.record.as_ref();
        Ok(record.map_or(serde_json::Value::Null, |record| {
            state::for_hooks(record, status)
        }))
    }

    /// Everything is as it should be.
    pub fn keep(&mut self) -> Result<Record, RuntimeError> {
        self.record().cloned()
    }

    /// Takes everything away again; as much as can be.
    pub fn all(&mut self) {
        let complain = |result: Result<(), RuntimeError>| {
            if let Err(error) = result {
                tracing::warn!("cannot undo: {}", in_one_line(&error));
            }
        };
        // Before its namespace ends, and they with it.
        for device in self.devices.drain(..) {
            complain(device.take_back().map_err(Into::into));
        }
        if let Some(record) = &self.record {
            let pid = record.init.pid;
            // None yet is 0, which would mean others. It is our child and not reaped, so the number is its own.
            if pid > 0 {
                let _ = pidfd::open(pid).and_then(|p| pidfd::signal(p.as_fd(), libc::SIGKILL));
                let _ = waitpid(Pid::from_raw(pid), None);
            }
        }
        if let Some(group) = self.cgroup.take() {
            complain(
                group
                    .kill()
                    .and_then(|()| group.remove())
                    .map_err(Into::into),
            );
        }
        let classes = self
            .record
            .as_ref()
            .and_then(|record| record.classes.as_ref());
        if let Some(classes) = classes {
            complain(classes.remove());
        }
        if let Some(record) = self.record.as_ref().filter(|_| self.begun) {
            delete::poststop(record);
        }
        if let Some(home) = self.home.take() {
            complain(home.remove());
        }
    }
}
