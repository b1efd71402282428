//! Pages between two hosts, as frames of bytes; pure.
//!
//! Every frame stands for itself and says how long it is. Frames travel in *batches*, one after the other, of at most
//! [`LONGEST_BATCH`] bytes. A frame is a header, little endian, and a payload:
//!
//! ```text
//!  0  u8   kind            24  u32 flags (lists: 1 = the last of its space; else 0)
//!  1  u8   type of space   28  u32 length of the payload
//!  2  u16  0               32  u64 checksum: XXH3 of the content, seeded with the XXH3 of the header before it
//!  4  u32  count           40  payload
//!  8  u64  id of space
//! 16  u64  first address; lists: index of the first entry; packed: length of the content
//! ```
//!
//! | kind | | count | payload | content under the checksum |
//! |---|---|---|---|---|
//! | 1 | pages | pages | the pages | the pages |
//! | 2 | packed | frames | frames, compressed with zstd | – |
//! | 3 | zero run | pages | – | – |
//! | 4 | unchanged run | pages | – | – |
//! | 5 | list | entries | per entry u64 address, u32 pages, u32 CRIU's flags | the entries |
//! | 6 | changes | pages | the pages XOR what was sent of them before | the pages |
//! | 7 | run left behind | pages | – | – |
//!
//! **Integrity.** That nobody between the hosts has touched the bytes is TLS's to say. The checksum is over what is
//! meant, not over what is sent (a packed frame's is over its header alone, its frames have their own): it tells of a
//! faulty compressor and of a fault in the memory of either host, for which it need not be a cryptographic one.
//!
//! **Order.** A page comes at most once per round. Frames of one round may overtake each other; a round must be
//! acknowledged as a whole before the next begins, or an old page could replace a new one. For the same reason changes
//! are told against what an earlier round has sent, and a frame of them must not be applied twice.

mod changes;

use std::io;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::MemoryError;
use super::space::{Entry, PageFlags, Space, is_run};
use crate::model::PAGE_SIZE;

pub(super) use changes::xor;
pub use changes::{Changes, seal_changes};

/// The longest run of pages with bytes, and the most pages of a batch (512 KiB).
pub const RUN_PAGES: u64 = 128;
/// The longest run of zero or unchanged pages, in pages.
pub const MARK_PAGES: u64 = 1 << 16;
/// The longest list, in entries.
pub const LIST_ENTRIES: usize = 8192;
/// The most frames of a batch.
pub const BATCH_FRAMES: usize = 512;
/// The length of the header.
pub const HEADER: usize = 40;
/// The longest batch, in bytes.
pub const LONGEST_BATCH: usize = RUN_BYTES + BATCH_FRAMES * HEADER;

const RUN_BYTES: usize = (RUN_PAGES * PAGE_SIZE) as usize;
const ENTRY: usize = 16;
const LAST: u32 = 1;
const PAGES: u8 = 1;
const PACKED: u8 = 2;
const ZERO: u8 = 3;
const UNCHANGED: u8 = 4;
const LIST: u8 = 5;
const CHANGES: u8 = 6;
const BEHIND: u8 = 7;

/// A frame's meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Pages and their bytes.
    Pages {
        /// Whose.
        space: Space,
        /// The first one's address.
        vaddr: u64,
        /// The bytes of all of them.
        bytes: &'a [u8],
    },
    /// Pages whose bytes are all zero.
    Zero {
        /// Whose.
        space: Space,
        /// The first one's address.
        vaddr: u64,
        /// How many.
        pages: u64,
    },
    /// Pages that are what was sent before.
    Unchanged {
        /// Whose.
        space: Space,
        /// The first one's address.
        vaddr: u64,
        /// How many.
        pages: u64,
    },
    /// Pages that stay on the source, and come when the process already runs. What was sent of them before is stale.
    Behind {
        /// Whose.
        space: Space,
        /// The first one's address.
        vaddr: u64,
        /// How many.
        pages: u64,
    },
    /// Pages, told by what has changed in them.
    Changes(Changes<'a>),
    /// A part of the list of the pages a space has at the end.
    List {
        /// Whose.
        space: Space,
        /// The index of the first entry in the whole list.
        first: u64,
        /// The entries.
        entries: Vec<Entry>,
        /// Whether the list ends here.
        last: bool,
    },
}

/// Completes a frame of pages whose bytes are in place behind the room for its header: at most [`RUN_PAGES`].
pub fn seal_pages(frame: &mut [u8], space: Space, vaddr: u64) {
    let (header, bytes) = frame.split_at_mut(HEADER);
    debug_assert!(bytes.len() <= RUN_BYTES && bytes.len().is_multiple_of(PAGE_SIZE as usize));
    let pages = bytes.len() as u64 / PAGE_SIZE;
    header.copy_from_slice(&Header::new(PAGES, space, pages, vaddr, 0, bytes.len()).seal(bytes));
}

/// A frame of zero pages, at most [`MARK_PAGES`].
pub fn zero(space: Space, vaddr: u64, pages: u64) -> [u8; HEADER] {
    Header::new(ZERO, space, pages, vaddr, 0, 0).seal(&[])
}

/// A frame of unchanged pages, at most [`MARK_PAGES`].
pub fn unchanged(space: Space, vaddr: u64, pages: u64) -> [u8; HEADER] {
    Header::new(UNCHANGED, space, pages, vaddr, 0, 0).seal(&[])
}

/// A frame of pages that are left behind, at most [`MARK_PAGES`].
pub fn behind(space: Space, vaddr: u64, pages: u64) -> [u8; HEADER] {
    Header::new(BEHIND, space, pages, vaddr, 0, 0).seal(&[])
}

/// The header of a frame whose payload of this length is so many frames, compressed from `content` bytes.
pub fn packed(frames: usize, content: usize, length: usize) -> [u8; HEADER] {
    debug_assert!(frames <= BATCH_FRAMES && content <= LONGEST_BATCH);
    let header = Header {
        kind: PACKED,
        space_type: 0,
        count: frames as u32,
        space_id: 0,
        first: content as u64,
        flags: 0,
        length: length as u32,
        checksum: 0,
    };
    header.seal(&[])
}

/// The frames of a space's whole list, each a batch of its own; one at least.
pub fn list(space: Space, entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut parts: Vec<&[Entry]> = entries.chunks(LIST_ENTRIES).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let end = parts.len() - 1;
    let frame = |(number, part): (usize, &&[Entry])| {
        let mut frame = vec![0; HEADER];
        for entry in *part {
            frame.extend(entry.vaddr.to_le_bytes());
            frame.extend(entry.pages.to_le_bytes());
            frame.extend(entry.flags.bits().to_le_bytes());
        }
        let first = (number * LIST_ENTRIES) as u64;
        let flags = if number == end { LAST } else { 0 };
        let (header, payload) = frame.split_at_mut(HEADER);
        let count = part.len() as u64;
        let sealed = Header::new(LIST, space, count, first, flags, payload.len()).seal(payload);
        header.copy_from_slice(&sealed);
        frame
    };
    parts.iter().enumerate().map(frame).collect()
}

/// Reads frames.
pub struct Decoder {
    decompressor: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

/// Who is told of every frame of a batch.
pub type EachFrame<'a> = dyn FnMut(&Frame<'_>) -> Result<(), MemoryError> + 'a;

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder.
    pub fn new() -> Result<Self, MemoryError> {
        let failed = |source: io::Error| MemoryError::Compress { length: 0, source };
        Ok(Self {
            decompressor: zstd::bulk::Decompressor::new().map_err(failed)?,
            plain: Vec::new(),
        })
    }

    /// Reads a batch. Any bytes at all may be given: they are frames, or an error after those before it.
    pub fn decode(&mut self, batch: &[u8], each: &mut EachFrame<'_>) -> Result<(), MemoryError> {
        if batch.len() > LONGEST_BATCH {
            return Err(damaged(batch, "it is longer than any batch"));
        }
        let mut rest = batch;
        let mut frames = 0;
        while !rest.is_empty() {
            let (header, payload, after) = split(rest)?;
            rest = after;
            if header.kind == PACKED {
                frames += header.count as usize;
                self.unpack(&header, payload, each)?;
            } else {
                frames += 1;
                each(&meaning(&header, payload)?)?;
            }
            if frames > BATCH_FRAMES {
                return Err(damaged(batch, "it has too many frames"));
            }
        }
        Ok(())
    }

    fn unpack(
        &mut self,
        header: &Header,
        payload: &[u8],
        each: &mut EachFrame<'_>,
    ) -> Result<(), MemoryError> {
        if header.checksum != header.checksum_of(&[]) {
            return Err(damaged(payload, "its checksum is wrong"));
        }
        // The output has exactly the room of what is promised.
        let length = header.first as usize;
        if self.plain.len() < length {
            self.plain.resize(LONGEST_BATCH, 0);
        }
        let plain = &mut self.plain[..length];
        match self.decompressor.decompress_to_buffer(payload, plain) {
            Ok(unpacked) if unpacked == length => {}
            _ => return Err(damaged(payload, "it does not unpack to its frames")),
        }
        let mut rest = &self.plain[..length];
        for _ in 0..header.count {
            let (header, payload, after) = split(rest)?;
            rest = after;
            each(&meaning(&header, payload)?)?;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(damaged(payload, "it unpacks to more than its frames"))
        }
    }
}

fn damaged(bytes: &[u8], what: &'static str) -> MemoryError {
    let length = bytes.len();
    MemoryError::Frame { length, what }
}

/// The first frame of these bytes, and what is behind it.
fn split(bytes: &[u8]) -> Result<(Header, &[u8], &[u8]), MemoryError> {
    let (fixed, rest) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or_else(|| damaged(bytes, "it has no header"))?;
    let header = Header::read(fixed).map_err(|what| damaged(bytes, what))?;
    let (payload, after) = rest
        .split_at_checked(header.length as usize)
        .ok_or_else(|| damaged(bytes, "its payload is cut short"))?;
    Ok((header, payload, after))
}

/// What a frame says that is not packed.
fn meaning<'a>(header: &Header, payload: &'a [u8]) -> Result<Frame<'a>, MemoryError> {
    let wrong = |what| damaged(payload, what);
    let space = Space::from_parts(header.space_type, header.space_id);
    let space = space.ok_or_else(|| wrong("there is no such space"))?;
    if header.kind != CHANGES && header.checksum != header.checksum_of(payload) {
        return Err(wrong("its checksum is wrong"));
    }
    let (vaddr, pages) = (header.first, u64::from(header.count));
    match header.kind {
        PAGES => Ok(Frame::Pages {
            space,
            vaddr,
            bytes: payload,
        }),
        ZERO => Ok(Frame::Zero {
            space,
            vaddr,
            pages,
        }),
        UNCHANGED => Ok(Frame::Unchanged {
            space,
            vaddr,
            pages,
        }),
        BEHIND => Ok(Frame::Behind {
            space,
            vaddr,
            pages,
        }),
        CHANGES => Ok(Frame::Changes(Changes {
            space,
            vaddr,
            xor: payload,
            header: *header,
        })),
        LIST => Ok(Frame::List {
            space,
            first: header.first,
            entries: entries(payload).ok_or_else(|| wrong("an entry of it cannot be"))?,
            last: header.flags == LAST,
        }),
        _ => Err(wrong("it is packed twice")),
    }
}

fn entries(content: &[u8]) -> Option<Vec<Entry>> {
    let entry = |bytes: &[u8]| {
        let vaddr = u64::from_le_bytes(bytes[..8].try_into().ok()?);
        let pages = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
        let flags = u32::from_le_bytes(bytes[12..].try_into().ok()?);
        is_run(vaddr, pages.into()).then_some(Entry {
            vaddr,
            pages,
            flags: PageFlags::from_bits(flags)?,
        })
    };
    content.chunks_exact(ENTRY).map(entry).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: u8,
    space_type: u8,
    count: u32,
    space_id: u64,
    first: u64,
    flags: u32,
    length: u32,
    checksum: u64,
}

impl Header {
    fn new(kind: u8, space: Space, count: u64, first: u64, flags: u32, length: usize) -> Self {
        let (space_type, space_id) = space.parts();
        // Counts and lengths are bounded by the constants above, all of them far below 2^32.
        debug_assert!(count <= MARK_PAGES && length <= RUN_BYTES);
        Self {
            kind,
            space_type,
            count: count as u32,
            space_id,
            first,
            flags,
            length: length as u32,
            checksum: 0,
        }
    }

    /// The header's bytes, its checksum that of `content`.
    fn seal(mut self, content: &[u8]) -> [u8; HEADER] {
        self.checksum = self.checksum_of(content);
        let mut bytes = [0; HEADER];
        bytes[..32].copy_from_slice(&self.before_checksum());
        bytes[32..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    fn before_checksum(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[0] = self.kind;
        bytes[1] = self.space_type;
        bytes[4..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.space_id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.flags.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    fn checksum_of(&self, content: &[u8]) -> u64 {
        xxh3_64_with_seed(content, xxh3_64(&self.before_checksum()))
    }

    /// A header, everything checked that can be checked before its payload is looked at.
    fn read(fixed: &[u8; HEADER]) -> Result<Self, &'static str> {
        let word = |at: usize| {
            u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let header = Self {
            kind: fixed[0],
            space_type: fixed[1],
            count: word(4),
            space_id: long(8),
            first: long(16),
            flags: word(24),
            length: word(28),
            checksum: long(32),
        };
        if fixed[2] != 0 || fixed[3] != 0 {
            return Err("its reserved bytes are not zero");
        }
        let (count, length) = (u64::from(header.count), u64::from(header.length));
        let (most, fitting) = match header.kind {
            PAGES | CHANGES => (RUN_PAGES, length == count * PAGE_SIZE),
            PACKED => (BATCH_FRAMES as u64, length < header.first),
            ZERO | UNCHANGED | BEHIND => (MARK_PAGES, length == 0),
            LIST => (LIST_ENTRIES as u64, length == count * ENTRY as u64),
            _ => return Err("its kind is not known"),
        };
        if count > most {
            return Err("its count is too high");
        }
        if !fitting {
            return Err("its payload does not fit its count");
        }
        let possible = match header.kind {
            LIST => header.flags <= LAST,
            PACKED => {
                let plain = (header.space_type, header.space_id, header.flags) == (0, 0, 0);
                plain && header.first <= LONGEST_BATCH as u64
            }
            _ => header.flags == 0 && is_run(header.first, count),
        };
        possible.then_some(header).ok_or("there can be no such run")
    }
}

#[cfg(test)]
mod test;
