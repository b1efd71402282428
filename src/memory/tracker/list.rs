//! The list of a space's pages, put together mapping by mapping. Pure.

use std::ops::Range;

use super::super::space::{Entry, PageFlags};
use super::maps::Private;
use super::own::{Found, Kind};
use super::residual::{OwnedRange, extend};
use crate::model::PAGE_SIZE;

/// So many of the unsent pages do not come after a restore: a task that has written to them a moment ago does so again
/// with its first steps, and would wait for each. CRIU reads them in a fraction of that time.
pub const HOT: u64 = 64;

/// What is known of the mappings so far.
#[derive(Debug, Default)]
pub struct List {
    /// The mappings.
    pub ranges: Vec<OwnedRange>,
    /// Their pages.
    pub list: Vec<Entry>,
    /// Those that are unsent.
    pub unsent: Vec<Range<u64>>,
    /// Those that are unsent and in executable mappings.
    pub at_once: Vec<Range<u64>>,
    /// How many pages count as hot so far.
    hot: u64,
}

impl List {
    /// Adds a mapping behind the others. `lazy` is whether its pages may come after a restore; those at `stacks`,
    /// which a thread's stack pointer points into, may not.
    pub fn add(&mut self, mapping: &Private, found: &[Found], lazy: bool, stacks: &[u64]) {
        let guards = found.iter().any(|found| found.kind == Kind::Guard);
        self.own(mapping.range.clone(), guards);
        for Found { pages, kind } in found {
            if *kind == Kind::Guard {
                continue;
            }
            let lazy = lazy && !(*kind == Kind::Unsent && self.is_hot(pages));
            self.pages(pages.clone(), lazy, stacks);
            if *kind == Kind::Unsent {
                let unsent = if mapping.executable {
                    &mut self.at_once
                } else {
                    &mut self.unsent
                };
                extend(unsent, pages.clone());
            }
        }
    }

    /// Whether a run of unsent pages counts as hot.
    fn is_hot(&mut self, run: &Range<u64>) -> bool {
        let pages = (run.end - run.start) / PAGE_SIZE;
        let hot = self.hot + pages <= HOT;
        if hot {
            self.hot += pages;
        }
        hot
    }

    fn own(&mut self, range: Range<u64>, guards: bool) {
        match self.ranges.last_mut() {
            Some(last) if last.range.end == range.start && last.guards == guards => {
                last.range.end = range.end;
            }
            _ => self.ranges.push(OwnedRange { range, guards }),
        }
    }

    fn pages(&mut self, run: Range<u64>, lazy: bool, stacks: &[u64]) {
        let eager = PageFlags::PRESENT;
        if !lazy {
            return note(&mut self.list, run, eager);
        }
        let mut at = run.start;
        let within = stacks.iter().filter(|page| run.contains(page));
        for page in within {
            note(&mut self.list, at..*page, eager.with(PageFlags::LAZY));
            at = page + PAGE_SIZE;
            note(&mut self.list, *page..at, eager);
        }
        note(&mut self.list, at..run.end, eager.with(PageFlags::LAZY));
    }
}

/// Adds a run to a list that ends before it.
pub fn note(list: &mut Vec<Entry>, run: Range<u64>, flags: PageFlags) {
    let mut vaddr = run.start;
    while vaddr < run.end {
        let pages = u32::try_from((run.end - vaddr) / PAGE_SIZE).unwrap_or(u32::MAX);
        match list.last_mut() {
            Some(last) if last.end() == vaddr && last.flags == flags => {
                match last.pages.checked_add(pages) {
                    Some(whole) => last.pages = whole,
                    None => list.push(Entry {
                        vaddr,
                        pages,
                        flags,
                    }),
                }
            }
            _ => list.push(Entry {
                vaddr,
                pages,
                flags,
            }),
        }
        vaddr += u64::from(pages) * PAGE_SIZE;
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod test {
    use super::*;

    fn mapping(range: Range<u64>, executable: bool) -> Private {
        Private {
            range,
            executable,
            file: None,
        }
    }

    fn found(pages: Range<u64>, kind: Kind) -> Found {
        Found { pages, kind }
    }

    #[test]
    fn pages_under_a_stack_pointer_are_not_lazy() {
        let mut list = List {
            hot: HOT,
            ..List::default()
        };
        let stacks = [0x1000, 0x4000, 0x8000];
        let first = [
            found(0x1000..0x3000, Kind::Sent),
            found(0x3000..0x5000, Kind::Unsent),
            found(0x5000..0x6000, Kind::Sent),
        ];
        list.add(&mapping(0x1000..0x7000, false), &first, true, &stacks);
        let second = [found(0x8000..0xa000, Kind::Unsent)];
        list.add(&mapping(0x8000..0xb000, true), &second, false, &stacks);
        let entry = |e: &Entry| (e.vaddr, e.pages, e.flags.bits());
        let entries: Vec<_> = list.list.iter().map(entry).collect();
        assert_eq!(
            entries,
            [
                (0x1000, 1, 4),
                (0x2000, 2, 6),
                (0x4000, 1, 4),
                (0x5000, 1, 6),
                (0x8000, 2, 4),
            ]
        );
        assert_eq!(list.unsent, [0x3000..0x5000]);
        assert_eq!(list.at_once, [0x8000..0xa000]);
    }

    #[test]
    fn what_was_written_to_a_moment_ago_is_not_lazy_unless_it_is_much() {
        let mut list = List::default();
        let much = (HOT + 1) * PAGE_SIZE;
        let pages = [
            found(0x1000..0x2000, Kind::Unsent),
            found(0x2000..0x3000, Kind::Sent),
            found(0x3000..0x3000 + much, Kind::Unsent),
        ];
        list.add(&mapping(0x1000..0x3000 + much, false), &pages, true, &[]);
        let last = 0x4000 + much..0x4000 + much + HOT * PAGE_SIZE;
        let full = [
            found(last.start..last.end - PAGE_SIZE, Kind::Unsent),
            found(last.end - PAGE_SIZE..last.end, Kind::Unsent),
        ];
        list.add(&mapping(last, false), &full, true, &[]);
        let flags: Vec<_> = list
            .list
            .iter()
            .map(|e| (e.pages, e.flags.bits()))
            .collect();
        let rest = HOT as u32;
        assert_eq!(flags, [(1, 4), (rest + 2, 6), (rest - 1, 4), (1, 6)]);
        assert_eq!(list.unsent.len(), 3);
    }

    #[test]
    fn mappings_that_follow_each_other_are_one_range() {
        let mut list = List::default();
        let guard = [found(0x3000..0x4000, Kind::Guard)];
        list.add(&mapping(0x1000..0x2000, false), &[], true, &[]);
        list.add(&mapping(0x2000..0x3000, false), &[], true, &[]);
        list.add(&mapping(0x3000..0x5000, false), &guard, true, &[]);
        list.add(&mapping(0x6000..0x7000, false), &[], true, &[]);
        let ranges: Vec<_> = list.ranges.iter().map(|r| (&r.range, r.guards)).collect();
        assert_eq!(
            ranges,
            [
                (&(0x1000..0x3000), false),
                (&(0x3000..0x5000), true),
                (&(0x6000..0x7000), false),
            ]
        );
        // A guard page is no page.
        assert_eq!(list.list, []);
    }
}
