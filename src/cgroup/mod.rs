//! cgroup v2: one cgroup per container; its limits, its freezer, its end.
//!
//! **Invariant:** every path is below the one parent that [`CgroupRoot::find`] was given; nothing outside it is
//! ever written, but for the switches that hand controllers down to it.
//!
//! **Invariant:** waiting is for an event of the kernel (`cgroup.events` changes), never a sleep.
//!
//! ```text
//! /sys/fs/cgroup                 the cgroup2 mount, wherever it is
//! └── godwit                     the parent: no processes, only children
//!     ├── _shims                 the shims: no limits, out of the reach of a service's end
//!     ├── web                    a container
//!     └── db
//! ```

mod freezer;
pub mod manage;
pub mod plan;
mod throttle;
mod usage;

pub use throttle::Throttle;
pub use usage::Counts;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{Limits, Name};

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 here.
    #[error(
        "no cgroup v2 hierarchy is mounted here: mount one (`mount -t cgroup2 none /sys/fs/cgroup`) or start the kernel with systemd.unified_cgroup_hierarchy=1"
    )]
    NoHierarchy,
    /// The configured parent is not a path of names.
    #[error("{parent:?} is not a cgroup: give names joined by '/', without a leading '/'")]
    Parent {
        /// What was configured.
        parent: String,
    },
    /// A limit was asked for that this kernel cannot keep.
    #[error(
        "the {controller} limit cannot be kept: the cgroup v2 controller `{controller}` is not available in {path}; boot with cgroup v2 alone, or leave the limit out"
    )]
    Controller {
        /// The controller.
        controller: &'static str,
        /// The cgroup.
        path: PathBuf,
    },
    /// A resource of a bundle that cannot be kept, on any kernel or as things are.
    #[error("the resource {field} cannot be kept: {reason}")]
    Resource {
        /// The field of the bundle.
        field: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A resource of a bundle whose controller or file this kernel does not have.
    #[error(
        "the resource {field} cannot be kept: cgroup v2 has no {missing} in {path}; boot with cgroup v2 alone, or leave the resource out"
    )]
    Missing {
        /// The field of the bundle.
        field: String,
        /// The controller or the file.
        missing: String,
        /// The cgroup.
        path: PathBuf,
    },
    /// A path that a bundle gives for its cgroup.
    #[error("linux.cgroupsPath {path:?} is no cgroup: {reason}")]
    Place {
        /// What was given.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// Somebody is in the cgroup already.
    #[error(
        "the cgroup {path} has {count} processes already; give the container another linux.cgroupsPath"
    )]
    Occupied {
        /// The cgroup.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// The program that guards devices.
    #[error(
        "cannot {operation} the program that guards the devices of {path}: the kernel needs CONFIG_CGROUP_BPF, and the caller CAP_BPF on the host"
    )]
    Devices {
        /// What was tried.
        operation: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// systemd could not be asked, or has refused.
    #[error("systemd cannot {operation} the unit {unit}: {why}")]
    Systemd {
        /// What was tried.
        operation: &'static str,
        /// The unit.
        unit: String,
        /// What systemd, or the bus, has said.
        why: String,
    },
    /// A file of a cgroup could not be read or written, or a cgroup not be made or removed.
    #[error("cannot {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not get there in time.
    #[error("the cgroup {path} is not {state} after {wait:?}: a process in it hangs in the kernel")]
    Timeout {
        /// The cgroup.
        path: PathBuf,
        /// What was waited for.
        state: &'static str,
        /// How long.
        wait: Duration,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::File {
        operation,
        path,
        source,
    }
}

/// The cgroup that is the parent of all containers.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    path: PathBuf,
}

impl CgroupRoot {
    /// Finds the hierarchy, makes the parent, and hands it the controllers that are there.
    pub fn find(parent: &str) -> Result<Self, CgroupError> {
        if !plan::is_path(parent) {
            return Err(CgroupError::Parent {
                parent: parent.chars().take(200).collect(),
            });
        }
        let mountinfo = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(mountinfo).map_err(failed("read", mountinfo))?;
        let mount = plan::mount_point(&text).ok_or(CgroupError::NoHierarchy)?;
        let mut path = PathBuf::from(mount);
        for name in parent.split('/') {
            hand_down_controllers(&path);
            path.push(name);
            make(&path)?;
        }
        hand_down_controllers(&path);
        Ok(Self { path })
    }

    /// The cgroup of a container, which need not exist.
    pub fn container(&self, name: &Name) -> Cgroup {
        Cgroup {
            path: self.path.join(name.as_str()),
        }
    }

    /// The cgroup of the shims. No container has such a name.
    pub fn shims(&self) -> Cgroup {
        Cgroup {
            path: self.path.join("_shims"),
        }
    }

    /// Whether containers can be slowed down: the `cpu` controller is handed down to them.
    pub fn can_throttle(&self) -> bool {
        let controllers = fs::read_to_string(self.path.join("cgroup.subtree_control"));
        controllers.is_ok_and(|text| text.split_whitespace().any(|name| name == "cpu"))
    }

    /// The parent's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Lets children of `path` have the controllers. What cannot be handed down is missed where it is needed:
/// [`Cgroup::apply`] names it.
fn hand_down_controllers(path: &Path) {
    let available = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in plan::CONTROLLERS {
        if available.split_whitespace().any(|c| c == controller) {
            let _ = fs::write(
                path.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
        }
    }
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed("make the cgroup", path)),
    }
}

/// One cgroup: a directory of the cgroup v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup at this path, which the caller knows to be one.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it. One that exists and is empty will do.
    pub fn create(&self) -> Result<(), CgroupError> {
        make(&self.path)
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path.join("cgroup.procs").exists()
    }

    /// Sets its limits, and lifts those that are absent. Nothing is changed when a limit was asked for whose
    /// controller is missing.
    pub fn apply(&self, limits: &Limits) -> Result<(), CgroupError> {
        let settings = plan::settings(limits);
        let missing = |file: &str| !self.path.join(file).exists();
        if let Some(lost) = settings.iter().find(|s| s.wanted && missing(s.file)) {
            return Err(CgroupError::Controller {
                controller: lost.controller,
                path: self.path.clone(),
            });
        }
        for setting in settings.iter().filter(|s| !missing(s.file)) {
            self.write("set the limit", setting.file, &setting.value)?;
        }
        Ok(())
    }

    /// Moves a process into it; 0: the calling one.
    pub fn join(&self, pid: i32) -> Result<(), CgroupError> {
        self.write("move a process into", "cgroup.procs", &pid.to_string())
    }

    /// Kills every process in it and below it, frozen ones too.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("kill the processes of", "cgroup.kill", "1")
    }

    /// The host ids of the processes in it (not below it).
    pub fn procs(&self) -> Result<Vec<i32>, CgroupError> {
        let text = self.read("cgroup.procs")?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Whether a living process is in it or below it.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        Ok(freezer::event(&self.read("cgroup.events")?, "populated"))
    }

    /// Kills what is in it, frozen or not, and waits until that is gone.
    pub fn clear(&self) -> Result<(), CgroupError> {
        self.kill()?;
        self.wait_for("populated", false, Duration::from_secs(10))
    }

    /// Ends it: [`Cgroup::clear`], and removes it with everything below. That it is not there is no error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        if !self.exists() {
            return Ok(());
        }
        let removed = self.clear().and_then(|()| remove_tree(&self.path));
        match removed {
            // systemd removes those of its units as soon as nobody is in them.
            Err(_) if !self.exists() => Ok(()),
            removed => removed,
        }
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(failed("read", &path))
    }

    fn write(&self, operation: &'static str, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        // Not fs::write: it creates, and a cgroup that is gone must be an error of "not found".
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(failed(operation, &path))
    }
}

/// Removes a tree of empty cgroups, the deepest first.
fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove the cgroup", path)),
    }
}

#[cfg(test)]
mod test;
