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
mod test {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

    const PAGE: usize = PAGE_SIZE as usize;
    const TASK: Space = Space::Task(7);

    fn noise(pages: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; pages * PAGE];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    fn check(frame: &[u8], expected: &Frame<'_>) {
        let mut decoder = Decoder::new().unwrap();
        assert_eq!(&decoder.decode(frame).unwrap(), expected);
    }

    #[test]
    fn pages_survive_raw_and_compressed() {
        let even = vec![0x5a; 128 * PAGE];
        let noise = noise(128, 1);
        for level in [0, 1, 3, -5] {
            let mut encoder = Encoder::new(level).unwrap();
            for bytes in [&even, &noise] {
                let frame = encoder.pages(TASK, 0x7000, bytes).unwrap();
                assert!(frame.len() <= LONGEST_FRAME);
                if level != 0 && bytes == &even {
                    assert!(frame.len() < 2 * PAGE, "{} at {level}", frame.len());
                }
                check(
                    &frame,
                    &Frame::Pages {
                        space: TASK,
                        vaddr: 0x7000,
                        bytes,
                    },
                );
            }
        }
    }

    #[test]
    fn marks_cost_a_header_alone() {
        let encoder = Encoder::new(1).unwrap();
        let zero = encoder.zero(Space::Shared(3), 0, MARK_PAGES);
        assert_eq!(zero.len(), HEADER);
        check(
            &zero,
            &Frame::Zero {
                space: Space::Shared(3),
                vaddr: 0,
                pages: MARK_PAGES,
            },
        );
        check(
            &encoder.unchanged(TASK, 0x1000, 1),
            &Frame::Unchanged {
                space: TASK,
                vaddr: 0x1000,
                pages: 1,
            },
        );
    }

    #[test]
    fn a_long_list_comes_in_parts_and_only_the_last_says_so() {
        let encoder = Encoder::new(0).unwrap();
        let entry = |n: usize| Entry {
            vaddr: n as u64 * 2 * PAGE_SIZE,
            pages: 1,
            flags: PageFlags::PRESENT.with(PageFlags::LAZY),
        };
        let entries: Vec<Entry> = (0..LIST_ENTRIES + 1).map(entry).collect();
        let frames = encoder.list(TASK, &entries);
        let mut decoder = Decoder::new().unwrap();
        let mut all = Vec::new();
        let mut ends = Vec::new();
        for frame in &frames {
            match decoder.decode(frame).unwrap() {
                Frame::List {
                    first,
                    entries,
                    last,
                    ..
                } => {
                    assert_eq!(first, all.len() as u64);
                    all.extend(entries);
                    ends.push(last);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(all, entries);
        assert_eq!(ends, [false, true]);
        assert_eq!(encoder.list(TASK, &[]).len(), 1);
    }

    #[test]
    fn a_frame_cut_anywhere_or_too_long_is_refused() {
        let mut encoder = Encoder::new(1).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let frame = encoder.pages(TASK, 0, &vec![1; 3 * PAGE]).unwrap();
        for cut in 0..frame.len() {
            assert!(decoder.decode(&frame[..cut]).is_err(), "{cut}");
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert!(decoder.decode(&longer).is_err());
        assert!(decoder.decode(&vec![1; LONGEST_FRAME + 1]).is_err());
    }

    #[test]
    fn a_bit_flipped_anywhere_is_noticed() {
        let mut encoder = Encoder::new(1).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let entries = [Entry {
            vaddr: 0x1000,
            pages: 4,
            flags: PageFlags::PRESENT,
        }];
        let mut frames = encoder.list(TASK, &entries);
        frames.push(encoder.zero(TASK, 0x1000, 5));
        frames.push(encoder.unchanged(TASK, 0x1000, 5));
        frames.push(encoder.pages(TASK, 0x1000, &vec![9; PAGE]).unwrap());
        for frame in frames {
            for bit in 0..frame.len() * 8 {
                let mut damaged = frame.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                // A compressed payload may have bits that mean nothing: then the pages are what they were.
                if let Ok(decoded) = decoder.decode(&damaged) {
                    let decoded = format!("{decoded:?}");
                    let mut again = Decoder::new().unwrap();
                    assert_eq!(decoded, format!("{:?}", again.decode(&frame).unwrap()));
                    assert!(bit >= HEADER * 8, "bit {bit} of the header");
                }
            }
        }
    }

    /// A frame that is right in every respect but one, which the checksum cannot tell.
    fn forged(change: impl FnOnce(&mut Header), payload: &[u8]) -> Vec<u8> {
        let mut header = Header::new(RAW, TASK, 1, 0, 0, payload.len());
        change(&mut header);
        header.frame(payload, payload)
    }

    #[test]
    fn a_frame_with_a_right_checksum_and_wrong_numbers_is_refused() {
        let mut decoder = Decoder::new().unwrap();
        let page = vec![1; PAGE];
        assert!(decoder.decode(&forged(|_| {}, &page)).is_ok());
        let wrong: [fn(&mut Header); 9] = [
            |h| h.kind = 0,
            |h| h.kind = 6,
            |h| h.space_type = 0,
            |h| h.space_id = 0,
            |h| h.count = 2,
            |h| h.count = u32::MAX,
            |h| h.first = 5,
            |h| h.first = 1 << 63,
            |h| h.flags = 1,
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            assert!(decoder.decode(&forged(change, &page)).is_err(), "{number}");
        }
        for kind in [ZERO, UNCHANGED] {
            let too_many = forged(
                |h| {
                    h.kind = kind;
                    h.count = MARK_PAGES as u32 + 1;
                },
                &[],
            );
            assert!(decoder.decode(&too_many).is_err());
        }
    }

    #[test]
    fn a_payload_that_unpacks_to_more_than_it_says_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(bomb.len() < RUN_BYTES);
        let mut header = Header::new(ZSTD, TASK, RUN_PAGES, 0, 0, bomb.len());
        header.checksum = header.checksum_of(&bomb);
        let frame = header.frame(&bomb, &bomb);
        assert!(Decoder::new().unwrap().decode(&frame).is_err());
    }

    #[test]
    fn random_bytes_are_a_frame_or_an_error() {
        let mut random = StdRng::seed_from_u64(815);
        let mut encoder = Encoder::new(1).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let good = [
            encoder.pages(TASK, 0x3000, &vec![7; 2 * PAGE]).unwrap(),
            encoder.pages(TASK, 0x3000, &noise(1, 2)).unwrap(),
            encoder.zero(TASK, 0, 9),
            encoder.list(TASK, &[]).remove(0),
        ];
        super::super::fuzz::run(3_000, || {
            let mut bytes = good[random.random_range(0..good.len())].clone();
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            if random.random_range(0..3) == 0 {
                bytes.truncate(random.random_range(0..=bytes.len()));
            }
            // Half of them with a right checksum, or nothing behind it is ever reached.
            if bytes.len() >= HEADER && random.random() {
                let length = (bytes.len() - HEADER) as u32;
                bytes[28..32].copy_from_slice(&length.to_le_bytes());
                let mut hasher = blake3::Hasher::new();
                hasher.update(&bytes[..32]).update(&bytes[HEADER..]);
                let sum = hasher.finalize();
                bytes[32..40].copy_from_slice(&sum.as_bytes()[..8]);
            }
            if let Ok(Frame::Pages { bytes, .. }) = decoder.decode(&bytes) {
                assert!(!bytes.is_empty() && bytes.len() <= RUN_BYTES);
            }
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_pages_survive(
            pages in 1usize..16,
            page_number in 0u64..1 << 40,
            id in 0u64..1 << 56,
            level in -3i32..4,
            seed: u64,
            sparse: bool,
        ) {
            let mut bytes = if sparse { vec![0; pages * PAGE] } else { noise(pages, seed) };
            bytes[0] = 1;
            let mut encoder = Encoder::new(level).unwrap();
            let (space, vaddr) = (Space::Shared(id), page_number * PAGE_SIZE);
            let frame = encoder.pages(space, vaddr, &bytes).unwrap();
            let mut decoder = Decoder::new().unwrap();
            prop_assert_eq!(decoder.decode(&frame).unwrap(), Frame::Pages { space, vaddr, bytes: &bytes });
        }
    }
}
