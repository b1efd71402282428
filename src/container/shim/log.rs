//! From the pipes of a container's output into its log, on a thread of its own: whatever else the shim does,
//! a container never waits for its log.
//!
//! The log is bounded: at [`FILE_MAX`] it becomes `log.1`, in the place of the one before. Where it cannot be
//! written (the disk is full) its lines are lost, and the container runs on.

use std::fs::{File, OpenOptions, rename};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::line::Lines;

/// How long a log file gets.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// The thread that writes the log.
pub struct Pump {
    ended: Receiver<()>,
}

impl Pump {
    /// Starts to write to `path` what comes out of the pipes, until nobody can write to them any more.
    pub fn start(pipes: [OwnedFd; 2], path: &Path) -> Self {
        let (ending, ended) = channel();
        let mut log = Log::at(path);
        thread::spawn(move || {
            pump(pipes, &mut log);
            // Nobody may be waiting for it.
            let _ = ending.send(());
        });
        Self { ended }
    }

    /// Waits until everything is written, but not for longer than `wait`.
    pub fn finish(&self, wait: Duration) {
        // Either it has ended or it takes too long: in both cases we go on.
        let _ = self.ended.recv_timeout(wait);
    }
}

fn pump(pipes: [OwnedFd; 2], log: &mut Log) {
    let names = ["stdout", "stderr"];
    let mut sources: Vec<(File, Lines)> = pipes
        .into_iter()
        .zip(names)
        .map(|(pipe, name)| (File::from(pipe), Lines::of(name)))
        .collect();
    let mut buffer = vec![0; 64 * 1024];
    let mut out = Vec::new();
    while !sources.is_empty() {
        let ready = wait_for(&sources);
        let mut index = 0;
        sources.retain_mut(|(pipe, lines)| {
            index += 1;
            if !ready.get(index - 1).copied().unwrap_or(false) {
                return true;
            }
            match pipe.read(&mut buffer) {
                Ok(count @ 1..) => {
                    lines.take(now(), &buffer[..count], &mut out);
                    true
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
                Ok(0) | Err(_) => {
                    lines.end(now(), &mut out);
                    false
                }
            }
        });
        log.write(&out);
        out.clear();
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Waits for output, and says which of the sources have some, or are at their end.
fn wait_for(sources: &[(File, Lines)]) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> = sources
        .iter()
        .map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => fds.iter().map(|fd| fd.any().unwrap_or(true)).collect(),
        Err(Errno::EINTR) => Vec::new(),
        Err(_) => vec![true; fds.len()],
    }
}

/// The log file and the one before it.
struct Log {
    path: PathBuf,
    file: Option<File>,
    length: u64,
}

impl Log {
    fn at(path: &Path) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            length: 0,
        };
        log.open();
        log
    }

    fn open(&mut self) {
        let mut how = OpenOptions::new();
        how.create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        self.file = how.open(&self.path).ok();
        let meta = self.file.as_ref().and_then(|file| file.metadata().ok());
        self.length = meta.map_or(0, |meta| meta.len());
    }

    /// Adds whole records. A failure loses them: there is nowhere to report it to.
    fn write(&mut self, records: &[u8]) {
        if self.length + records.len() as u64 > FILE_MAX {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            let _ = rename(&self.path, older);
            self.open();
        }
        if self.file.is_none() {
            self.open();
        }
        if let Some(file) = &mut self.file
            && file.write_all(records).is_ok()
        {
            self.length += records.len() as u64;
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn everything_printed_is_in_the_log_when_the_pump_has_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let [(out, out_write), (err, err_write)] = [(); 2].map(|()| nix::unistd::pipe().unwrap());
        let pump = Pump::start([out, err], &path);
        File::from(out_write).write_all(b"hello\nworld").unwrap();
        File::from(err_write).write_all(b"oh\n").unwrap();
        pump.finish(Duration::from_secs(10));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<&str> = text
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        lines.sort_unstable();
        assert_eq!(lines, ["stderr F oh", "stdout F hello", "stdout P world"]);
    }

    #[test]
    fn a_long_log_is_cut_and_one_older_file_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::at(&dir.path().join("log"));
        for _ in 0..5 {
            log.write(&vec![b'x'; FILE_MAX as usize / 2]);
        }
        let length = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert_eq!((length("log"), length("log.1")), (FILE_MAX / 2, FILE_MAX));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_nobody() {
        let (out, write) = nix::unistd::pipe().unwrap();
        let (err, _) = nix::unistd::pipe().unwrap();
        let pump = Pump::start([out, err], Path::new("/nonexistent/log"));
        File::from(write).write_all(&[b'x'; 1 << 20]).unwrap();
        pump.finish(Duration::from_secs(10));
    }
}
