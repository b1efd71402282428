//! The host goes down: its containers are asked to end, as its services are.
//!
//! Nothing is written down of it. They have ended with their host, and whoever is to run again after a boot
//! ([`crate::model::Restart`]) will.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::Context;
use crate::container::{kill, list};
use crate::model::{ContainerState, Name};

/// How long a container may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end one.
const KILLED: Duration = Duration::from_secs(2);
/// The time between two looks.
const GLANCE: Duration = Duration::from_millis(50);

/// Whether systemd is taking the host down (systemctl(1), `is-system-running`). What is in none of its units it would
/// wait for in vain, for a minute and a half.
pub fn host_goes_down() -> bool {
    let asked = Command::new("systemctl").arg("is-system-running").output();
    asked.is_ok_and(|answer| answer.stdout.trim_ascii() == b"stopping")
}

/// Asks every container that runs to end, and ends those that do not. To be called when nobody is left who would start
/// them again.
pub fn end_all(context: &Context) {
    let all = list(&context.host).unwrap_or_else(|error| {
        tracing::warn!("the containers cannot be listed: {error}");
        Vec::new()
    });
    let running = all
        .into_iter()
        .filter(|status| status.state == ContainerState::Running)
        .map(|status| status.spec.name);
    let left: Vec<Name> = running
        .filter(|name| {
            let asked = kill(&context.host, name, libc::SIGTERM, false);
            asked.is_ok() && runs(context, name)
        })
        .collect();
    let left = wait(context, left, PATIENCE);
    for name in &left {
        tracing::info!(container = %name, "it did not end within {PATIENCE:?}, and is ended");
        if let Err(error) = kill(&context.host, name, libc::SIGKILL, true) {
            tracing::warn!(container = %name, "it could not be ended: {error}");
        }
    }
    wait(context, left, KILLED);
}

/// Those that are still there after so long.
fn wait(context: &Context, mut names: Vec<Name>, within: Duration) -> Vec<Name> {
    let end = Instant::now() + within;
    loop {
        names.retain(|name| runs(context, name));
        if names.is_empty() || Instant::now() > end {
            return names;
        }
        thread::sleep(GLANCE);
    }
}

fn runs(context: &Context, name: &Name) -> bool {
    context.host.cgroup(name).populated().unwrap_or(false)
}
