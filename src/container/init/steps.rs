//! THE ordered lists of what a process does on its way into a container.
//!
//! The order is not free. Mounts need the capabilities that go later; the bounding set can only be reduced by
//! root; a change of the user empties the other sets; the filters come last, because they forbid most of what
//! is above them.

use std::error::Error;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{self, Gid, Uid};

use super::Entry;
use crate::rootfs::{devices, masked};
use crate::sys::process;
use crate::{namespace, security};

/// Why a step failed.
pub type StepError = Box<dyn Error + Send + Sync>;
/// One step: what it does, in words for an error, and how.
pub type Step = (&'static str, fn(&Entry) -> Result<(), StepError>);

/// The way of the first process: it builds what it will live in.
pub const FIRST: &[Step] = &[
    ("start with ordinary signals", |_| {
        process::default_signals();
        Ok(())
    }),
    ("start a session", session),
    (
        "hide the host's cgroups",
        |_| Ok(namespace::hide_cgroups()?),
    ),
    ("set the host name", |entry| {
        Ok(unistd::sethostname(&entry.hostname)?)
    }),
    (
        "change the root, mount file systems and make devices",
        |entry| Ok(devices::move_in(&entry.root, entry.userns.is_some())?),
    ),
    ("mask what tells of the host", |_| Ok(masked::mask()?)),
    ("close the standard input", empty_stdin),
    ("set limits", |_| Ok(security::set_limits()?)),
    (
        "bound capabilities",
        |_| Ok(security::bound_capabilities()?),
    ),
    ("change the user", change_user),
    ("give up capabilities", |entry| {
        Ok(security::settle_capabilities(entry.user.uid == 0)?)
    }),
    ("enter the working directory", enter_directory),
    ("keep no descriptors", |_| {
        Ok(process::close_on_exec_from(3)?)
    }),
    ("filter system calls", |_| Ok(security::compile()?.load()?)),
];

/// The way of a process that comes into a container later: everything is there already.
pub const LATER: &[Step] = &[
    ("start with ordinary signals", |_| {
        process::default_signals();
        Ok(())
    }),
    ("start a session", session),
    ("set limits", |_| Ok(security::set_limits()?)),
    (
        "bound capabilities",
        |_| Ok(security::bound_capabilities()?),
    ),
    ("change the user", change_user),
    ("give up capabilities", |entry| {
        Ok(security::settle_capabilities(entry.user.uid == 0)?)
    }),
    ("end with its keeper", |_| {
        // After the change of the user, which would undo it.
        Ok(nix::sys::prctl::set_pdeathsig(
            nix::sys::signal::Signal::SIGKILL,
        )?)
    }),
    ("enter the working directory", enter_directory),
    ("keep no descriptors", |_| {
        Ok(process::close_on_exec_from(3)?)
    }),
    ("filter system calls", |_| Ok(security::compile()?.load()?)),
];

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct StepFailed {
    /// Which.
    pub step: &'static str,
    /// Why.
    #[source]
    pub source: StepError,
}

/// Takes the steps of a list, and stops at the first that fails.
pub fn take(steps: &[Step], entry: &Entry) -> Result<(), StepFailed> {
    steps
        .iter()
        .try_for_each(|(step, act)| act(entry).map_err(|source| StepFailed { step, source }))
}

fn session(_: &Entry) -> Result<(), StepError> {
    // The session of the host that we came from does not exist at another host.
    unistd::setsid()?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

fn empty_stdin(_: &Entry) -> Result<(), StepError> {
    Ok(unistd::dup2_stdin(File::open("/dev/null")?)?)
}

fn change_user(entry: &Entry) -> Result<(), StepError> {
    let groups: Vec<Gid> = entry
        .user
        .groups
        .iter()
        .copied()
        .map(Gid::from_raw)
        .collect();
    let (uid, gid) = (Uid::from_raw(entry.user.uid), Gid::from_raw(entry.user.gid));
    unistd::setgroups(&groups)?;
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)?;
    Ok(())
}

fn enter_directory(entry: &Entry) -> Result<(), StepError> {
    // As the user, who may not be allowed to be there.
    unistd::chdir(&entry.cwd).map_err(|errno| format!("{}: {errno}", entry.cwd.display()).into())
}

/// Becomes the command. It returns only if that is impossible.
pub fn become_command(entry: &Entry) -> StepError {
    match prepared(entry).and_then(|(program, arguments, environment)| {
        unistd::execve(&program, &arguments, &environment)
            .map_err(|errno| io::Error::from(errno).into())
    }) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

type Prepared = (CString, Vec<CString>, Vec<CString>);

fn prepared(entry: &Entry) -> Result<Prepared, StepError> {
    let command = entry.command.first().ok_or("the command is empty")?;
    let program = find(command, &entry.env)?;
    let strings = |list: &[String]| {
        list.iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<Vec<_>, _>>()
    };
    let program = CString::new(program.into_os_string().into_encoded_bytes())?;
    Ok((program, strings(&entry.command)?, strings(&entry.env)?))
}

/// Where programs are looked for when the environment does not say.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds a command as a shell would: a path as it is, a bare name in the directories of PATH.
fn find(command: &str, environment: &[String]) -> Result<PathBuf, StepError> {
    if command.contains('/') {
        return Ok(PathBuf::from(command));
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|v| v.strip_prefix("PATH="));
    let path = path.filter(|p| !p.is_empty()).unwrap_or(USUAL_PATH);
    let mut found_unusable = false;
    for directory in path.split(':') {
        let candidate = Path::new(directory).join(command);
        match fs::metadata(&candidate) {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(_) => found_unusable = true,
            Err(_) => {}
        }
    }
    let (errno, what) = if found_unusable {
        (Errno::EACCES, "not executable")
    } else {
        (Errno::ENOENT, "not found")
    };
    let text = format!("{command}: {what} in {path}");
    Err(io::Error::new(io::Error::from(errno).kind(), text).into())
}

/// The exit code of a shell for a command that could not be run.
pub fn exit_code_of(error: &StepError) -> u8 {
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => 127,
        _ => 126,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_for_in_the_path_and_the_last_path_counts() {
        let env = ["PATH=/nowhere".to_owned(), "PATH=/nothing:/bin".to_owned()];
        assert_eq!(find("sh", &env).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("./x", &env).unwrap(), Path::new("./x"));
        assert!(find("sh", &[]).is_ok());
        let missing = find("no-such-program", &env).unwrap_err();
        assert_eq!(exit_code_of(&missing), 127);
        assert!(missing.to_string().contains("not found in /nothing:/bin"));
    }

    #[test]
    fn the_filters_come_last() {
        for list in [FIRST, LATER] {
            assert_eq!(list.last().unwrap().0, "filter system calls");
        }
    }
}
