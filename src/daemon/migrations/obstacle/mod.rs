//! What in a running container could not be moved, found before anything is tried.
//!
//! Everything here looks and changes nothing. What CRIU 4.2 refuses is told with its place in CRIU's source; what it
//! would bring back as something else, without a word, is told as well. Each finding names the process by its number
//! on this host and its name, the descriptor or mapping, and what to do.

mod addresses;
mod descriptors;
mod mappings;
mod outside;
mod sockets;
mod tasks;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::migration::message::NullName;
use crate::model::Finding;

use super::watches;

pub use addresses::staying;

/// What is gone after this time was on its way: a child between fork and exec, a connection that is about to be
/// taken.
const PASSING: Duration = Duration::from_millis(50);

/// A container, as it is looked at.
pub struct Scene {
    /// Its processes.
    pub procs: Vec<i32>,
    /// Of them the one that is number 1 inside.
    pub first: i32,
    /// The pipes of its output, which are led over.
    pub stdio: Option<[u64; 2]>,
    /// The host's `/dev/null` among its streams, which is led over to the destination's.
    pub null: Option<NullName>,
}

/// One process of it.
struct Process {
    pid: i32,
    name: String,
    status: String,
}

/// One open file of a process.
struct Descriptor {
    number: i32,
    /// What `/proc` says it is.
    link: PathBuf,
    /// What is open, not followed further.
    meta: Metadata,
    /// Its `fdinfo`.
    info: String,
}

/// Every reason on the source's side. Takes [`PASSING`] where there is something to find.
pub fn find(scene: &Scene) -> Vec<Finding> {
    let found = look(scene);
    if found.is_empty() {
        return found;
    }
    thread::sleep(PASSING);
    let again: HashSet<String> = look(scene).into_iter().map(|f| f.text).collect();
    found
        .into_iter()
        .filter(|finding| again.contains(&finding.text))
        .collect()
}

fn look(scene: &Scene) -> Vec<Finding> {
    let inside: HashSet<i32> = scene.procs.iter().copied().collect();
    let mut findings = Vec::new();
    let mut held = outside::Held::default();
    let mut nets = sockets::Nets::of(scene.first);
    for process in scene.procs.iter().filter_map(|&pid| Process::read(pid)) {
        if let Some(guest) = tasks::guest(&process, scene.first, &inside) {
            // What it has open goes with it.
            findings.push(guest);
            continue;
        }
        findings.extend(tasks::findings(&process, scene.first));
        findings.extend(mappings::findings(&process));
        let mounts = process.mounts();
        for open in process.descriptors() {
            if scene.null.is_none_or(|null| !open.is(null)) {
                findings.extend(descriptors::finding(&process, &open, &mounts, &inside));
            }
            findings.extend(sockets::finding(&process, &open, &mut nets));
            held.note(&process, &open);
        }
    }
    findings.extend(nets.backlogs());
    findings.extend(held.findings(scene, nets.peers()));
    findings.extend(nameless_watches(scene));
    findings
}

/// Watches of what has no name any more (`criu/fsnotify.c`, `check_open_handle`).
fn nameless_watches(scene: &Scene) -> Vec<Finding> {
    let root = PathBuf::from(format!("/proc/{}/root", scene.first));
    let watches = watches::watches(&scene.procs);
    let nameless = watches::names(&root, &watches).map_or(Vec::new(), |(_, nameless)| nameless);
    let tell = |watch: watches::Watch| {
        let process = Process::read(watch.pid)?;
        let what = "watches a file that has no name any more; have it take that watch away (inotify_rm_watch)";
        Some(process.descriptor_finding("inotify-nameless", watch.number, what))
    };
    nameless.into_iter().filter_map(tell).collect()
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let name = value(&status, "Name:").unwrap_or("?").to_owned();
        Some(Self { pid, name, status })
    }

    fn value(&self, key: &str) -> Option<&str> {
        value(&self.status, key)
    }

    /// As it is called in findings.
    fn shown(&self) -> String {
        format!("process {} ({})", self.pid, self.name)
    }

    fn finding(&self, code: &str, what: &str) -> Finding {
        Finding::blocking(code, format!("{} {what}", self.shown()))
    }

    fn descriptor_finding(&self, code: &str, number: i32, what: &str) -> Finding {
        let text = format!("file descriptor {number} of {} {what}", self.shown());
        Finding::blocking(code, text)
    }

    /// Its mounts: their numbers, and where they are.
    fn mounts(&self) -> BTreeMap<u64, String> {
        let text = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid)).unwrap_or_default();
        let mount = |line: &str| {
            let mut words = line.split(' ');
            let id = words.next()?.parse().ok()?;
            Some((id, words.nth(3)?.to_owned()))
        };
        text.lines().filter_map(mount).collect()
    }

    fn descriptors(&self) -> Vec<Descriptor> {
        let Ok(open) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else {
            return Vec::new();
        };
        let read = |entry: fs::DirEntry| {
            let path = entry.path();
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some(Descriptor {
                number,
                link: fs::read_link(&path).ok()?,
                // The link is one of the kernel's own, and leads to what is open, not to a path.
                meta: fs::metadata(&path).ok()?,
                info: fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.pid)).ok()?,
            })
        };
        let mut all: Vec<Descriptor> = open.flatten().filter_map(read).collect();
        all.sort_by_key(|open| open.number);
        all
    }
}

impl Descriptor {
    fn text(&self) -> &str {
        self.link.to_str().unwrap_or("")
    }

    /// The same for people: a path is whatever the container has made of it.
    fn shown(&self) -> String {
        plain(&self.link.to_string_lossy())
    }

    fn value(&self, key: &str) -> Option<&str> {
        value(&self.info, key)
    }

    /// Whether it is this file.
    fn is(&self, file: NullName) -> bool {
        let mount = self.value("mnt_id:").and_then(|text| text.parse().ok());
        mount == Some(file.mount) && self.meta.ino() == file.inode
    }

    /// The flags of open(2).
    fn flags(&self) -> i32 {
        self.value("flags:")
            .and_then(|flags| i32::from_str_radix(flags, 8).ok())
            .unwrap_or(0)
    }

    /// The number of an object that has no path: `pipe:[7]`, `socket:[7]`.
    fn object(&self, kind: &str) -> Option<u64> {
        let rest = self.text().strip_prefix(kind)?.strip_prefix(":[")?;
        rest.strip_suffix(']')?.parse().ok()
    }
}

/// What a line of `/proc` says that begins so.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
}

/// A path of a container as it is shown on a terminal, without what a terminal would obey.
fn plain(path: &str) -> String {
    path.trim_end_matches(" (deleted)")
        .escape_debug()
        .to_string()
}

/// A file that nobody can find by a name, and more of it than images take (`criu/files-reg.c`, `dump_ghost_remap`).
fn too_big_without_name(meta: &Metadata) -> bool {
    meta.is_file()
        && meta.nlink() == 0
        && meta.blocks() * 512 > u64::from(crate::criu::request::GHOST_LIMIT)
}

/// Whether a path is one of a memory file, which the images hold by other means.
fn is_memory(path: &Path) -> bool {
    let memory = ["/memfd:", "/SYSV", "/dev/zero", "/anon_hugepage", "/[aio]"];
    path.to_str()
        .is_some_and(|path| memory.iter().any(|start| path.starts_with(start)))
}
