//! One container on one host: its record, its verbs, its shim.
//!
//! **Invariant:** what a container *is* lies in its record; whether it *runs* is asked of its shim and of the
//! kernel, every time. So a daemon that comes back, and one whose shims have died, tell the truth.
//!
//! **Invariant:** a verb that fails leaves what was there before, and nothing else.
//!
//! **Invariant:** one verb at a time works on a container; whoever calls sees to that.
//!
//! ```text
//! state_dir/containers/NAME/    record.json  upper/  work/  log  log.1       survives a restart of the host
//! run_dir/containers/NAME/      rootfs/  plan.json  shim.sock  shim.log  exit.json     does not
//! run_dir/netns/NAME            the pinned network namespace                           does not
//! run_dir/userns/NAME           the pinned user namespace, if it has one               does not
//! run_dir/ids/NUMBER            whose range of this host's ids that is                 does not
//! ```
//!
//! In reading order: [`host`] and [`record`] say what there is, [`place`] makes what is not a process, [`init`] and
//! [`shim`] make the processes, and the verbs put it together.

mod again;
pub mod create;
pub mod delete;
mod error;
pub mod exec;
pub mod host;
mod identity;
mod ids;
pub mod init;
pub mod kill;
pub mod place;
mod policy;
pub mod ps;
pub mod record;
pub mod shim;
pub mod start;
pub mod state;
pub mod status;
mod undo;

pub use again::{restart, restart_after, stop};
pub use create::create;
pub use delete::delete;
pub use error::ContainerError;
pub use exec::{ExecRequest, exec};
pub use host::Host;
pub use kill::kill;
pub use place::Place;
pub use ps::{ProcessInfo, ps};
pub use record::Record;
pub use start::start;
pub use status::{adopt, list, settle, status, wait};

#[cfg(test)]
mod test;
