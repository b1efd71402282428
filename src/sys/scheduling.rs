//! How the kernel schedules a process: policy, I/O priority, resource limits. By process id, so that
//! whoever has the right sets it for one that has not.

use std::io;
use std::sync::LazyLock;
use std::thread;

/// Processors that this program may use, as they were when it was first asked. The standard library reads
/// `/proc/self/mountinfo` and the limits of its cgroup for it, each time: a millisecond on a host with many mounts.
pub fn processors() -> usize {
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    *PROCESSORS
}

/// How a process is scheduled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `SCHED_…`.
    pub policy: u32,
    /// `SCHED_FLAG_…`.
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// For `SCHED_DEADLINE`, in nanoseconds, as are the next two.
    pub runtime: u64,
    /// See there.
    pub deadline: u64,
    /// See there.
    pub period: u64,
}

/// Sets how the process is scheduled.
pub fn schedule(pid: i32, attributes: Attributes) -> io::Result<()> {
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime,
        deadline: attributes.deadline,
        period: attributes.period,
    };
    // SAFETY: the structure says its size and lives until the call returns.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) })
}

/// `struct sched_attr`, version 0.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets the I/O class and the priority in it.
pub fn io_priority(pid: i32, class: u8, priority: u8) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    const CLASS_SHIFT: u32 = 13;
    let value = (i32::from(class) << CLASS_SHIFT) | i32::from(priority);
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, value) })
}

/// Sets a resource limit (`RLIMIT_…`) of the process.
pub fn limit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the new limit lives until the call returns; the old one is not asked for.
    let done = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    check(done)
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_set_for_a_process_is_seen_in_proc() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        limit(pid, libc::RLIMIT_NOFILE, 123, 456).unwrap();
        let idle = Attributes {
            policy: libc::SCHED_IDLE as u32,
            ..Attributes::default()
        };
        schedule(pid, idle).unwrap();
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let words: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!(words[3..5], ["123", "456"]);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let policy = stat.rsplit(')').next().unwrap().split_whitespace().nth(38);
        assert_eq!(policy, Some("5"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
