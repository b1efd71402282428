//! Trees of bundles, made for real in mount namespaces of their own and looked at by way of the kernel's table.

mod attack;
mod mounts;
mod refusal;
mod user;

use std::collections::BTreeMap;
use std::fs::{self, File};

use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde_json::{Value, json};

use super::*;
use crate::sys::namespace::{self, CGROUP, IPC, MOUNT, NET, UTS};

/// Skips, visibly, where the tests do not run as root.
fn is_root(test: &str) -> bool {
    if crate::sys::process::is_root() {
        return true;
    }
    assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
    println!("SKIP {test}: needs root");
    false
}

/// A bundle directory with an empty root.
struct Bundle {
    dir: tempfile::TempDir,
}

impl Bundle {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// A directory beside the root: nothing may ever get there.
    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn plan(&self, change: impl FnOnce(&mut Value)) -> Result<Plan, RootfsError> {
        self.plan_with(Options::default(), change)
    }

    fn plan_with(
        &self,
        options: Options,
        change: impl FnOnce(&mut Value),
    ) -> Result<Plan, RootfsError> {
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "mounts": [],
            "linux": {"namespaces": [
                {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
            ]},
        });
        change(&mut config);
        let spec: Spec = serde_json::from_value(config).unwrap();
        Plan::of(&spec, self.dir.path(), options)
    }

    fn assert_outside_is_empty(&self) {
        assert_eq!(fs::read_dir(self.outside()).unwrap().count(), 0);
    }
}

fn mount(destination: &str, kind: &str, source: &str, options: &str) -> Value {
    let options: Vec<&str> = options.split(',').filter(|o| !o.is_empty()).collect();
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// One line of the kernel's table of mounts.
#[derive(Debug, Clone)]
struct Line {
    options: Vec<String>,
    /// `shared:N`, `master:N`, …
    propagation: String,
    kind: String,
    own: Vec<String>,
}

impl Line {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

/// The calling thread's mounts by mount point; of several on one place, the uppermost.
fn table(proc: &File) -> BTreeMap<String, Line> {
    let fd = nix::fcntl::openat(
        proc,
        "thread-self/mountinfo",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    );
    let text = io::read_to_string(File::from(fd.unwrap())).unwrap();
    let mut table = BTreeMap::new();
    for line in text.lines() {
        let (mount, filesystem) = line.split_once(" - ").unwrap();
        let mount: Vec<&str> = mount.split(' ').collect();
        let filesystem: Vec<&str> = filesystem.split(' ').collect();
        let words = |text: &str| text.split(',').map(str::to_owned).collect();
        let found = Line {
            options: words(mount[5]),
            propagation: mount[6..].join(" "),
            kind: filesystem[0].to_owned(),
            own: words(filesystem[2]),
        };
        table.insert(mount[4].to_owned(), found);
    }
    table
}

/// Runs `act` in a thread with namespaces of its own; it gets the host's `/proc`, held open.
fn apart<T: Send>(act: impl FnOnce(&File) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let proc = File::open("/proc").unwrap();
            namespace::leave(MOUNT | NET | IPC | UTS | CGROUP).unwrap();
            act(&proc)
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Builds and enters a tree, and runs `act` inside.
fn inside<T: Send>(plan: &Plan, act: impl FnOnce(&File) -> T + Send) -> T {
    apart(|proc| {
        build(plan).unwrap().enter().unwrap();
        act(proc)
    })
}

fn build(plan: &Plan) -> Result<Root<'_>, RootfsError> {
    plan.separate()?;
    plan.build(plan.sources()?)
}
