//! Sockets that could not be moved.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::model::Finding;
use crate::sys::netns::{self, NetNs};
use crate::sys::pidfd;
use crate::sys::socket_diag;
use crate::sys::xattr::{self, Of};

use super::super::backlog;
use super::{Descriptor, Process};

/// The protocols whose sockets CRIU collects (`criu/sockets.c`, `collect_sockets`), by the kernel's names.
const KNOWN: [&str; 14] = [
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITEv6",
    "RAW",
    "RAWv6",
    "PING",
    "PINGv6",
    "UNIX",
    "UNIX-STREAM",
    "NETLINK",
    "PACKET",
];

/// What is known of the container's network namespace.
pub struct Nets {
    first: i32,
    inode: Option<u64>,
    /// Sockets that listen and whose connections nobody takes, by number; and who has them.
    waiting: HashMap<u64, usize>,
    found: Vec<Finding>,
}

impl Nets {
    /// That of the container's first process.
    pub fn of(first: i32) -> Self {
        let inode = fs::metadata(format!("/proc/{first}/ns/net"))
            .map(|ns| ns.ino())
            .ok();
        Self {
            first,
            inode,
            waiting: backlog::left_waiting(first),
            found: Vec::new(),
        }
    }

    /// Connections that wait to be taken.
    pub fn backlogs(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.found)
    }

    /// The other end of each unix socket of the container.
    pub fn peers(&self) -> HashMap<u64, u64> {
        let net = NetNs::open(Path::new(&format!("/proc/{}/ns/net", self.first)));
        let peers = net.and_then(|net| net.run(socket_diag::unix_peers)?);
        peers.unwrap_or_else(|error| {
            tracing::warn!("unix sockets with an end outside were not looked for: {error}");
            HashMap::new()
        })
    }
}

/// What is wrong with a socket.
pub fn finding(process: &Process, open: &Descriptor, nets: &mut Nets) -> Option<Finding> {
    let inode = open.object("socket")?;
    let holder = pidfd::open(process.pid).ok()?;
    let socket = pidfd::descriptor(holder.as_fd(), open.number).ok()?;
    let protocol = xattr::get(Of::Open(socket.as_fd()), OsStr::new("system.sockprotoname"));
    if let Ok(Some(name)) = protocol {
        let name = String::from_utf8_lossy(&name);
        let name = name.trim_end_matches('\0');
        if !KNOWN.contains(&name) {
            let what = format!(
                "is a socket of a kind that CRIU cannot dump ({name}); close it{}",
                remedy(name)
            );
            return Some(process.descriptor_finding("socket-kind", open.number, &what));
        }
    }
    if nets.waiting.remove(&inode).is_some() {
        let what = "listens and has connections that the program has not accepted, which CRIU cannot dump; wait until it has";
        nets.found
            .push(process.descriptor_finding("connection-waits", open.number, what));
    }
    let of = netns::of_socket(socket.as_fd()).ok()?;
    if Some(of) == nets.inode {
        return None;
    }
    let what =
        "is a socket of another network than the container's, made outside and passed in; close it";
    Some(process.descriptor_finding("socket-outside", open.number, what))
}

fn remedy(name: &str) -> &'static str {
    if name.starts_with("MPTCP") {
        ", and have the program use plain TCP (for Go: GODEBUG=multipathtcp=0)"
    } else {
        ""
    }
}
