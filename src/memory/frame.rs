//! Pages between two hosts, as frames of bytes; pure.
//!
//! Every frame stands for itself, says how long it is, and is at most [`LONGEST_FRAME`] bytes long. A header,
//! little endian, and a payload:
//!
//! ```text
//!  0  u8   kind            24  u32 flags (lists: 1 = the last of its space; else 0)
//!  1  u8   type of space   28  u32 length of the payload
//!  2  u16  0               32  u64 checksum: BLAKE3, its first 8 bytes, of the header before it and the content
//!  4  u32  count           40  payload
//!  8  u64  id of space
//! 16  u64  first address; lists: index of the first entry
//! ```
//!
//! | kind | | count | payload | content under the checksum |
//! |---|---|---|---|---|
//! | 1 | raw run | pages | the pages | the pages |
//! | 2 | zstd run | pages | the pages, compressed | the pages, before compression |
//! | 3 | zero run | pages | – | – |
//! | 4 | unchanged run | pages | – | – |
//! | 5 | list | entries | per entry u64 address, u32 pages, u32 CRIU's flags | the entries |
//!
//! The checksum is over what is meant, not over what is sent, so that it tells of a faulty compressor and of a
//! fault in memory too.
//!
//! **Order.** A page comes at most once per round. Frames of one round may overtake each other; a round must be
//! acknowledged as a whole before the next begins, or an old page could replace a new one.

use std::io;

use super::MemoryError;
use super::space::{Entry, PageFlags, Space, is_run};
use crate::model::PAGE_SIZE;

/// The longest run of pages with bytes, in pages (512 KiB).
pub const RUN_PAGES: u64 = 128;
/// The longest run of zero or unchanged pages, in pages.
pub const MARK_PAGES: u64 = 1 << 16;
/// The longest list, in entries.
pub const LIST_ENTRIES: usize = 8192;
/// The length of the header.
pub const HEADER: usize = 40;
/// The longest frame, in bytes.
pub const LONGEST_FRAME: usize = HEADER + RUN_BYTES;

const RUN_BYTES: usize = (RUN_PAGES * PAGE_SIZE) as usize;
const ENTRY: usize = 16;
const LAST: u32 = 1;
const RAW: u8 = 1;
const ZSTD: u8 = 2;
const ZERO: u8 = 3;
const UNCHANGED: u8 = 4;
const LIST: u8 = 5;

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

/// Makes frames.
pub struct Encoder {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    compressed: Vec<u8>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder that compresses with zstd at `level`, or not at all at level 0. Levels below 0 are faster
    /// than 1.
    pub fn new(level: i32) -> Result<Self, MemoryError> {
        let compressor = (level != 0).then(|| zstd::bulk::Compressor::new(level));
        let compressor = compressor.transpose().map_err(compress_error(0))?;
        Ok(Self {
            compressed: vec![0; if compressor.is_some() { RUN_BYTES } else { 0 }],
            compressor,
        })
    }

    /// A frame of pages: at most [`RUN_PAGES`], their bytes a whole number of pages.
    pub fn pages(
        &mut self,
        space: Space,
        vaddr: u64,
        bytes: &[u8],
    ) -> Result<Vec<u8>, MemoryError> {
        debug_assert!(bytes.len() <= RUN_BYTES && bytes.len().is_multiple_of(PAGE_SIZE as usize));
        let length = self.compress(bytes)?;
        let (kind, payload) = match length {
            Some(length) => (ZSTD, &self.compressed[..length]),
            None => (RAW, bytes),
        };
        let count = bytes.len() as u64 / PAGE_SIZE;
        let header = Header::new(kind, space, count, vaddr, 0, payload.len());
        Ok(header.frame(payload, bytes))
    }

    /// A frame of zero pages, at most [`MARK_PAGES`].
    pub fn zero(&self, space: Space, vaddr: u64, pages: u64) -> Vec<u8> {
        Header::new(ZERO, space, pages, vaddr, 0, 0).frame(&[], &[])
    }

    /// A frame of unchanged pages, at most [`MARK_PAGES`].
    pub fn unchanged(&self, space: Space, vaddr: u64, pages: u64) -> Vec<u8> {
        Header::new(UNCHANGED, space, pages, vaddr, 0, 0).frame(&[], &[])
    }

    /// The frames of a space's whole list; one at least.
    pub fn list(&self, space: Space, entries: &[Entry]) -> Vec<Vec<u8>> {
        let mut parts: Vec<&[Entry]> = entries.chunks(LIST_ENTRIES).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let end = parts.len() - 1;
        let frame = |(number, part): (usize, &&[Entry])| {
            let mut payload = Vec::with_capacity(part.len() * ENTRY);
            for entry in *part {
                payload.extend(entry.vaddr.to_le_bytes());
                payload.extend(entry.pages.to_le_bytes());
                payload.extend(entry.flags.bits().to_le_bytes());
            }
            let first = (number * LIST_ENTRIES) as u64;
            let flags = if number == end { LAST } else { 0 };
            let count = part.len() as u64;
            Header::new(LIST, space, count, first, flags, payload.len()).frame(&payload, &payload)
        };
        parts.iter().enumerate().map(frame).collect()
    }

    /// Compresses `bytes` into `self.compressed`, where that is worth while.
    fn compress(&mut self, bytes: &[u8]) -> Result<Option<usize>, MemoryError> {
        let Some(compressor) = &mut self.compressor else {
            return Ok(None);
        };
        // Less than an eighth saved is not worth the work at the other end. A buffer that is too small for
        // what comes out is how the compressor says so.
        let worth = bytes.len() - bytes.len() / 8;
        let target = &mut self.compressed[..worth];
        Ok(compressor.compress_to_buffer(bytes, target).ok())
    }
}

/// Reads frames.
pub struct Decoder {
    decompressor: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder.
    pub fn new() -> Result<Self, MemoryError> {
        Ok(Self {
            decompressor: zstd::bulk::Decompressor::new().map_err(compress_error(0))?,
            plain: vec![0; RUN_BYTES],
        })
    }

    /// Reads one whole frame. Any bytes at all may be given: they are a frame or an error.
    pub fn decode<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Frame<'a>, MemoryError> {
        let damaged = |what| MemoryError::Frame {
            length: bytes.len(),
            what,
        };
        let (header, payload) = Header::read(bytes).map_err(damaged)?;
        let space = Space::from_parts(header.space_type, header.space_id);
        let space = space.ok_or_else(|| damaged("there is no such space"))?;
        let content = match header.kind {
            ZSTD => {
                // The output has exactly the room of the pages that are promised.
                let plain = &mut self.plain[..header.run_bytes()];
                match self.decompressor.decompress_to_buffer(payload, plain) {
                    Ok(length) if length == header.run_bytes() => &self.plain[..length],
                    _ => return Err(damaged("it does not unpack to its pages")),
                }
            }
            _ => payload,
        };
        if header.checksum != header.checksum_of(content) {
            return Err(damaged("its checksum is wrong"));
        }
        let (vaddr, pages) = (header.first, u64::from(header.count));
        Ok(match header.kind {
            RAW | ZSTD => Frame::Pages {
                space,
                vaddr,
                bytes: content,
            },
            ZERO => Frame::Zero {
                space,
                vaddr,
                pages,
            },
            UNCHANGED => Frame::Unchanged {
                space,
                vaddr,
                pages,
            },
            _ => Frame::List {
                space,
                first: header.first,
                entries: entries(content).ok_or_else(|| damaged("an entry of it cannot be"))?,
                last: header.flags == LAST,
            },
        })
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

#[derive(Debug, Clone, Copy)]
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

    fn frame(mut self, payload: &[u8], content: &[u8]) -> Vec<u8> {
        self.checksum = self.checksum_of(content);
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.extend(self.before_checksum());
        frame.extend(self.checksum.to_le_bytes());
        frame.extend(payload);
        frame
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
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.before_checksum());
        hasher.update(content);
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }

    /// The header of a frame and its payload, everything checked that can be checked before the payload is
    /// looked at.
    fn read(bytes: &[u8]) -> Result<(Self, &[u8]), &'static str> {
        if bytes.len() > LONGEST_FRAME {
            return Err("it is longer than any frame");
        }
        let (fixed, payload) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or("it has no header")?;
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
        if header.length as usize != payload.len() {
            return Err("its payload has another length");
        }
        let count = u64::from(header.count);
        let (most, fitting) = match header.kind {
            RAW => (RUN_PAGES, payload.len() as u64 == count * PAGE_SIZE),
            ZSTD => (RUN_PAGES, (payload.len() as u64) < count * PAGE_SIZE),
            ZERO | UNCHANGED => (MARK_PAGES, payload.is_empty()),
            LIST => (
                LIST_ENTRIES as u64,
                payload.len() == header.count as usize * ENTRY,
            ),
            _ => return Err("its kind is not known"),
        };
        if count > most {
            return Err("its count is too high");
        }
        if !fitting {
            return Err("its payload does not fit its count");
        }
        if header.kind == LIST {
            if header.flags > LAST {
                return Err("its flags are not known");
            }
        } else if header.flags != 0 || !is_run(header.first, count) {
            return Err("there can be no such run");
        }
        Ok((header, payload))
    }

    fn run_bytes(&self) -> usize {
        self.count as usize * PAGE_SIZE as usize
    }
}

fn compress_error(length: usize) -> impl FnOnce(io::Error) -> MemoryError {
    move |source| MemoryError::Compress { length, source }
}

#[cfg(test)]
mod test;
