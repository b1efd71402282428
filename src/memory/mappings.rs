//! The mappings of a task as CRIU will restore them: what its mm image says.

use std::ops::Range;

use prost::Message;

const COMMON_MAGIC: usize = 4;
const MM_MAGIC: u32 = 0x5749_2820;

const MAP_PRIVATE: u32 = 0x2;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_LOCKED: u32 = 0x2000;
const MAP_HUGETLB: u32 = 0x4_0000;
/// `VMA_AREA_REGULAR`, without which a mapping is no ordinary one.
const REGULAR: u32 = 1 << 0;
/// `VMA_AREA_VSYSCALL`, `VMA_AREA_VDSO`, `VMA_AREA_VVAR`, `VMA_AREA_AIORING`, `VMA_AREA_SHSTK`, `VMA_AREA_GUARD`.
const SPECIAL: u32 = 1 << 2 | 1 << 3 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;
/// Mapped by a plugin: such are not read through a parent either.
const BY_PLUGIN: u32 = 1 << 27;
/// The bit of `MADV_WIPEONFORK` among a mapping's advice.
const WIPED_ON_FORK: u64 = 1 << 18;

#[derive(Clone, PartialEq, Message)]
struct Mm {
    #[prost(message, repeated, tag = "14")]
    mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Mapping {
    #[prost(uint64, required, tag = "1")]
    start: u64,
    #[prost(uint64, required, tag = "2")]
    end: u64,
    #[prost(uint32, required, tag = "6")]
    flags: u32,
    #[prost(uint32, required, tag = "7")]
    status: u32,
    #[prost(uint64, optional, tag = "9")]
    advice: Option<u64>,
}

impl Mapping {
    /// CRIU's `vma_entry_can_be_lazy`, and a little narrower: such a mapping is registered with a userfaultfd.
    fn may_be_lazy(&self) -> bool {
        let wanted = MAP_PRIVATE | MAP_ANONYMOUS;
        self.flags & wanted == wanted
            && self.flags & (MAP_LOCKED | MAP_HUGETLB) == 0
            && self.status & REGULAR != 0
            && self.status & (SPECIAL | BY_PLUGIN) == 0
    }
}

/// The mappings of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mappings {
    known: bool,
    mappings: Vec<Mapping>,
}

impl Mappings {
    /// Of something that has pages and no mappings.
    pub fn none() -> Self {
        Self {
            known: true,
            mappings: Vec::new(),
        }
    }

    /// Of a task about which nothing is known.
    pub fn unknown() -> Self {
        Self {
            known: false,
            mappings: Vec::new(),
        }
    }

    /// Those of an mm image; none where it is not one.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        if word(COMMON_MAGIC)? != MM_MAGIC {
            return None;
        }
        let length = usize::try_from(word(8)?).ok()?;
        let message = bytes.get(12..12usize.checked_add(length)?)?;
        let mut mappings = Mm::decode(message).ok()?.mappings;
        mappings.sort_by_key(|mapping| mapping.start);
        Some(Self {
            known: true,
            mappings,
        })
    }

    /// Whether CRIU looks for every page of this space in the parent.
    pub fn may_link(&self) -> bool {
        let linkable = |m: &Mapping| m.flags & MAP_HUGETLB == 0 && m.status & BY_PLUGIN == 0;
        self.known && self.mappings.iter().all(linkable)
    }

    /// Cuts a range into pieces, ascending, of which each may be lazy as a whole, or may not.
    pub fn split(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut pieces: Vec<(Range<u64>, bool)> = Vec::new();
        let mut push = |piece: Range<u64>, lazy: bool| match pieces.last_mut() {
            _ if piece.is_empty() => {}
            Some((last, was)) if *was == lazy && last.end == piece.start => last.end = piece.end,
            _ => pieces.push((piece, lazy)),
        };
        let mut at = range.start;
        let first = self.mappings.partition_point(|m| m.end <= range.start);
        for mapping in &self.mappings[first..] {
            if mapping.start >= range.end {
                break;
            }
            let start = mapping.start.clamp(at, range.end);
            let end = mapping.end.clamp(start, range.end);
            push(at..start, false);
            push(start..end, mapping.may_be_lazy());
            at = end;
        }
        push(at..range.end, false);
        pieces
    }

    /// What a child of this task does not inherit.
    pub fn wiped_on_fork(&self) -> Vec<Range<u64>> {
        let wiped = |m: &&Mapping| m.advice.unwrap_or(0) & WIPED_ON_FORK != 0;
        let ranges = self.mappings.iter().filter(wiped);
        ranges.map(|m| m.start..m.end).collect()
    }
}

#[cfg(test)]
pub mod test {
    use super::*;
    use proptest::prelude::*;

    fn image(mappings: Vec<Mapping>) -> Vec<u8> {
        let message = Mm { mappings }.encode_to_vec();
        let mut bytes = [0x5456_4319u32.to_le_bytes(), MM_MAGIC.to_le_bytes()].concat();
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
        bytes
    }

    /// The image of a task with an ordinary mapping below 2^46, and one above with these flags and status.
    pub fn mm_image(flags: u32, status: u32) -> Vec<u8> {
        let low = Mapping {
            start: 0,
            end: 1 << 46,
            flags: MAP_PRIVATE | MAP_ANONYMOUS,
            status: REGULAR,
            advice: None,
        };
        let high = Mapping {
            start: low.end,
            end: 1 << 47,
            flags,
            status,
            advice: None,
        };
        image(vec![low, high])
    }

    fn mapping(start: u64, end: u64, lazy: bool) -> Mapping {
        Mapping {
            start,
            end,
            flags: MAP_PRIVATE | if lazy { MAP_ANONYMOUS } else { 0 },
            status: REGULAR,
            advice: (start == 10).then_some(WIPED_ON_FORK),
        }
    }

    #[test]
    fn a_range_is_cut_where_laziness_changes() {
        let mappings = image(vec![
            mapping(30, 40, true),
            mapping(10, 20, true),
            mapping(20, 30, false),
        ]);
        let mappings = Mappings::read(&mappings).unwrap();
        assert_eq!(
            mappings.split(5..50),
            [
                (5..10, false),
                (10..20, true),
                (20..30, false),
                (30..40, true),
                (40..50, false)
            ]
        );
        assert_eq!(mappings.split(12..15), [(12..15, true)]);
        assert_eq!(mappings.split(40..41), [(40..41, false)]);
        assert_eq!(mappings.wiped_on_fork(), std::slice::from_ref(&(10..20)));
        assert!(mappings.may_link());
        assert!(!Mappings::unknown().may_link());
    }

    #[test]
    fn only_what_criu_registers_may_be_lazy() {
        let good = mapping(0, 1, true);
        assert!(good.may_be_lazy());
        for flags in [
            0,
            MAP_PRIVATE,
            MAP_ANONYMOUS,
            good.flags | MAP_LOCKED,
            good.flags | MAP_HUGETLB,
        ] {
            assert!(!Mapping { flags, ..good }.may_be_lazy(), "{flags:#x}");
        }
        for status in [0, REGULAR | 1 << 3, REGULAR | BY_PLUGIN] {
            assert!(!Mapping { status, ..good }.may_be_lazy(), "{status:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), good in any::<bool>()) {
            let bytes = if good { [&image(vec![])[..8], &bytes].concat() } else { bytes };
            let _ = Mappings::read(&bytes);
        }

        #[test]
        fn pieces_are_the_range(
            borders in prop::collection::vec((0u64..100, 0u64..100, any::<bool>()), 0..8),
            start in 0u64..100, length in 1u64..100,
        ) {
            let mappings = borders.into_iter().map(|(start, length, lazy)| mapping(start, start + length, lazy));
            let mappings = Mappings::read(&image(mappings.collect())).unwrap();
            let pieces = mappings.split(start..start + length);
            prop_assert_eq!(pieces[0].0.start, start);
            prop_assert_eq!(pieces.last().unwrap().0.end, start + length);
            prop_assert!(pieces.windows(2).all(|two| two[0].0.end == two[1].0.start));
            prop_assert!(pieces.iter().all(|(piece, _)| !piece.is_empty()));
        }
    }
}
