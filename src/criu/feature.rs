//! Which CRIU there is, what it can do, and whether it works here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::rpc::{FeatureFlags, Kind};
use super::{CriuError, DumpRequest, RestoreRequest, Session, Spawn, Verdict};
use crate::model::CriuVersion;
use crate::sys::before_exec::{BeforeExec, before_exec};

/// Where CRIU is looked for, in this order, before `PATH`.
const PLACES: [&str; 2] = ["/usr/local/sbin/criu", "/usr/sbin/criu"];

/// The CRIU of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    program: PathBuf,
    version: CriuVersion,
}

/// What kernel and CRIU can do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Soft-dirty bits, and so CRIU's pre-dumps.
    pub mem_track: bool,
    /// Restores without memory, filled in through a userfaultfd.
    pub lazy_pages: bool,
}

/// What the self-test measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfTest {
    /// Dumping a tiny task, from the start of CRIU to its answer.
    pub dump: Duration,
    /// Restoring it.
    pub restore: Duration,
}

impl Criu {
    /// Finds CRIU, at `configured` alone where that is given, and asks for its version.
    pub fn find(configured: Option<&Path>) -> Result<Self, CriuError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<PathBuf> = match configured {
            Some(program) => vec![program.to_owned()],
            None => PLACES
                .iter()
                .map(PathBuf::from)
                .chain(std::env::split_paths(&path).map(|directory| directory.join("criu")))
                .collect(),
        };
        let Some(program) = candidates.iter().find(|path| is_program(path)) else {
            let mut searched: Vec<String> = Vec::new();
            for candidate in &candidates {
                let text = candidate.display().to_string();
                if !searched.contains(&text) {
                    searched.push(text);
                }
            }
            return Err(CriuError::Missing {
                searched: searched.join(", "),
            });
        };
        Self::at(program)
    }

    /// The CRIU at `program`, which is asked for its version.
    fn at(program: &Path) -> Result<Self, CriuError> {
        let unknown = CriuVersion {
            major: 0,
            minor: 0,
            patch: 0,
        };
        let criu = Self {
            program: program.to_owned(),
            version: unknown,
        };
        let answer =
            Session::start(&criu, Spawn::default())?.simple("version", Kind::Version, None)?;
        let version = answer.version.unwrap_or_default();
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        let version = CriuVersion {
            major: number(version.major),
            minor: number(version.minor),
            patch: number(version.sublevel.unwrap_or(0)),
        };
        if version < CriuVersion::OLDEST {
            return Err(CriuError::TooOld { version });
        }
        Ok(Self { version, ..criu })
    }

    /// A CRIU that was found before, by another process of this host: it is not asked again.
    pub fn known(program: &Path, version: CriuVersion) -> Self {
        let program = program.to_owned();
        Self { program, version }
    }

    /// The executable.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its version.
    pub fn version(&self) -> CriuVersion {
        self.version
    }

    /// Whether this kernel has everything CRIU cannot do without. CRIU logs into `scratch`, an existing directory.
    pub fn check(&self, scratch: &Path) -> Result<(), CriuError> {
        Session::start(self, Spawn::default())?.check(scratch)
    }

    /// What this kernel and CRIU can do beyond that.
    pub fn features(&self) -> Result<Features, CriuError> {
        let all = FeatureFlags {
            mem_track: Some(true),
            lazy_pages: Some(true),
            pidfd_store: Some(true),
        };
        let session = Session::start(self, Spawn::default())?;
        let answer = session.simple("feature check", Kind::FeatureCheck, Some(all))?;
        let features = answer.features.unwrap_or_default();
        Ok(Features {
            mem_track: features.mem_track == Some(true),
            lazy_pages: features.lazy_pages == Some(true),
        })
    }

    /// Dumps and restores a task of its own, `task`, in a new directory beneath `scratch`, which is best on a
    /// tmpfs. The task must do nothing but wait: `sleep 1000` is one.
    ///
    /// Leaves neither the task nor the directory behind.
    pub fn self_test(&self, scratch: &Path, task: Command) -> Result<SelfTest, CriuError> {
        let failed = |operation| move |source| CriuError::SelfTest { operation, source };
        let images = scratch.join(format!("criu-self-test-{}", std::process::id()));
        let _ = fs::remove_dir_all(&images);
        fs::create_dir_all(&images).map_err(failed("make its directory"))?;
        let result = self.round_trip(&images, task);
        let removed = fs::remove_dir_all(&images).map_err(failed("remove its directory"));
        let test = result?;
        removed?;
        Ok(test)
    }

    fn round_trip(&self, images: &Path, mut task: Command) -> Result<SelfTest, CriuError> {
        let failed = |operation| move |source| CriuError::SelfTest { operation, source };
        task.current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Not the leader of a session, it would need the session of a leader that is not dumped.
        before_exec(
            &mut task,
            BeforeExec {
                new_session: true,
                ..BeforeExec::default()
            },
        );
        let mut task = Task(task.spawn().map_err(failed("start its task"))?);
        let mut agree = |_| Verdict::Continue;
        let begin = Instant::now();
        let request = DumpRequest::new(task.0.id().cast_signed(), images);
        Session::start(self, Spawn::default())?.dump(&request, &mut agree)?;
        let dump = begin.elapsed();
        // Until it is reaped, its process id is taken.
        task.0.wait().map_err(failed("reap its dumped task"))?;
        let begin = Instant::now();
        let request = RestoreRequest::new(images);
        let restored = Session::start(self, Spawn::default())?.restore(&request, &mut agree)?;
        let restore = begin.elapsed();
        let state = state(restored.pid).map_err(failed("look at its restored task"));
        let pid = Pid::from_raw(restored.pid);
        let ended = kill(pid, Signal::SIGKILL).and_then(|()| waitpid(pid, None));
        ended.map_err(|error| failed("end its restored task")(error.into()))?;
        match state? {
            'S' | 'R' => Ok(SelfTest { dump, restore }),
            state => Err(CriuError::NotRestored {
                state: state.to_string(),
            }),
        }
    }
}

/// A task that does not outlive its test.
struct Task(Child);

impl Drop for Task {
    fn drop(&mut self) {
        // Both fail only where it is gone and reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state letter of a process.
fn state(pid: i32) -> io::Result<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything, a parenthesis too.
    let after = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    after.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_missing_criu_is_named_with_every_place() {
        let error = Criu::find(Some(Path::new("/nowhere/criu"))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nowhere/criu") && text.contains("install CRIU"));
    }

    #[test]
    fn a_program_that_is_not_criu_is_an_error_that_says_so() {
        let Err(error) = Criu::find(Some(Path::new("/bin/true"))) else {
            panic!("/bin/true is no CRIU");
        };
        let text = error.to_string();
        assert!(
            text.contains("CRIU ended") || text.contains("cannot"),
            "{text}"
        );
    }
}
