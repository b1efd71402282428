//! The wire between CRIU and its page server, as bytes; pure.
//!
//! It has neither a magic number nor a version. A header, in the host's byte order, and after some headers the
//! pages themselves:
//!
//! ```text
//! up to CRIU 4.1.1 (24 bytes)      since CRIU 4.2 (32 bytes)
//!  0  u32 flags << 16 | command     0  u32 flags << 16 | command
//!  4  u32 pages                     4  (padding)
//!  8  u64 first address             8  u64 pages
//! 16  u64 space id << 8 | type     16  u64 first address
//!                                  24  u64 space id << 8 | type
//! ```
//!
//! | command | answer |
//! |---|---|
//! | open a space | one byte: has it a parent |
//! | has it a parent (pre-dumps) | int: 1 or 0 |
//! | add a run, PRESENT: its pages follow; PARENT or LAZY alone: nothing follows | – |
//! | close | int: 0 |

use super::MemoryError;
use super::space::{PageFlags, Space, is_run};

const ADD: u32 = 1;
const HOLE: u32 = 2;
const OPEN: u32 = 3;
const OPEN_AND_ANSWER: u32 = 4;
const PARENT: u32 = 5;
const ADD_WITH_FLAGS: u32 = 6;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;

/// Which of the two header layouts is spoken: [`CriuVersion::wide_page_counts`] of the CRIU at the other end.
///
/// [`CriuVersion::wide_page_counts`]: crate::model::CriuVersion::wide_page_counts
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 24 bytes, page counts of 32 bits.
    Narrow,
    /// 32 bytes, page counts of 64 bits.
    Wide,
}

impl Layout {
    /// The layout for page counts of 64 bits, or not.
    pub fn new(wide_page_counts: bool) -> Self {
        if wide_page_counts {
            Self::Wide
        } else {
            Self::Narrow
        }
    }

    /// The header's length.
    pub fn header_length(self) -> usize {
        match self {
            Self::Narrow => 24,
            Self::Wide => 32,
        }
    }
}

/// The longest header.
pub const LONGEST_HEADER: usize = 32;

/// What CRIU tells its page server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Runs of this space follow.
    Open {
        /// The space.
        space: Space,
        /// Whether CRIU waits for a byte.
        answer: bool,
    },
    /// Whether there are older images of this space.
    Parent {
        /// The space.
        space: Space,
    },
    /// A run of pages.
    Add {
        /// The space.
        space: Space,
        /// The first page's address.
        vaddr: u64,
        /// How many pages; never 0.
        pages: u64,
        /// What it is; with PRESENT the pages follow.
        flags: PageFlags,
    },
    /// That was all.
    Close,
}

/// Reads a header. `bytes` are as many as `layout` says.
pub fn decode(layout: Layout, bytes: &[u8]) -> Result<Command, MemoryError> {
    let header = Header::read(layout, bytes).ok_or(MemoryError::PageServerHeader {
        length: bytes.len(),
    })?;
    let space = || {
        let kind = (header.destination & 0xff) as u8;
        let space = Space::from_parts(kind, header.destination >> 8);
        space.ok_or(MemoryError::PageServerSpace {
            id: header.destination,
        })
    };
    let flags = match header.command & 0xffff {
        OPEN | OPEN_AND_ANSWER => {
            return Ok(Command::Open {
                space: space()?,
                answer: header.command & 0xffff == OPEN_AND_ANSWER,
            });
        }
        PARENT => return Ok(Command::Parent { space: space()? }),
        CLOSE | FORCE_CLOSE => return Ok(Command::Close),
        ADD => Some(PageFlags::PRESENT),
        HOLE => Some(PageFlags::PARENT),
        ADD_WITH_FLAGS => PageFlags::from_bits(header.command >> 16),
        _ => None,
    };
    let flags = flags.ok_or(MemoryError::PageServerCommand {
        command: header.command,
    })?;
    if !is_run(header.vaddr, header.pages) {
        return Err(MemoryError::PageServerRun {
            vaddr: header.vaddr,
            pages: header.pages,
        });
    }
    Ok(Command::Add {
        space: space()?,
        vaddr: header.vaddr,
        pages: header.pages,
        flags,
    })
}

/// Writes a header: what CRIU does, for whoever plays CRIU. Counts that a narrow header cannot hold are cut.
pub fn encode(layout: Layout, command: Command) -> Vec<u8> {
    let destination = |space: Space| {
        let (kind, id) = space.parts();
        id << 8 | u64::from(kind)
    };
    let (command, pages, vaddr, destination) = match command {
        Command::Open { space, answer } => {
            let command = if answer { OPEN_AND_ANSWER } else { OPEN };
            (command, 0, 0, destination(space))
        }
        Command::Parent { space } => (PARENT, 0, 0, destination(space)),
        Command::Add {
            space,
            vaddr,
            pages,
            flags,
        } => {
            let command = flags.bits() << 16 | ADD_WITH_FLAGS;
            (command, pages, vaddr, destination(space))
        }
        Command::Close => (FORCE_CLOSE, 0, 0, 0),
    };
    let mut bytes = command.to_ne_bytes().to_vec();
    match layout {
        Layout::Narrow => bytes.extend((pages as u32).to_ne_bytes()),
        Layout::Wide => {
            bytes.extend([0; 4]);
            bytes.extend(pages.to_ne_bytes());
        }
    }
    bytes.extend(vaddr.to_ne_bytes());
    bytes.extend(destination.to_ne_bytes());
    bytes
}

struct Header {
    command: u32,
    pages: u64,
    vaddr: u64,
    destination: u64,
}

impl Header {
    fn read(layout: Layout, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != layout.header_length() {
            return None;
        }
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?;
            bytes.try_into().ok().map(u32::from_ne_bytes)
        };
        let long = |at: usize| {
            let bytes = bytes.get(at..at + 8)?;
            bytes.try_into().ok().map(u64::from_ne_bytes)
        };
        let (pages, rest) = match layout {
            Layout::Narrow => (u64::from(word(4)?), 8),
            Layout::Wide => (long(8)?, 16),
        };
        Some(Self {
            command: word(0)?,
            pages,
            vaddr: long(rest)?,
            destination: long(rest + 8)?,
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use rand::{RngCore, SeedableRng};

    const BOTH: [Layout; 2] = [Layout::Narrow, Layout::Wide];

    #[test]
    fn every_command_survives_both_layouts() {
        let space = Space::Task(17);
        let add = |flags| Command::Add {
            space: Space::Shared(9),
            vaddr: 0x7fff_0000_1000,
            pages: 3,
            flags,
        };
        for layout in BOTH {
            for command in [
                Command::Open {
                    space,
                    answer: true,
                },
                Command::Open {
                    space,
                    answer: false,
                },
                Command::Parent { space },
                add(PageFlags::PRESENT),
                add(PageFlags::PRESENT.with(PageFlags::LAZY)),
                add(PageFlags::PARENT),
                Command::Close,
            ] {
                let bytes = encode(layout, command);
                assert_eq!(bytes.len(), layout.header_length());
                assert_eq!(decode(layout, &bytes).unwrap(), command);
                for cut in 0..bytes.len() {
                    assert!(decode(layout, &bytes[..cut]).is_err());
                }
            }
        }
    }

    #[test]
    fn a_wide_count_is_more_than_32_bits() {
        let command = Command::Add {
            space: Space::Task(1),
            vaddr: 0,
            pages: (1 << 32) + 5,
            flags: PageFlags::PRESENT,
        };
        let bytes = encode(Layout::Wide, command);
        assert_eq!(decode(Layout::Wide, &bytes).unwrap(), command);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let layout = Layout::Wide;
        let add = |command: u32, pages: u64, vaddr: u64, destination: u64| {
            let mut bytes = command.to_ne_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend(pages.to_ne_bytes());
            bytes.extend(vaddr.to_ne_bytes());
            bytes.extend(destination.to_ne_bytes());
            decode(layout, &bytes)
        };
        assert!(add(4 << 16 | 6, 1, 0x1000, 5 << 8 | 1).is_ok());
        assert!(add(8 << 16 | 6, 1, 0x1000, 5 << 8 | 1).is_err(), "flag");
        assert!(add(7, 1, 0x1000, 5 << 8 | 1).is_err(), "command");
        assert!(add(4 << 16 | 6, 0, 0x1000, 5 << 8 | 1).is_err(), "empty");
        assert!(add(4 << 16 | 6, 1, 0x1001, 5 << 8 | 1).is_err(), "border");
        assert!(add(4 << 16 | 6, u64::MAX, 0, 5 << 8 | 1).is_err(), "end");
        assert!(add(4 << 16 | 6, 1, 0x1000, 5 << 8 | 3).is_err(), "type");
        assert!(add(4 << 16 | 6, 1, 0x1000, 1).is_err(), "pid 0");
    }

    #[test]
    fn random_headers_are_decoded_or_refused_and_never_misread() {
        let mut random = rand::rngs::StdRng::seed_from_u64(4711);
        super::super::fuzz::run(20_000, || {
            for layout in BOTH {
                let mut bytes = vec![0; layout.header_length()];
                random.fill_bytes(&mut bytes);
                // Mostly plausible commands, or almost everything ends at the first check.
                if random.next_u32() % 4 > 0 {
                    let command = random.next_u32() % 8;
                    bytes[..2].copy_from_slice(&(command as u16).to_ne_bytes());
                    bytes[2..4].copy_from_slice(&(random.next_u32() as u16 % 9).to_ne_bytes());
                }
                if let Ok(command) = decode(layout, &bytes) {
                    let again = encode(layout, command);
                    assert_eq!(decode(layout, &again).unwrap(), command);
                }
            }
        });
    }
}
