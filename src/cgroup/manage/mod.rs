//! The cgroup of a bundle's container: its place, its resources, its devices, its end.
//!
//! A template's container has the few limits of [`crate::cgroup::plan`], below one parent. A bundle says where its
//! cgroup is, and uses every controller there is.
//!
//! **Invariant:** [`Group::plan`] changes nothing and refuses what cannot be kept here, by the field's name: a limit
//! whose controller is not there is an error, a value that limits nothing is not. [`Planned::create`] leaves behind
//! either a cgroup with everything set or nothing.
//!
//! **Invariant:** which devices may be used is always guarded. A kernel that cannot do it is an error and not a
//! container without a guard: with CAP_MKNOD, which engines leave to containers, the host's disks would be open to it.
//!
//! ```text
//! Group::plan ─▶ Planned ─▶ create ─▶ Group ─▶ directory, for CLONE_INTO_CGROUP ─▶ freeze, thaw, update, stats, kill
//!  nothing yet               made, set, guarded                                              └▶ remove
//! ```

pub mod device;
mod make;
pub mod place;
pub mod plan;
mod stats;
pub mod systemd;

pub use place::Driver;
pub use stats::Stats;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::{Cgroup, CgroupError, failed, plan as hierarchy};
use crate::sys::bpf;
use plan::Setting;
use systemd::Anchor;
use systemd::unit::{self, Unit};

/// How long processes may take to stand still or to be gone.
const WAIT: Duration = Duration::from_secs(10);

/// What will be: checked, and nothing of it done.
#[derive(Debug)]
pub struct Planned {
    root: PathBuf,
    names: Vec<String>,
    /// The unit that it is the cgroup of, where systemd makes it.
    unit: Option<Unit>,
    settings: Vec<Setting>,
    devices: Vec<bpf::Instruction>,
}

/// A cgroup of a container.
#[derive(Debug, Clone)]
pub struct Group {
    cgroup: Cgroup,
    /// The unit that it is the cgroup of, where systemd has made it.
    unit: Option<String>,
    /// What holds a new scope until somebody is in it.
    _anchor: Option<Arc<Anchor>>,
}

impl Group {
    /// The cgroup that a bundle asks for by `linux.cgroupsPath` and `linux.resources`, of the container `id`.
    ///
    /// # Errors
    /// What cannot be, by its field.
    pub fn plan(
        id: &str,
        cgroups_path: Option<&Path>,
        driver: Driver,
        resources: Option<&LinuxResources>,
    ) -> Result<Planned, CgroupError> {
        let unit = match driver {
            Driver::CgroupFs => None,
            Driver::Systemd => {
                systemd::check()?;
                Some(Unit::of(id, cgroups_path)?)
            }
        };
        let names = match &unit {
            None => place::names(id, cgroups_path)?,
            Some(unit) => unit.names(),
        };
        let mountinfo = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(mountinfo).map_err(failed("read", mountinfo))?;
        let root = hierarchy::mount_point(&text).ok_or(CgroupError::NoHierarchy)?;
        let root = PathBuf::from(root);
        let none = LinuxResources::default();
        let resources = resources.unwrap_or(&none);
        let settings = plan::settings(resources)?;
        let available = controllers(&root)?;
        let missing = |setting: &&Setting| {
            setting.required
                && !setting.controller.is_empty()
                && !available.contains(&setting.controller)
        };
        if let Some(setting) = settings.iter().find(missing) {
            return Err(CgroupError::Missing {
                field: setting.field.clone(),
                missing: format!("controller `{}`", setting.controller),
                path: root,
            });
        }
        let devices = program(resources.devices().as_deref().unwrap_or_default())?;
        Ok(Planned {
            root,
            names,
            unit,
            settings,
            devices,
        })
    }

    /// The cgroup at this directory, which the caller knows to be one, made by this driver.
    pub fn at(directory: PathBuf, driver: Driver) -> Self {
        let name = directory.file_name().map(|name| name.to_string_lossy());
        let unit = match driver {
            Driver::CgroupFs => None,
            Driver::Systemd => name.map(std::borrow::Cow::into_owned),
        };
        Self {
            unit,
            cgroup: Cgroup::at(directory),
            _anchor: None,
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.cgroup.path()
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.cgroup.exists()
    }

    /// Its directory, open: a process can be born in it.
    pub fn directory(&self) -> Result<File, CgroupError> {
        File::open(self.path()).map_err(failed("open", self.path()))
    }

    /// Moves a process into it; 0: the calling one.
    pub fn add(&self, pid: i32) -> Result<(), CgroupError> {
        self.cgroup.join(pid)
    }

    /// Freezes every process in it and below it, and waits until all stand still. On failure everything runs again.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.cgroup.freeze(WAIT)
    }

    /// Lets everything run.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.cgroup.thaw()
    }

    /// Whether every process stands still because it was frozen.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        self.cgroup.is_frozen()
    }

    /// Kills every process in it and below it, frozen ones too. Where it is gone, as a unit of systemd's is by itself,
    /// there is none.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.cgroup.kill() {
            Err(_) if !self.exists() => Ok(()),
            killed => killed,
        }
    }

    /// The host ids of the processes in it and below it.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut found = Vec::new();
        processes_below(self.path(), &mut found)?;
        found.sort_unstable();
        Ok(found)
    }

    /// A cgroup below it that has processes, if there is one.
    pub fn occupied_below(&self) -> Result<Option<PathBuf>, CgroupError> {
        let mut own = Vec::new();
        for entry in fs::read_dir(self.path()).map_err(failed("list", self.path()))? {
            let path = entry.map_err(failed("list", self.path()))?.path();
            if path.is_dir() {
                processes_below(&path, &mut own)?;
                if !own.is_empty() {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    /// What it has used.
    pub fn stats(&self) -> Stats {
        Stats::of(self.path())
    }

    /// Changes its resources: those that are given, and no others. When one cannot be set, those that were set before
    /// it are set back.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let settings = plan::settings(resources)?;
        let devices = resources.devices().as_deref().unwrap_or_default();
        let guard = (!devices.is_empty())
            .then(|| program(devices))
            .transpose()?;
        self.check_files(&settings)?;
        self.check_usage(resources, &settings)?;
        let mut before: Vec<(&str, String)> = Vec::new();
        for setting in settings.iter().filter(|setting| self.has(setting)) {
            let old = self.cgroup.read(&setting.file);
            if let Err(error) = self.set(setting) {
                // The first error is the one to tell; what cannot be set back is no worse than before.
                for (file, old) in before.iter().rev() {
                    let _ = self.cgroup.write("set back", file, old.trim_end());
                }
                return Err(error);
            }
            before.push((&setting.file, old.unwrap_or_default()));
        }
        if let Some(unit) = &self.unit {
            // What it has written already is what it would write.
            systemd::update(unit, &unit::properties(&settings))?;
        }
        guard.map_or(Ok(()), |guard| self.guard(&guard))
    }

    /// Ends it: kills what is in it, waits until that is gone, and removes it with everything below. That it is not
    /// there is no error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.cgroup.remove()?;
        if let Some(unit) = &self.unit
            && systemd::check().is_ok()
        {
            systemd::stop(unit)?;
        }
        let parent = self.path().parent();
        if let Some(parent) = parent.filter(|parent| parent.ends_with(place::OURS)) {
            // The last one closes the door; as long as there are others, the kernel does not let it.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    fn has(&self, setting: &Setting) -> bool {
        self.path().join(&setting.file).exists()
    }

    fn check_files(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        let missing = |setting: &&Setting| setting.required && !self.has(setting);
        match settings.iter().find(missing) {
            None => Ok(()),
            Some(setting) => Err(CgroupError::Missing {
                field: setting.field.clone(),
                missing: format!("file `{}`", setting.file),
                path: self.path().to_owned(),
            }),
        }
    }

    /// With `memory.checkBeforeUpdate`, a limit below what is used is refused and not enforced by killing.
    fn check_usage(
        &self,
        resources: &LinuxResources,
        settings: &[Setting],
    ) -> Result<(), CgroupError> {
        let memory = resources.memory().as_ref();
        if memory.and_then(oci_spec::runtime::LinuxMemory::check_before_update) != Some(true) {
            return Ok(());
        }
        let limit = settings.iter().find(|setting| setting.file == "memory.max");
        let limit = limit.and_then(|setting| setting.value.parse::<u64>().ok());
        let used = self.cgroup.read("memory.current").ok();
        let used = used.and_then(|text| text.trim().parse::<u64>().ok());
        match limit.zip(used) {
            Some((limit, used)) if limit < used => Err(CgroupError::Resource {
                field: "memory.limit".to_owned(),
                reason: format!("{limit} bytes are less than the {used} that are used now"),
            }),
            _ => Ok(()),
        }
    }

    fn set(&self, setting: &Setting) -> Result<(), CgroupError> {
        self.cgroup.write("set", &setting.file, &setting.value)
    }

    /// Lets this program decide about devices, in the place of the one before.
    fn guard(&self, program: &[bpf::Instruction]) -> Result<(), CgroupError> {
        let failed = |operation| {
            move |source| CgroupError::Devices {
                operation,
                path: self.path().to_owned(),
                source,
            }
        };
        let directory = self.directory()?;
        let program = bpf::load_device_program(program).map_err(failed("load"))?;
        let before = bpf::device_programs(directory.as_fd()).map_err(failed("find"))?;
        let replaced = before.first().map(AsFd::as_fd);
        bpf::attach_device_program(directory.as_fd(), program.as_fd(), replaced)
            .map_err(failed("attach"))
    }
}

fn program(listed: &[LinuxDeviceCgroup]) -> Result<Vec<bpf::Instruction>, CgroupError> {
    Ok(device::program(&device::rules(listed)?))
}

impl Group {
    /// Makes one that was there before ready for a container: nobody is in it, and it is not frozen.
    fn take_over(&self) -> Result<(), CgroupError> {
        self.check_free()?;
        self.thaw()
    }

    fn check_free(&self) -> Result<(), CgroupError> {
        match self.processes()?.len() {
            0 => Ok(()),
            count => Err(CgroupError::Occupied {
                path: self.path().to_owned(),
                count,
            }),
        }
    }
}

/// The controllers of a cgroup.
fn controllers(path: &Path) -> Result<Vec<String>, CgroupError> {
    let path = path.join("cgroup.controllers");
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn processes_below(path: &Path, found: &mut Vec<i32>) -> Result<(), CgroupError> {
    let procs = path.join("cgroup.procs");
    let text = fs::read_to_string(&procs).map_err(failed("read", &procs))?;
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes_below(&entry.path(), found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod test;
