//! The numbers of the host that a container's users have. Pure.

/// A range of the host's user and group ids, for one container: inside they begin with 0.
///
/// The container managers of a host share the ids from 524288 to 1879048191 in pieces of 65536, each of which begins at
/// a multiple of that (<https://systemd.io/UIDS-GIDS/>, "Container UID Ranges").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange(u16);

impl IdRange {
    /// How many ids it has.
    pub const COUNT: u32 = 1 << 16;
    /// The first range, and the one behind the last, as multiples of [`COUNT`](Self::COUNT).
    const SLOTS: std::ops::Range<u16> = 8..28_672;

    /// The range of this number, where there is one.
    pub fn at(slot: u16) -> Option<Self> {
        Self::SLOTS.contains(&slot).then_some(Self(slot))
    }

    /// All ranges, from one on that `seed` chooses.
    pub fn all_from(seed: u32) -> impl Iterator<Item = Self> {
        let count = u32::from(Self::SLOTS.end - Self::SLOTS.start);
        (0..count).map(move |step| {
            let slot = (seed % count + step) % count;
            Self(Self::SLOTS.start + slot as u16)
        })
    }

    /// Its number.
    pub fn slot(self) -> u16 {
        self.0
    }

    /// The first id of the host.
    pub fn first(self) -> u32 {
        u32::from(self.0) * Self::COUNT
    }

    /// The id of the host that an id of the container is; none where the container has no such id.
    pub fn host_id(self, inside: u32) -> Option<u32> {
        (inside < Self::COUNT).then(|| self.first() + inside)
    }

    /// The id of the container that an id of the host is; none where it is none of the container's.
    pub fn inside(self, host_id: u32) -> Option<u32> {
        let inside = host_id.checked_sub(self.first())?;
        (inside < Self::COUNT).then_some(inside)
    }

    /// The map of a container's user namespace, of users and of groups (user_namespaces(7)).
    pub fn maps(self) -> String {
        format!("0 {} {}\n", self.first(), Self::COUNT)
    }

    /// The map of the mounts of its layers, whose files are owned by the container's own ids.
    ///
    /// Root of the host, as whom overlayfs works in its own directory and makes what it then gives away, must have a
    /// name on the disk as well (without one nothing can be made there: `EOVERFLOW`): the one behind the last.
    pub fn layer_maps(self) -> String {
        format!("{}{} 0 1\n", self.maps(), Self::COUNT)
    }

    /// Whether it has ids in common with `count` ids from `first` on.
    pub fn meets(self, first: u32, count: u32) -> bool {
        let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
        u64::from(first) < end(self.first(), Self::COUNT)
            && u64::from(self.first()) < end(first, count)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ranges_are_those_that_container_managers_share_and_all_are_tried() {
        let all: Vec<IdRange> = IdRange::all_from(4_000_000_000).collect();
        let firsts: BTreeSet<u32> = all.iter().map(|ids| ids.first()).collect();
        assert_eq!(firsts.len(), all.len());
        assert_eq!(firsts.first(), Some(&524_288));
        assert_eq!(firsts.last(), Some(&(1_879_048_192 - 65_536)));
        assert_ne!(all[0].first(), 524_288);
        assert!(IdRange::at(7).is_none() && IdRange::at(28_672).is_none());
    }

    #[test]
    fn ids_are_translated_both_ways_and_strangers_are_nobodys() {
        let ids = IdRange::at(8).unwrap();
        assert_eq!(ids.host_id(33), Some(524_321));
        assert_eq!(ids.inside(524_321), Some(33));
        assert_eq!(ids.host_id(65_536), None);
        assert_eq!((ids.inside(0), ids.inside(589_824)), (None, None));
        assert_eq!(ids.maps(), "0 524288 65536\n");
        assert_eq!(ids.layer_maps(), "0 524288 65536\n65536 0 1\n");
    }

    #[test]
    fn what_others_use_is_seen_at_either_end() {
        let ids = IdRange::at(8).unwrap();
        assert!(ids.meets(524_287, 2) && ids.meets(589_823, 1) && ids.meets(0, u32::MAX));
        assert!(!ids.meets(524_287, 1) && !ids.meets(589_824, 10));
    }
}
