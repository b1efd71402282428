//! What CRIU measured of its own work: the `stats-dump` and `stats-restore` files in the work directory.

use std::time::Duration;

use prost::Message;

use crate::model::Pages;

const SERVICE_MAGIC: u32 = 0x5510_5940;
const STATS_MAGIC: u32 = 0x5709_3306;

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct DumpEntry {
    #[prost(uint32, required, tag = "1")]
    freezing: u32,
    #[prost(uint32, required, tag = "2")]
    frozen: u32,
    #[prost(uint32, required, tag = "3")]
    memory: u32,
    #[prost(uint32, required, tag = "4")]
    writing: u32,
    #[prost(uint64, required, tag = "5")]
    scanned: u64,
    #[prost(uint64, required, tag = "6")]
    skipped: u64,
    #[prost(uint64, required, tag = "7")]
    written: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct RestoreEntry {
    #[prost(uint32, required, tag = "3")]
    forking: u32,
    #[prost(uint32, required, tag = "4")]
    restore: u32,
    #[prost(uint64, optional, tag = "5")]
    pages: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpEntry>,
    #[prost(message, optional, tag = "2")]
    restore: Option<RestoreEntry>,
}

/// What a dump cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpStats {
    /// Stopping the tasks.
    pub freezing: Duration,
    /// From stopped until released or dead, our own time at the notifications included.
    pub frozen: Duration,
    /// Collecting the memory's pages.
    pub memory: Duration,
    /// Handing them to the page server.
    pub writing: Duration,
    /// Pages looked at.
    pub scanned: Pages,
    /// Pages told as holes, their parent having them.
    pub skipped: Pages,
    /// Pages handed over.
    pub written: Pages,
}

/// What a restore cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreStats {
    /// Making the tasks.
    pub forking: Duration,
    /// All of it.
    pub restore: Duration,
    /// Pages read.
    pub pages: Pages,
}

/// The statistics in a `stats-dump` file; none where it is not one.
pub fn dump_stats(bytes: &[u8]) -> Option<DumpStats> {
    let micros = |us: u32| Duration::from_micros(us.into());
    entry(bytes)?.dump.map(|entry| DumpStats {
        freezing: micros(entry.freezing),
        frozen: micros(entry.frozen),
        memory: micros(entry.memory),
        writing: micros(entry.writing),
        scanned: Pages(entry.scanned),
        skipped: Pages(entry.skipped),
        written: Pages(entry.written),
    })
}

/// The statistics in a `stats-restore` file; none where it is not one.
pub fn restore_stats(bytes: &[u8]) -> Option<RestoreStats> {
    let micros = |us: u32| Duration::from_micros(us.into());
    entry(bytes)?.restore.map(|entry| RestoreStats {
        forking: micros(entry.forking),
        restore: micros(entry.restore),
        pages: Pages(entry.pages.unwrap_or(0)),
    })
}

/// An image file of one entry: two magic numbers, a length, a message.
fn entry(bytes: &[u8]) -> Option<Entry> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if word(0)? != SERVICE_MAGIC || word(4)? != STATS_MAGIC {
        return None;
    }
    let length = usize::try_from(word(8)?).ok()?;
    Entry::decode(bytes.get(12..12usize.checked_add(length)?)?).ok()
}

#[cfg(test)]
mod test {
    use super::*;

    fn file(entry: &Entry) -> Vec<u8> {
        let message = entry.encode_to_vec();
        let mut bytes = Vec::new();
        bytes.extend(SERVICE_MAGIC.to_le_bytes());
        bytes.extend(STATS_MAGIC.to_le_bytes());
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
        bytes
    }

    #[test]
    fn a_dump_s_statistics_are_read() {
        let entry = Entry {
            dump: Some(DumpEntry {
                frozen: 1500,
                written: 7,
                ..DumpEntry::default()
            }),
            restore: None,
        };
        let bytes = file(&entry);
        let stats = dump_stats(&bytes).unwrap();
        assert_eq!(stats.frozen, Duration::from_micros(1500));
        assert_eq!(stats.written, Pages(7));
        assert_eq!(restore_stats(&bytes), None);
        for cut in 0..bytes.len() {
            assert_eq!(dump_stats(&bytes[..cut]), None);
        }
    }
}
