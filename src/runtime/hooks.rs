//! Hooks: programs that the configuration has run at six places of a container's life.
//!
//! Each gets the container's state on its standard input. The end of what it writes is kept, for the error that it
//! may become.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use oci_spec::runtime::Hook;

use crate::sys::pidfd;

/// What a hook did wrong.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The configuration has a hook that cannot be run.
    #[error("config.json: hooks.{kind}[{index}].{field} {problem}")]
    Refused {
        /// Which list.
        kind: &'static str,
        /// Its place in the list.
        index: usize,
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// It could not be started or watched.
    #[error("cannot run hooks.{kind}[{index}] ({})", .path.display())]
    Run {
        /// Which list.
        kind: &'static str,
        /// Its place in the list.
        index: usize,
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("hooks.{kind}[{index}] ({}) failed: {status}; it said: {said}", .path.display())]
    Failed {
        /// Which list.
        kind: &'static str,
        /// Its place in the list.
        index: usize,
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        said: String,
    },
    /// It did not end in time, and was killed.
    #[error("hooks.{kind}[{index}] ({}) took longer than its timeout of {seconds} s", .path.display())]
    TimedOut {
        /// Which list.
        kind: &'static str,
        /// Its place in the list.
        index: usize,
        /// The program.
        path: PathBuf,
        /// How long it had.
        seconds: i64,
    },
}

/// The hooks of one kind, checked.
#[derive(Debug, Clone, Copy)]
pub struct Hooks<'a> {
    kind: &'static str,
    list: &'a [Hook],
}

impl<'a> Hooks<'a> {
    /// Checks the hooks of one kind (the name of the list in the configuration). Nothing is run.
    pub fn of(kind: &'static str, list: Option<&'a Vec<Hook>>) -> Result<Self, HookError> {
        let list = list.map(Vec::as_slice).unwrap_or_default();
        for (index, hook) in list.iter().enumerate() {
            let refused = |field, problem: &str| HookError::Refused {
                kind,
                index,
                field,
                problem: problem.to_owned(),
            };
            if !hook.path().is_absolute() {
                return Err(refused("path", "is not an absolute path"));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(refused(
                    "timeout",
                    "is not greater than zero; leave it out for none",
                ));
            }
            let environment = hook.env().iter().flatten();
            if environment.into_iter().any(|pair| !pair.contains('=')) {
                return Err(refused("env", "has an entry without ="));
            }
        }
        Ok(Self { kind, list })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Runs them in their order with the container's state on their standard input, and stops at the first that
    /// fails. When this returns none of them runs any more. The calling process must ignore SIGPIPE, as Rust
    /// programs do: a hook need not read.
    pub fn run(&self, state: &[u8]) -> Result<(), HookError> {
        (0..self.list.len()).try_for_each(|index| self.one(index, state))
    }

    /// Runs them all, and returns what failed.
    pub fn run_all(&self, state: &[u8]) -> Vec<HookError> {
        let results = (0..self.list.len()).map(|index| self.one(index, state));
        results.filter_map(Result::err).collect()
    }

    fn one(&self, index: usize, state: &[u8]) -> Result<(), HookError> {
        let (kind, hook) = (self.kind, &self.list[index]);
        let path = hook.path().clone();
        let limit = hook
            .timeout()
            .and_then(|seconds| u64::try_from(seconds).ok());
        let ended = start(hook).and_then(|mut child| {
            let watched = watch(&mut child, state, limit.map(Duration::from_secs));
            if !matches!(watched, Ok(Some(_))) {
                // With what it has started. It may have ended by itself meanwhile.
                let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            }
            let status = child.wait()?;
            Ok((status, watched?))
        });
        match ended {
            Err(source) => Err(HookError::Run {
                kind,
                index,
                path,
                source,
            }),
            Ok((_, None)) => Err(HookError::TimedOut {
                kind,
                index,
                path,
                seconds: hook.timeout().unwrap_or_default(),
            }),
            Ok((status, _)) if status.success() => Ok(()),
            Ok((status, Some(said))) => Err(HookError::Failed {
                kind,
                index,
                path,
                status,
                said,
            }),
        }
    }
}

fn start(hook: &Hook) -> io::Result<Child> {
    let mut command = Command::new(hook.path());
    let mut words = hook.args().iter().flatten();
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    command.args(words);
    if let Some(environment) = hook.env() {
        command.env_clear();
        command.envs(environment.iter().filter_map(|pair| pair.split_once('=')));
    }
    command.process_group(0);
    let piped = Stdio::piped;
    command
        .stdin(piped())
        .stdout(piped())
        .stderr(piped())
        .spawn()
}

/// The most of a hook's output that is kept.
const KEPT: usize = 4096;

/// What is left to give to a hook, and what has come from it.
struct Streams<'a> {
    input: Option<File>,
    state: &'a [u8],
    outputs: [Option<File>; 2],
    said: Vec<u8>,
}

/// Feeds and hears a hook until it ends; returns what it wrote, or nothing when the time is over. What its own
/// children write later does not count: it is over when the hook itself is.
fn watch(child: &mut Child, state: &[u8], limit: Option<Duration>) -> io::Result<Option<String>> {
    let until = limit.map(|limit| Instant::now() + limit);
    let ends = pidfd::open(child.id() as i32)?;
    let ours = |fd: Option<OwnedFd>| -> io::Result<Option<File>> {
        let Some(fd) = fd else { return Ok(None) };
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Some(File::from(fd)))
    };
    let mut streams = Streams {
        input: ours(child.stdin.take().map(Into::into))?,
        state,
        outputs: [
            ours(child.stdout.take().map(Into::into))?,
            ours(child.stderr.take().map(Into::into))?,
        ],
        said: Vec::new(),
    };
    loop {
        let timeout = match until.map(|until| until.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            Some(left) if left.is_zero() => return Ok(None),
            // Rounded up: at the end there must be no time left.
            Some(left) => PollTimeout::try_from(left.as_millis().min(60_000) as i32 + 1)
                .unwrap_or(PollTimeout::MAX),
        };
        let ended = streams.wait(ends.as_fd(), timeout)?;
        streams.pass()?;
        if ended {
            let said = String::from_utf8_lossy(&streams.said);
            return Ok(Some(said.trim().to_owned()));
        }
    }
}

impl Streams<'_> {
    /// Waits until there is something to do; true when the hook has ended.
    fn wait(&self, ends: BorrowedFd<'_>, timeout: PollTimeout) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(ends, PollFlags::POLLIN)];
        let input = self.input.iter();
        fds.extend(input.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
        let outputs = self.outputs.iter().flatten();
        fds.extend(outputs.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(fds[0].any().unwrap_or(false))
    }

    /// Moves what can be moved at once.
    fn pass(&mut self) -> io::Result<()> {
        if let Some(input) = &mut self.input {
            match input.write(self.state) {
                Ok(written) => self.state = &self.state[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It does not want to know.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.state = &[],
                Err(error) => return Err(error),
            }
            if self.state.is_empty() {
                self.input = None;
            }
        }
        for output in &mut self.outputs {
            let mut piece = [0; 4096];
            while let Some(file) = output {
                match file.read(&mut piece) {
                    Ok(0) => *output = None,
                    Ok(length) => keep(&mut self.said, &piece[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// Keeps the last of what was said: an error comes at the end.
fn keep(said: &mut Vec<u8>, piece: &[u8]) {
    said.extend_from_slice(piece);
    let over = said.len().saturating_sub(KEPT);
    said.drain(..over);
}

#[cfg(test)]
mod test {
    use super::*;
    use std::time::Duration;

    use serde_json::{Value, json};

    fn hooks(list: Value) -> Vec<Hook> {
        serde_json::from_value(list).unwrap()
    }

    fn shell(script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["hook", "-c", script]})
    }

    fn run(list: Value, state: &[u8]) -> Result<(), HookError> {
        let list = hooks(list);
        Hooks::of("prestart", Some(&list)).unwrap().run(state)
    }

    #[test]
    fn they_get_the_state_and_their_environment_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log").display().to_string();
        let mut second = shell(&format!("echo \"$0 $A $B-$HOME\" >>{file}"));
        second["env"] = json!(["A=x=y", "B="]);
        // More than a pipe holds.
        let state = vec![b'x'; 300_000];
        run(json!([shell(&format!("wc -c >{file}")), second]), &state).unwrap();
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            "300000\nhook x=y -\n"
        );
    }

    #[test]
    fn one_that_does_not_read_or_leaves_somebody_behind_is_no_trouble() {
        let state = vec![b'x'; 300_000];
        let before = Instant::now();
        run(json!([shell("exit 0"), shell("sleep 3 & exit 0")]), &state).unwrap();
        assert!(before.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn the_first_that_fails_ends_it_and_is_told_by_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let list = json!([
            shell("true"),
            shell("echo no such thing >&2; exit 3"),
            shell(&format!("touch {}", mark.display())),
        ]);
        let said = run(list.clone(), b"{}").unwrap_err().to_string();
        assert!(said.contains("hooks.prestart[1] (/bin/sh)") && said.contains("no such thing"));
        assert!(said.contains("exit status: 3") && !mark.exists(), "{said}");
        // Of those that come after a life all are run.
        let list = hooks(list);
        let failed = Hooks::of("poststop", Some(&list)).unwrap().run_all(b"{}");
        assert!(failed.len() == 1 && mark.exists());
        let said = run(json!([{"path": "/no/such/hook"}]), b"").unwrap_err();
        assert!(said.to_string().contains("(/no/such/hook)"), "{said}");
    }

    #[test]
    fn time_that_is_over_ends_it_and_what_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut slow = shell(&format!("sleep 30 & echo $! >{}; wait", file.display()));
        slow["timeout"] = json!(1);
        let said = run(json!([slow]), b"{}").unwrap_err();
        assert!(
            matches!(said, HookError::TimedOut { seconds: 1, .. }),
            "{said}"
        );
        let pid = std::fs::read_to_string(file).unwrap();
        let stat = std::path::Path::new("/proc").join(pid.trim()).join("stat");
        let before = Instant::now();
        // Killed; whoever it has been left to has to take it in.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(before.elapsed() < Duration::from_secs(5), "it lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_anything_is() {
        for (field, hook) in [
            ("path", json!({"path": "bin/sh"})),
            ("timeout", json!({"path": "/bin/sh", "timeout": 0})),
            ("env", json!({"path": "/bin/sh", "env": ["A"]})),
        ] {
            let list = hooks(json!([{"path": "/bin/true"}, hook]));
            let said = Hooks::of("poststop", Some(&list)).unwrap_err().to_string();
            assert!(
                said.contains(&format!("hooks.poststop[1].{field}")),
                "{said}"
            );
        }
    }
}
