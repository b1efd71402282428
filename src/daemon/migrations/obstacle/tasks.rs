//! Processes that could not be moved as they are.

use std::collections::HashSet;
use std::fs;

use crate::model::Finding;
use crate::sys::kcmp::{self, Shared};

use super::{Process, value};

/// The namespaces in which CRIU finds no process but all (`criu/namespaces.c`, `generate_ns_id`); of mount and network
/// namespaces it can have more than one, which is not relied on here.
const NAMESPACES: [&str; 9] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "user",
    "uts",
];

/// One that was put into the container from outside, and belongs to this host.
pub fn guest(process: &Process, first: i32, inside: &HashSet<i32>) -> Option<Finding> {
    let parent = parent(process)?;
    let text = "was started by `godwit exec` and belongs to this host; let it end or kill it";
    (process.pid != first && !inside.contains(&parent))
        .then(|| process.finding("exec-session", text))
}

/// What of a process itself could not be moved.
pub fn findings(process: &Process, first: i32) -> Vec<Finding> {
    let found = [
        traced(process),
        nested(process, first),
        dead_leader(process),
        shared(process),
        affinity(process),
        slack(process),
    ];
    found.into_iter().flatten().collect()
}

/// There is one tracer of a task, and CRIU has to be it (`compel/src/lib/infect.c`).
fn traced(process: &Process) -> Option<Finding> {
    let tracer = process
        .value("TracerPid:")
        .filter(|tracer| *tracer != "0")?;
    let tracer = tracer.parse().ok().and_then(Process::read);
    let by = tracer.map_or_else(|| "somebody".to_owned(), |tracer| tracer.shown());
    let text = format!("is being debugged by {by}; detach the debugger");
    Some(process.finding("traced", &text))
}

fn nested(process: &Process, first: i32) -> Option<Finding> {
    let own = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let kinds: Vec<&str> = NAMESPACES
        .into_iter()
        .filter(|kind| match (own(process.pid, kind), own(first, kind)) {
            (Some(its), Some(firsts)) => its != firsts,
            _ => false,
        })
        .collect();
    if kinds.is_empty() {
        return None;
    }
    let text = format!(
        "has namespaces of its own within the container's ({}); run the program without its own sandbox or containers",
        kinds.join(", ")
    );
    Some(process.finding("nested-namespace", &text))
}

/// "Zombies with threads are not supported" (`criu/seize.c`).
fn dead_leader(process: &Process) -> Option<Finding> {
    let dead = process.value("State:")?.starts_with('Z');
    let threads: u32 = process.value("Threads:")?.parse().ok()?;
    let text =
        "has ended its first thread and goes on in others; have its first thread wait for them";
    (dead && threads > 1).then(|| process.finding("first-thread-gone", text))
}

/// Images know one process for each address space, directory and table of handlers (`criu/cr-dump.c`,
/// `dump_task_kobj_ids`).
fn shared(process: &Process) -> Option<Finding> {
    let parent = parent(process)?;
    let kinds = [
        (Shared::Memory, "memory"),
        (Shared::Directories, "root and working directory"),
        (Shared::Handlers, "signal handlers"),
    ];
    let is = |kind: Shared| kcmp::same(kind, process.pid, parent).unwrap_or(false);
    let (_, what) = kinds.into_iter().find(|(kind, _)| is(*kind))?;
    let text = format!(
        "has the same {what} as its parent, process {parent}, without being a thread of it (clone); use a thread or fork"
    );
    Some(process.finding("shared-between-processes", &text))
}

/// CRIU does not bring it back.
fn affinity(process: &Process) -> Option<Finding> {
    let allowed = process.value("Cpus_allowed_list:")?;
    let own = fs::read_to_string("/proc/self/status").ok()?;
    let usual = value(&own, "Cpus_allowed_list:")?;
    let text = format!(
        "is bound to the processors {allowed}, which the other host will not keep to; bind it again there"
    );
    (allowed != usual).then(|| note(process.finding("cpu-affinity", &text)))
}

/// CRIU does not bring it back, either: 50 µs are what a process begins with (`include/linux/init_task.h`).
fn slack(process: &Process) -> Option<Finding> {
    let slack = fs::read_to_string(format!("/proc/{}/timerslack_ns", process.pid)).ok()?;
    let slack = slack.trim();
    let text = format!(
        "has a timer slack of {slack} ns, which will be the usual 50000 there; set it again"
    );
    (!["50000", "0"].contains(&slack)).then(|| note(process.finding("timer-slack", &text)))
}

fn note(finding: Finding) -> Finding {
    Finding {
        blocking: false,
        ..finding
    }
}

fn parent(process: &Process) -> Option<i32> {
    process.value("PPid:")?.parse().ok()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_process_whose_parent_is_outside_was_put_there() {
        let own = Process::read(std::process::id().cast_signed()).unwrap();
        let inside = HashSet::from([own.pid]);
        assert_eq!(guest(&own, 1, &inside).unwrap().code, "exec-session");
        assert!(guest(&own, own.pid, &inside).is_none());
        let inside = HashSet::from([own.pid, parent(&own).unwrap()]);
        assert!(guest(&own, 1, &inside).is_none());
    }

    #[test]
    fn an_ordinary_process_is_no_obstacle() {
        let own = Process::read(std::process::id().cast_signed()).unwrap();
        assert_eq!(traced(&own), None);
        assert_eq!(nested(&own, own.pid), None);
        assert_eq!(dead_leader(&own), None);
        assert_eq!(affinity(&own), None);
    }
}
