//! Seccomp profiles of bundles: several actions, conditions on arguments, several architectures, a listener.
//!
//! The profile that a template's containers get is [`super::profile`], and needs none of this: it is ours. A bundle
//! brings its own, as engines ship them. The library that compiles ours makes filters of two answers, and stacking them
//! cannot say which of two errors a call gets; so a filter is one program here, written by [`compile`].
//!
//! **Invariant:** a profile is refused before anything exists, with the field's name, or the filter answers exactly
//! what it means. What that is stands at the head of [`plan`].
//!
//! ```text
//! LinuxSeccomp ─▶ Plan::of ─▶ entries, checked ─▶ a section per architecture ─▶ compile ─▶ the program
//!                                                                                            │
//!                                              in the child, last before exec: Plan::load ◀──┘
//! ```

pub mod assemble;
pub mod compile;
pub mod plan;
pub mod table;

pub use plan::{Listener, Plan};

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator};

use super::SecurityError;
use crate::sys::{fdpass, seccomp};

/// The actions that a profile may name.
pub const ACTIONS: [LinuxSeccompAction; 9] = [
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActNotify,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActTrap,
];

/// The comparisons that a profile may use.
pub const OPERATORS: [LinuxSeccompOperator; 7] = [
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
    LinuxSeccompOperator::ScmpCmpNe,
];

/// The flags that a profile may set. TSYNC is met by itself: a process has one thread when its filter is loaded.
pub const FLAGS: [LinuxSeccompFilterFlag; 4] = [
    LinuxSeccompFilterFlag::SeccompFilterFlagLog,
    LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
    LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
    LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv,
];

/// The architectures that a profile may restrict on this machine, as the runtime specification names them.
pub fn architectures() -> Vec<&'static str> {
    let doors = table::Architecture::native().map_or(&[][..], table::Architecture::doors);
    doors
        .iter()
        .map(|door| match door {
            table::Architecture::X86_64 => "SCMP_ARCH_X86_64",
            table::Architecture::X86 => "SCMP_ARCH_X86",
            table::Architecture::X32 => "SCMP_ARCH_X32",
            table::Architecture::Aarch64 => "SCMP_ARCH_AARCH64",
            table::Architecture::Arm => "SCMP_ARCH_ARM",
        })
        .collect()
}

impl Plan {
    /// Whether this kernel can do what the filter will answer.
    ///
    /// # Errors
    /// Names an action that the kernel does not have.
    pub fn check(&self) -> Result<(), SecurityError> {
        match self
            .answers()
            .find(|answer| !seccomp::knows_action(*answer))
        {
            None => Ok(()),
            Some(answer) => Err(SecurityError::Profile {
                field: "syscalls".to_owned(),
                reason: format!("this kernel has no seccomp action {answer:#x}; use another one"),
            }),
        }
    }

    /// Loads the filter for the calling thread and everything it becomes or makes. When the profile notifies, the
    /// descriptor on which it does: from then on only calls that the profile allows go through, and the way to tell
    /// its number to another process, who fetches it, is `write`.
    ///
    /// It does not give up new privileges. A process that keeps them must load it while it has `CAP_SYS_ADMIN`:
    /// before the capabilities settle and not last.
    ///
    /// # Errors
    /// What the kernel said. The process has no filter then, and must not go on.
    pub fn load(&self) -> Result<Option<OwnedFd>, SecurityError> {
        let program: Vec<seccomp::Instruction> = self
            .program()
            .iter()
            .map(|one| seccomp::Instruction {
                code: one.code,
                jt: one.jt,
                jf: one.jf,
                k: one.k,
            })
            .collect();
        seccomp::load(&program, self.flags()).map_err(|source| SecurityError::Filter {
            operation: "load",
            source: source.into(),
        })
    }

    fn flags(&self) -> u64 {
        let listens = self.listener().is_some();
        let flags = [
            (self.log, seccomp::LOG),
            (self.spec_allow, seccomp::SPEC_ALLOW),
            (listens, seccomp::NEW_LISTENER),
            // It is about notifications, and the kernel refuses it where there are none.
            (listens && self.wait_killable, seccomp::WAIT_KILLABLE_RECV),
        ];
        let set = flags.iter().filter(|(set, _)| *set);
        set.fold(0, |all, (_, flag)| all | flag)
    }
}

impl Listener {
    /// Sends the descriptor to whoever will answer, with the state of the container, as the runtime specification
    /// draws it. `pid` is the process that has the filter.
    ///
    /// # Errors
    /// When nobody listens at the path, or takes it not.
    pub fn hand_over(
        &self,
        descriptor: BorrowedFd<'_>,
        pid: i32,
        state: &serde_json::Value,
    ) -> Result<(), SecurityError> {
        let version = state.get("ociVersion").cloned().unwrap_or_default();
        let message = serde_json::json!({
            "ociVersion": version,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.metadata,
            "state": state,
        });
        let failed = |source| SecurityError::Listener {
            path: self.path.clone(),
            source,
        };
        let socket = UnixStream::connect(&self.path).map_err(failed)?;
        let bytes = message.to_string();
        fdpass::send(socket.as_fd(), bytes.as_bytes(), &[descriptor], true).map_err(failed)
    }
}

#[cfg(test)]
mod test;
