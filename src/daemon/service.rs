//! The daemon as a process among others: its log, its service manager, and the processes it inherits.

use std::collections::HashSet;
use std::fs;
use std::io::IsTerminal;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::sys::descriptor;

/// Starts the log: lines on standard error, where the journal or a terminal reads them.
pub fn start_log(filter: &str) {
    let filter: Targets = filter.parse().unwrap_or_else(|e| {
        eprintln!("godwit: log.filter cannot be used ({e}); logging at the level info");
        Targets::new().with_default(Level::INFO)
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // The journal keeps the time itself.
    let lines = if std::env::var_os("JOURNAL_STREAM").is_some() {
        lines.without_time().boxed()
    } else {
        lines.boxed()
    };
    let started = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
    if let Err(e) = started {
        eprintln!("godwit: cannot start the log: {e}");
    }
}

/// Tells the service manager, where there is one.
pub fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {e}");
    }
}

/// Tells the service manager's watchdog that the runtime still turns.
pub async fn feed_watchdog(stopping: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::select! {
            () = tokio::time::sleep(limit / 3) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Sees to it that what this process was given open, beyond its standard streams, reaches no process that it
/// starts: a container must not hold a file of this host, and could not be moved with one.
pub fn keep_descriptors_private() {
    if let Err(e) = descriptor::close_on_exec_from(3) {
        tracing::warn!("cannot keep the inherited descriptors from the containers: {e}");
    }
}

/// From now on, processes whose parents end become this process's children: a container whose shim died
/// stays within reach.
pub fn become_subreaper() {
    if let Err(e) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::warn!("cannot become a subreaper: {e}");
    }
}

/// Reaps what was inherited. Children of our own are waited for by whoever started them, at once; so a
/// child that has been dead for a whole turn is nobody's.
pub async fn reap_strays(stopping: CancellationToken) {
    const TURN: Duration = Duration::from_secs(5);
    let mut dead_before = HashSet::new();
    loop {
        let dead = dead_children();
        for &pid in dead.intersection(&dead_before) {
            if waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).is_ok() {
                tracing::debug!(pid, "reaped a stray");
            }
        }
        dead_before = dead;
        tokio::select! {
            () = tokio::time::sleep(TURN) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Children that have ended and have not been waited for.
fn dead_children() -> HashSet<i32> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return HashSet::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let all: Vec<String> = lists.collect();
    all.iter()
        .flat_map(|list| list.split_whitespace())
        .filter_map(|pid| pid.parse().ok())
        .filter(|&pid| is_dead(pid))
        .collect()
}

fn is_dead(pid: i32) -> bool {
    // After the name, which may hold anything, comes the state.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat[stat.rfind(')')? + 1..].trim_start().starts_with('Z')))
        .unwrap_or(false)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_dead_child_is_seen_until_it_is_waited_for() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let seen = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            dead_children().contains(&pid)
        });
        child.wait().unwrap();
        assert!(seen && !dead_children().contains(&pid));
    }
}
