//! What is set for a container's process from outside, where the right to do so is: resource limits, scheduling,
//! I/O priority, the score for a lack of memory.

use std::fs;
use std::path::PathBuf;

use oci_spec::runtime::{
    IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimitType, Process, Scheduler,
};

use super::RuntimeError;
use super::error::{file, system};
use crate::sys::scheduling::{self, Attributes};

/// Sets all of it for the process, which waits meanwhile.
pub(super) fn set(pid: i32, process: &Process) -> Result<(), RuntimeError> {
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        scheduling::limit(pid, resource(limit.typ()), limit.soft(), limit.hard())
            .map_err(system("set the resource limits (process.rlimits)"))?;
    }
    if let Some(adjustment) = process.oom_score_adj() {
        let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
        fs::write(&path, adjustment.to_string()).map_err(file("write", &path))?;
    }
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = u8::try_from(priority.priority()).unwrap_or(7);
        scheduling::io_priority(pid, class, level)
            .map_err(system("set the I/O priority (process.ioPriority)"))?;
    }
    if let Some(scheduler) = process.scheduler() {
        scheduling::schedule(pid, attributes(scheduler))
            .map_err(system("set how it is scheduled (process.scheduler)"))?;
    }
    Ok(())
}

fn attributes(scheduler: &Scheduler) -> Attributes {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther | LinuxSchedulerPolicy::SchedIso => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let flags = scheduler.flags().iter().flatten().map(|flag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    });
    Attributes {
        policy: policy.cast_unsigned(),
        flags: flags.fold(0, |all, flag: u64| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).cast_unsigned(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
