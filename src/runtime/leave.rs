//! A container that may leave this host: what somebody who moves it must know of it, and what of it could not go along.
//!
//! Nothing here changes the container. That it is being moved is noted beside its record ([`Root::lend`]): from then on
//! every verb that would disturb it is refused, until the note is taken back.

use std::fs::{self, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use oci_spec::runtime::LinuxNamespaceType as Kind;

use super::create::facts;
use super::state::{Id, Record, Status};
use super::store::Root;
use super::{RuntimeError, checkpoint, manage, plan};
use crate::model::{Bytes, Finding, Limits, User};
use crate::rootfs::bundle;
use crate::storage::tree_bytes;

/// A file that is bound from the host may have so many bytes, to be copied while the container stands still.
const FILE: u64 = 1 << 20;
/// And directories on a tmpfs, which is memory, all together.
const MEMORY: Bytes = Bytes(32 << 20);

/// Settings of a network namespace that every container has anyway, or more of.
const HAD_ANYWAY: [&str; 2] = [
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
];

/// A container, as it would go.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaving {
    /// What is on the disk about it.
    pub record: Record,
    /// When it was created, seconds since the epoch.
    pub created_at: u64,
    /// What is bound from this host and would be copied: where in the container, and what here.
    pub copies: Vec<(PathBuf, PathBuf)>,
    /// The files that are covered.
    pub covered: Vec<PathBuf>,
    /// What prevents it.
    pub findings: Vec<Finding>,
}

impl Leaving {
    /// Whom its command runs as.
    pub fn user(&self) -> User {
        let process = self.record.spec.process().as_ref();
        process.map_or_else(
            || User {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            },
            |process| User {
                uid: process.user().uid(),
                gid: process.user().gid(),
                groups: process.user().additional_gids().clone().unwrap_or_default(),
            },
        )
    }

    /// What it may use, as far as a container of a daemon knows such limits.
    pub fn limits(&self) -> Limits {
        let linux = self.record.spec.linux().as_ref();
        let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) else {
            return Limits::default();
        };
        let positive = |value: i64| u64::try_from(value).ok().filter(|&value| value > 0);
        let memory = resources.memory().and_then(|memory| memory.limit());
        let cpu = resources.cpu().as_ref();
        let quota = cpu.and_then(|cpu| cpu.quota()).and_then(positive);
        // cpu.max(5): without a period it is 100 ms.
        let period = cpu
            .and_then(|cpu| cpu.period())
            .filter(|&period| period > 0);
        let pids = resources.pids().as_ref().map(|pids| pids.limit());
        Limits {
            memory: memory.and_then(positive).map(Bytes),
            cpu_millis: quota.map(|quota| (quota * 1000 / period.unwrap_or(100_000)).max(1)),
            pids: pids.and_then(positive),
        }
    }
}

/// Looks at a container that runs.
///
/// # Errors
/// When it does not run, or could not be looked at.
pub fn leaving(root: &Root, id: &Id) -> Result<Leaving, RuntimeError> {
    let record = root.read(id)?;
    check_runs(root, &record)?;
    let mut findings = Vec::new();
    let namespaces = plan::Plan::of(&record.spec, facts())?.namespaces;
    findings.extend(namespaces_apart(&namespaces));
    if let Err(error) = checkpoint::check_spec(&record.spec, &namespaces) {
        findings.push(Finding::blocking("bundle", super::in_one_line(&error)));
    }
    findings.extend(settings(&record));
    findings.extend(root_elsewhere(&record));
    if let Some(cgroup) = manage::group(&record).occupied_below()? {
        findings.push(Finding::blocking(
            "cgroups-below",
            format!(
                "the container has processes in a cgroup that it has made, {}, and all would arrive in one: end them \
                 first",
                cgroup.display()
            ),
        ));
    }
    let plan = bundle::Plan::of(&record.spec, &record.bundle, bundle::Options::default())?;
    let mut copies = Vec::new();
    let mut room = MEMORY;
    for bound in plan.outside(&record.cgroup)? {
        match copied(&bound, &mut room) {
            Ok(()) => copies.push((bound.place, bound.source)),
            Err(finding) => findings.push(finding),
        }
    }
    let covered = plan.covered_files(checkpoint::container_root(&record)?.as_fd())?;
    let lock = root.lock_of(id);
    let made = fs::metadata(&lock).and_then(|meta| meta.modified());
    let made = made
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(Leaving {
        created_at: made.unwrap_or_default().as_secs(),
        record,
        copies,
        covered,
        findings,
    })
}

/// Refuses a container of which nothing runs, or whose process waits for its start.
pub(super) fn check_runs(root: &Root, record: &Record) -> Result<(), RuntimeError> {
    let status = root.status(record);
    let remedy = match status {
        Status::Running => return Ok(()),
        Status::Created => "start it first",
        Status::Creating => "wait until its creation has ended",
        Status::Paused => "resume it first",
        Status::Stopped => "nothing of it runs",
    };
    Err(RuntimeError::Status {
        verb: "migrate",
        id: record.id.to_string(),
        status,
        remedy,
    })
}

/// Which namespaces would have to be others at the destination.
fn namespaces_apart(namespaces: &plan::Namespaces) -> Vec<Finding> {
    let mut findings = Vec::new();
    let own = [Kind::Pid, Kind::Mount, Kind::Ipc, Kind::Uts];
    for kind in own.into_iter().filter(|&kind| !namespaces.is_new(kind)) {
        let text = format!(
            "the container shares its {kind} namespace with others, who would stay: give it one of its own (a \
             \"type\": \"{kind}\" without \"path\" in linux.namespaces)"
        );
        findings.push(Finding::blocking("shared-namespace", text));
    }
    if !namespaces.has(Kind::Network) {
        let text = "the container uses the network of its host, which it cannot take along: give it a network namespace \
                    (linux.namespaces)";
        findings.push(Finding::blocking("host-network", text));
    }
    if namespaces.has(Kind::User) {
        let text = "the container has a user namespace with ids that its bundle gives it, and the destination may have \
                    given these to others: run it without, or make it from a template";
        findings.push(Finding::blocking("user-namespace", text));
    }
    findings
}

/// Settings of its network namespace, which the destination makes anew.
fn settings(record: &Record) -> Vec<Finding> {
    let linux = record.spec.linux().as_ref();
    let settings = linux.and_then(|linux| linux.sysctl().as_ref());
    let names = settings.into_iter().flat_map(|settings| settings.keys());
    let lost = names.filter(|name| {
        let dotted = name.replace('/', ".");
        dotted.starts_with("net.") && !HAD_ANYWAY.contains(&dotted.as_str())
    });
    let tell = |name: &String| {
        let text = format!(
            "the kernel setting {name} of the container's network namespace would be lost: leave it out of linux.sysctl"
        );
        Finding::blocking("network-setting", text)
    };
    lost.map(tell).collect()
}

/// Its files are read by the path of its root, as this program sees it.
fn root_elsewhere(record: &Record) -> Option<Finding> {
    let number = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let inside = number(Path::new(&format!("/proc/{}/root", record.init.pid)));
    if inside.is_some() && inside == number(&record.rootfs) {
        return None;
    }
    let text = format!(
        "the root of the container is not what is at {} for the daemon, which reads its files there: mount it where all \
         of the host sees it",
        record.rootfs.display()
    );
    Some(Finding::blocking("root-elsewhere", text))
}

/// Whether what is bound from the host can be copied: small files, and directories that are memory.
fn copied(bound: &bundle::Outside, room: &mut Bytes) -> Result<(), Finding> {
    let (place, source) = (bound.place.display(), bound.source.display());
    let refused = |what: &str| {
        let text = format!(
            "at {place} in the container {what} of this host is bound, {source}, which would not come along: {}",
            "run the container without it, or keep its files in the container's root"
        );
        Err(Finding::blocking("bound-from-host", text))
    };
    let Ok(meta) = fs::metadata(&bound.source) else {
        return refused("something that is not there any more");
    };
    let kind = meta.file_type();
    if kind.is_file() {
        return match meta.len() <= FILE {
            true => Ok(()),
            false => refused("a file of more than 1 MiB"),
        };
    }
    if !kind.is_dir() {
        return refused(name(&meta));
    }
    if !is_memory(&bound.source) {
        return refused("a directory");
    }
    let size = tree_bytes(&bound.source).unwrap_or(Bytes(u64::MAX));
    if size > *room {
        return refused("a directory with more than 32 MiB in memory, together with others,");
    }
    room.0 -= size.0;
    Ok(())
}

fn name(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a named pipe"
    } else {
        "a device"
    }
}

fn is_memory(path: &Path) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    fn leaving_of(linux: serde_json::Value) -> Leaving {
        let spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["a"], "user": {"uid": 7, "gid": 8, "additionalGids": [9]}},
            "linux": linux,
        });
        Leaving {
            record: Record {
                id: "a".parse().unwrap(),
                init: super::super::state::Identity {
                    pid: 1,
                    start_time: 0,
                },
                ready: true,
                bundle: "/b".into(),
                rootfs: "/b/rootfs".into(),
                created: String::new(),
                cgroup: "/c".into(),
                systemd: false,
                streams: Vec::new(),
                classes: None,
                spec: serde_json::from_value(spec).unwrap(),
            },
            created_at: 0,
            copies: Vec::new(),
            covered: Vec::new(),
            findings: Vec::new(),
        }
    }

    #[test]
    fn limits_are_those_of_the_bundle() {
        let limited = leaving_of(json!({"resources": {
            "memory": {"limit": 1048576}, "cpu": {"quota": 50000, "period": 200000}, "pids": {"limit": 12}
        }}));
        let limits = limited.limits();
        assert_eq!(limits.memory, Some(Bytes(1 << 20)));
        assert_eq!(limits.cpu_millis, Some(250));
        assert_eq!(limits.pids, Some(12));
        let unlimited = leaving_of(json!({"resources": {
            "memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}
        }}));
        assert_eq!(unlimited.limits(), Limits::default());
        assert_eq!(leaving_of(json!({})).limits(), Limits::default());
        let user = limited.user();
        assert_eq!((user.uid, user.gid, user.groups), (7, 8, vec![9]));
    }

    #[test]
    fn shared_namespaces_and_settings_are_told() {
        let linux = json!({
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc", "path": "/x"}, {"type": "uts"}],
            "sysctl": {"net.core.somaxconn": "9", "net.ipv4.ping_group_range": "0 0", "kernel.msgmax": "1"},
        });
        let record = leaving_of(linux).record;
        let namespaces = plan::Plan::of(&record.spec, plan::Facts::default());
        let told = namespaces_apart(&namespaces.unwrap().namespaces);
        let codes: Vec<&str> = told.iter().map(|finding| finding.code.as_str()).collect();
        assert_eq!(codes, ["shared-namespace", "host-network"]);
        let told = settings(&record);
        assert_eq!(told.len(), 1);
        assert!(told[0].text.contains("net.core.somaxconn"));
    }

    #[test]
    fn small_files_are_copied_and_directories_of_the_disk_are_not() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = dir.path().join("hosts");
        fs::write(&file, "127.0.0.1 localhost").unwrap();
        let mut room = MEMORY;
        let mut of = |source: &Path| {
            let bound = bundle::Outside {
                place: "/etc/hosts".into(),
                source: source.to_owned(),
            };
            copied(&bound, &mut room).map_err(|finding| finding.text)
        };
        of(&file).unwrap();
        if !is_memory(dir.path()) {
            assert!(
                of(dir.path())
                    .unwrap_err()
                    .contains("a directory of this host")
            );
        }
        fs::write(&file, vec![0; 2 << 20]).unwrap();
        assert!(of(&file).unwrap_err().contains("1 MiB"));
        assert!(of(Path::new("/dev/null")).unwrap_err().contains("a device"));
        assert!(
            of(&dir.path().join("none"))
                .unwrap_err()
                .contains("not there")
        );
    }
}
