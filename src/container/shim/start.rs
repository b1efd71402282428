//! How a shim comes to be: started by the daemon, it forks, and only the copy stays.
//!
//! Thus the daemon has no child to wait for, and a shim has no parent that could end it: it has a session and a
//! cgroup of its own.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::client::{Client, ShimError};
use super::serve::Shim;
use crate::sys::clone::{self, Clone, Forked};

/// What a shim is to be started with.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The godwit program.
    pub program: &'a Path,
    /// The container's run directory.
    pub directory: &'a Path,
    /// The container's log.
    pub log: &'a Path,
    /// The cgroup of shims.
    pub cgroup: &'a Path,
    /// The user who owns the output pipes; none: no pipes, for a shim that will adopt.
    pub owner: Option<u32>,
}

/// Starts a shim and connects to it.
pub fn start(how: &Start<'_>) -> Result<Client, ShimError> {
    // What a shim that is gone has left.
    match std::fs::remove_file(super::socket(how.directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ShimError::io("clear the socket", how.directory)(error));
        }
        _ => {}
    }
    let mut command = Command::new(how.program);
    command.arg0("godwit");
    command.arg("shim").arg("--directory").arg(how.directory);
    command
        .arg("--log")
        .arg(how.log)
        .arg("--cgroup")
        .arg(how.cgroup);
    match how.owner {
        Some(owner) => command.arg("--owner").arg(owner.to_string()),
        None => command.arg("--adopt"),
    };
    let mut starter = command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(ShimError::io("start the shim of", how.directory))?;
    let mut said = String::new();
    // It is at its end when the starter has ended and the shim has turned away from it.
    let heard = match &mut starter.stderr {
        Some(stderr) => stderr.read_to_string(&mut said).map(drop),
        None => Ok(()),
    };
    let status = starter.wait();
    heard.map_err(ShimError::io("hear the shim of", how.directory))?;
    if !status.is_ok_and(|status| status.success()) || !said.is_empty() {
        return Err(ShimError::Start {
            why: said.trim().to_owned(),
        });
    }
    Client::connect(how.directory)
}

/// The command line of a shim.
#[derive(Debug, Default)]
struct Arguments {
    directory: PathBuf,
    log: PathBuf,
    cgroup: PathBuf,
    owner: Option<u32>,
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut adopt = false;
    let mut arguments = arguments;
    while let Some(word) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{word:?} has no value"))
        };
        match word.to_str() {
            Some("--directory") => parsed.directory = value()?.into(),
            Some("--log") => parsed.log = value()?.into(),
            Some("--cgroup") => parsed.cgroup = value()?.into(),
            Some("--owner") => {
                let text = value()?;
                let number = text.to_str().and_then(|text| text.parse().ok());
                parsed.owner = Some(number.ok_or_else(|| format!("{text:?} is not a user id"))?);
            }
            Some("--adopt") => adopt = true,
            _ => return Err(format!("{word:?} is not an argument of a shim")),
        }
    }
    let paths = [&parsed.directory, &parsed.log, &parsed.cgroup];
    if paths.iter().any(|path| !path.is_absolute()) || adopt == parsed.owner.is_some() {
        return Err("a shim is started by godwit itself; use `godwit run`".to_owned());
    }
    Ok(parsed)
}

/// Forks. The copy, in a session and a cgroup of its own and listening, gets the shim; the caller gets none.
pub(super) fn detach(arguments: impl Iterator<Item = OsString>) -> Result<Option<Shim>, String> {
    let arguments = parse(arguments)?;
    let cannot = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
    if clone::clone(&Clone::default()).map_err(cannot("fork"))? != Forked::Child {
        return Ok(None);
    }
    setsid().map_err(|errno| format!("cannot start a session: {errno}"))?;
    std::fs::write(arguments.cgroup.join("cgroup.procs"), "0")
        .map_err(cannot("join the cgroup of shims"))?;
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| format!("cannot become a subreaper: {errno}"))?;
    // The last to go when memory is short; where that is not allowed it lives as dangerously as others.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let diary = arguments.directory.join("shim.log");
    let shim =
        Shim::new(arguments.directory, arguments.log, arguments.owner).map_err(cannot("listen"))?;
    turn_away(&diary).map_err(cannot("open the shim's own log"))?;
    Ok(Some(shim))
}

/// Leaves the descriptors of whoever started us, who waits for that.
fn turn_away(diary: &Path) -> io::Result<()> {
    let mut how = OpenOptions::new();
    let diary = how.create(true).append(true).mode(0o600).open(diary)?;
    let nothing = OpenOptions::new().read(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&diary)?;
    dup2_stderr(&diary)?;
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Arguments, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn a_shim_knows_its_place() {
        let all = ["--directory", "/run/c", "--log", "/log", "--cgroup", "/cg"];
        assert_eq!(
            parsed(&[&all[..], &["--owner", "7"]].concat())
                .unwrap()
                .owner,
            Some(7)
        );
        assert_eq!(
            parsed(&[&all[..], &["--adopt"]].concat()).unwrap().owner,
            None
        );
        for bad in [
            &["--owner", "7", "--adopt"][..],
            &[],
            &["--owner"],
            &["--owner", "x"],
            &["y"],
        ] {
            assert!(parsed(&[&all[..], bad].concat()).is_err(), "{bad:?}");
        }
        assert!(parsed(&["--directory", "relative", "--adopt"]).is_err());
    }
}
