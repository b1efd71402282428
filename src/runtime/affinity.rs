//! On which processors a process of `exec` runs, before and after it is in the container's cgroup.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use oci_spec::runtime::Process;

use super::RuntimeError;
use super::error::{refused, system};

/// For the caller, which the process inherits.
pub(super) fn before(process: &Process) -> Result<(), RuntimeError> {
    let asked = process.exec_cpu_affinity().as_ref();
    set(0, "initial", asked.and_then(|a| a.initial().as_deref()))
}

/// For the process, once it is in its cgroup.
pub(super) fn after(pid: i32, process: &Process) -> Result<(), RuntimeError> {
    let asked = process.exec_cpu_affinity().as_ref();
    set(
        pid,
        "final",
        asked.and_then(|a| a.cpu_affinity_final().as_deref()),
    )
}

fn set(pid: i32, name: &str, list: Option<&str>) -> Result<(), RuntimeError> {
    let Some(list) = list.filter(|list| !list.trim().is_empty()) else {
        return Ok(());
    };
    let field = || format!("process.execCPUAffinity.{name}");
    let mut cpus = CpuSet::new();
    let bad = || refused(field(), format!("{list:?} is not a list like 0-3,7"));
    for range in list.split(',') {
        let range = range.trim();
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: usize = first.parse().map_err(|_| bad())?;
        let last: usize = last.parse().map_err(|_| bad())?;
        if first > last || last >= CpuSet::count() {
            return Err(bad());
        }
        for cpu in first..=last {
            cpus.set(cpu).map_err(|_| bad())?;
        }
    }
    sched_setaffinity(Pid::from_raw(pid), &cpus)
        .map_err(|errno| system("set process.execCPUAffinity")(errno.into()))
}
