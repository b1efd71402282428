//! Which pages of an address space are here: a sparse map of bits.

use std::collections::BTreeMap;

use crate::model::PAGE_SIZE;

/// Pages per block of the map (2 MiB of addresses).
const BLOCK: u64 = 512;
/// What a block costs, with its share of the tree around it.
pub const BLOCK_COST: u64 = 320;

/// Every page is missing, has bytes, or is all zero. Bytes may still be elsewhere, behind those that are here: what such a
/// page takes it will take.
#[derive(Debug, Default)]
pub struct Presence {
    blocks: BTreeMap<u64, Block>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    data: [u64; 8],
    zero: [u64; 8],
    /// Of those with bytes, whose are not here yet.
    behind: [u64; 8],
}

impl Presence {
    /// What memory it costs, beyond what is kept, that these pages have bytes.
    pub fn cost_of_data(&self, vaddr: u64, pages: u64) -> u64 {
        let mut cost = 0;
        for (number, from, to) in parts(vaddr, pages) {
            cost += match self.blocks.get(&number) {
                Some(block) => (to - from - count(&block.data, from, to)) * PAGE_SIZE,
                None => BLOCK_COST + (to - from) * PAGE_SIZE,
            };
        }
        cost
    }

    /// What memory it costs, beyond what is kept, to know that these pages are zero.
    pub fn cost_of_zero(&self, vaddr: u64, pages: u64) -> u64 {
        let new = parts(vaddr, pages).filter(|(number, ..)| !self.blocks.contains_key(number));
        new.count() as u64 * BLOCK_COST
    }

    /// These pages have bytes.
    pub fn set_data(&mut self, vaddr: u64, pages: u64) {
        for (number, from, to) in parts(vaddr, pages) {
            let block = self.blocks.entry(number).or_default();
            for (word, mask) in masks(from, to) {
                block.data[word] |= mask;
                block.zero[word] &= !mask;
                block.behind[word] &= !mask;
            }
        }
    }

    /// These pages have bytes that come later.
    pub fn set_behind(&mut self, vaddr: u64, pages: u64) {
        self.set_data(vaddr, pages);
        for (number, from, to) in parts(vaddr, pages) {
            let block = self.blocks.entry(number).or_default();
            for (word, mask) in masks(from, to) {
                block.behind[word] |= mask;
            }
        }
    }

    /// These pages are zero; how many of them had bytes.
    pub fn set_zero(&mut self, vaddr: u64, pages: u64) -> u64 {
        let mut had = 0;
        for (number, from, to) in parts(vaddr, pages) {
            let block = self.blocks.entry(number).or_default();
            had += count(&block.data, from, to);
            for (word, mask) in masks(from, to) {
                block.zero[word] |= mask;
                block.data[word] &= !mask;
                block.behind[word] &= !mask;
            }
        }
        had
    }

    /// The address of the first of these pages that is missing, or, with `here`, whose bytes are not here.
    pub fn first_missing(&self, vaddr: u64, pages: u64, here: bool) -> Option<u64> {
        for (number, from, to) in parts(vaddr, pages) {
            let block = self.blocks.get(&number).copied().unwrap_or_default();
            for (word, mask) in masks(from, to) {
                let behind = if here { block.behind[word] } else { 0 };
                let missing = mask & !((block.data[word] & !behind) | block.zero[word]);
                if missing != 0 {
                    let page =
                        number * BLOCK + word as u64 * 64 + u64::from(missing.trailing_zeros());
                    return Some(page * PAGE_SIZE);
                }
            }
        }
        None
    }

    /// The runs of pages with bytes among these, as address and number of pages, ascending.
    pub fn data_runs(&self, vaddr: u64, pages: u64) -> Vec<(u64, u64)> {
        self.runs(vaddr, pages, |block| block.data)
    }

    /// The same, of those that come later.
    pub fn behind_runs(&self, vaddr: u64, pages: u64) -> Vec<(u64, u64)> {
        self.runs(vaddr, pages, |block| block.behind)
    }

    fn runs(&self, vaddr: u64, pages: u64, of: impl Fn(&Block) -> [u64; 8]) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let first = vaddr / PAGE_SIZE;
        for page in first..first + pages {
            let at = page % BLOCK;
            let block = self.blocks.get(&(page / BLOCK));
            let word = block.map_or(0, |block| of(block)[at as usize / 64]);
            if word >> (at % 64) & 1 == 0 {
                continue;
            }
            match runs.last_mut() {
                Some((start, length)) if *start + *length * PAGE_SIZE == page * PAGE_SIZE => {
                    *length += 1;
                }
                _ => runs.push((page * PAGE_SIZE, 1)),
            }
        }
        runs
    }
}

/// The blocks a run touches: number, first and end page in it.
fn parts(vaddr: u64, pages: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let first = vaddr / PAGE_SIZE;
    let end = first + pages;
    (first / BLOCK..end.div_ceil(BLOCK)).map(move |number| {
        let base = number * BLOCK;
        (number, first.max(base) - base, end.min(base + BLOCK) - base)
    })
}

/// The words of a block that a part touches, and which bits.
fn masks(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    (from / 64..to.div_ceil(64)).map(move |word| {
        let base = word * 64;
        let low = u64::MAX << (from.max(base) - base);
        let high = u64::MAX >> (base + 64 - to.min(base + 64));
        (word as usize, low & high)
    })
}

fn count(bits: &[u64; 8], from: u64, to: u64) -> u64 {
    masks(from, to)
        .map(|(word, mask)| u64::from((bits[word] & mask).count_ones()))
        .sum()
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Is {
        Data,
        Zero,
        Behind,
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_map(
            steps in prop::collection::vec((0u64..1500, 1u64..700, 0usize..3), 1..12),
            ask in (0u64..1500, 1u64..700),
        ) {
            let mut presence = Presence::default();
            let mut plain = BTreeMap::new();
            for (first, pages, kind) in steps {
                let vaddr = first * PAGE_SIZE;
                let had = (first..first + pages).filter(|p| matches!(plain.get(p), Some(Is::Data | Is::Behind))).count() as u64;
                if kind > 0 {
                    let new = presence.cost_of_data(vaddr, pages) % BLOCK_COST.max(PAGE_SIZE);
                    prop_assert_eq!(new % BLOCK_COST, 0);
                    prop_assert_eq!(presence.cost_of_data(vaddr, pages) / PAGE_SIZE, pages - had);
                    if kind == 1 {
                        presence.set_data(vaddr, pages);
                    } else {
                        presence.set_behind(vaddr, pages);
                    }
                    prop_assert_eq!(presence.cost_of_data(vaddr, pages), 0);
                } else {
                    prop_assert_eq!(presence.set_zero(vaddr, pages), had);
                    prop_assert_eq!(presence.cost_of_zero(vaddr, pages), 0);
                }
                for page in first..first + pages {
                    plain.insert(page, [Is::Zero, Is::Data, Is::Behind][kind]);
                }
            }
            let (first, pages) = ask;
            let missing = (first..first + pages).find(|p| !plain.contains_key(p)).map(|p| p * PAGE_SIZE);
            prop_assert_eq!(presence.first_missing(first * PAGE_SIZE, pages, false), missing);
            let not_here = |p: &u64| matches!(plain.get(p), None | Some(Is::Behind));
            let not_here = (first..first + pages).find(not_here).map(|p| p * PAGE_SIZE);
            prop_assert_eq!(presence.first_missing(first * PAGE_SIZE, pages, true), not_here);
            let flat = |runs: Vec<(u64, u64)>| -> Vec<u64> {
                runs.iter().flat_map(|(v, n)| v / PAGE_SIZE..v / PAGE_SIZE + n).collect()
            };
            let behind: Vec<u64> = (first..first + pages).filter(|p| plain.get(p) == Some(&Is::Behind)).collect();
            prop_assert_eq!(flat(presence.behind_runs(first * PAGE_SIZE, pages)), behind);
            let data: Vec<u64> = (first..first + pages).filter(|p| matches!(plain.get(p), Some(Is::Data | Is::Behind))).collect();
            let runs = presence.data_runs(first * PAGE_SIZE, pages);
            prop_assert_eq!(flat(runs), data);
        }
    }
}
