//! Where the lazy pages of an address space are by now: a container that moves its mappings about moves them too.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Who leaves a mapping where it was when it moves is told of once, and the second is awaited until nothing is to be
/// told of any more: of so many moves.
const MOST_TAILS: usize = 1024;

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

    /// The parts of it before and after a range.
    fn outside(&self, range: &Range<u64>) -> impl Iterator<Item = Self> {
        let rest = [self.here..range.start, range.end..self.end()];
        rest.map(|rest| self.within(&rest)).into_iter().flatten()
    }
}

fn homes(pieces: impl Iterator<Item = Piece>) -> Vec<Range<u64>> {
    pieces
        .map(|piece| piece.home..piece.home + piece.length)
        .collect()
}

/// Every lazy page that its address space still has, whether its bytes are there already or not.
///
/// **Invariant:** no page is in two places, and no place has two pages.
///
/// **Overdue.** The kernel tells of a change after it has let go of the address space: of two threads that change it one
/// after the other, the second may be told of first. A mapping that comes to where another still is says that the other
/// is not there any more, and that it is still to be told whether it has moved or was unmapped. Its pages are nowhere
/// until then, and are neither placed nor given up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pieces: BTreeMap<u64, Piece>,
    /// From home to here.
    homes: BTreeMap<u64, u64>,
    overdue: Vec<Overdue>,
    /// By the marks of the moves, where they came from.
    tails: VecDeque<(u64, Range<u64>)>,
}

/// A run of pages that is not at `here` any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Overdue {
    piece: Piece,
    /// The mark of the move that has taken its place.
    since: u64,
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

    /// That of a child, for which nothing has moved yet, and the homes of what is overdue: the child is never told.
    pub fn inherited(&self) -> (Self, Vec<Range<u64>>) {
        let mut layout = self.clone();
        layout.pieces.values_mut().for_each(|piece| piece.moved = 0);
        let overdue = layout.quiet();
        (layout, overdue)
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
        homes(self.take(range, |_| true).into_iter())
    }

    /// A mapping has moved; what moved with it gets this mark, which is higher than any before. What was in its way is
    /// overdue, and if anything of where it comes from is, that is what has moved, with what was beside it by then.
    pub fn remap(&mut self, from: u64, to: u64, length: u64, mark: u64) {
        let range = from..from.saturating_add(length);
        let moved = match self.overdue_since(&range) {
            None => self.take(range.clone(), |_| true),
            Some(since) => {
                let mut moved = self.take_overdue(&range, since);
                moved.extend(self.take(range.clone(), |piece| piece.moved < since));
                moved
            }
        };
        if self.tails.len() == MOST_TAILS {
            self.tails.pop_front();
        }
        self.tails.push_back((mark, range));
        let taken = self.take(to..to.saturating_add(length), |_| true);
        let since = mark;
        let overdue = taken.into_iter().map(|piece| Overdue { piece, since });
        self.overdue.extend(overdue);
        for piece in moved {
            let here = to.saturating_add(piece.here - from);
            self.insert(Piece {
                here,
                moved: mark,
                ..piece
            });
        }
    }

    /// Whether anything is still to be told.
    pub fn is_awaiting(&self) -> bool {
        !self.overdue.is_empty() || !self.tails.is_empty()
    }

    /// Nothing is to be told any more of what was before. Returns the homes of what was overdue: it is gone.
    pub fn quiet(&mut self) -> Vec<Range<u64>> {
        self.tails.clear();
        let overdue = std::mem::take(&mut self.overdue);
        homes(overdue.into_iter().map(|overdue| overdue.piece))
    }

    /// Whether a mapping has moved away from exactly this range, and it was not told that it is unmapped.
    pub fn is_tail(&self, range: &Range<u64>) -> bool {
        self.tails.iter().any(|(_, tail)| tail == range)
    }

    /// The tail of a move was told.
    pub fn told(&mut self, range: &Range<u64>) {
        if let Some(at) = self.tails.iter().position(|(_, tail)| tail == range) {
            self.tails.remove(at);
        }
    }

    /// Whether who came with this mark is still to be told of a second time: until then its thread does nothing else.
    pub fn awaits_tail(&self, moved: u64) -> bool {
        self.tails.iter().any(|(mark, _)| *mark == moved)
    }

    /// What was overdue of a range was unmapped. Returns its homes.
    pub fn lapse(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let since = self.overdue_since(range);
        let lapsed = since.map(|since| self.take_overdue(range, since));
        homes(lapsed.unwrap_or_default().into_iter())
    }

    /// The mark of the first move that has taken the place of something in a range, if that is overdue.
    pub fn overdue_since(&self, range: &Range<u64>) -> Option<u64> {
        let within = self
            .overdue
            .iter()
            .filter(|o| o.piece.within(range).is_some());
        within.map(|overdue| overdue.since).min()
    }

    /// Takes what is overdue of a range out, but for what came there later than the change that is told of can have
    /// happened.
    fn take_overdue(&mut self, range: &Range<u64>, since: u64) -> Vec<Piece> {
        let mut taken = Vec::new();
        for overdue in std::mem::take(&mut self.overdue) {
            let Overdue { piece, .. } = overdue;
            match piece.within(range).filter(|_| piece.moved < since) {
                None => self.overdue.push(overdue),
                Some(part) => {
                    taken.push(part);
                    let rest = piece.outside(range);
                    self.overdue
                        .extend(rest.map(|piece| Overdue { piece, ..overdue }));
                }
            }
        }
        taken
    }

    /// Takes those pieces that are `wanted` out of a range.
    fn take(&mut self, range: Range<u64>, wanted: impl Fn(&Piece) -> bool) -> Vec<Piece> {
        let before = self.pieces.range(..range.start).next_back();
        let inside = self.pieces.range(range.start..range.end.max(range.start));
        let both = before.into_iter().chain(inside).map(|(_, piece)| *piece);
        let whole: Vec<Piece> = both
            .filter(|piece| piece.within(&range).is_some() && wanted(piece))
            .collect();
        for piece in &whole {
            self.pieces.remove(&piece.here);
            self.homes.remove(&piece.home);
            piece.outside(&range).for_each(|rest| self.insert(rest));
        }
        whole
            .iter()
            .filter_map(|piece| piece.within(&range))
            .collect()
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
            let mut mark = 0;
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
                        mark += 1;
                        layout.remap(from, to, length, mark);
                        prop_assert!(layout.is_tail(&(from..from + length)) && layout.awaits_tail(mark));
                        prop_assert_eq!(flat(layout.quiet()), replaced);
                        prop_assert!(!layout.is_awaiting());
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

    /// Where each of these homes is.
    fn places<const N: usize>(layout: &Layout, homes: [u64; N]) -> [Option<u64>; N] {
        homes.map(|home| layout.at(home..home + 1).first().map(|piece| piece.here))
    }

    #[test]
    fn who_is_told_of_after_its_place_was_taken_has_moved() {
        // One is at 10, another at 30.
        let at_home = || Layout::at_home([10..20, 30..40].into_iter());
        let both = [10, 19, 30, 39];
        // One went to 100, then the other to where it had been: told in either order it is the same.
        let (mut early, mut late) = (at_home(), at_home());
        early.remap(10, 100, 10, 1);
        early.remap(30, 10, 10, 2);
        late.remap(30, 10, 10, 1);
        assert_eq!(places(&late, both), [None, None, Some(10), Some(19)]);
        assert_eq!(late.overdue_since(&(19..20)), Some(1));
        assert_eq!(late.overdue_since(&(20..40)), None);
        late.remap(10, 100, 10, 2);
        let expected = [100, 109, 10, 19].map(Some);
        assert_eq!(places(&early, both), expected);
        assert_eq!(places(&late, both), expected);
        assert_eq!(late.lapse(&(0..u64::MAX)), []);
        assert!(late.is_tail(&(10..20)));
        late.told(&(10..20));
        assert!(!late.is_tail(&(10..20)) && late.awaits_tail(1) && !late.awaits_tail(2));

        // Only a part of its place was taken; the rest moves along.
        let mut part = at_home();
        part.remap(35, 15, 5, 1);
        part.remap(10, 100, 10, 2);
        let all = [10, 15, 19, 30, 35, 39];
        let expected = [100, 105, 109, 30, 15, 19].map(Some);
        assert_eq!(places(&part, all), expected);

        // A third came in its turn, and both are told of afterwards, in the order in which it happened.
        let mut third = Layout::at_home([10..20, 30..40, 50..60].into_iter());
        third.remap(30, 10, 10, 1);
        third.remap(50, 10, 10, 2);
        third.remap(10, 100, 10, 3);
        assert_eq!(places(&third, [10, 30, 50]), [Some(100), None, Some(10)]);
        third.remap(10, 200, 10, 4);
        assert_eq!(places(&third, [10, 30, 50]), [100, 200, 10].map(Some));
    }

    #[test]
    fn who_is_told_of_after_its_place_was_taken_was_unmapped() {
        let mut layout = Layout::at_home([10..20, 30..40].into_iter());
        layout.remap(30, 10, 10, 1);
        let (child, never) = layout.inherited();
        assert_eq!(never, std::slice::from_ref(&(10..20)));
        assert!(!child.is_awaiting());
        assert_eq!(layout.lapse(&(10..15)), std::slice::from_ref(&(10..15)));
        assert_eq!(
            layout.lapse(&(0..u64::MAX)),
            std::slice::from_ref(&(15..20))
        );
        assert_eq!(places(&layout, [10, 19, 30]), [None, None, Some(10)]);
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
