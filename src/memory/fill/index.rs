//! Lazy pages, numbered: which of them have been dealt with is a bit each.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::PAGE_SIZE;

/// Pages per word of bits.
pub const WORD: u64 = 64;

/// The lazy pages of a space in the order of their homes, numbered from 0.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The runs, and the number of the first page of each.
    runs: Vec<(Range<u64>, u64)>,
    pages: u64,
}

impl Index {
    /// Of these ranges, which ascend.
    pub fn new(ranges: impl Iterator<Item = Range<u64>>) -> Self {
        let mut index = Self::default();
        for range in ranges.filter(|range| !range.is_empty()) {
            let count = (range.end - range.start) / PAGE_SIZE;
            match index.runs.last_mut() {
                Some((last, _)) if last.end == range.start => last.end = range.end,
                _ => index.runs.push((range, index.pages)),
            }
            index.pages += count;
        }
        index
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many words their bits take.
    pub fn words(&self) -> u64 {
        self.pages.div_ceil(WORD)
    }

    /// The runs.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(range, _)| range.clone())
    }

    /// The parts of the runs that are in a range of homes.
    pub fn within(&self, homes: Range<u64>) -> Vec<Range<u64>> {
        let first = self
            .runs
            .partition_point(|(range, _)| range.end <= homes.start);
        let inside = self.runs[first..].iter().map(|(range, _)| range);
        inside
            .take_while(|range| range.start < homes.end)
            .map(|range| range.start.max(homes.start)..range.end.min(homes.end))
            .filter(|range| !range.is_empty())
            .collect()
    }

    /// The number of the page with this home.
    pub fn number(&self, home: u64) -> Option<u64> {
        let after = self.runs.partition_point(|(range, _)| range.start <= home);
        let (range, first) = self.runs.get(after.checked_sub(1)?)?;
        (home < range.end).then(|| first + (home - range.start) / PAGE_SIZE)
    }

    /// The homes of the pages with these numbers: number of the first page, and range.
    pub fn homes(&self, numbers: Range<u64>) -> Vec<(u64, Range<u64>)> {
        let begin = self
            .runs
            .partition_point(|(_, first)| *first <= numbers.start)
            .saturating_sub(1);
        let mut found = Vec::new();
        for (range, first) in &self.runs[begin.min(self.runs.len())..] {
            if *first >= numbers.end {
                break;
            }
            let count = (range.end - range.start) / PAGE_SIZE;
            let start = numbers.start.max(*first);
            let end = numbers.end.min(first + count);
            if start < end {
                let home = |number: u64| range.start + (number - first) * PAGE_SIZE;
                found.push((start, home(start)..home(end)));
            }
        }
        found
    }
}

/// A bit per page: it needs nothing any more.
///
/// A bit that is lost, because its process died between the deed and the note, is harmless: the kernel says that the
/// page is there. A bit too many would be a page of zeros.
#[derive(Debug, Clone, Copy)]
pub struct Done<'a> {
    words: &'a [AtomicU64],
    pages: u64,
}

impl<'a> Done<'a> {
    /// The bits of so many pages, in words that are enough.
    pub fn new(words: &'a [AtomicU64], pages: u64) -> Self {
        Self { words, pages }
    }

    /// The bits that a word has when all is done.
    pub fn full(self, word: u64) -> u64 {
        match self.pages.saturating_sub(word * WORD) {
            left if left >= WORD => u64::MAX,
            left => (1 << left) - 1,
        }
    }

    /// A word of bits; all set where there is none.
    pub fn word(self, word: u64) -> u64 {
        let bits = usize::try_from(word).ok().and_then(|at| self.words.get(at));
        bits.map_or(u64::MAX, |bits| bits.load(Ordering::Acquire))
    }

    /// Whether the page with this number is done.
    pub fn is_done(self, number: u64) -> bool {
        self.word(number / WORD) >> (number % WORD) & 1 != 0
    }

    /// Whether all pages of a word are done.
    pub fn is_full(self, word: u64) -> bool {
        let full = self.full(word);
        self.word(word) & full == full
    }

    /// Notes that these pages are done.
    pub fn set(self, numbers: Range<u64>) {
        let mut number = numbers.start;
        while number < numbers.end {
            let (word, bit) = (number / WORD, number % WORD);
            let count = (WORD - bit).min(numbers.end - number);
            let mask = if count == WORD {
                u64::MAX
            } else {
                ((1 << count) - 1) << bit
            };
            if let Some(bits) = usize::try_from(word).ok().and_then(|at| self.words.get(at)) {
                bits.fetch_or(mask, Ordering::Release);
            }
            number += count;
        }
    }

    /// How many pages are not done.
    pub fn left(self) -> u64 {
        let words = 0..self.pages.div_ceil(WORD);
        words
            .map(|word| u64::from((!self.word(word) & self.full(word)).count_ones()))
            .sum()
    }

    /// The runs of pages of a word that are not done, as numbers.
    pub fn missing(self, word: u64) -> Vec<Range<u64>> {
        let mut bits = !self.word(word) & self.full(word);
        let mut runs = Vec::new();
        while bits != 0 {
            let start = u64::from(bits.trailing_zeros());
            let length = u64::from((!(bits >> start)).trailing_zeros()).min(WORD - start);
            runs.push(word * WORD + start..word * WORD + start + length);
            let end = start + length;
            bits = if end == WORD { 0 } else { bits >> end << end };
        }
        runs
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_homes_are_each_others_inverse(
            runs in prop::collection::vec((0u64..5, 1u64..200), 0..10), ask in (0u64..1000, 0u64..300),
        ) {
            let mut at = 1;
            let mut ranges = Vec::new();
            for (gap, length) in runs {
                ranges.push((at + gap) * PAGE_SIZE..(at + gap + length) * PAGE_SIZE);
                at += gap + length;
            }
            let index = Index::new(ranges.iter().cloned());
            let all: Vec<u64> = ranges.into_iter().flat_map(|r| r.step_by(PAGE_SIZE as usize)).collect();
            prop_assert_eq!(index.pages(), all.len() as u64);
            for (number, home) in all.iter().enumerate() {
                prop_assert_eq!(index.number(*home), Some(number as u64));
            }
            prop_assert_eq!(index.number(0), None);
            let (first, count) = ask;
            let told: Vec<(u64, u64)> = index.homes(first..first + count).into_iter()
                .flat_map(|(n, r)| (n..).zip(r.step_by(PAGE_SIZE as usize))).collect();
            let expected: Vec<(u64, u64)> = (first..first + count)
                .filter_map(|n| Some((n, *all.get(n as usize)?))).collect();
            prop_assert_eq!(told, expected);
        }

        #[test]
        fn bits_agree_with_a_plain_list(
            pages in 1u64..300, runs in prop::collection::vec((0u64..300, 0u64..150), 0..8),
        ) {
            let words: Vec<AtomicU64> = (0..pages.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect();
            let done = Done::new(&words, pages);
            let mut plain = vec![false; pages as usize];
            for (start, length) in runs {
                let (start, end) = (start.min(pages), (start + length).min(pages));
                done.set(start..end);
                plain[start as usize..end as usize].fill(true);
            }
            let left: Vec<u64> = (0..pages).filter(|n| !plain[*n as usize]).collect();
            prop_assert_eq!(done.left(), left.len() as u64);
            let missing: Vec<u64> = (0..pages.div_ceil(WORD)).flat_map(|w| done.missing(w)).flatten().collect();
            prop_assert_eq!(missing, left);
            for number in 0..pages {
                prop_assert_eq!(done.is_done(number), plain[number as usize]);
            }
            for word in 0..pages.div_ceil(WORD) {
                prop_assert_eq!(done.is_full(word), done.missing(word).is_empty());
            }
        }
    }
}
