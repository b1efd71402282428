//! `linux.intelRdt`: shares of the processor's cache and of the memory's bandwidth, and their observation.
//!
//! The kernel has them as directories of a file system of its own (Linux, arch/x86/resctrl.rst): one is a class of
//! service, with a `schemata` that says what it gets and `tasks` that says who is in it. A directory below its
//! `mon_groups` observes some of these tasks.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, Spec};
use serde::{Deserialize, Serialize};

use super::RuntimeError;
use super::error::{file, refused};
use super::state::Id;

/// What a container has of it, in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// The directory of its class of service.
    class: PathBuf,
    /// Whether that was made for it, and goes with it.
    made: bool,
    /// The directory that observes it.
    monitor: Option<PathBuf>,
}

/// What a configuration asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    classes: Classes,
    /// What is to be in its `schemata`.
    lines: Vec<String>,
}

impl Planned {
    /// What this configuration asks for; none: nothing.
    pub fn of(spec: &Spec, id: &Id) -> Result<Option<Self>, RuntimeError> {
        let linux = spec.linux().as_ref();
        let Some(asked) = linux.and_then(|linux| linux.intel_rdt().as_ref()) else {
            return Ok(None);
        };
        let lines = lines(asked)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = mounted_at(&mounts).ok_or_else(|| {
            let why = "needs the kernel's resctrl file system, which is not mounted: `mount -t resctrl resctrl \
                       /sys/fs/resctrl` on a processor that has it, or leave it out";
            refused("linux.intelRdt", why)
        })?;
        Self::below(&root, asked, lines, id).map(Some)
    }

    fn below(
        root: &Path,
        asked: &LinuxIntelRdt,
        lines: Vec<String>,
        id: &Id,
    ) -> Result<Self, RuntimeError> {
        let named = asked.clos_id().as_deref();
        let name = named.unwrap_or(id.as_str());
        let field = "linux.intelRdt.closID";
        let mut parts = Path::new(name).components();
        // The root's own is the class of everybody who is in no other.
        let own = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        );
        if !own && name != "/" {
            return Err(refused(
                field,
                format!("{name:?} is not the name of a directory"),
            ));
        }
        let class = if own {
            root.join(name)
        } else {
            root.to_owned()
        };
        let there = class.is_dir();
        if named.is_some() && lines.is_empty() && !there {
            let why = format!(
                "there is no class of service {name:?}, and nothing is said of what it should have (schemata)"
            );
            return Err(refused(field, why));
        }
        if there && !lines.is_empty() {
            compare(&class, &lines)?;
        }
        let monitor = watched(asked).then(|| class.join("mon_groups").join(id.as_str()));
        Ok(Self {
            classes: Classes {
                class,
                made: !there,
                monitor,
            },
            lines,
        })
    }

    /// What the record says of it, before anything is made.
    pub fn classes(&self) -> Classes {
        self.classes.clone()
    }

    /// Makes what is missing, and puts the process in.
    pub fn put(&self, pid: i32) -> Result<(), RuntimeError> {
        let Classes {
            class,
            made,
            monitor,
        } = &self.classes;
        if *made {
            make(class)?;
            if !self.lines.is_empty() {
                let mut text = self.lines.join("\n");
                text.push('\n');
                write(&class.join("schemata"), &text)?;
            }
        }
        if let Some(monitor) = monitor {
            make(monitor)?;
        }
        self.classes.join(pid)
    }
}

impl Classes {
    /// Puts another process in.
    pub fn join(&self, pid: i32) -> Result<(), RuntimeError> {
        let groups = [Some(&self.class), self.monitor.as_ref()];
        let tasks = groups
            .into_iter()
            .flatten()
            .map(|group| group.join("tasks"));
        tasks
            .into_iter()
            .try_for_each(|tasks| write(&tasks, &pid.to_string()))
    }

    /// Takes away what was made for it. What is not there is no failure.
    pub fn remove(&self) -> Result<(), RuntimeError> {
        let class = self.made.then_some(&self.class);
        for group in self.monitor.iter().chain(class) {
            match fs::remove_dir(group) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file("remove", group)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What is to be in the `schemata`, line by line.
fn lines(asked: &LinuxIntelRdt) -> Result<Vec<String>, RuntimeError> {
    let whole = asked.schemata().clone().unwrap_or_default();
    for (index, line) in whole.iter().enumerate() {
        if line.contains('\n') || !line.contains(':') {
            let field = format!("linux.intelRdt.schemata[{index}]");
            return Err(refused(
                field,
                format!("{line:?} is not one line like L3:0=ff"),
            ));
        }
    }
    let cache = asked.l3_cache_schema().as_deref();
    let bandwidth = asked.mem_bw_schema().as_deref();
    if !whole.is_empty() {
        let either = cache
            .map(|_| "l3CacheSchema")
            .or(bandwidth.map(|_| "memBwSchema"));
        return match either {
            Some(other) => Err(refused(
                format!("linux.intelRdt.{other}"),
                "cannot be set beside schemata, which says all: leave one of them out",
            )),
            None => Ok(whole),
        };
    }
    let mut lines: Vec<String> = Vec::new();
    for line in cache
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        let bandwidths = line.starts_with("MB:");
        if !line.starts_with("L3") && !bandwidths {
            let why = format!("{line:?} does not begin with L3:");
            return Err(refused("linux.intelRdt.l3CacheSchema", why));
        }
        // The other field has the say about these.
        if !bandwidths || bandwidth.is_none() {
            lines.push(line.to_owned());
        }
    }
    if let Some(line) = bandwidth {
        if !line.starts_with("MB:") || line.contains('\n') {
            let why = format!("{line:?} is not one line that begins with MB:");
            return Err(refused("linux.intelRdt.memBwSchema", why));
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

/// Whether it is to be observed, by the new word for that or one of the old.
#[allow(deprecated)]
fn watched(asked: &LinuxIntelRdt) -> bool {
    [
        *asked.enable_monitoring(),
        *asked.enable_cmt(),
        *asked.enable_mbm(),
    ]
    .contains(&Some(true))
}

/// A class that is there has what was asked for, or is somebody else's.
fn compare(class: &Path, lines: &[String]) -> Result<(), RuntimeError> {
    let path = class.join("schemata");
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    let there: Vec<&str> = text.lines().map(str::trim).collect();
    match lines.iter().find(|line| !there.contains(&line.trim())) {
        Some(line) => Err(refused(
            "linux.intelRdt.closID",
            format!(
                "the class of service is there and has another schemata: {line:?} is not in {}; give the same, or \
                 another closID",
                path.display()
            ),
        )),
        None => Ok(()),
    }
}

/// Where the file system is, by the lines of proc_pid_mountinfo(5).
fn mounted_at(mounts: &str) -> Option<PathBuf> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let is_it = kind.split(' ').next() == Some("resctrl");
        is_it
            .then(|| place.split(' ').nth(4).map(PathBuf::from))
            .flatten()
    };
    mounts.lines().find_map(mount)
}

fn make(path: &Path) -> Result<(), RuntimeError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(file("make", path)(error))
        }
        _ => Ok(()),
    }
}

/// Writes to a file of the kernel's, which is there.
fn write(path: &Path, text: &str) -> Result<(), RuntimeError> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut opened| opened.write_all(text.as_bytes()))
        .map_err(file("write", path))
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::{Value, json};

    fn asked(value: Value) -> LinuxIntelRdt {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn lines_are_those_of_the_fields() {
        let of = |value| lines(&asked(value));
        assert_eq!(of(json!({})).unwrap(), Vec::<String>::new());
        let both = json!({"l3CacheSchema": "L3:0=f\nMB:0=10\n", "memBwSchema": "MB:0=70"});
        assert_eq!(of(both).unwrap(), ["L3:0=f", "MB:0=70"]);
        let cache = json!({"l3CacheSchema": "L3:0=f\nMB:0=10"});
        assert_eq!(of(cache).unwrap(), ["L3:0=f", "MB:0=10"]);
        let whole = json!({"schemata": ["L2:0=3", "MB:0=50"]});
        assert_eq!(of(whole).unwrap(), ["L2:0=3", "MB:0=50"]);
        for (bad, field) in [
            (json!({"l3CacheSchema": "x"}), "l3CacheSchema"),
            (json!({"memBwSchema": "L3:0=f"}), "memBwSchema"),
            (json!({"schemata": ["a\nb"]}), "schemata[0]"),
            (
                json!({"schemata": ["L3:0=f"], "memBwSchema": "MB:0=1"}),
                "memBwSchema",
            ),
        ] {
            assert!(of(bad).unwrap_err().to_string().contains(field), "{field}");
        }
    }

    #[test]
    fn the_mount_is_found() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n30 1 0:30 / /sys/fs/resctrl rw,relatime - resctrl resctrl rw\n";
        assert_eq!(mounted_at(mounts), Some("/sys/fs/resctrl".into()));
        assert_eq!(mounted_at("22 1 0:21 / /proc rw - proc proc rw\n"), None);
    }

    /// A directory as the kernel has one for a class, with plain files.
    fn class(root: &Path, name: &str) -> PathBuf {
        let class = root.join(name);
        fs::create_dir_all(class.join("mon_groups")).unwrap();
        fs::write(class.join("schemata"), "    MB:0=100\n    L3:0=ff\n").unwrap();
        fs::write(class.join("tasks"), "").unwrap();
        class
    }

    #[test]
    fn a_class_that_is_there_is_joined_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let gold = class(dir.path(), "gold");
        let id = "web".parse().unwrap();
        let plan = |value| {
            let asked = asked(value);
            Planned::below(dir.path(), &asked, lines(&asked).unwrap(), &id)
        };
        let same = json!({"closID": "gold", "l3CacheSchema": "L3:0=ff"});
        let planned = plan(same).unwrap();
        planned.put(4711).unwrap();
        assert_eq!(fs::read_to_string(gold.join("tasks")).unwrap(), "4711");
        planned.classes().remove().unwrap();
        assert!(gold.is_dir());

        let other = json!({"closID": "gold", "l3CacheSchema": "L3:0=f"});
        assert!(
            plan(other)
                .unwrap_err()
                .to_string()
                .contains("another schemata")
        );
        let absent = json!({"closID": "silver"});
        assert!(plan(absent).unwrap_err().to_string().contains("silver"));
        for bad in ["..", "a/b", ""] {
            let error = plan(json!({"closID": bad})).unwrap_err().to_string();
            assert!(error.contains("closID"), "{error}");
        }
    }

    #[test]
    fn what_was_made_for_a_container_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let asked = asked(json!({"l3CacheSchema": "L3:0=f", "enableMonitoring": true}));
        let id = "web".parse().unwrap();
        let planned = Planned::below(dir.path(), &asked, lines(&asked).unwrap(), &id).unwrap();
        // Here no kernel puts files into a new directory.
        assert!(planned.put(4711).is_err());
        assert!(dir.path().join("web").is_dir());
        planned.classes().remove().unwrap();
        assert!(!dir.path().join("web").exists());
        planned.classes().remove().unwrap();
    }
}
