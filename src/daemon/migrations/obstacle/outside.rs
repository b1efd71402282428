//! Pipes and socket pairs of which one end is in the container and the other with a process outside: CRIU refuses
//! the sockets (`criu/sk-unix.c`, `dump_external_sockets`), and brings pipes back with nobody at the other end.

use std::collections::{HashMap, HashSet};
use std::fs;

use nix::libc::{O_ACCMODE, O_WRONLY};

use crate::model::Finding;

use super::{Descriptor, Process, Scene};

/// What the processes of a container have open that has two ends.
#[derive(Default)]
pub struct Held {
    /// By the number of the pipe: who has it, for reading or writing.
    pipes: HashMap<u64, Vec<(Holder, bool)>>,
    /// By the number of the socket.
    sockets: HashMap<u64, Holder>,
}

#[derive(Clone)]
struct Holder {
    pid: i32,
    number: i32,
}

impl Held {
    /// Remembers an open file.
    pub fn note(&mut self, process: &Process, open: &Descriptor) {
        let holder = Holder {
            pid: process.pid,
            number: open.number,
        };
        if let Some(inode) = open.object("pipe") {
            let writes = open.flags() & O_ACCMODE == O_WRONLY;
            self.pipes.entry(inode).or_default().push((holder, writes));
        } else if let Some(inode) = open.object("socket") {
            self.sockets.entry(inode).or_insert(holder);
        }
    }

    /// Those whose other end a process outside has. `peers` has the other end of each unix socket.
    pub fn findings(&self, scene: &Scene, peers: HashMap<u64, u64>) -> Vec<Finding> {
        let led_over = scene.stdio.unwrap_or_default();
        let mut wanted: HashMap<String, (&Holder, &str)> = HashMap::new();
        for (inode, holders) in &self.pipes {
            let both = holders.iter().any(|(_, writes)| *writes)
                && holders.iter().any(|(_, writes)| !*writes);
            if let (false, [(holder, _), ..]) =
                (both || led_over.contains(inode), holders.as_slice())
            {
                wanted.insert(format!("pipe:[{inode}]"), (holder, "pipe"));
            }
        }
        for (inode, holder) in &self.sockets {
            let peer = peers
                .get(inode)
                .filter(|peer| **peer != 0 && !self.sockets.contains_key(peer));
            if let Some(peer) = peer {
                wanted.insert(format!("socket:[{peer}]"), (holder, "unix socket"));
            }
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        search(scene, &wanted)
    }
}

/// Looks through all processes of this host that are not the container's, and names the first that has each.
fn search(scene: &Scene, wanted: &HashMap<String, (&Holder, &str)>) -> Vec<Finding> {
    let inside: HashSet<i32> = scene.procs.iter().copied().collect();
    let mut found = HashMap::new();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        if inside.contains(&pid) {
            continue;
        }
        for open in fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let link = fs::read_link(open.path()).unwrap_or_default();
            if let Some((object, what)) = link.to_str().and_then(|link| wanted.get_key_value(link))
            {
                found.entry(object).or_insert((pid, *what));
            }
        }
    }
    let mut findings: Vec<Finding> = found
        .into_values()
        .filter_map(|(pid, (holder, kind))| tell(pid, holder, kind))
        .collect();
    findings.sort_by(|one, other| one.text.cmp(&other.text));
    findings
}

fn tell(outside: i32, holder: &Holder, kind: &str) -> Option<Finding> {
    let (process, other) = (Process::read(holder.pid)?, Process::read(outside)?);
    let code = if kind == "pipe" {
        "pipe-outside"
    } else {
        "socket-pair-outside"
    };
    let what = format!(
        "is one end of a {kind} whose other end {} outside of the container has; close it, or end one of the two",
        other.shown()
    );
    Some(process.descriptor_finding(code, holder.number, &what))
}
