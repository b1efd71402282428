//! What a CRIU that was killed in the middle of a dump leaves in the tasks, and we can take away.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use crate::cgroup::Cgroup;
use crate::sys::{pidfd, tcp};

/// Takes every connection of a container out of the repair mode in which CRIU reads it. A socket in repair mode
/// refuses to be written to and is closed without a word to the other end: both ends would find it broken.
///
/// The container's gate is closed and its tasks are frozen, so nobody has touched the sockets yet. Returns how
/// many were in repair.
///
/// # Errors
/// When a socket stays in repair. A process or a descriptor that is gone meanwhile is no error.
pub fn end_repair(cgroup: &Cgroup) -> io::Result<usize> {
    let mut ended = 0;
    for pid in cgroup.procs().unwrap_or_default() {
        let Ok(process) = pidfd::open(pid) else {
            continue;
        };
        for number in sockets(pid) {
            let Ok(socket) = pidfd::descriptor(process.as_fd(), number) else {
                continue;
            };
            ended += usize::from(tcp::end_repair(socket.as_fd())?);
        }
    }
    Ok(ended)
}

/// The descriptors of a process that are sockets.
fn sockets(pid: i32) -> Vec<i32> {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    open.flatten()
        .filter(is_socket)
        .filter_map(number)
        .collect()
}
