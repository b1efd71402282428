//! A batch of pages becomes the bytes of its frames: zeros found, and what changed little since it was sent; compressed
//! where that is worth while.

mod batch;

use std::time::{Duration, Instant};

pub(super) use self::batch::Batch;
use super::MemoryError;
use super::copies::Copies;
use super::frame::{HEADER, packed, seal_changes, zero};
use crate::model::{PAGE_SIZE, Pages};

const PAGE: usize = PAGE_SIZE as usize;
static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// After so many batches that did not compress in a row only one of so many is tried.
const PATIENT: u32 = 4;
const SELDOM: u32 = 8;

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// The bytes to send.
    pub(super) bytes: Vec<u8>,
    /// A buffer that nobody needs any more.
    pub(super) spare: Vec<u8>,
    /// Pages whose bytes went into it.
    pub(super) pages: Pages,
    /// Those of them of which only the changes did.
    pub(super) changed: Pages,
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
    /// Batches since the last one that compressed.
    hopeless: u32,
    /// What each page of the batch goes as, and the changes of those that go so: without and with their frames.
    sorts: Vec<Sort>,
    xor: Vec<u8>,
    changes: Vec<u8>,
    change_frames: usize,
}

/// What a page goes as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Zero,
    Changes,
    Whole,
}

impl Packer {
    pub(super) fn new() -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Compress { length: 0, source };
        let level = 1;
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(level).map_err(failed)?,
            sampler: zstd::bulk::Compressor::new(level).map_err(failed)?,
            level,
            hopeless: 0,
            sorts: Vec::new(),
            xor: Vec::new(),
            changes: Vec::new(),
            change_frames: 0,
        })
    }

    /// The frames of a batch, compressed at this level, or not at all at level 0. `spare` is a buffer to be used.
    pub(super) fn pack(
        &mut self,
        batch: Batch,
        spare: Vec<u8>,
        level: i32,
        copies: &Copies,
    ) -> Result<Done, MemoryError> {
        self.sort(&batch, copies);
        let zero = self.count(Sort::Zero);
        let changed = self.count(Sort::Changes);
        let (mut batch, mut spare) = if zero + changed > 0 {
            (self.split(&batch, spare), batch.bytes)
        } else {
            let mut batch = batch;
            batch.seal();
            (batch, spare)
        };
        let mut done = Done {
            pages: Pages(batch.pages as u64) + Pages(changed),
            zero: Pages(zero),
            changed: Pages(changed),
            plain: batch.bytes.len(),
            ..Done::default()
        };
        if level != 0 && !batch.is_empty() {
            let begin = Instant::now();
            if self.compress(&batch, &mut spare, level)? {
                std::mem::swap(&mut batch.bytes, &mut spare);
            }
            done.compressing = begin.elapsed();
        }
        self.add_changes(&mut batch.bytes);
        (done.bytes, done.spare) = (batch.bytes, spare);
        Ok(done)
    }

    /// Finds out as what each page of a batch goes.
    fn sort(&mut self, batch: &Batch, copies: &Copies) {
        self.sorts.clear();
        self.xor.clear();
        self.changes.clear();
        self.change_frames = 0;
        for run in &batch.runs {
            let mut vaddr = run.vaddr;
            for page in batch.bytes_of(run).chunks_exact(PAGE) {
                let sort = if page == ZERO_PAGE {
                    copies.forget(run.space, vaddr, 1);
                    Sort::Zero
                } else if copies.send(run.space, vaddr, page, &mut self.xor) {
                    Sort::Changes
                } else {
                    Sort::Whole
                };
                self.sorts.push(sort);
                vaddr += PAGE_SIZE;
            }
        }
    }

    fn count(&self, sort: Sort) -> u64 {
        self.sorts.iter().filter(|one| **one == sort).count() as u64
    }

    /// The same batch, sealed, with marks for the pages that are zero and without those of which only the changes go:
    /// their frames are in `changes` then.
    fn split(&mut self, old: &Batch, spare: Vec<u8>) -> Batch {
        let mut new = Batch::new(spare);
        // The marks stay what they are.
        new.frames = old.frames - old.runs.len();
        let (mut sorts, mut xor) = (&self.sorts[..], &self.xor[..]);
        let mut copied = 0;
        for run in &old.runs {
            // Marks between the runs.
            new.bytes.extend_from_slice(&old.bytes[copied..run.at]);
            copied = run.at + HEADER + run.pages * PAGE;
            let (own, others) = sorts.split_at(run.pages);
            sorts = others;
            let mut vaddr = run.vaddr;
            let mut bytes = old.bytes_of(run);
            for part in own.chunk_by(|a, b| a == b) {
                let (here, rest) = bytes.split_at(part.len() * PAGE);
                bytes = rest;
                match part[0] {
                    Sort::Zero => {
                        let frame = zero(run.space, vaddr, part.len() as u64);
                        new.bytes.extend_from_slice(&frame);
                        new.frames += 1;
                    }
                    Sort::Whole => new.whole(run.space, vaddr, here),
                    Sort::Changes => {
                        let (these, rest) = xor.split_at(here.len());
                        xor = rest;
                        let at = self.changes.len();
                        self.changes.extend_from_slice(&[0; HEADER]);
                        self.changes.extend_from_slice(these);
                        seal_changes(&mut self.changes[at..], run.space, vaddr, here);
                        self.change_frames += 1;
                    }
                }
                vaddr += here.len() as u64;
            }
        }
        new.bytes.extend_from_slice(&old.bytes[copied..]);
        new.seal();
        new
    }
    /// Adds the frames of changes behind the others, packed whatever the level: they are mostly zeros, which costs next
    /// to nothing.
    fn add_changes(&mut self, bytes: &mut Vec<u8>) {
        let (at, length) = (bytes.len(), self.changes.len());
        if length == 0 {
            return;
        }
        bytes.resize(at + HEADER + length, 0);
        let target = &mut bytes[at + HEADER..];
        match self.sampler.compress_to_buffer(&self.changes, target) {
            Ok(compressed) if compressed < length => {
                bytes.truncate(at + HEADER + compressed);
                let header = packed(self.change_frames, length, compressed);
                bytes[at..][..HEADER].copy_from_slice(&header);
            }
            _ => {
                bytes.truncate(at);
                bytes.extend_from_slice(&self.changes);
            }
        }
    }

    /// Compresses a batch into `out`, where that is worth while.
    fn compress(
        &mut self,
        batch: &Batch,
        out: &mut Vec<u8>,
        level: i32,
    ) -> Result<bool, MemoryError> {
        let length = batch.bytes.len();
        // What follows on what did not compress rarely does: it is looked at now and then.
        let looked_at = self.hopeless < PATIENT || self.hopeless.is_multiple_of(SELDOM);
        if !looked_at || !self.is_promising(batch) {
            self.hopeless += 1;
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
                self.hopeless = 0;
                Ok(true)
            }
            _ => {
                self.hopeless += 1;
                Ok(false)
            }
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

#[cfg(test)]
mod test;
