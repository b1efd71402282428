//! The freezer: every process of a cgroup stops, and goes on as if nothing had been.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Cgroup, CgroupError, failed};

/// The value of one key in the text of `cgroup.events`.
pub(super) fn event(text: &str, key: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .any(|(k, value)| k == key && value.trim() == "1")
}

impl Cgroup {
    /// Freezes every process and waits until all stand still. When that takes longer than `wait` it is an
    /// error, and everything runs again.
    pub fn freeze(&self, wait: Duration) -> Result<(), CgroupError> {
        self.request_freeze()?;
        let frozen = self.wait_for("frozen", true, wait);
        if frozen.is_err() {
            // The first error is the one to tell.
            let _ = self.thaw();
        }
        frozen
    }

    /// Asks for the freeze and does not wait for it.
    pub fn request_freeze(&self) -> Result<(), CgroupError> {
        self.write("freeze", "cgroup.freeze", "1")
    }

    /// Lets everything run.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.write("thaw", "cgroup.freeze", "0")
    }

    /// Whether every process stands still.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(event(&self.read("cgroup.events")?, "frozen"))
    }

    /// Waits until `key` in `cgroup.events` has the value `wanted`. The kernel wakes a poller of that file
    /// whenever it changes.
    pub(super) fn wait_for(
        &self,
        key: &'static str,
        wanted: bool,
        wait: Duration,
    ) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let mut file = File::open(&path).map_err(failed("open", &path))?;
        let deadline = Instant::now() + wait;
        loop {
            let mut text = String::new();
            file.rewind()
                .and_then(|()| file.read_to_string(&mut text))
                .map_err(failed("read", &path))?;
            if event(&text, key) == wanted {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Timeout {
                    path: self.path.clone(),
                    state: if wanted { key } else { "empty" },
                    wait,
                });
            }
            let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(failed("wait for", &path)(error.into())),
            }
        }
    }
}
