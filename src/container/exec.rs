//! One more command in a container that runs.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::init::{EXEC_VARIABLE, ExecPlan};
use super::state::{Verb, allow};
use super::{ContainerError, Host, create, status};
use crate::model::{Name, User};
use crate::sys::mount;

/// The longest text that an environment variable can be, name and end included.
const VARIABLE_MAX: usize = 128 * 1024;

/// What to run, and how.
#[derive(Debug)]
pub struct ExecRequest {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// `KEY=value` lines, after the container's own.
    pub env: Vec<String>,
    /// The directory it starts in; none: the container's.
    pub cwd: Option<PathBuf>,
    /// Whom it runs as; none: as the container's command.
    pub user: Option<User>,
    /// Its standard input.
    pub stdin: Stdio,
    /// Its standard output.
    pub stdout: Stdio,
    /// Its standard error. What goes wrong before the command runs is said here, too.
    pub stderr: Stdio,
}

/// Runs a command in a container, as confined as the container's own. The child ends as the command does: with
/// its exit code, or 128 and the number of the signal; 127 and 126 when it cannot be found or run, 125 when the
/// container cannot be entered. Killing the child kills the command.
pub fn exec(host: &Host, name: &Name, request: ExecRequest) -> Result<Child, ContainerError> {
    let (record, seen) = status::look(host, name)?;
    allow(name, seen.state, Verb::Exec)?;
    let init = seen
        .pid
        .ok_or_else(|| ContainerError::NoProcess { name: name.clone() })?;
    if request.command.is_empty() {
        return Err(ContainerError::Wish {
            field: "the command",
            value: "empty".to_owned(),
            remedy: "give a program and its arguments",
        });
    }
    let mut entry = create::entry_of(host, &record.spec);
    entry.command = request.command;
    entry.env.extend(request.env);
    entry.cwd = request.cwd.unwrap_or(entry.cwd);
    entry.user = request.user.unwrap_or(entry.user);
    let plan = serde_json::to_string(&ExecPlan { init, entry });
    let plan = plan.unwrap_or_default();
    if plan.len() + EXEC_VARIABLE.len() + 2 > VARIABLE_MAX {
        return Err(ContainerError::Wish {
            field: "the command with its environment",
            value: format!("{} bytes long", plan.len()),
            remedy: "give less than 128 KiB; larger input goes to the standard input",
        });
    }
    let failed = |source| ContainerError::Exec {
        name: name.clone(),
        source,
    };
    let program = mount::open_read_only(&host.exe).map_err(failed)?;
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("godwit")
        .args(["init", "--exec"])
        .env_clear()
        .env(EXEC_VARIABLE, plan)
        .current_dir("/")
        .stdin(request.stdin)
        .stdout(request.stdout)
        .stderr(request.stderr)
        .spawn()
        .map_err(failed)
}
