//! The file of one migration in the journal: what is known of it, and room for the steps to come.
//!
//! ```text
//! 0       4096     4608            8192
//! ┌───────┬────────┬────────┬─ ─ ─┐
//! │ entry │ step 1 │ step 2 │  …  │
//! └───────┴────────┴────────┴─ ─ ─┘
//! ```
//!
//! The entry is JSON, filled up with blanks. A step is JSON, a blank, a checksum in hexadecimal and blanks; a step
//! that has not been taken is all zero. The last step whose checksum is right is where the migration stands.
//!
//! **Why.** A step is sworn inside the blackout. Replacing a file costs two flushes of the file system's own journal,
//! 10 ms and now and then 100; writing into a file whose blocks exist costs one flush of data, 0.1 ms (both measured
//! on ext4, the ratio is what counts). A step is one sector, which disks write whole or not at all.

use std::io;

use serde::{Deserialize, Serialize};

use super::journal::{Entry, JournalState};
use crate::model::Generation;

/// The room for the entry, in bytes.
const ENTRY: usize = 4096;
/// The size of a step, in bytes: the smallest sector there is.
pub const STEP: usize = 512;
/// How many steps there is room for.
const STEPS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    state: JournalState,
    generation: Generation,
}

/// A new file for an entry. One with a report is at its end and has no room for steps.
///
/// # Errors
/// When the entry cannot be told in JSON.
pub fn file(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(entry).map_err(io::Error::other)?;
    bytes.push(b'\n');
    if entry.report.is_none() && bytes.len() <= ENTRY {
        bytes.resize(ENTRY, b' ');
        bytes.resize(ENTRY + STEPS * STEP, 0);
    }
    Ok(bytes)
}

/// What a file says.
///
/// # Errors
/// When it is not one of this journal's.
pub fn read(bytes: &[u8]) -> io::Result<Entry> {
    let (entry, steps) = bytes.split_at(bytes.len().min(ENTRY));
    let has_steps = steps.len() == STEPS * STEP;
    let entry = if has_steps { entry } else { bytes };
    let mut entry: Entry = serde_json::from_slice(entry).map_err(io::Error::other)?;
    let steps = if has_steps { steps } else { &[] };
    if let Some(step) = steps.chunks_exact(STEP).filter_map(parse).next_back() {
        entry.state = step.state;
        entry.generation = step.generation;
    }
    Ok(entry)
}

/// The step that leads from what a file says to `entry`, and its offset in the file. None when more than state and
/// generation has changed, or there is no room left: then the file is to be replaced.
pub fn step(bytes: &[u8], entry: &Entry) -> Option<(u64, [u8; STEP])> {
    let same = Entry {
        state: entry.state,
        generation: entry.generation,
        ..read(bytes).ok()?
    };
    if same != *entry || bytes.len() != ENTRY + STEPS * STEP {
        return None;
    }
    let taken = |step: &[u8]| step.iter().any(|byte| *byte != 0);
    let next = match bytes[ENTRY..].chunks_exact(STEP).rposition(taken) {
        None => 0,
        Some(last) => last + 1,
    };
    let step = Step {
        state: entry.state,
        generation: entry.generation,
    };
    (next < STEPS).then(|| ((ENTRY + next * STEP) as u64, encode(step)))
}

fn encode(step: Step) -> [u8; STEP] {
    // A closed set of words and a number: JSON cannot fail on them, and they are far shorter than a step.
    let json = serde_json::to_string(&step).unwrap_or_default();
    let line = format!("{json} {}\n", checksum(&json));
    let mut bytes = [b' '; STEP];
    bytes[..line.len()].copy_from_slice(line.as_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Option<Step> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (json, sum) = text.trim_end().rsplit_once(' ')?;
    (checksum(json) == sum).then_some(())?;
    serde_json::from_str(json).ok()
}

fn checksum(json: &str) -> String {
    blake3::hash(json.as_bytes()).to_hex()[..16].to_owned()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{MigrationId, Side};

    fn entry(state: JournalState) -> Entry {
        Entry {
            id: MigrationId([7; 8]),
            container: "web".parse().unwrap(),
            side: Side::Source,
            peer: "beta".parse().unwrap(),
            generation: Generation(2),
            started_at: 5,
            state,
            report: None,
            why: None,
        }
    }

    fn take(bytes: &mut [u8], entry: &Entry) {
        let (at, step) = step(bytes, entry).unwrap();
        bytes[at as usize..at as usize + STEP].copy_from_slice(&step);
    }

    #[test]
    fn the_last_step_counts() {
        let mut bytes = file(&entry(JournalState::Began)).unwrap();
        assert_eq!(read(&bytes).unwrap(), entry(JournalState::Began));
        let later = Entry {
            generation: Generation(3),
            ..entry(JournalState::HandedOver)
        };
        take(&mut bytes, &later);
        assert_eq!(read(&bytes).unwrap(), later);
        take(&mut bytes, &entry(JournalState::StayedHere));
        assert_eq!(read(&bytes).unwrap(), entry(JournalState::StayedHere));
    }

    #[test]
    fn a_torn_step_was_not_taken_and_is_not_written_over() {
        let mut bytes = file(&entry(JournalState::Began)).unwrap();
        take(&mut bytes, &entry(JournalState::HandedOver));
        bytes[ENTRY + 12] ^= 1;
        assert_eq!(read(&bytes).unwrap().state, JournalState::Began);
        let (at, _) = step(&bytes, &entry(JournalState::StayedHere)).unwrap();
        assert_eq!(at as usize, ENTRY + STEP);
    }

    #[test]
    fn what_is_more_than_a_step_needs_a_new_file() {
        let bytes = file(&entry(JournalState::Began)).unwrap();
        let other = Entry {
            peer: "gamma".parse().unwrap(),
            ..entry(JournalState::HandedOver)
        };
        assert_eq!(step(&bytes, &other), None);
        let mut full = bytes.clone();
        for _ in 0..STEPS {
            take(&mut full, &entry(JournalState::HandedOver));
        }
        assert_eq!(step(&full, &entry(JournalState::StayedHere)), None);
        let plain = serde_json::to_vec(&entry(JournalState::Moved)).unwrap();
        assert_eq!(read(&plain).unwrap().state, JournalState::Moved);
        assert_eq!(step(&plain, &entry(JournalState::StayedHere)), None);
        assert!(read(b"").is_err() && read(&[0; 8192]).is_err());
    }
}
