//! The last stretch of a process on its way to the command it becomes: the user, capabilities, the filter, exec.
//!
//! The order is not free. A filter needs either a capability or the promise of no new privileges, so without the
//! promise it comes before the capabilities go, and with it as late as possible. The working directory is entered
//! as root first (the user may not be allowed to walk there), and as the user when root is not (a file system
//! that serves only its owner).

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Uid};
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp, Process, User};

use super::RuntimeError;
use crate::security::{Sets, seccomp};
use crate::sys::process;

/// Why a step failed.
pub(super) type StepError = Box<dyn std::error::Error + Send + Sync>;

/// A command, ready to be become.
#[derive(Debug)]
pub(super) struct Command {
    process: Process,
    sets: Sets,
    filter: Option<seccomp::Plan>,
    /// How many descriptors after the first three the command inherits.
    preserve: u32,
}

impl Command {
    /// Checks what is asked.
    pub fn of(
        process: Process,
        seccomp: Option<&LinuxSeccomp>,
        preserve: u32,
    ) -> Result<Self, RuntimeError> {
        let sets = process.capabilities().as_ref().map(Sets::of);
        let sets = sets.transpose()?.unwrap_or_default();
        let filter = seccomp.map(seccomp::Plan::of).transpose()?;
        if let Some(filter) = &filter {
            filter.check()?;
        }
        Ok(Self {
            process,
            sets,
            filter,
            preserve,
        })
    }

    /// What was asked.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Whether it could be run, as far as that can be told before the start: so that a wrong name is an error of
    /// `create`, where people look for it.
    pub fn look_for(&self) -> Result<(), StepError> {
        self.find().map(drop)
    }

    /// Gives up everything that the command must not have. A listener of the filter is passed to `tell`.
    pub fn settle(
        &self,
        tell: impl FnOnce(&OwnedFd) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let user = self.process.user();
        hand_over_stdio(user);
        // Before the filter, which may not know so new a call. What is opened from now on ends at exec anyway.
        process::close_on_exec_from(3 + self.preserve)?;
        let no_new_privileges = self.process.no_new_privileges().unwrap_or(false);
        if no_new_privileges {
            prctl::set_no_new_privs().map_err(|e| format!("no_new_privs: {e}"))?;
        }
        self.label()?;
        let mut listener = None;
        if !no_new_privileges {
            listener = self.load_filter()?;
        }
        self.sets.bound()?;
        let entered = unistd::chdir(self.process.cwd());
        become_user(user)?;
        self.sets.settle()?;
        if entered.is_err() {
            self.enter()?;
        }
        check_directory()?;
        // A change of the user makes a process dumpable where the host is set so.
        prctl::set_dumpable(false).map_err(|e| format!("hide: {e}"))?;
        if no_new_privileges {
            listener = self.load_filter()?;
        }
        if let Some(listener) = listener {
            tell(&listener)?;
        }
        Ok(())
    }

    fn enter(&self) -> Result<(), StepError> {
        let cwd = self.process.cwd();
        unistd::chdir(cwd)
            .map_err(|errno| format!("chdir to cwd ({:?}): {}", cwd, errno.desc()).into())
    }

    fn load_filter(&self) -> Result<Option<OwnedFd>, StepError> {
        match &self.filter {
            Some(filter) => Ok(filter.load()?),
            None => Ok(None),
        }
    }

    /// Asks the security modules for the labels of the command.
    fn label(&self) -> Result<(), StepError> {
        let apparmor = self.process.apparmor_profile().as_deref().unwrap_or("");
        if !apparmor.is_empty() {
            write_label("apparmor/exec", "exec", &format!("exec {apparmor}"))
                .map_err(|error| format!("apparmor profile {apparmor:?}: {error}"))?;
        }
        let selinux = self.process.selinux_label().as_deref().unwrap_or("");
        if !selinux.is_empty() {
            write_label("selinux/exec", "exec", selinux)
                .map_err(|error| format!("SELinux label {selinux:?}: {error}"))?;
        }
        Ok(())
    }

    /// Becomes the command. It returns only if that is impossible.
    pub fn become_it(&self) -> StepError {
        match self.prepared() {
            Ok((program, arguments, environment)) => {
                process::default_signals();
                match unistd::execve(&program, &arguments, &environment) {
                    Ok(never) => match never {},
                    Err(errno) => format!("exec {program:?}: {}", lower(errno)).into(),
                }
            }
            Err(error) => error,
        }
    }

    fn prepared(&self) -> Result<(CString, Vec<CString>, Vec<CString>), StepError> {
        let program = CString::new(self.find()?.into_os_string().into_encoded_bytes())?;
        let text = |list: &[String]| {
            list.iter()
                .map(|text| CString::new(text.as_str()))
                .collect::<Result<Vec<_>, _>>()
        };
        let arguments = text(self.process.args().as_deref().unwrap_or_default())?;
        let mut environment = self.process.env().clone().unwrap_or_default();
        if !environment.iter().any(|line| line.starts_with("HOME=")) {
            environment.push(format!("HOME={}", home_of(self.process.user().uid())));
        }
        Ok((program, arguments, text(&environment)?))
    }

    /// Finds the program as a shell would.
    fn find(&self) -> Result<PathBuf, StepError> {
        let args = self.process.args().as_deref().unwrap_or_default();
        let name = args.first().ok_or("the command is empty")?;
        if name.contains('/') {
            // Relative to the working directory, which is entered later.
            let path = self.process.cwd().join(name);
            return match fs::metadata(&path) {
                Err(error) => Err(format!("exec: {name:?}: stat {name}: {}", plain(&error)).into()),
                Ok(meta) if meta.is_dir() => Err(format!("exec: {name:?}: is a directory").into()),
                Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
                    Err(format!("exec: {name:?}: permission denied").into())
                }
                Ok(_) => Ok(PathBuf::from(name)),
            };
        }
        let environment = self.process.env().as_deref().unwrap_or_default();
        let path = environment
            .iter()
            .rev()
            .find_map(|v| v.strip_prefix("PATH="));
        let executable = |candidate: &PathBuf| {
            fs::metadata(candidate)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        path.unwrap_or(USUAL_PATH)
            .split(':')
            .map(|directory| self.process.cwd().join(directory).join(name))
            .find(executable)
            .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH").into())
    }
}

/// Where programs are looked for when the environment does not say.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// No capability in any set: what a process has that does not ask for some.
fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(Some(Default::default()))
        .set_effective(Some(Default::default()))
        .set_inheritable(Some(Default::default()))
        .set_permitted(Some(Default::default()))
        .set_ambient(Some(Default::default()));
    none
}

/// Adds capabilities to all the sets of a process.
pub fn add_capabilities(process: &mut Process, more: &[Capability]) {
    let mut all = process
        .capabilities()
        .clone()
        .unwrap_or_else(no_capabilities);
    let with = |set: &Option<std::collections::HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(more);
        Some(set)
    };
    let (bounding, effective) = (with(all.bounding()), with(all.effective()));
    let (inheritable, permitted) = (all.inheritable().clone(), with(all.permitted()));
    let ambient = all.ambient().clone();
    all.set_bounding(bounding)
        .set_effective(effective)
        .set_inheritable(inheritable)
        .set_permitted(permitted)
        .set_ambient(ambient);
    process.set_capabilities(Some(all));
}

/// The streams of a process belong to its user, who may then open them anew by `/dev/stdout`. Streams that cannot
/// be given away stay what they are: they work as they are.
fn hand_over_stdio(user: &User) {
    let null = fs::metadata("/dev/null").map(|meta| meta.rdev());
    let streams = [
        io::stdin().as_fd().try_clone_to_owned(),
        io::stdout().as_fd().try_clone_to_owned(),
        io::stderr().as_fd().try_clone_to_owned(),
    ];
    for stream in streams.into_iter().flatten() {
        let stream = fs::File::from(stream);
        let Ok(meta) = stream.metadata() else {
            continue;
        };
        let is_null = meta.rdev() != 0 && null.as_ref().is_ok_and(|null| *null == meta.rdev());
        if meta.uid() != user.uid() && !is_null {
            let _ = unistd::fchown(&stream, Some(Uid::from_raw(user.uid())), None);
        }
    }
}

fn become_user(user: &User) -> Result<(), StepError> {
    umask(Mode::from_bits_truncate(user.umask().unwrap_or(0o022)));
    let groups = user.additional_gids().clone().unwrap_or_default();
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    unistd::setgroups(&groups).map_err(|e| format!("setgroups: {}", lower(e)))?;
    unistd::setresgid(gid, gid, gid)
        .map_err(|e| format!("setgid {gid} (process.user.gid): {}", lower(e)))?;
    unistd::setresuid(uid, uid, uid)
        .map_err(|e| format!("setuid {uid} (process.user.uid): {}", lower(e)))?;
    Ok(())
}

/// A working directory outside the root would lead a process out (CVE-2024-21626).
fn check_directory() -> Result<(), StepError> {
    let cwd = unistd::getcwd().map_err(|e| format!("getcwd: {}", lower(e)))?;
    if cwd.is_absolute() {
        Ok(())
    } else {
        Err("the working directory is outside of the container's root".into())
    }
}

fn write_label(path: &str, old: &str, label: &str) -> io::Result<()> {
    let attributes = Path::new("/proc/thread-self/attr");
    let modern = attributes.join(path);
    let at = if modern.exists() {
        modern
    } else {
        attributes.join(old)
    };
    fs::write(at, label)
}

/// The home directory that the container's own book of users gives, as a login would have it.
fn home_of(uid: u32) -> String {
    let book = fs::read_to_string("/etc/passwd").unwrap_or_default();
    home_in(&book, uid).unwrap_or("/").to_owned()
}

fn home_in(book: &str, uid: u32) -> Option<&str> {
    let line = book.lines().map(|line| line.split(':').collect::<Vec<_>>());
    line.into_iter()
        .find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))
        .and_then(|fields| fields.get(5).copied())
        .filter(|home| !home.is_empty())
}

/// What the kernel said in the words that other runtimes use, for those who look for them.
pub(super) fn lower(errno: nix::errno::Errno) -> String {
    errno.desc().to_lowercase()
}

fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => lower(nix::errno::Errno::from_raw(number)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_home_is_found_by_the_number() {
        let book =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/sh\nn:x:5:5:::\n";
        assert_eq!(home_in(book, 0), Some("/root"));
        assert_eq!(home_in(book, 33), Some("/var/www"));
        assert_eq!(home_in(book, 5), None);
        assert_eq!(home_in(book, 7), None);
    }
}
