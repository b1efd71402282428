//! What each host swears to, on disk, before it acts on it.
//!
//! One file per migration (see `record`), synced before the call returns. The states and what follows from them
//! are in the table at the head of [`super`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record;
use crate::model::{Generation, MigrationId, MigrationReport, Name, Side};
use crate::sys::file;

/// How far a migration has come on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JournalState {
    /// Source: under way, not handed over.
    Began,
    /// Destination: a place is set aside.
    Reserved,
    /// Destination: restored and held; the source may have handed over.
    Ready,
    /// Source: handed over; this copy does not run any more.
    HandedOver,
    /// Destination: the handover has arrived; it runs here or is about to.
    Accepted,
    /// Source: it runs at the destination, which still fetches memory of the frozen copy. Nothing resumes that.
    Serving,
    /// Destination: it runs here, and a part of its memory is still on the source.
    Filling,
    /// Both: it ran at the destination, and was killed there because memory of it could not be fetched. Final.
    Lost,
    /// Both: it runs at the destination. Final.
    Moved,
    /// Both: it runs on the source, or never left it. Final.
    StayedHere,
}

impl JournalState {
    /// Whether nothing more follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Moved | Self::StayedHere | Self::Lost)
    }
}

/// What is known of a migration on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The migration.
    pub id: MigrationId,
    /// What moves.
    pub container: Name,
    /// Which side this host plays.
    pub side: Side,
    /// The other host.
    pub peer: Name,
    /// The container's generation at the destination.
    pub generation: Generation,
    /// When it began, seconds since the epoch.
    pub started_at: u64,
    /// How far it has come.
    pub state: JournalState,
    /// How it ended, on the source.
    pub report: Option<MigrationReport>,
    /// Why the container was lost, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Where entries are kept.
pub trait Journal: Send + Sync + 'static {
    /// Writes an entry durably: when this returns, it survives a power cut.
    ///
    /// # Errors
    /// When it may not have become durable.
    fn write(&self, entry: &Entry) -> io::Result<()>;

    /// The entry of a migration.
    ///
    /// # Errors
    /// When there is one and it cannot be read.
    fn read(&self, id: MigrationId) -> io::Result<Option<Entry>>;

    /// All entries, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn all(&self) -> io::Result<Vec<Entry>>;
}

/// A journal in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

/// How many finished migrations are remembered.
const REMEMBERED: usize = 200;

impl Directory {
    /// The journal in this directory, which is made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    fn file(&self, id: MigrationId) -> PathBuf {
        self.path.join(format!("{id}.json"))
    }

    /// Forgets the oldest finished migrations beyond the number that is remembered.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn prune(&self) -> io::Result<()> {
        let finished: Vec<Entry> = self
            .all()?
            .into_iter()
            .filter(|e| e.state.is_final())
            .collect();
        for entry in finished
            .iter()
            .take(finished.len().saturating_sub(REMEMBERED))
        {
            fs::remove_file(self.file(entry.id))?;
        }
        Ok(())
    }
}

impl Journal for Directory {
    fn write(&self, entry: &Entry) -> io::Result<()> {
        let path = self.file(entry.id);
        let known = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        match record::step(&known, entry) {
            Some((at, step)) => {
                let file = File::options().write(true).open(&path)?;
                file.write_all_at(&step, at)?;
                file.sync_data()
            }
            None => file::replace(&path, &record::file(entry)?),
        }
    }

    fn read(&self, id: MigrationId) -> io::Result<Option<Entry>> {
        match fs::read(self.file(id)) {
            Ok(bytes) => record::read(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn all(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.path)? {
            let path = file?.path();
            let id = path
                .file_stem()
                .and_then(|s| s.to_str())
                .and_then(|s| s.parse().ok());
            if let (Some(id), Some("json")) = (id, path.extension().and_then(|e| e.to_str())) {
                entries.extend(self.read(id)?);
            }
        }
        entries.sort_by_key(|e| (e.started_at, e.id));
        Ok(entries)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn entry(id: u8, state: JournalState) -> Entry {
        Entry {
            id: MigrationId([id; 8]),
            container: "web".parse().unwrap(),
            side: Side::Source,
            peer: "beta".parse().unwrap(),
            generation: Generation(2),
            started_at: u64::from(id),
            state,
            report: None,
            why: None,
        }
    }

    #[test]
    fn an_entry_is_read_back_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Directory::open(dir.path()).unwrap();
        assert_eq!(journal.read(MigrationId([9; 8])).unwrap(), None);
        journal.write(&entry(2, JournalState::Began)).unwrap();
        journal.write(&entry(1, JournalState::Moved)).unwrap();
        journal.write(&entry(2, JournalState::HandedOver)).unwrap();
        let states: Vec<_> = journal
            .all()
            .unwrap()
            .into_iter()
            .map(|e| e.state)
            .collect();
        assert_eq!(states, [JournalState::Moved, JournalState::HandedOver]);
    }

    #[test]
    fn only_finished_migrations_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Directory::open(dir.path()).unwrap();
        journal.write(&entry(0, JournalState::HandedOver)).unwrap();
        for i in 1..=u8::try_from(REMEMBERED).unwrap() {
            journal.write(&entry(i, JournalState::Moved)).unwrap();
        }
        journal
            .write(&Entry {
                id: MigrationId([255; 8]),
                ..entry(255, JournalState::StayedHere)
            })
            .unwrap();
        journal.prune().unwrap();
        let left = journal.all().unwrap();
        assert_eq!(left.len(), REMEMBERED + 1);
        assert_eq!(left[0].state, JournalState::HandedOver);
        assert_eq!(left[1].started_at, 2);
    }
}
