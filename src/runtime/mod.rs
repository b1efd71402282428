//! An OCI bundle becomes a container without daemon or shim, as Podman, containerd and CRI-O ask for it.
//!
//! **Invariant:** what cannot be is refused before anything is made; what fails later leaves nothing behind.
//!
//! **Invariant:** no thread: the creator is forked, its copy becomes the container's first process. See
//! [`wire`] for what the two say to each other, and [`birth`](self) for how the process comes to be.
//!
//! **Invariant:** nothing of the host leaks in: the program runs sealed ([`seal()`]), every descriptor but the
//! first three and those that were asked for ends at exec, and a working directory outside the root is an error.
//!
//! ```text
//! godwit create ──▶ ROOT/ID/state.json   the record: the configuration, the process, its cgroup
//!       │           ROOT/ID/start.sock   where the process waits; gone once it is started
//!       └─clone3─▶ the process           a child of the creator, and when that has ended of whoever reaps for it
//!
//! godwit start ───connects──▶ the process ──exec──▶ the command
//! godwit state, kill, exec, ps, pause, …: read the record, and ask the kernel
//! godwit checkpoint ──CRIU──▶ images, and the container goes on or is deleted
//! godwit restore ──CRIU──▶ the process, in a cgroup and with a record as `create` makes them
//! godwit delete ──▶ kills what is left, removes the cgroup, runs poststop hooks, removes ROOT/ID
//! ```

mod affinity;
mod agent;
mod birth;
mod checkpoint;
mod command;
mod console;
mod create;
mod delete;
mod devices;
mod error;
mod exec;
mod features;
mod foreground;
mod hooks;
mod images;
mod init;
mod kill;
mod leave;
mod limits;
pub mod manage;
mod memory_policy;
mod owner;
pub mod plan;
mod resctrl;
mod restore;
mod run;
mod seal;
mod start;
pub mod state;
mod store;
mod streams;
mod talk;
mod undo;
mod unknown;
pub mod wire;

pub use crate::criu::Allowed;
pub use checkpoint::{CheckpointRequest, checkpoint};
pub use command::add_capabilities;
pub use create::{Request, create, read_config};
pub use delete::delete;
pub use error::{RuntimeError, in_one_line};
pub use exec::{ExecRequest, exec, read_process, template};
pub use features::{features, write_spec};
pub use kill::{kill, signal};
pub use leave::{Leaving, leaving};
pub use restore::{RestoreRequest, restore};
pub use run::{Ended, run, run_in};
pub use seal::seal;
pub use start::start;
pub use state::{Id, Record, Shown, Status};
pub use store::{DEFAULT_ROOT, Root};

use oci_spec::runtime::{Hook, Hooks as Lists};

/// The hooks of one kind, by the name of their list.
fn list_of<'a>(hooks: Option<&'a Lists>, kind: &str) -> Option<&'a Vec<Hook>> {
    let hooks = hooks?;
    match kind {
        "prestart" => prestart(hooks),
        "createRuntime" => hooks.create_runtime().as_ref(),
        "createContainer" => hooks.create_container().as_ref(),
        "startContainer" => hooks.start_container().as_ref(),
        "poststart" => hooks.poststart().as_ref(),
        _ => hooks.poststop().as_ref(),
    }
}

/// The specification deprecates it and demands it.
#[allow(deprecated)]
fn prestart(hooks: &Lists) -> Option<&Vec<Hook>> {
    hooks.prestart().as_ref()
}

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Checks all hooks; none is run.
fn check_hooks(hooks: Option<&Lists>) -> Result<(), RuntimeError> {
    for kind in KINDS {
        hooks::Hooks::of(kind, list_of(hooks, kind))?;
    }
    Ok(())
}

/// Runs the hooks of one kind.
fn run_hooks(
    kind: &'static str,
    hooks: Option<&Lists>,
    state: &serde_json::Value,
) -> Result<(), RuntimeError> {
    let list = hooks::Hooks::of(kind, list_of(hooks, kind))?;
    if list.is_empty() {
        return Ok(());
    }
    Ok(list.run(state.to_string().as_bytes())?)
}
