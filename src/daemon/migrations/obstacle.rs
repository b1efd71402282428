//! What in a running container could not be moved, found before anything is tried.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::model::Finding;

/// Looks at every process of a container, of which `first` is number 1 inside.
pub fn find(procs: &[i32], first: i32) -> Vec<Finding> {
    let inside: HashSet<i32> = procs.iter().copied().collect();
    let mut findings = Vec::new();
    for &pid in procs {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if pid != first && parent(&status).is_some_and(|parent| !inside.contains(&parent)) {
            let text = format!(
                "process {pid} ({}) was started by `godwit exec` and belongs to this host; let it end or kill it",
                value(&status, "Name:").unwrap_or("?")
            );
            findings.push(Finding::blocking("exec-session", text));
        }
        if value(&status, "TracerPid:").is_some_and(|tracer| tracer != "0") {
            let text = format!("process {pid} is being debugged; detach the debugger");
            findings.push(Finding::blocking("traced", text));
        }
        findings.extend(descriptors(pid));
    }
    findings
}

/// The open files of a process that CRIU cannot dump.
fn descriptors(pid: i32) -> Vec<Finding> {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let finding = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let (code, why) = objection(&target)?;
        let number = entry.file_name();
        let text = format!(
            "file descriptor {} of process {pid} is {why}",
            number.to_string_lossy()
        );
        Some(Finding::blocking(code, text))
    };
    open.flatten().filter_map(finding).collect()
}

/// Why a file cannot be moved; none for one that can.
fn objection(target: &Path) -> Option<(&'static str, &'static str)> {
    match target.to_str()? {
        "anon_inode:[io_uring]" => Some((
            "io-uring",
            "an io_uring, which CRIU cannot dump; run the program without it",
        )),
        "anon_inode:[userfaultfd]" => Some((
            "userfaultfd",
            "a userfaultfd, which CRIU cannot dump; run the program without it",
        )),
        "anon_inode:[perf_event]" => Some((
            "perf-event",
            "a perf event, which CRIU cannot dump; close it",
        )),
        text if text.starts_with("anon_inode:bpf") => {
            Some(("bpf", "a BPF object, which CRIU cannot dump; close it"))
        }
        _ => None,
    }
}

fn parent(status: &str) -> Option<i32> {
    value(status, "PPid:")?.parse().ok()
}

fn value<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_ring_is_an_obstacle_and_a_socket_is_not() {
        assert_eq!(
            objection(Path::new("anon_inode:[io_uring]")).unwrap().0,
            "io-uring"
        );
        for fine in [
            "socket:[1]",
            "pipe:[2]",
            "anon_inode:[eventpoll]",
            "anon_inode:[eventfd]",
            "/dev/null",
        ] {
            assert_eq!(objection(Path::new(fine)), None, "{fine}");
        }
    }

    #[test]
    fn a_process_whose_parent_is_outside_was_put_there() {
        let own = std::process::id().cast_signed();
        // Of this process the parent is not in the list, and it is not the first.
        let findings = find(&[own], 1);
        assert!(
            findings.iter().any(|f| f.code == "exec-session"),
            "{findings:?}"
        );
        // Other tests of this process may have files open that cannot be moved.
        let findings = find(&[own], own);
        assert!(
            findings.iter().all(|f| f.code != "exec-session"),
            "{findings:?}"
        );
    }
}
