//! The table of hidden ranges, as bytes; pure. `preload.c` reads it.
//!
//! ```text
//! magic u64 │ version u32 │ state u32 │ entries u64 │ files u64
//! entries: pid u32 │ flags u32 │ start u64 │ end u64
//! files: device u64 │ inode u64
//! ```
//!
//! In the byte order of this machine, which is the only reader's. Entries are in order of process id and address
//! and overlap nowhere, so that the reader finds one by halving.

use std::ops::Range;

/// The size of a page, which every range is made of.
const PAGE: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"gdwthide");
const VERSION: u32 = 2;
/// Set when the entries are all there.
const SET: u32 = 1;
/// The range has guard pages, which are not hidden.
const GUARDS: u32 = 1;

/// A range of a task's memory that a dump is not to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// The task's process id, as CRIU's `/proc` has it.
    pub pid: i32,
    /// Its addresses, of whole pages.
    pub range: Range<u64>,
    /// Whether there are guard pages in it. They have no content and stay visible: CRIU makes them anew.
    pub guards: bool,
}

/// A file of shared memory of which a dump is not to find a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HiddenFile {
    /// The device number that it has in CRIU's eyes (`st_dev`).
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
}

/// Why ranges cannot be hidden.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// It is not made of whole pages.
    #[error("{:#x}..{:#x} of process {} is no range of whole pages", hidden.range.start, hidden.range.end, hidden.pid)]
    NotPages {
        /// Which.
        hidden: Hidden,
    },
    /// There is no such process.
    #[error("{pid} is no process id")]
    NoPid {
        /// Which.
        pid: i32,
    },
    /// It overlaps another one.
    #[error("a range of process {pid} that ends at {end:#x} overlaps the next one, at {start:#x}")]
    Overlap {
        /// Whose.
        pid: i32,
        /// The end of the first.
        end: u64,
        /// The start of the second.
        start: u64,
    },
}

/// A table that is not set yet: a scan that meets it fails.
pub(super) fn unset() -> Vec<u8> {
    header(0, 0, 0)
}

/// The table of `hidden`, in any order, and of `files`.
pub(super) fn table(hidden: &[Hidden], files: &[HiddenFile]) -> Result<Vec<u8>, BadRange> {
    let entries = in_order(hidden)?;
    let mut bytes = header(SET, entries.len() as u64, files.len() as u64);
    for entry in &entries {
        let flags = if entry.guards { GUARDS } else { 0 };
        bytes.extend(entry.pid.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(entry.range.start.to_ne_bytes());
        bytes.extend(entry.range.end.to_ne_bytes());
    }
    for file in files {
        bytes.extend(file.device.to_ne_bytes());
        bytes.extend(file.inode.to_ne_bytes());
    }
    Ok(bytes)
}

fn header(state: u32, entries: u64, files: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend(VERSION.to_ne_bytes());
    bytes.extend(state.to_ne_bytes());
    bytes.extend(entries.to_ne_bytes());
    bytes.extend(files.to_ne_bytes());
    bytes
}

/// By process and address; neighbours of one kind are one.
fn in_order(hidden: &[Hidden]) -> Result<Vec<Hidden>, BadRange> {
    let mut sorted: Vec<Hidden> = hidden.to_vec();
    sorted.sort_by_key(|h| (h.pid, h.range.start));
    let mut entries: Vec<Hidden> = Vec::with_capacity(sorted.len());
    for next in sorted {
        let Range { start, end } = next.range;
        if next.pid <= 0 {
            return Err(BadRange::NoPid { pid: next.pid });
        }
        if start >= end || !start.is_multiple_of(PAGE) || !end.is_multiple_of(PAGE) {
            return Err(BadRange::NotPages { hidden: next });
        }
        match entries.last_mut().filter(|last| last.pid == next.pid) {
            Some(last) if last.range.end > start => {
                return Err(BadRange::Overlap {
                    pid: next.pid,
                    end: last.range.end,
                    start,
                });
            }
            Some(last) if last.range.end == start && last.guards == next.guards => {
                last.range.end = end;
            }
            _ => entries.push(next),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod test {
    use super::*;

    fn hidden(pid: i32, pages: Range<u64>, guards: bool) -> Hidden {
        Hidden {
            pid,
            range: pages.start * PAGE..pages.end * PAGE,
            guards,
        }
    }

    #[test]
    fn a_table_is_in_the_order_that_its_reader_searches_it_in() {
        let file = HiddenFile {
            device: 1,
            inode: 99,
        };
        let ranges = [hidden(9, 4..5, true), hidden(7, 8..9, false)];
        let bytes = table(&ranges, &[file]).unwrap();
        assert_eq!(bytes.len(), 32 + 2 * 24 + 16);
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(word(0).to_le_bytes(), *b"gdwthide");
        assert_eq!((half(8), half(12), word(16), word(24)), (2, 1, 2, 1));
        assert_eq!((half(32), half(36)), (7, 0));
        assert_eq!((word(40), word(48)), (8 * PAGE, 9 * PAGE));
        assert_eq!((half(56), half(60)), (9, 1));
        assert_eq!((word(80), word(88)), (1, 99));
        assert_eq!(unset().len(), 32);
        assert_ne!(unset()[..16], bytes[..16]);
    }

    #[test]
    fn neighbours_become_one_unless_they_differ() {
        let order = |list: &[Hidden]| in_order(list).unwrap();
        let two = [hidden(7, 2..3, false), hidden(7, 1..2, false)];
        assert_eq!(order(&two), [hidden(7, 1..3, false)]);
        let kinds = [hidden(7, 1..2, false), hidden(7, 2..3, true)];
        assert_eq!(order(&kinds), kinds);
        let tasks = [hidden(7, 1..2, false), hidden(8, 2..3, false)];
        assert_eq!(order(&tasks), tasks);
        assert_eq!(order(&[]), []);
    }

    #[test]
    fn what_is_no_range_of_a_process_is_refused() {
        let overlap = [hidden(7, 1..3, false), hidden(7, 2..4, false)];
        assert!(matches!(
            in_order(&overlap),
            Err(BadRange::Overlap { pid: 7, .. })
        ));
        for bad in [0..0, 1..PAGE, 0..PAGE + 1] {
            let hidden = Hidden {
                pid: 7,
                range: bad,
                guards: false,
            };
            assert!(matches!(
                in_order(&[hidden]),
                Err(BadRange::NotPages { .. })
            ));
        }
        for pid in [0, -1] {
            let bad = in_order(&[hidden(pid, 1..2, false)]);
            assert_eq!(bad, Err(BadRange::NoPid { pid }));
        }
    }
}
