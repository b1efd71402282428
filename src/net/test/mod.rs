//! The room on a kernel of its own: every test is a host in new network and mount namespaces, and looks at it with
//! other people's tools (`ip`, `bridge`, `tcpdump`).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

mod bridge;
mod device;
mod filter;
mod gate;
mod hold;
mod port;
mod segment;

use super::*;
use crate::model::Mac;
use crate::sys::netns;

/// A host that exists for one test.
struct Host {
    dir: PathBuf,
    network: Network,
}

impl Host {
    fn open(dir: &Path, change: impl FnOnce(&mut NetworkConfig)) -> Self {
        let mut config = given_config();
        change(&mut config);
        let network = Network::open(config).unwrap();
        await_forwarding();
        let dir = dir.to_owned();
        Self { dir, network }
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.dir.join("netns").join(name)
    }

    fn make(&self, text: &str, lease: &Lease) {
        self.network
            .make_port(&name(text), lease, &self.pin(text))
            .unwrap();
    }

    fn remove(&self, text: &str) {
        self.network
            .remove_port(&name(text), &self.pin(text))
            .unwrap();
    }

    #[track_caller]
    fn check_nothing_is_left_of(&self, text: &str) {
        assert!(!self.pin(text).exists());
        assert_eq!(link(&Network::port_name(&name(text))), None);
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let ours = mounts.contains(self.dir.join("netns").to_str().unwrap());
        assert!(!ours, "{mounts}");
    }
}

/// Runs a test as a host of its own, or says that it cannot.
fn on_a_host(test: &str, work: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
        assert!(!required, "{test}: needs root");
        println!("SKIP {test}: needs root");
        return;
    }
    // Removed when the host, and its mounts in there, are gone.
    let dir = tempfile::tempdir().unwrap();
    let host = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let one_way = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, one_way, None::<&str>).unwrap();
        tool("ip link set lo up");
        work(dir.path());
    };
    let ended = thread::scope(|scope| scope.spawn(host).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn given_config() -> NetworkConfig {
    NetworkConfig {
        bridge: "lan0".into(),
        uplink: None,
        subnet: Ipv4Addr::new(10, 99, 0, 0),
        prefix: 24,
        bridge_address: Some(ip(1)),
        gateway: Some(ip(1)),
        pool: (ip(10), ip(200)),
    }
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, last)
}

fn lease(last: u8) -> Lease {
    given_config().lease(ip(last))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Runs a command line that must succeed.
#[track_caller]
fn tool(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(line: &str) -> Value {
    serde_json::from_str(&tool(line)).unwrap()
}

/// What `ip` says of one interface.
fn link(interface: &str) -> Option<Value> {
    let all = json("ip -d -j addr show");
    all.as_array()
        .unwrap()
        .iter()
        .find(|link| link["ifname"] == interface)
        .cloned()
}

#[track_caller]
fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"].as_array().unwrap().iter().any(|f| f == flag)
}

/// The interface that the bridge of this thread's host would send a station's frames to.
fn learnt(mac: Mac) -> Option<String> {
    let table = json("bridge -j fdb show br lan0");
    let entry = table
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["mac"] == mac.to_string() && entry["state"] != "permanent")?;
    Some(entry["ifname"].as_str().unwrap().to_owned())
}

/// A bridge lets frames through a port when the kernel has noticed that its link is up, which may take it a second.
fn await_forwarding() {
    let deadline = Instant::now() + Duration::from_secs(5);
    let waits = |port: &Value| port["state"] != "forwarding";
    while json("bridge -j link show")
        .as_array()
        .unwrap()
        .iter()
        .any(waits)
    {
        assert!(Instant::now() < deadline, "a port does not forward");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Listens in a namespace; connections are accepted by the kernel, nobody needs to.
fn listener(pin: &Path) -> TcpListener {
    NetNs::open(pin)
        .unwrap()
        .run(|| TcpListener::bind("0.0.0.0:7000").unwrap())
        .unwrap()
}

fn reaches(address: Ipv4Addr, wait_ms: u64) -> io::Result<()> {
    let there = SocketAddr::from((address, 7000));
    TcpStream::connect_timeout(&there, Duration::from_millis(wait_ms)).map(drop)
}

fn reaches_from(pin: &Path, address: Ipv4Addr, wait_ms: u64) -> io::Result<()> {
    NetNs::open(pin)
        .unwrap()
        .run(|| reaches(address, wait_ms))
        .unwrap()
}
