//! Where the lazy pages of an address space are by now: a container that moves its mappings about moves them too.

use std::collections::BTreeMap;
use std::ops::Range;

/// A run of lazy pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it is in the address space.
    pub here: u64,
    /// Where it was when it was dumped: where its bytes are in the store.
    pub home: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
    /// The mark of the move by which it came here; 0 where it did not move.
    pub moved: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.here + self.length
    }

    /// The part of it that is within a range of the address space.
    fn within(&self, range: &Range<u64>) -> Option<Self> {
        let start = self.here.max(range.start);
        let end = self.end().min(range.end);
        (start < end).then(|| Self {
            here: start,
            home: self.home + (start - self.here),
            length: end - start,
            moved: self.moved,
        })
    }
}

/// Every lazy page that its address space still has, whether its bytes are there already or not.
///
/// **Invariant:** no page is in two places, and no place has two pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pieces: BTreeMap<u64, Piece>,
    /// From home to here.
    homes: BTreeMap<u64, u64>,
}

impl Layout {
    /// Of a space in which nothing has moved yet.
    pub fn at_home(ranges: impl Iterator<Item = Range<u64>>) -> Self {
        let mut layout = Self::default();
        for range in ranges.filter(|range| !range.is_empty()) {
            layout.insert(Piece {
                here: range.start,
                home: range.start,
                length: range.end - range.start,
                moved: 0,
            });
        }
        layout
    }

    /// Of these pieces; none where they are in each other's way.
    pub fn of(pieces: impl Iterator<Item = Piece>) -> Option<Self> {
        let mut layout = Self::default();
        for piece in pieces {
            let end = piece.here.checked_add(piece.length)?;
            let home_end = piece.home.checked_add(piece.length)?;
            let free = layout.within(piece.here..end).is_empty();
            if piece.length == 0 || !free || !layout.at(piece.home..home_end).is_empty() {
                return None;
            }
            layout.insert(piece);
        }
        Some(layout)
    }

    /// All of it, ascending.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.values().copied()
    }

    /// That of a child, for which nothing has moved yet.
    pub fn inherited(&self) -> Self {
        let mut layout = self.clone();
        layout.pieces.values_mut().for_each(|piece| piece.moved = 0);
        layout
    }

    /// Where the page at this address has its bytes; none where it is no lazy page.
    pub fn home(&self, here: u64) -> Option<u64> {
        let (_, piece) = self.pieces.range(..=here).next_back()?;
        (here < piece.end()).then(|| piece.home + (here - piece.here))
    }

    /// Where the pages of these homes are, ascending by home. What is not told is nowhere any more.
    pub fn at(&self, homes: Range<u64>) -> Vec<Piece> {
        let before = self.homes.range(..homes.start).next_back();
        let inside = self.homes.range(homes.clone());
        before
            .into_iter()
            .chain(inside)
            .filter_map(|(_, here)| {
                let piece = self.pieces.get(here)?;
                let start = piece.home.max(homes.start);
                let end = (piece.home + piece.length).min(homes.end);
                (start < end).then(|| Piece {
                    here: piece.here + (start - piece.home),
                    home: start,
                    length: end - start,
                    moved: piece.moved,
                })
            })
            .collect()
    }

    /// The pieces, or parts of pieces, in a range of the address space.
    pub fn within(&self, range: Range<u64>) -> Vec<Piece> {
        let before = self.pieces.range(..range.start).next_back();
        let inside = self.pieces.range(range.start..range.end.max(range.start));
        let both = before.into_iter().chain(inside);
        both.filter_map(|(_, piece)| piece.within(&range)).collect()
    }

    /// The pages of a range are given up, or gone. Returns their homes.
    pub fn remove(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let taken = self.take(range);
        taken
            .into_iter()
            .map(|piece| piece.home..piece.home + piece.length)
            .collect()
    }

    /// A mapping has moved; what moved with it gets this mark. Returns the homes of what was in its way: that is gone,
    /// also where the mapping has no lazy pages, and even if the kernel tells so only later, or, to a child that was
    /// born in between, never.
    pub fn remap(&mut self, from: u64, to: u64, length: u64, mark: u64) -> Vec<Range<u64>> {
        let moved = self.take(from..from.saturating_add(length));
        let replaced = self.remove(to..to.saturating_add(length));
        for piece in moved {
            let here = to.saturating_add(piece.here - from);
            self.insert(Piece {
                here,
                moved: mark,
                ..piece
            });
        }
        replaced
    }

    /// Takes what is in a range out of the layout.
    fn take(&mut self, range: Range<u64>) -> Vec<Piece> {
        let taken = self.within(range.clone());
        let whole: Vec<Piece> = {
            let before = self.pieces.range(..range.start).next_back();
            let inside = self.pieces.range(range.start..range.end.max(range.start));
            let both = before.into_iter().chain(inside).map(|(_, piece)| *piece);
            both.filter(|piece| piece.within(&range).is_some())
                .collect()
        };
        for piece in whole {
            self.pieces.remove(&piece.here);
            self.homes.remove(&piece.home);
            for rest in [piece.here..range.start, range.end..piece.end()] {
                if let Some(rest) = piece.within(&rest) {
                    self.insert(rest);
                }
            }
        }
        taken
    }

    fn insert(&mut self, piece: Piece) {
        self.pieces.insert(piece.here, piece);
        self.homes.insert(piece.home, piece.here);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap};

    #[derive(Debug, Clone)]
    enum Step {
        Remove(u64, u64),
        Remap(u64, u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let remove = (0u64..300, 1u64..80).prop_map(|(at, length)| Step::Remove(at, at + length));
        let remap = (0u64..300, 0u64..300, 1u64..80);
        let remap = remap.prop_map(|(from, to, length)| Step::Remap(from, to, length));
        prop::collection::vec(prop_oneof![remove, remap], 0..20)
    }

    fn flat(ranges: Vec<Range<u64>>) -> BTreeSet<u64> {
        ranges.into_iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_map(
            start in prop::collection::vec((0u64..40, 1u64..40), 1..8),
            steps in steps(),
            ask in (0u64..400, 1u64..100),
        ) {
            let mut ranges = Vec::new();
            let mut at = 0;
            for (gap, length) in start {
                ranges.push(at + gap..at + gap + length);
                at += gap + length;
            }
            let mut layout = Layout::at_home(ranges.iter().cloned());
            // From here to home.
            let mut plain: HashMap<u64, u64> = ranges.into_iter().flatten().map(|n| (n, n)).collect();
            for step in steps {
                match step {
                    Step::Remove(start, end) => {
                        let expected: BTreeSet<u64> = (start..end).filter_map(|n| plain.remove(&n)).collect();
                        prop_assert_eq!(flat(layout.remove(start..end)), expected);
                    }
                    // A mapping does not move onto itself.
                    Step::Remap(from, to, length) if from + length > to && to + length > from => {}
                    Step::Remap(from, to, length) => {
                        let moved: Vec<_> = (0..length).filter_map(|n| Some((to + n, plain.remove(&(from + n))?))).collect();
                        let replaced: BTreeSet<u64> = (to..to + length).filter_map(|n| plain.remove(&n)).collect();
                        plain.extend(moved);
                        prop_assert_eq!(flat(layout.remap(from, to, length, 1)), replaced);
                    }
                }
            }
            for n in 0..700 {
                prop_assert_eq!(layout.home(n), plain.get(&n).copied());
            }
            let (first, length) = ask;
            let told: BTreeSet<(u64, u64)> = layout.at(first..first + length).iter()
                .flat_map(|p| (0..p.length).map(|n| (p.here + n, p.home + n))).collect();
            let expected: BTreeSet<(u64, u64)> = plain.iter()
                .filter(|(_, home)| (first..first + length).contains(home)).map(|(a, b)| (*a, *b)).collect();
            prop_assert_eq!(told, expected);
            prop_assert_eq!(Layout::of(layout.pieces()), Some(layout));
        }
    }

    #[test]
    fn pieces_in_each_others_way_are_no_layout() {
        let piece = |here, home, length| Piece {
            here,
            home,
            length,
            moved: 0,
        };
        for bad in [
            vec![piece(0, 0, 0)],
            vec![piece(u64::MAX, 0, 2)],
            vec![piece(0, u64::MAX, 2)],
            vec![piece(0, 0, 5), piece(4, 10, 5)],
            vec![piece(0, 0, 5), piece(10, 4, 5)],
        ] {
            assert_eq!(Layout::of(bad.iter().copied()), None, "{bad:?}");
        }
    }
}
