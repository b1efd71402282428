//! A batch of pages becomes the bytes of its frames: zeros found, compressed where that is worth while.

use std::time::{Duration, Instant};

use super::MemoryError;
use super::frame::{BATCH_FRAMES, HEADER, LONGEST_BATCH, RUN_PAGES, packed, seal_pages, zero};
use super::space::Space;
use crate::model::{PAGE_SIZE, Pages};

const PAGE: usize = PAGE_SIZE as usize;
static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// Pages on their way to be packed, laid out as their frames will be: nothing is copied where they go out as they are.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    runs: Vec<Run>,
    pages: usize,
    frames: usize,
}

/// A run of pages in a batch.
#[derive(Debug, Clone, Copy)]
struct Run {
    space: Space,
    vaddr: u64,
    /// Where its frame begins.
    at: usize,
    pages: usize,
}

impl Batch {
    /// An empty batch in an old buffer.
    pub(super) fn new(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.reserve(LONGEST_BATCH);
        Self {
            bytes,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes as many of these pages as there is room for, and says how many bytes that is: 0 when it is full.
    pub(super) fn take(&mut self, space: Space, vaddr: u64, bytes: &[u8]) -> usize {
        let room = RUN_PAGES as usize - self.pages;
        let pages = room.min(bytes.len() / PAGE);
        let taken = pages * PAGE;
        if pages == 0 {
            return 0;
        }
        match self.runs.last_mut() {
            Some(run) if run.continues(self.bytes.len(), space, vaddr) => run.pages += pages,
            // A run may be split by zeros, and then has twice as many frames as pages at most.
            _ if self.frames + 1 >= BATCH_FRAMES / 2 => return 0,
            _ => {
                let at = self.bytes.len();
                self.bytes.extend_from_slice(&[0; HEADER]);
                self.runs.push(Run {
                    space,
                    vaddr,
                    at,
                    pages,
                });
                self.frames += 1;
            }
        }
        self.bytes.extend_from_slice(&bytes[..taken]);
        self.pages += pages;
        taken
    }

    /// Takes a frame without a payload; false when it is full.
    pub(super) fn mark(&mut self, frame: &[u8; HEADER]) -> bool {
        let fits = self.frames < BATCH_FRAMES / 2;
        if fits {
            self.bytes.extend_from_slice(frame);
            self.frames += 1;
        }
        fits
    }

    fn bytes_of(&self, run: &Run) -> &[u8] {
        &self.bytes[run.at + HEADER..][..run.pages * PAGE]
    }
}

impl Run {
    /// Whether a page at this place in the batch would be the next one of this run.
    fn continues(&self, end: usize, space: Space, vaddr: u64) -> bool {
        let length = self.pages * PAGE;
        self.at + HEADER + length == end
            && self.space == space
            && self.vaddr + length as u64 == vaddr
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// The bytes to send.
    pub(super) bytes: Vec<u8>,
    /// A buffer that nobody needs any more.
    pub(super) spare: Vec<u8>,
    /// Pages whose bytes went into it.
    pub(super) pages: Pages,
    /// Pages found to be all zero.
    pub(super) zero: Pages,
    /// How long its bytes were before they were compressed, and how long that took.
    pub(super) plain: usize,
    pub(super) compressing: Duration,
}

/// Packs batches, one at a time.
pub(super) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    sampler: zstd::bulk::Compressor<'static>,
    level: i32,
}

impl Packer {
    pub(super) fn new() -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Compress { length: 0, source };
        let level = 1;
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(level).map_err(failed)?,
            sampler: zstd::bulk::Compressor::new(level).map_err(failed)?,
            level,
        })
    }

    /// The frames of a batch, compressed at this level, or not at all at level 0. `spare` is a buffer to be used.
    pub(super) fn pack(
        &mut self,
        mut batch: Batch,
        spare: Vec<u8>,
        level: i32,
    ) -> Result<Done, MemoryError> {
        let zeros = batch.runs.iter().any(|run| {
            let mut pages = batch.bytes_of(run).chunks_exact(PAGE);
            pages.any(|page| page == ZERO_PAGE)
        });
        let (mut batch, mut spare, found) = if zeros {
            split_zeros(batch, spare)
        } else {
            batch.seal();
            (batch, spare, Pages(0))
        };
        let mut done = Done {
            pages: Pages(batch.pages as u64),
            zero: found,
            plain: batch.bytes.len(),
            ..Done::default()
        };
        if level != 0 {
            let begin = Instant::now();
            if self.compress(&batch, &mut spare, level)? {
                std::mem::swap(&mut batch.bytes, &mut spare);
            }
            done.compressing = begin.elapsed();
        }
        (done.bytes, done.spare) = (batch.bytes, spare);
        Ok(done)
    }

    /// Compresses a batch into `out`, where that is worth while.
    fn compress(
        &mut self,
        batch: &Batch,
        out: &mut Vec<u8>,
        level: i32,
    ) -> Result<bool, MemoryError> {
        let length = batch.bytes.len();
        if !self.is_promising(batch) {
            return Ok(false);
        }
        let failed = |source| MemoryError::Compress { length, source };
        if self.level != level {
            self.compressor
                .set_compression_level(level)
                .map_err(failed)?;
            self.level = level;
        }
        // Less than an eighth saved is not worth the work at the other end. A buffer that is too small for what
        // comes out is how the compressor says so.
        out.clear();
        out.resize(HEADER + length - length / 8, 0);
        match self
            .compressor
            .compress_to_buffer(&batch.bytes, &mut out[HEADER..])
        {
            Ok(compressed) if compressed < length => {
                out.truncate(HEADER + compressed);
                out[..HEADER].copy_from_slice(&packed(batch.frames, length, compressed));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether a few pages of a batch compress: memory that does not is found out at a small part of the cost.
    fn is_promising(&mut self, batch: &Batch) -> bool {
        let mut target = [0; PAGE - PAGE / 8];
        let mut samples = 0;
        let mut good = 0;
        for run in &batch.runs {
            let bytes = batch.bytes_of(run);
            let step = bytes.len().div_ceil(3).next_multiple_of(PAGE);
            for page in bytes.chunks(step).take(4 - samples.min(3)) {
                let sample = &page[..PAGE];
                samples += 1;
                good += usize::from(
                    self.sampler
                        .compress_to_buffer(sample, &mut target[..])
                        .is_ok(),
                );
            }
            if samples >= 3 {
                break;
            }
        }
        // Marks alone always do.
        samples == 0 || good > 0
    }
}

impl Batch {
    /// Fills in the headers of the pages' frames.
    fn seal(&mut self) {
        for run in &self.runs {
            let frame = &mut self.bytes[run.at..][..HEADER + run.pages * PAGE];
            seal_pages(frame, run.space, run.vaddr);
        }
    }
}

/// The same batch with marks for the pages that are zero, sealed; the old buffer; and how many such pages there were.
fn split_zeros(old: Batch, spare: Vec<u8>) -> (Batch, Vec<u8>, Pages) {
    let mut new = Batch::new(spare);
    let mut found = 0;
    let mut copied = 0;
    for run in &old.runs {
        // Marks between the runs.
        new.bytes.extend_from_slice(&old.bytes[copied..run.at]);
        copied = run.at + HEADER + run.pages * PAGE;
        let pages: Vec<&[u8]> = old.bytes_of(run).chunks_exact(PAGE).collect();
        let mut vaddr = run.vaddr;
        for part in pages.chunk_by(|a, b| (*a == ZERO_PAGE) == (*b == ZERO_PAGE)) {
            let at = new.bytes.len();
            if part[0] == ZERO_PAGE {
                found += part.len();
                let frame = zero(run.space, vaddr, part.len() as u64);
                new.bytes.extend_from_slice(&frame);
            } else {
                new.bytes.extend_from_slice(&[0; HEADER]);
                part.iter()
                    .for_each(|page| new.bytes.extend_from_slice(page));
                new.pages += part.len();
                new.runs.push(Run {
                    space: run.space,
                    vaddr,
                    at,
                    pages: part.len(),
                });
            }
            new.frames += 1;
            vaddr += part.len() as u64 * PAGE_SIZE;
        }
        new.frames -= 1;
    }
    new.frames += old.frames;
    new.bytes.extend_from_slice(&old.bytes[copied..]);
    new.seal();
    (new, old.bytes, Pages(found as u64))
}

#[cfg(test)]
mod test;
