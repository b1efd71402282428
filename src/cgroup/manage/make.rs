//! A cgroup that was planned comes to be: as directories, or as a unit of systemd's.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use super::plan::Setting;
use super::systemd::unit::{self, Unit};
use super::{CgroupError, Driver, Group, Planned, controllers, failed, place, systemd};

impl Planned {
    /// Where it will be.
    pub fn path(&self) -> PathBuf {
        place::directory(&self.root, &self.names)
    }

    /// Refuses one that exists already and has somebody in it.
    pub fn check_free(&self) -> Result<(), CgroupError> {
        let group = Group::at(self.path(), Driver::CgroupFs);
        match group.exists() {
            true => group.check_free(),
            false => Ok(()),
        }
    }

    /// Makes it. One that exists already will do if nobody is in it.
    pub fn create(self) -> Result<Group, CgroupError> {
        let mut made = Vec::new();
        let result = self.make(&mut made);
        if result.is_err() {
            // The first error is the one to tell; others may have put something in what we made meanwhile.
            for directory in made.iter().rev() {
                let _ = fs::remove_dir(directory);
            }
        }
        result
    }

    /// Makes it, and tells which directories are new, whatever becomes of the rest.
    fn make(&self, made: &mut Vec<PathBuf>) -> Result<Group, CgroupError> {
        if let Some(unit) = &self.unit {
            return self.make_scope(unit);
        }
        let mut path = self.root.clone();
        for name in &self.names {
            hand_down(&path, &self.settings)?;
            path.push(name);
            match fs::create_dir(&path) {
                Ok(()) => made.push(path.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("make the cgroup", &path)(error)),
            }
        }
        let group = Group::at(path, Driver::CgroupFs);
        if made.last().map(PathBuf::as_path) != Some(group.path()) {
            group.take_over()?;
        }
        self.furnish(&group)?;
        Ok(group)
    }

    /// Has systemd make it. When that fails nothing is left: a scope goes with the last process in it.
    fn make_scope(&self, unit: &Unit) -> Result<Group, CgroupError> {
        let (anchor, path) = systemd::start(unit, &unit::properties(&self.settings))?;
        let group = Group {
            _anchor: Some(anchor),
            ..Group::at(self.path(), Driver::Systemd)
        };
        if self.root.join(path.trim_start_matches('/')) != group.path() {
            let why = format!("its cgroup is {path}, and not where its slice is");
            return Err(CgroupError::Systemd {
                operation: "place",
                unit: unit.name.clone(),
                why,
            });
        }
        // Controllers that systemd does not know of are handed down by us.
        let mut above = self.root.clone();
        for name in &self.names {
            hand_down(&above, &self.settings)?;
            above.push(name);
        }
        self.furnish(&group)?;
        Ok(group)
    }

    fn furnish(&self, group: &Group) -> Result<(), CgroupError> {
        group.check_files(&self.settings)?;
        for setting in self.settings.iter().filter(|setting| group.has(setting)) {
            group.set(setting)?;
        }
        group.guard(&self.devices)
    }
}

/// What may be given away of a cgroup, one file a line (Linux 4.15).
const DELEGATED: &str = "/sys/kernel/cgroup/delegate";
const ALWAYS_DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

impl Group {
    /// Lets a user divide it: the directory becomes theirs, and those files that give nobody more than the cgroup has.
    pub fn give_to(&self, user: u32) -> Result<(), CgroupError> {
        let listed = fs::read_to_string(DELEGATED).unwrap_or_default();
        let give = |path: &Path| match chown(path, Some(user), None) {
            // Files of controllers that it has not.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            given => given.map_err(failed("give away", path)),
        };
        give(self.path())?;
        let mut names = listed.lines().chain(ALWAYS_DELEGATED);
        names.try_for_each(|name| give(&self.path().join(name)))
    }
}

/// Lets children of `path` have all its controllers, for their limits and for what they tell. Only one that is needed
/// and cannot be handed down is an error.
fn hand_down(path: &Path, settings: &[Setting]) -> Result<(), CgroupError> {
    let control = path.join("cgroup.subtree_control");
    let has = fs::read_to_string(&control).map_err(failed("read", &control))?;
    for controller in controllers(path)? {
        if has.split_whitespace().any(|one| one == controller) {
            continue;
        }
        let needed = settings
            .iter()
            .any(|setting| setting.required && setting.controller == controller);
        let result = fs::write(&control, format!("+{controller}"));
        if needed {
            result.map_err(failed("hand a controller down in", &control))?;
        }
    }
    Ok(())
}
