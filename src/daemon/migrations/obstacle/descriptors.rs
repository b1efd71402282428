//! Open files that could not be moved: all kinds but sockets, and what has another end outside.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::libc::{O_DIRECT, O_EXCL};
use nix::sys::stat::{major, minor};

use crate::model::{Bytes, Finding};

use super::{Descriptor, Process, is_memory, plain, too_big_without_name, value};

/// Files without a path that CRIU knows (`criu/files.c`, `dump_one_file`); fanotify's marks it cannot find on an
/// overlay.
const KNOWN: [&str; 6] = [
    "[eventfd]",
    "[eventpoll]",
    "inotify",
    "[signalfd]",
    "[timerfd]",
    "[pidfd]",
];

/// Others, as far as they have a name of their own here.
const UNKNOWN: [(&str, &str, &str); 6] = [
    (
        "[io_uring]",
        "io-uring",
        "is an io_uring, which CRIU cannot dump; run the program without it",
    ),
    (
        "[userfaultfd]",
        "userfaultfd",
        "is a userfaultfd, which CRIU cannot dump; run the program without it",
    ),
    (
        "[perf_event]",
        "perf-event",
        "is a perf event, which CRIU cannot dump; close it",
    ),
    (
        "[fanotify]",
        "fanotify",
        "is a fanotify group, which cannot be restored; watch with inotify",
    ),
    (
        "seccomp notify",
        "seccomp-listener",
        "listens to a filter of system calls (seccomp), which CRIU cannot dump; filter without a listener",
    ),
    (
        "bpf",
        "bpf",
        "is a BPF object, which CRIU cannot dump; close it",
    ),
];

/// What is wrong with an open file; none with most.
pub fn finding(
    process: &Process,
    open: &Descriptor,
    mounts: &BTreeMap<u64, String>,
    inside: &HashSet<i32>,
) -> Option<Finding> {
    let kind = open.meta.file_type();
    let (code, what) = if let Some(name) = open.text().strip_prefix("anon_inode:") {
        anonymous(name, open, inside)?
    } else if open.text().starts_with("pidfd:") {
        other_process(open, inside)?
    } else if kind.is_char_device() || kind.is_block_device() {
        device(open).or_else(|| elsewhere(open, mounts))?
    } else if open.text().starts_with("pipe:") {
        packets(open)?
    } else if open.text().starts_with('/') {
        elsewhere(open, mounts).or_else(|| removed(open))?
    } else if let Some((kind, _)) = open.text().split_once(":[") {
        namespace(process, open, kind)?
    } else {
        return None;
    };
    Some(process.descriptor_finding(code, open.number, &what))
}

type Objection = (&'static str, String);

fn anonymous(name: &str, open: &Descriptor, inside: &HashSet<i32>) -> Option<Objection> {
    match name {
        "[pidfd]" => return other_process(open, inside),
        // criu/eventfd.c makes it anew without that flag.
        "[eventfd]" if open.value("eventfd-semaphore:") == Some("1") => {
            let what = "is an eventfd that counts down (EFD_SEMAPHORE), which would come back as an ordinary one; use a pipe or a semaphore in memory";
            return Some(("eventfd-semaphore", what.to_owned()));
        }
        _ => {}
    }
    if KNOWN.contains(&name) {
        return None;
    }
    let named = UNKNOWN.iter().find(|(start, ..)| name.starts_with(start));
    Some(named.map_or_else(
        || {
            let what = format!(
                "is of a kind that CRIU cannot dump ({}); close it",
                plain(name)
            );
            ("anonymous-file", what)
        },
        |&(_, code, what)| (code, what.to_owned()),
    ))
}

/// `criu/pidfd.c`, `dump_one_pidfd`.
fn other_process(open: &Descriptor, inside: &HashSet<i32>) -> Option<Objection> {
    if open.flags() & O_EXCL != 0 {
        let what = "is a pidfd of a single thread (PIDFD_THREAD), which CRIU cannot dump; use one of the process";
        return Some(("pidfd-thread", what.to_owned()));
    }
    let pid: i32 = open.value("Pid:")?.parse().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // One that has ended and was not waited for is in no cgroup any more.
    let parent = value(&status, "PPid:").and_then(|parent| parent.parse().ok());
    if pid < 0 || inside.contains(&pid) || parent.is_some_and(|parent| inside.contains(&parent)) {
        return None;
    }
    let what = format!("is a pidfd of process {pid}, which is outside of the container; close it");
    Some(("pidfd-outside", what))
}

/// `criu/files.c`, `dump_chrdev`: the memory devices and terminals.
fn device(open: &Descriptor) -> Option<Objection> {
    const MEMORY: u64 = 1;
    // Consoles, serial lines, and both ends of pseudo terminals.
    const TERMINALS: std::ops::RangeInclusive<u64> = 136..=143;
    let (large, small) = (major(open.meta.rdev()), minor(open.meta.rdev()));
    let character = open.meta.file_type().is_char_device();
    if character && (large == MEMORY || large == 5 || TERMINALS.contains(&large)) {
        return None;
    }
    let kind = if character { "character" } else { "block" };
    let what = format!(
        "is the {kind} device {large}:{small} ({}), which stays with this host; close it",
        open.shown()
    );
    Some(("device", what))
}

/// "Can't lookup mount" (`criu/files-reg.c`, `dump_one_reg_file`).
fn elsewhere(open: &Descriptor, mounts: &BTreeMap<u64, String>) -> Option<Objection> {
    let mount: u64 = open.value("mnt_id:")?.parse().ok()?;
    if is_memory(&open.link) || mounts.contains_key(&mount) {
        return None;
    }
    let path = open.shown();
    Some(if open.meta.file_type().is_char_device() {
        let what = format!(
            "is a terminal or device of this host ({path}), from outside of the container's file tree; close it, or run the program without that terminal"
        );
        ("terminal-outside", what)
    } else {
        let what = format!(
            "is the file {path} from outside of the container's file tree, or of a mount that was taken away; close it"
        );
        ("file-outside", what)
    })
}

fn removed(open: &Descriptor) -> Option<Objection> {
    if is_memory(&open.link) || !too_big_without_name(&open.meta) {
        return None;
    }
    let what = format!(
        "is a removed file of {} ({}), more than the images of a container take of one; close it or give it a name",
        Bytes(open.meta.len()),
        open.shown()
    );
    Some(("removed-file-too-big", what))
}

/// "The packetized mode for pipes is not supported yet" (`criu/pipes.c`).
fn packets(open: &Descriptor) -> Option<Objection> {
    let what = "is a pipe of packets (O_DIRECT), which CRIU cannot dump; use a socket pair (SOCK_SEQPACKET)";
    (open.flags() & O_DIRECT != 0).then(|| ("pipe-of-packets", what.to_owned()))
}

/// A descriptor of a namespace: of one of the container's own CRIU finds it again.
fn namespace(process: &Process, open: &Descriptor, kind: &str) -> Option<Objection> {
    let own = fs::read_link(format!("/proc/{}/ns/{kind}", process.pid)).ok()?;
    let what = format!(
        "is a namespace that is not the container's ({}); close it",
        open.text()
    );
    (own != open.link).then_some(("namespace-outside", what))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::fd::{AsRawFd, RawFd};

    /// What is found of a descriptor of this very process.
    fn code(number: RawFd) -> Option<String> {
        let process = Process::read(std::process::id().cast_signed()).unwrap();
        let open = process
            .descriptors()
            .into_iter()
            .find(|open| open.number == number);
        let inside = HashSet::from([process.pid]);
        finding(&process, &open.unwrap(), &process.mounts(), &inside).map(|finding| {
            assert!(finding.text.contains(&format!(
                "file descriptor {number} of process {}",
                process.pid
            )));
            assert!(finding.text.contains("; "), "no remedy: {}", finding.text);
            finding.code
        })
    }

    #[test]
    fn what_can_be_moved_is_no_obstacle() {
        let file = tempfile::tempfile().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        for number in [
            file.as_raw_fd(),
            reader.as_raw_fd(),
            writer.as_raw_fd(),
            null.as_raw_fd(),
        ] {
            assert_eq!(code(number), None, "{number}");
        }
        assert_eq!(code(std::os::fd::AsFd::as_fd(&event).as_raw_fd()), None);
    }

    #[test]
    fn a_pipe_of_packets_and_an_eventfd_that_counts_down_are() {
        let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_DIRECT).unwrap();
        assert_eq!(code(writer.as_raw_fd()).unwrap(), "pipe-of-packets");
        let flags = nix::sys::eventfd::EfdFlags::EFD_SEMAPHORE;
        let event = nix::sys::eventfd::EventFd::from_flags(flags).unwrap();
        let code = code(std::os::fd::AsFd::as_fd(&event).as_raw_fd());
        // Kernels before 6.5 do not tell.
        assert!(code.is_none_or(|code| code == "eventfd-semaphore"));
    }

    #[test]
    fn an_unknown_kind_is_named_and_cannot_write_on_the_terminal() {
        let process = Process::read(std::process::id().cast_signed()).unwrap();
        let meta = fs::metadata("/dev/null").unwrap();
        let open = Descriptor {
            number: 7,
            link: "anon_inode:[io_uring]".into(),
            meta,
            info: String::new(),
        };
        let objection = |name| anonymous(name, &open, &HashSet::from([process.pid]));
        assert_eq!(objection("[io_uring]").unwrap().0, "io-uring");
        let (code, what) = objection("[new\u{1b}[2J]").unwrap();
        assert_eq!(code, "anonymous-file");
        assert!(!what.contains('\u{1b}'), "{what}");
        assert!(objection("[eventpoll]").is_none());
    }
}
