//! Whether CRIU can be spared the look at smaps, for its self-test.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::{CriuError, Described, MappingFlags, SmapsTable};

/// How long the task of the self-test may take to have all its mappings.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Why CRIU has to ask the kernel for the flags of mappings, which counts every page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSparing {
    /// The self-test was not done.
    #[error("whether CRIU can do without smaps was not tested in this process")]
    Untested,
    /// The flags are not to be had in another way.
    #[error("the flags of mappings are told by smaps alone: {why}")]
    NoFlags {
        /// Why not.
        why: String,
    },
    /// They have no names.
    #[error("the task of CRIU's self-test has mappings with flags that are not known")]
    Unknown,
    /// The task's mappings change, or it has ended.
    #[error("the mappings of the task of CRIU's self-test cannot be looked at: {why}")]
    Unsettled {
        /// Why not.
        why: String,
    },
    /// CRIU read smaps all the same.
    #[error(
        "CRIU has read smaps although it was told what is in there ({composed} of {all} times)"
    )]
    NoEffect {
        /// How often it took what it was told.
        composed: u32,
        /// How often it asked.
        all: u32,
    },
    /// It makes a difference, which it must not.
    #[error("CRIU dumps other mappings when it is told than when it reads smaps")]
    Differs,
}

/// Finds out about flags, and makes a table of a task that does nothing any more.
pub(super) fn tell(pid: i32) -> Result<(MappingFlags, SmapsTable), NotSparing> {
    let flags = MappingFlags::of_this_process()
        .map_err(|error| NotSparing::NoFlags { why: told(&error) })?;
    let unsettled = |error: io::Error| NotSparing::Unsettled {
        why: error.to_string(),
    };
    let described = settled(&flags, pid).map_err(unsettled)?;
    let described = described.ok_or(NotSparing::Unknown)?;
    let made = SmapsTable::new().and_then(|table| {
        table.set(&[described], flags.everybody())?;
        Ok(table)
    });
    let unsettled = |error: CriuError| NotSparing::Unsettled { why: told(&error) };
    Ok((flags, made.map_err(unsettled)?))
}

/// The mappings of a task once they stay as they are.
fn settled(flags: &MappingFlags, pid: i32) -> io::Result<Option<Described>> {
    let begin = Instant::now();
    let mut before = None;
    loop {
        let now = flags.describe(pid)?;
        let sleeps = fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") S ");
        if sleeps && before.as_ref() == Some(&now) {
            return Ok(now);
        }
        if begin.elapsed() > SETTLES_WITHIN {
            return Err(io::ErrorKind::TimedOut.into());
        }
        before = Some(now);
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// What a dump that was told and one that was not prove, by what they have written about the mappings.
pub(super) fn judge(
    table: &SmapsTable,
    told_image: io::Result<Vec<u8>>,
    read_image: io::Result<Vec<u8>>,
) -> Result<(), NotSparing> {
    let unsettled = |why: String| NotSparing::Unsettled { why };
    let asked = table.asked().map_err(|error| unsettled(told(&error)))?;
    if asked.composed == 0 || asked.real > 0 {
        return Err(NotSparing::NoEffect {
            composed: asked.composed,
            all: asked.composed + asked.real,
        });
    }
    let image = |read: io::Result<Vec<u8>>| read.map_err(|error| unsettled(error.to_string()));
    if image(told_image)? == image(read_image)? {
        Ok(())
    } else {
        Err(NotSparing::Differs)
    }
}

/// An error and its cause.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
