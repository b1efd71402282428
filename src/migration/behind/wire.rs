//! What a destination asks for, as the payload of a frame; pure.
//!
//! ```text
//!  0  u32  1: somebody waits for these; 0: nobody does     8  per run: u32 process id, u32 pages, u64 first address
//!  4  u32  0                                               …
//! ```
//!
//! All little-endian.

use super::super::codec::CodecError;
use crate::model::PAGE_SIZE;

/// The most runs of one frame.
pub const MOST_RUNS: usize = 256;
/// The longest run, in pages: what fits a batch of page frames.
pub const LONGEST_RUN: u32 = 128;
/// Length of what is before the runs, in bytes.
const HEADER: usize = 8;
/// Length of a run, in bytes.
const RUN: usize = 16;
/// The longest payload, in bytes.
pub const LONGEST: usize = HEADER + MOST_RUNS * RUN;
/// No page is at or above this address.
const END: u64 = 1 << 63;

/// A run of pages of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The process, by its id in the container.
    pub process: u32,
    /// The first page's address when it was frozen.
    pub address: u64,
    /// How many pages: at least 1, at most [`LONGEST_RUN`].
    pub pages: u32,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whether somebody waits for it.
    pub urgent: bool,
    /// The pages.
    pub runs: Vec<Run>,
}

impl Ask {
    /// As the payload of a frame. At most [`MOST_RUNS`] runs.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.runs.len() * RUN);
        out.extend_from_slice(&u32::from(self.urgent).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for run in &self.runs {
            out.extend_from_slice(&run.process.to_le_bytes());
            out.extend_from_slice(&run.pages.to_le_bytes());
            out.extend_from_slice(&run.address.to_le_bytes());
        }
        out
    }

    /// Out of the payload of a frame.
    ///
    /// # Errors
    /// For anything that [`Self::encode`] does not produce, and for runs that cannot be.
    pub fn decode(payload: &[u8]) -> Result<Self, CodecError> {
        let bad = |what| CodecError::Ask { what };
        let (head, rest) = payload
            .split_first_chunk::<HEADER>()
            .ok_or(bad("cut short"))?;
        let urgent = match head {
            [urgent @ (0 | 1), 0, 0, 0, 0, 0, 0, 0] => *urgent == 1,
            _ => return Err(bad("it is of no known kind")),
        };
        let (runs, cut) = rest.as_chunks::<RUN>();
        if !cut.is_empty() {
            return Err(bad("cut short in a run"));
        }
        if runs.is_empty() || runs.len() > MOST_RUNS {
            return Err(bad("it has no runs, or too many"));
        }
        let runs = runs.iter().map(run).collect::<Option<Vec<Run>>>();
        let runs = runs.ok_or(bad("there can be no such run"))?;
        Ok(Self { urgent, runs })
    }
}

fn run(bytes: &[u8; RUN]) -> Option<Run> {
    let (process, rest) = bytes.split_first_chunk::<4>()?;
    let (pages, rest) = rest.split_first_chunk::<4>()?;
    let address = u64::from_le_bytes(rest.try_into().ok()?);
    let (process, pages) = (u32::from_le_bytes(*process), u32::from_le_bytes(*pages));
    let end = address.checked_add(u64::from(pages) * PAGE_SIZE)?;
    let possible = (1..=LONGEST_RUN).contains(&pages)
        && address.is_multiple_of(PAGE_SIZE)
        && end <= END
        && i32::try_from(process).is_ok_and(|process| process > 0);
    possible.then_some(Run {
        process,
        address,
        pages,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_asked_for_survives_and_every_truncation_is_refused() {
        let run = Run {
            process: 7,
            address: 0x7fff_0000_1000,
            pages: LONGEST_RUN,
        };
        let ask = Ask {
            urgent: true,
            runs: vec![run; MOST_RUNS],
        };
        let wire = ask.encode();
        assert_eq!(wire.len(), LONGEST);
        assert_eq!(Ask::decode(&wire).unwrap(), ask);
        for cut in 0..40 {
            let whole = cut > HEADER && (cut - HEADER).is_multiple_of(RUN);
            assert_eq!(Ask::decode(&wire[..cut]).is_ok(), whole, "{cut}");
        }
        assert!(Ask::decode(&[wire, vec![0; RUN]].concat()).is_err());
    }

    #[test]
    fn a_run_that_cannot_be_is_refused() {
        let good = Run {
            process: 1,
            address: PAGE_SIZE,
            pages: 1,
        };
        for bad in [
            Run { process: 0, ..good },
            Run {
                process: 1 << 31,
                ..good
            },
            Run { pages: 0, ..good },
            Run {
                pages: LONGEST_RUN + 1,
                ..good
            },
            Run { address: 1, ..good },
            Run {
                address: END,
                ..good
            },
            Run {
                address: u64::MAX - PAGE_SIZE + 1,
                ..good
            },
        ] {
            let ask = Ask {
                urgent: false,
                runs: vec![good, bad],
            };
            assert!(Ask::decode(&ask.encode()).is_err(), "{bad:?}");
        }
    }
}
