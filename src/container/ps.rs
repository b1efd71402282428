//! The processes of a container.

use std::fs;

use serde::{Deserialize, Serialize};

use super::{ContainerError, Host, Record, ids};
use crate::model::{Bytes, Name};

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its id on the host.
    pub pid: i32,
    /// Its id in the container.
    pub inner_pid: i32,
    /// Its user id in the container; [`NOBODY`] where it has none there.
    pub uid: u32,
    /// What it does: `R` runs, `S` sleeps, `D` waits for the kernel, `T` is stopped, `Z` has ended.
    pub state: char,
    /// How many threads it has.
    pub threads: u32,
    /// The memory it has in RAM, shared parts included.
    pub memory: Bytes,
    /// Its command line, or its name where it has none.
    pub command: String,
}

/// What an id without a number in a user namespace is in it (`/proc/sys/kernel/overflowuid`).
pub const NOBODY: u32 = 65_534;

/// The processes of a container, in the order of their ids inside. None, when none runs.
pub fn ps(host: &Host, name: &Name) -> Result<Vec<ProcessInfo>, ContainerError> {
    Record::load(host, name)?;
    let cgroup = host.cgroup(name);
    if !cgroup.exists() {
        return Ok(Vec::new());
    }
    let pids = cgroup.procs().map_err(ContainerError::cgroup(name))?;
    let mut all: Vec<ProcessInfo> = pids.into_iter().filter_map(look_at).collect();
    if let Some(ids) = ids::of(host, name)? {
        for process in &mut all {
            process.uid = ids.inside(process.uid).unwrap_or(NOBODY);
        }
    }
    all.sort_by_key(|process| process.inner_pid);
    Ok(all)
}

/// What /proc tells about a process; none when it has ended.
fn look_at(pid: i32) -> Option<ProcessInfo> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    parse(pid, &status, &command)
}

/// The id of a process in its innermost pid namespace, by the text of /proc/PID/status.
pub(super) fn inner_pid(status: &str) -> Option<i32> {
    field(status, "NSpid")?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(str::trim)
}

fn parse(pid: i32, status: &str, command: &[u8]) -> Option<ProcessInfo> {
    let first = |key| field(status, key).and_then(|value| value.split_whitespace().next());
    let words: Vec<_> = command
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    let memory: u64 = first("VmRSS").and_then(|kib| kib.parse().ok()).unwrap_or(0);
    Some(ProcessInfo {
        pid,
        inner_pid: inner_pid(status)?,
        uid: first("Uid")?.parse().ok()?,
        state: first("State")?.chars().next()?,
        threads: first("Threads")?.parse().ok()?,
        memory: Bytes(memory * 1024),
        command: if words.is_empty() {
            format!("[{}]", field(status, "Name")?)
        } else {
            words.join(" ")
        },
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_process_is_what_proc_tells() {
        let status = "Name:\tredis-server\nState:\tS (sleeping)\nPid:\t812\nNSpid:\t812\t1\n\
            Uid:\t999\t999\t999\t999\nVmRSS:\t    2048 kB\nThreads:\t5\n";
        let process = parse(812, status, b"redis-server\x00--port\x006379\x00").unwrap();
        assert_eq!(
            (process.inner_pid, process.uid, process.threads),
            (1, 999, 5)
        );
        assert_eq!(process.command, "redis-server --port 6379");
        assert_eq!((process.state, process.memory), ('S', Bytes(2 << 20)));
        assert_eq!(parse(812, status, b"").unwrap().command, "[redis-server]");
        assert_eq!(parse(812, "Name:\tx\n", b""), None);
    }
}
