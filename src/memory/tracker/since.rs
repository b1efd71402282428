//! What is known of an address space since its soft-dirty bits were cleared. See `soft_dirty.rs` for why.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use super::super::MemoryError;
use super::maps::Private;
use super::own::{Found, Kind};
use super::task::Task;
use crate::model::{PAGE_SIZE, Pages};
use crate::sys::pagemap::{Categories, OWN, Query, Run};

/// What mremap moves at once: the pages of one page table.
const BLOCK: u64 = 512 * PAGE_SIZE;

/// An address space since its clear.
#[derive(Debug, Default)]
pub struct Since {
    blocks: HashMap<u64, Block>,
    /// How many pages there were at the last look.
    pub pages: Pages,
    /// How many of them were dirty.
    pub dirty: Pages,
}

/// The pages of one page table.
#[derive(Debug, Default)]
struct Block {
    /// Those that were read since the witness was called, a bit each.
    read: [u64; 8],
    witness: Option<Witness>,
}

/// A clean page, and the frame it was in when nothing of its block had been read.
#[derive(Debug)]
struct Witness {
    vaddr: u64,
    frame: u64,
}

/// A run within one block and one mapping.
struct Piece {
    mapping: usize,
    pages: Range<u64>,
    dirty: bool,
    guard: bool,
}

impl Since {
    /// The pages of each mapping, ascending, and of each whether the destination has it. What is unsent is to be read
    /// and [noted](Self::note).
    pub fn look(
        &mut self,
        task: &Task,
        mappings: &[Private],
    ) -> Result<Vec<Vec<Found>>, MemoryError> {
        let pieces = self.scan(task, mappings)?;
        let mut found: Vec<Vec<Found>> = mappings.iter().map(|_| Vec::new()).collect();
        for pieces in pieces.chunk_by(|a, b| a.pages.start / BLOCK == b.pages.start / BLOCK) {
            let stands = self.stands(task, pieces)?;
            let block = self.blocks.get(&(pieces[0].pages.start / BLOCK));
            for piece in pieces {
                let found = &mut found[piece.mapping];
                match block {
                    _ if piece.guard => add(found, piece.pages.clone(), Kind::Guard),
                    Some(block) if stands && !piece.dirty => block.split(&piece.pages, found),
                    _ => add(found, piece.pages.clone(), Kind::Unsent),
                }
            }
        }
        Ok(found)
    }

    /// A page was read, after it was found to be unsent.
    pub fn note(&mut self, vaddr: u64) {
        if let Some(block) = self.blocks.get_mut(&(vaddr / BLOCK)) {
            let (word, bit) = place(vaddr);
            block.read[word] |= bit;
        }
    }

    /// All pages of all mappings, cut at the borders of blocks.
    fn scan(&mut self, task: &Task, mappings: &[Private]) -> Result<Vec<Piece>, MemoryError> {
        let query = Query {
            tell: Categories::SOFT_DIRTY.union(Categories::GUARD),
            ..OWN
        };
        let mut pieces = Vec::new();
        (self.pages, self.dirty) = (Pages(0), Pages(0));
        for (mapping, private) in mappings.iter().enumerate() {
            task.pages(&private.range, query, &mut |run: Run| {
                let dirty = run.categories.contains(Categories::SOFT_DIRTY);
                let guard = run.categories.contains(Categories::GUARD);
                let pages = Pages((run.end - run.start) / PAGE_SIZE);
                self.pages += pages;
                if dirty {
                    self.dirty += pages;
                }
                let mut start = run.start;
                while start < run.end {
                    let end = run.end.min((start / BLOCK + 1) * BLOCK);
                    pieces.push(Piece {
                        mapping,
                        pages: start..end,
                        dirty,
                        guard,
                    });
                    start = end;
                }
            })?;
        }
        Ok(pieces)
    }

    /// Whether the pages of this block are those that were read. If not, nothing of it counts as read, and a new
    /// witness is called.
    fn stands(&mut self, task: &Task, pieces: &[Piece]) -> Result<bool, MemoryError> {
        let block = match self.blocks.entry(pieces[0].pages.start / BLOCK) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Block::default()),
        };
        if let Some(witness) = &block.witness
            && task.clean_frame(witness.vaddr)? == Some(witness.frame)
        {
            return Ok(true);
        }
        *block = Block::default();
        for piece in pieces.iter().filter(|piece| !piece.dirty && !piece.guard) {
            let vaddr = piece.pages.start;
            if let Some(frame) = task.clean_frame(vaddr)? {
                block.witness = Some(Witness { vaddr, frame });
                break;
            }
        }
        Ok(false)
    }
}

impl Block {
    /// Adds clean pages, told apart by whether they were read.
    fn split(&self, pages: &Range<u64>, found: &mut Vec<Found>) {
        if self.read == [u64::MAX; 8] {
            return add(found, pages.clone(), Kind::Sent);
        }
        for vaddr in pages.clone().step_by(PAGE_SIZE as usize) {
            let (word, bit) = place(vaddr);
            let kind = if self.read[word] & bit == 0 {
                Kind::Unsent
            } else {
                Kind::Sent
            };
            add(found, vaddr..vaddr + PAGE_SIZE, kind);
        }
    }
}

/// Where a page's bit is.
fn place(vaddr: u64) -> (usize, u64) {
    let page = vaddr % BLOCK / PAGE_SIZE;
    ((page / 64) as usize, 1 << (page % 64))
}

fn add(found: &mut Vec<Found>, pages: Range<u64>, kind: Kind) {
    match found.last_mut() {
        Some(last) if last.kind == kind && last.pages.end == pages.start => {
            last.pages.end = pages.end;
        }
        _ => found.push(Found { pages, kind }),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pages_that_were_read_are_told_apart() {
        let mut since = Since::default();
        let base = 7 * BLOCK;
        since.blocks.insert(7, Block::default());
        since.blocks.insert(8, Block::default());
        let page = |number: u64| base + number * PAGE_SIZE;
        for number in [0, 63, 64, 65, 511] {
            since.note(page(number));
        }
        let mut found = Vec::new();
        since.blocks[&7].split(&(page(62)..page(67)), &mut found);
        let run = |from, to, kind| Found {
            pages: page(from)..page(to),
            kind,
        };
        assert_eq!(
            found,
            [
                run(62, 63, Kind::Unsent),
                run(63, 66, Kind::Sent),
                run(66, 67, Kind::Unsent),
            ]
        );
        found.clear();
        since.blocks[&8].split(&(page(512)..page(514)), &mut found);
        assert_eq!(found, [run(512, 514, Kind::Unsent)]);
        // What nobody has looked at is not noted.
        since.note(page(1024));
        assert_eq!(since.blocks.len(), 2);
    }
}
