//! The table of mappings and their flags, as bytes; pure. `preload_smaps.c` reads it, and counts in it what it did.
//!
//! ```text
//! magic u64 │ version, state u32 │ tasks, mappings, texts u32 │ composed, real u32 │ 0 u32
//! tasks:    pid, first mapping, count, 0 u32        mappings: start, end u64 │ text, 0 u32
//! texts:    256 bytes each, ended by zeros
//! ```
//!
//! In the byte order of this machine, which is the only reader's. The task 0 is every task: the mappings that the
//! kernel shows of each.

use std::collections::BTreeMap;

use super::text::{Letters, Told};

const MAGIC: u64 = u64::from_le_bytes(*b"gdwsmaps");
const VERSION: u32 = 1;
/// Set when everything is there.
const SET: u32 = 1;
/// The bytes of a text.
const TEXT: usize = Letters::LONGEST + 1;
/// Where the counts are.
pub(super) const COUNTS: u64 = 28;

/// The mappings of a task, and what is known of their flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The task's process id, as CRIU's `/proc` has it.
    pub pid: i32,
    /// All of its mappings, in order.
    pub mappings: Vec<Told>,
}

/// A table that is not set yet: nothing is composed.
pub(super) fn unset() -> Vec<u8> {
    header(0, [0; 3])
}

/// The table of `tasks`, with what the kernel shows of every task.
pub(super) fn table(tasks: &[Described], everybody: &[Told]) -> Vec<u8> {
    let everybody = Described {
        pid: 0,
        mappings: everybody.to_vec(),
    };
    let mut texts: BTreeMap<&Letters, u32> = BTreeMap::new();
    let (mut rows, mut mappings) = (Vec::new(), Vec::new());
    let mut first = 0;
    for task in tasks.iter().chain([&everybody]) {
        let count = number(task.mappings.len());
        rows.extend([task.pid.cast_unsigned(), first, count, 0].map(u32::to_ne_bytes));
        first += count;
        for told in &task.mappings {
            let next = number(texts.len());
            let text = *texts.entry(&told.letters).or_insert(next);
            mappings.extend(
                [told.range.start, told.range.end]
                    .map(u64::to_ne_bytes)
                    .concat(),
            );
            mappings.extend([text, 0].map(u32::to_ne_bytes).concat());
        }
    }
    let mut bytes = header(SET, [number(tasks.len() + 1), first, number(texts.len())]);
    bytes.extend(rows.concat());
    bytes.extend(mappings);
    let mut in_order: Vec<(&Letters, u32)> = texts.into_iter().collect();
    in_order.sort_by_key(|&(_, number)| number);
    for (letters, _) in in_order {
        let mut text = letters.as_str().as_bytes().to_vec();
        text.resize(TEXT, 0);
        bytes.extend(text);
    }
    bytes
}

fn header(state: u32, counts: [u32; 3]) -> Vec<u8> {
    let mut bytes = MAGIC.to_ne_bytes().to_vec();
    let words = [&[VERSION, state], counts.as_slice(), &[0; 3]].concat();
    bytes.extend(words.into_iter().flat_map(u32::to_ne_bytes));
    bytes
}

/// A count of what fits into memory many times over; a table that is too large for its reader is not read.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod test {
    use super::super::text::mappings;
    use super::*;

    #[test]
    fn a_table_has_every_text_once() {
        let told = mappings(
            "1000-2000 a\nVmFlags: rd \n3000-4000 b\nVmFlags: wr \n5000-6000 c\nVmFlags: rd \n",
        );
        let gate = mappings("f000-f001 a\nVmFlags: ex \n");
        let task = Described {
            pid: 7,
            mappings: told,
        };
        let bytes = table(&[task], &gate);
        assert_eq!(bytes.len(), 40 + 2 * 16 + 4 * 24 + 3 * 256);
        let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(0).to_le_bytes(), *b"gdwsmaps");
        assert_eq!([8, 12, 16, 20, 24].map(half), [1, 1, 2, 4, 3]);
        assert_eq!([40, 44, 48].map(half), [7, 0, 3]);
        assert_eq!([56, 60, 64].map(half), [0, 3, 1]);
        assert_eq!((word(72), word(80), half(88)), (0x1000, 0x2000, 0));
        assert_eq!([88, 112, 136, 160].map(half), [0, 1, 0, 2]);
        assert_eq!(&bytes[168..172], b"rd \0");
        assert_eq!(&bytes[168 + 512..168 + 516], b"ex \0");
        assert_eq!(unset().len(), 40);
        assert_eq!((unset()[12], bytes[12]), (0, 1));
    }
}
