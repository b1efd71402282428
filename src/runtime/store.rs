//! The records of the containers below one root directory: `ROOT/ID/state.json`, readable by its owner alone.
//!
//! A record is replaced as a whole, so reading needs no lock. Verbs that change a container hold its lock. The
//! lock belongs to a process and not to an open file, so that it does not pass to the container's first process.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::RuntimeError;
use super::error::file;
use super::state::{Id, Identity, Record, Status};

/// Where the records are when the command line does not say.
pub const DEFAULT_ROOT: &str = "/run/godwit/oci";

/// One root directory.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// The root at `path`, which need not exist.
    pub fn at(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has a container of this id.
    pub fn has(&self, id: &Id) -> bool {
        self.path.join(id.as_str()).is_dir()
    }

    /// The ids of its containers, sorted.
    pub fn ids(&self) -> Result<Vec<Id>, RuntimeError> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(file("list", &self.path))?,
        };
        let mut ids: Vec<Id> = entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Takes an id that is free, and locks it.
    pub(super) fn take(&self, id: &Id) -> Result<Home, RuntimeError> {
        let private = |path: &Path, recursive| {
            DirBuilder::new()
                .mode(0o700)
                .recursive(recursive)
                .create(path)
        };
        private(&self.path, true).map_err(file("make", &self.path))?;
        let path = self.path.join(id.as_str());
        match private(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::Exists { id: id.to_string() });
            }
            other => other.map_err(file("make", &path))?,
        }
        Home::lock(path)
    }

    /// Locks a container that exists, and reads its record.
    pub(super) fn open(&self, id: &Id) -> Result<(Home, Record), RuntimeError> {
        if !self.has(id) {
            return Err(self.missing(id));
        }
        let home = match Home::lock(self.path.join(id.as_str())) {
            Err(RuntimeError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(self.missing(id));
            }
            other => other?,
        };
        let record = self.read(id)?;
        self.check_stays(id)?;
        Ok((home, record))
    }

    /// Lends a container that runs to whoever moves it to the host `to`: until [`Root::take_back`] every verb that would
    /// disturb it is refused.
    ///
    /// # Errors
    /// When it does not run, or is lent already.
    pub fn lend(&self, id: &Id, to: &str) -> Result<(), RuntimeError> {
        let (_home, record) = self.open(id)?;
        super::leave::check_runs(self, &record)?;
        let path = self.path.join(id.as_str()).join(LENT);
        fs::write(&path, to).map_err(file("write", &path))
    }

    /// It is nobody else's any more, and may be gone. Idempotent.
    pub fn take_back(&self, id: &Id) -> Result<(), RuntimeError> {
        let path = self.path.join(id.as_str()).join(LENT);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a container that is on its way to another host: a signal would be lost with the copy that stays, a new
    /// process could not be moved, and what is frozen must not be let go.
    pub(super) fn check_stays(&self, id: &Id) -> Result<(), RuntimeError> {
        match fs::read_to_string(self.path.join(id.as_str()).join(LENT)) {
            Ok(to) => Err(RuntimeError::Leaving {
                id: id.to_string(),
                to,
            }),
            Err(_) => Ok(()),
        }
    }

    /// The file that is made with a container, and never written to.
    pub(super) fn lock_of(&self, id: &Id) -> PathBuf {
        self.path.join(id.as_str()).join(LOCK)
    }

    /// Locks what is there of a container, without a look at its record.
    pub(super) fn open_remains(&self, id: &Id) -> Result<Home, RuntimeError> {
        Home::lock(self.path.join(id.as_str()))
    }

    /// Reads a record.
    pub fn read(&self, id: &Id) -> Result<Record, RuntimeError> {
        let path = self.path.join(id.as_str()).join(RECORD);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.missing(id)),
            other => other.map_err(file("read", &path))?,
        };
        parse(&path, &bytes)
    }

    /// How the container is, now.
    pub fn status(&self, record: &Record) -> Status {
        if !is_alive(record.init) {
            return Status::Stopped;
        }
        if !record.ready {
            return Status::Creating;
        }
        if is_frozen(&record.cgroup) {
            return Status::Paused;
        }
        let socket = self.path.join(record.id.as_str()).join(SOCKET);
        if socket.exists() {
            Status::Created
        } else {
            Status::Running
        }
    }

    fn missing(&self, id: &Id) -> RuntimeError {
        RuntimeError::Missing {
            id: id.to_string(),
            root: self.path.clone(),
        }
    }
}

const RECORD: &str = "state.json";
/// To which host it is being moved.
const LENT: &str = "leaving";
const SOCKET: &str = "start.sock";
const LOCK: &str = "lock";
const STAGE: [&str; 2] = ["root", "images"];

/// The directory of one container, locked until this value is dropped.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    _lock: File,
}

impl Home {
    fn lock(path: PathBuf) -> Result<Self, RuntimeError> {
        let at = path.join(LOCK);
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&at)
            .map_err(file("open", &at))?;
        let whole = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        loop {
            match fcntl(&lock, FcntlArg::F_SETLKW(&whole)) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(file("lock", &at)(errno.into())),
                Ok(_) => return Ok(Self { path, _lock: lock }),
            }
        }
    }

    /// Where the process waits for its start.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Where a restore has the root of its container and its images, in a mount namespace of its own; on the host
    /// they are empty directories.
    pub fn stage(&self) -> [PathBuf; 2] {
        STAGE.map(|name| self.path.join(name))
    }

    /// Writes the record.
    pub fn save(&self, record: &Record) -> Result<(), RuntimeError> {
        let path = self.path.join(RECORD);
        let bytes = serde_json::to_vec(record)
            .map_err(|error| file("write", &path)(io::Error::other(error)))?;
        crate::sys::file::replace(&path, &bytes).map_err(file("write", &path))
    }

    /// Removes the container's directory: the last trace of it.
    pub fn remove(self) -> Result<(), RuntimeError> {
        fs::remove_dir_all(&self.path).map_err(file("remove", &self.path))
    }
}

/// Parses JSON, and says where it is wrong.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
) -> Result<T, RuntimeError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| RuntimeError::Unreadable {
        path: path.to_owned(),
        field: error.path().to_string(),
        why: error.inner().to_string(),
    })
}

/// What tells a process from every other; none when it has ended.
pub(super) fn identity(pid: i32) -> Option<Identity> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in the middle may contain anything, spaces and parentheses too.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?;
    let start_time = words.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(Identity { pid, start_time })
}

/// Whether it still runs, be it frozen.
pub(super) fn is_alive(process: Identity) -> bool {
    identity(process.pid) == Some(process)
}

fn is_frozen(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events"));
    events.is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
}

/// The time, as RFC 3339 has it.
pub(super) fn now() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    crate::model::time::rfc3339(since)
}
