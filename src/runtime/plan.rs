//! What a configuration asks of namespaces and of the process, checked before anything is made. Pure.
//!
//! Properties that the specification does not know are ignored, as it demands; values of known properties that
//! cannot be kept here are refused, as it demands too.

use std::path::PathBuf;

use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxNamespaceType, LinuxSchedulerPolicy, Process, Spec,
};

use super::RuntimeError;
use super::error::refused;
use super::state::OCI_VERSION;

/// What this host has, of what a configuration may ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// AppArmor is on.
    pub apparmor: bool,
    /// SELinux is on.
    pub selinux: bool,
}

/// A namespace that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its kind.
    pub kind: LinuxNamespaceType,
    /// Where it is pinned, or a process's.
    pub path: PathBuf,
}

/// Which namespaces the container has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// The kinds that are made for it.
    pub new: Vec<LinuxNamespaceType>,
    /// Those that it shares with others.
    pub joined: Vec<Joined>,
}

impl Namespaces {
    /// Whether one of this kind is made for it.
    pub fn is_new(&self, kind: LinuxNamespaceType) -> bool {
        self.new.contains(&kind)
    }

    /// The one of this kind that it shares.
    pub fn joined(&self, kind: LinuxNamespaceType) -> Option<&Joined> {
        self.joined.iter().find(|joined| joined.kind == kind)
    }

    /// Whether it has one that is not the host's, as far as the configuration tells.
    pub fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.is_new(kind) || self.joined(kind).is_some()
    }
}

/// What is to be done with namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Which there are.
    pub namespaces: Namespaces,
    /// The content of `uid_map`, for a new user namespace.
    pub uid_map: String,
    /// The content of `gid_map`.
    pub gid_map: String,
    /// The content of `timens_offsets`, for a new time namespace.
    pub time_offsets: String,
}

impl Plan {
    /// Checks the configuration, and plans.
    pub fn of(spec: &Spec, facts: Facts) -> Result<Self, RuntimeError> {
        check_version(spec.version())?;
        let linux = spec.linux().as_ref();
        let linux = linux.ok_or_else(|| refused("linux", "is missing; this is a Linux runtime"))?;
        check_unsupported(linux, facts)?;
        let process = spec.process().as_ref();
        let process = process.ok_or_else(|| refused("process", "must not be empty"))?;
        check_process(process, "process", facts)?;
        let namespaces = namespaces(linux)?;
        let named = [
            (spec.hostname(), "hostname"),
            (spec.domainname(), "domainname"),
        ];
        for (value, field) in named {
            let set = value.as_ref().is_some_and(|value| !value.is_empty());
            if set && !namespaces.has(LinuxNamespaceType::Uts) {
                let why = "cannot be set without a uts namespace: add one to linux.namespaces";
                return Err(refused(field, why));
            }
        }
        let (uid_map, gid_map) = id_maps(linux, &namespaces)?;
        Ok(Self {
            time_offsets: time_offsets(linux, &namespaces)?,
            namespaces,
            uid_map,
            gid_map,
        })
    }
}

fn check_version(version: &str) -> Result<(), RuntimeError> {
    if version.is_empty() {
        return Err(refused("ociVersion", "is missing"));
    }
    let mut numbers = version.split(['.', '-', '+']);
    let major = numbers.next().and_then(|n| n.parse::<u32>().ok());
    let minor = numbers.next().and_then(|n| n.parse::<u32>().ok());
    if major != Some(1) || minor.is_none() {
        let why =
            format!("{version:?} is not a version that is spoken here: 1.0.0 to {OCI_VERSION}");
        return Err(refused("ociVersion", why));
    }
    Ok(())
}

fn check_unsupported(linux: &Linux, facts: Facts) -> Result<(), RuntimeError> {
    let flags = linux.personality().as_ref().and_then(|p| p.flags().clone());
    if flags.is_some_and(|flags| !flags.is_empty()) {
        return Err(refused(
            "linux.personality.flags",
            "no flag is defined; leave it empty",
        ));
    }
    let label = linux.mount_label().as_deref().unwrap_or_default();
    if !label.is_empty() && !facts.selinux {
        return Err(refused(
            "linux.mountLabel",
            "SELinux is not enabled on this host",
        ));
    }
    Ok(())
}

/// Checks what a process asks for; `field` is where it stands.
pub fn check_process(process: &Process, field: &str, facts: Facts) -> Result<(), RuntimeError> {
    let at = |name: &str| format!("{field}.{name}");
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(refused(at("args"), "must not be empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(refused(at("cwd"), "must be an absolute path"));
    }
    let nul = |text: &String| text.contains('\0');
    let env = process.env().as_deref().unwrap_or_default();
    if args.iter().any(nul) || env.iter().any(nul) {
        return Err(refused(at("args"), "must not contain a zero byte"));
    }
    if let Some(bad) = env.iter().find(|line| !line.contains('=')) {
        return Err(refused(at("env"), format!("{bad:?} is not KEY=value")));
    }
    let mut seen = Vec::new();
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        if seen.contains(&limit.typ()) {
            return Err(refused(
                at("rlimits"),
                format!("{} is there twice", limit.typ()),
            ));
        }
        if limit.soft() > limit.hard() {
            let why = format!("{}: soft is more than hard", limit.typ());
            return Err(refused(at("rlimits"), why));
        }
        seen.push(limit.typ());
    }
    if let Some(adjustment) = process.oom_score_adj()
        && !(-1000..=1000).contains(&adjustment)
    {
        return Err(refused(at("oomScoreAdj"), "must be from -1000 to 1000"));
    }
    check_labels(process, field, facts)?;
    check_scheduling(process, field)
}

fn check_labels(process: &Process, field: &str, facts: Facts) -> Result<(), RuntimeError> {
    let labels = [
        (
            process.apparmor_profile(),
            "apparmorProfile",
            facts.apparmor,
            "AppArmor",
        ),
        (
            process.selinux_label(),
            "selinuxLabel",
            facts.selinux,
            "SELinux",
        ),
    ];
    for (label, name, enabled, what) in labels {
        if label.as_ref().is_some_and(|label| !label.is_empty()) && !enabled {
            let why = format!("{what} is not enabled on this host; leave it out");
            return Err(refused(format!("{field}.{name}"), why));
        }
    }
    Ok(())
}

fn check_scheduling(process: &Process, field: &str) -> Result<(), RuntimeError> {
    if let Some(priority) = process.io_priority()
        && !(0..=7).contains(&priority.priority())
    {
        return Err(refused(
            format!("{field}.ioPriority.priority"),
            "must be from 0 to 7",
        ));
    }
    let Some(scheduler) = process.scheduler() else {
        return Ok(());
    };
    let at = |name: &str| format!("{field}.scheduler.{name}");
    let real_time = matches!(
        scheduler.policy(),
        LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr
    );
    let deadline = *scheduler.policy() == LinuxSchedulerPolicy::SchedDeadline;
    if *scheduler.policy() == LinuxSchedulerPolicy::SchedIso {
        return Err(refused(at("policy"), "Linux has no SCHED_ISO"));
    }
    if scheduler
        .nice()
        .is_some_and(|nice| !(-20..=19).contains(&nice))
    {
        return Err(refused(at("nice"), "must be from -20 to 19"));
    }
    if scheduler.priority().unwrap_or(0) != 0 && !real_time {
        return Err(refused(at("priority"), "is for SCHED_FIFO and SCHED_RR"));
    }
    let timed = [
        scheduler.runtime(),
        scheduler.deadline(),
        scheduler.period(),
    ];
    if timed.iter().any(|value| value.unwrap_or(0) != 0) && !deadline {
        return Err(refused(
            at("runtime"),
            "runtime, deadline and period are for SCHED_DEADLINE",
        ));
    }
    Ok(())
}

fn namespaces(linux: &Linux) -> Result<Namespaces, RuntimeError> {
    let mut all = Namespaces::default();
    for (i, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let kind = namespace.typ();
        if all.has(kind) {
            let why = format!("there are two {kind} namespaces; keep one");
            return Err(refused("linux.namespaces", why));
        }
        match namespace
            .path()
            .as_ref()
            .filter(|p| !p.as_os_str().is_empty())
        {
            None => all.new.push(kind),
            Some(path) if path.is_absolute() => all.joined.push(Joined {
                kind,
                path: path.clone(),
            }),
            Some(_) => {
                let field = format!("linux.namespaces[{i}].path");
                return Err(refused(field, "must be an absolute path"));
            }
        }
    }
    if !all.has(LinuxNamespaceType::Mount) {
        let why = "a mount namespace is needed: add {\"type\": \"mount\"}";
        return Err(refused("linux.namespaces", why));
    }
    Ok(all)
}

fn id_maps(linux: &Linux, namespaces: &Namespaces) -> Result<(String, String), RuntimeError> {
    let lists = [
        (linux.uid_mappings(), "linux.uidMappings"),
        (linux.gid_mappings(), "linux.gidMappings"),
    ];
    let mut maps = [String::new(), String::new()];
    for ((list, field), map) in lists.into_iter().zip(&mut maps) {
        let list = list.as_deref().unwrap_or_default();
        if list.is_empty() {
            if namespaces.is_new(LinuxNamespaceType::User) {
                return Err(refused(field, "is needed for a new user namespace"));
            }
            continue;
        }
        if !namespaces.has(LinuxNamespaceType::User) {
            let why = "there is no user namespace: add {\"type\": \"user\"} to linux.namespaces";
            return Err(refused(field, why));
        }
        *map = id_map(list, field)?;
    }
    let [uids, gids] = maps;
    Ok((uids, gids))
}

fn id_map(list: &[LinuxIdMapping], field: &str) -> Result<String, RuntimeError> {
    let mut text = String::new();
    for (i, line) in list.iter().enumerate() {
        let ends = [line.container_id(), line.host_id()];
        let fits = |first: u32| first.checked_add(line.size()).is_some();
        if line.size() == 0 || !ends.into_iter().all(fits) {
            let why = "size must be at least 1, and no id beyond 4294967294";
            return Err(refused(format!("{field}[{i}]"), why));
        }
        text += &format!(
            "{} {} {}\n",
            line.container_id(),
            line.host_id(),
            line.size()
        );
    }
    Ok(text)
}

/// The host's id of an id in the container; none: it is not mapped.
pub fn host_id(list: Option<&[LinuxIdMapping]>, inner: u32) -> Option<u32> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Some(inner);
    };
    list.iter().find_map(|line| {
        let offset = inner.checked_sub(line.container_id())?;
        (offset < line.size()).then(|| line.host_id() + offset)
    })
}

fn time_offsets(linux: &Linux, namespaces: &Namespaces) -> Result<String, RuntimeError> {
    let mut text = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let field = format!("linux.timeOffsets.{clock}");
        if !namespaces.is_new(LinuxNamespaceType::Time) {
            let why = "needs a new time namespace: add {\"type\": \"time\"} to linux.namespaces";
            return Err(refused(field, why));
        }
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(refused(field, "only monotonic and boottime have offsets"));
        }
        let (seconds, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanos > 999_999_999 {
            return Err(refused(field, "nanosecs must be below 1000000000"));
        }
        text += &format!("{clock} {seconds} {nanos}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::{Value, json};

    /// What is made wrong, and the field that must be named.
    type Case = (fn(&mut Value), &'static str);

    /// A configuration that is right, changed.
    fn plan(change: impl FnOnce(&mut Value)) -> Result<Plan, String> {
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]},
        });
        change(&mut config);
        let spec: Spec = serde_json::from_value(config).unwrap();
        Plan::of(&spec, Facts::default()).map_err(|error| error.to_string())
    }

    fn add_namespace(config: &mut Value, namespace: Value) {
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(namespace);
    }

    #[test]
    fn namespaces_are_made_or_joined() {
        let plan = plan(|config| {
            add_namespace(config, json!({"type": "network", "path": "/run/netns/a"}));
            add_namespace(config, json!({"type": "time"}));
            config["linux"]["timeOffsets"] = json!({"boottime": {"secs": -7, "nanosecs": 5}});
        })
        .unwrap();
        assert!(plan.namespaces.is_new(LinuxNamespaceType::Pid));
        let joined = plan.namespaces.joined(LinuxNamespaceType::Network).unwrap();
        assert_eq!(joined.path, PathBuf::from("/run/netns/a"));
        assert_eq!(plan.time_offsets, "boottime -7 5\n");
    }

    #[test]
    fn ids_are_mapped() {
        let maps = json!([
            {"containerID": 0, "hostID": 100_000, "size": 1000},
            {"containerID": 2000, "hostID": 5, "size": 1},
        ]);
        let plan = plan(|config| {
            add_namespace(config, json!({"type": "user"}));
            config["linux"]["uidMappings"] = maps.clone();
            config["linux"]["gidMappings"] = maps.clone();
        })
        .unwrap();
        assert_eq!(plan.uid_map, "0 100000 1000\n2000 5 1\n");
        let maps: Vec<LinuxIdMapping> = serde_json::from_value(maps).unwrap();
        let host = |inner| host_id(Some(&maps), inner);
        assert_eq!(host(0), Some(100_000));
        assert_eq!(host(2000), Some(5));
        assert_eq!(host(1000), None);
        assert_eq!(host_id(None, 7), Some(7));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        let cases: [Case; 16] = [
            (|c| c["ociVersion"] = json!("2.0.0"), "ociVersion"),
            (|c| c["process"] = Value::Null, "process"),
            (|c| c["process"]["args"] = json!([]), "process.args"),
            (|c| c["process"]["cwd"] = json!("tmp"), "process.cwd"),
            (|c| c["process"]["env"] = json!(["A"]), "process.env"),
            (
                |c| c["process"]["oomScoreAdj"] = json!(1001),
                "process.oomScoreAdj",
            ),
            (
                |c| c["process"]["apparmorProfile"] = json!("x"),
                "process.apparmorProfile",
            ),
            (
                |c| c["process"]["selinuxLabel"] = json!("x"),
                "process.selinuxLabel",
            ),
            (
                |c| {
                    c["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}])
                },
                "process.rlimits",
            ),
            (
                |c| c["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "priority": 3}),
                "process.scheduler.priority",
            ),
            (|c| c["linux"]["namespaces"] = json!([]), "linux.namespaces"),
            (
                |c| add_namespace(c, json!({"type": "pid"})),
                "linux.namespaces",
            ),
            (
                |c| add_namespace(c, json!({"type": "ipc", "path": "x"})),
                "linux.namespaces[3].path",
            ),
            (
                |c| add_namespace(c, json!({"type": "user"})),
                "linux.uidMappings",
            ),
            (
                |c| c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}}),
                "linux.timeOffsets.boottime",
            ),
            (
                |c| {
                    c["hostname"] = json!("a");
                    c["linux"]["namespaces"] = json!([{"type": "mount"}]);
                },
                "hostname",
            ),
        ];
        for (change, field) in cases {
            let error = plan(change).unwrap_err();
            let start = format!("config.json: {field}: ");
            assert!(error.starts_with(&start), "{error} does not name {field}");
        }
    }
}
