//! How pages come into an address space.

use std::ops::Range;

use super::Member;
use crate::memory::MemoryError;
use crate::memory::fill::index::WORD;
use crate::memory::fill::progress::settle;
use crate::model::PAGE_SIZE;
use crate::sys::userfaultfd::Placed;

const PAGE: usize = PAGE_SIZE as usize;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// How placing pages ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// They are there.
    Done,
    /// The address space was just being changed: events are to be read, then it is to be tried again.
    Again,
    /// The page with this home has not come yet.
    Later(u64),
}

impl Member {
    /// Answers who waits for a page. The buffer is as long as one.
    pub fn answer(&self, address: u64, buffer: &mut [u8]) -> Result<Outcome, MemoryError> {
        let page = address / PAGE_SIZE * PAGE_SIZE;
        let layout = self.layout();
        if let Some(home) = layout.home(page)
            && let Some(number) = self.source.index.number(home)
            && !self.done().is_done(number)
        {
            if !self.source.is_here(home) {
                return Ok(Outcome::Later(home));
            }
            let read = self.source.read(home, buffer);
            read.map_err(self.failed("read a page of"))?;
            if self.put(page, home, buffer)? == Outcome::Again {
                return Ok(Outcome::Again);
            }
        }
        // What has no bytes in the store, or none any more, is zero; what is there wakes who waits.
        let range = page..page + PAGE_SIZE;
        let placed = self.uffd.zeropage(range.clone());
        match placed.map_err(self.failed("place zeros for"))? {
            Placed::All | Placed::Some(_) => {}
            Placed::Changing => return Ok(Outcome::Again),
            Placed::Exists | Placed::Unmapped => {
                self.uffd.wake(range).map_err(self.failed("wake"))?;
            }
            Placed::Gone => self.set_gone(),
        }
        Ok(Outcome::Done)
    }

    /// Reads those of these pages, of one word, that are missing and in the store, each at its place among all of them.
    /// Any thread may. Which they were, a bit each.
    ///
    /// What was read stays true of a page for as long as it is missing: until then the store keeps it.
    pub fn fetch(&self, numbers: Range<u64>, into: &mut [u8]) -> Result<u64, MemoryError> {
        let missing = self.missing(&numbers).into_iter();
        let mut fetched = 0;
        for run in missing.flat_map(|run| self.source.here(run)) {
            run.clone()
                .for_each(|number| fetched |= 1 << (number % WORD));
            for (first, home) in self.source.index.homes(run) {
                let length = (home.end - home.start) as usize;
                let from = (first - numbers.start) as usize * PAGE;
                let read = self.source.read(home.start, &mut into[from..from + length]);
                read.map_err(self.failed("read the pages of"))?;
            }
        }
        Ok(fetched)
    }

    /// Places those of these pages that are still missing, of what [`Self::fetch`] has read.
    pub fn place(
        &self,
        numbers: Range<u64>,
        bytes: &[u8],
        fetched: u64,
    ) -> Result<Outcome, MemoryError> {
        let layout = self.layout();
        let missing = self.missing(&numbers).into_iter();
        for run in missing.flat_map(|run| among(run, fetched)) {
            for (first, home) in self.source.index.homes(run) {
                for piece in layout.at(home.clone()) {
                    let before = (first - numbers.start) * PAGE_SIZE + (piece.home - home.start);
                    let bytes = &bytes[before as usize..(before + piece.length) as usize];
                    if self.put(piece.here, piece.home, bytes)? == Outcome::Again {
                        return Ok(Outcome::Again);
                    }
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// The runs of these pages, of one word, that are missing.
    fn missing(&self, numbers: &Range<u64>) -> Vec<Range<u64>> {
        let runs = self.done().missing(numbers.start / WORD).into_iter();
        runs.map(|run| run.start.max(numbers.start)..run.end.min(numbers.end))
            .filter(|run| !run.is_empty())
            .collect()
    }

    /// Whether anything can be done about a word, or was and is to be given back.
    pub(super) fn has_work(&self, word: u64) -> bool {
        let missing = self.done().missing(word);
        if missing.is_empty() {
            return !self.source.is_given(word);
        }
        missing
            .into_iter()
            .any(|run| !self.source.here(run).is_empty())
    }

    /// Puts pages at `here`. Zeros are not put there: that is what a missing page is.
    fn put(&self, here: u64, home: u64, bytes: &[u8]) -> Result<Outcome, MemoryError> {
        let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE).collect();
        let mut from = 0;
        for run in pages.chunk_by(|a, b| (*a == ZEROS) == (*b == ZEROS)) {
            let to = from + run.len() * PAGE;
            let home = home + from as u64;
            if run[0] == ZEROS {
                let end = home + (to - from) as u64;
                settle(self.done(), &self.source.index, home..end);
            } else if self.copy(here + from as u64, home, &bytes[from..to])? == Outcome::Again {
                return Ok(Outcome::Again);
            }
            from = to;
        }
        Ok(Outcome::Done)
    }

    fn copy(&self, here: u64, home: u64, bytes: &[u8]) -> Result<Outcome, MemoryError> {
        let length = bytes.len() as u64;
        let settle = |from: u64, to: u64| {
            settle(self.done(), &self.source.index, home + from..home + to);
        };
        let mut at = 0;
        // One page at a time after a range that is not of one mapping.
        let mut step = length;
        while at < length {
            let end = (at + step).min(length);
            let placed = self.uffd.copy(here + at, &bytes[at as usize..end as usize]);
            let next = match placed.map_err(self.failed("place pages of"))? {
                Placed::All => end,
                Placed::Some(placed) => at + placed,
                // It was placed before, and that was not noted.
                Placed::Exists => at + PAGE_SIZE,
                Placed::Changing => return Ok(Outcome::Again),
                Placed::Unmapped if end - at > PAGE_SIZE => {
                    step = PAGE_SIZE;
                    continue;
                }
                // No mapping that anybody would see it in: of a child, one that it did not inherit.
                Placed::Unmapped => at + PAGE_SIZE,
                Placed::Gone => {
                    self.set_gone();
                    return Ok(Outcome::Done);
                }
            };
            settle(at, next);
            at = next;
        }
        Ok(Outcome::Done)
    }
}

/// The parts of a run, of one word, that have their bits set.
fn among(run: Range<u64>, bits: u64) -> Vec<Range<u64>> {
    if bits == u64::MAX {
        return vec![run];
    }
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in run.filter(|number| bits >> (number % WORD) & 1 != 0) {
        match runs.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}
