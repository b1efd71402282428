//! CRIU's memory images without a copy: the store's own files become the pages of a parent, or are left to the fill.
//!
//! CRIU reads an incremental dump through its `parent`, and finds a page there by adding up the entries before
//! it. A parent that claims to have *every* page from address 0 on therefore has page `a` at offset `a`: which is
//! how the store keeps it.
//!
//! ```text
//! images/pagemap-7.img           the list, every entry "in the parent", or "lazy"
//! images/pages-3.img             empty
//! images/parent/pagemap-7.img    [0 .. end), present
//! images/parent/pages-3.img      the store's file of task 7, page at offset = address
//! ```
//!
//! What the parent claims beyond the list nobody ever asks for: CRIU reads what the list names. Huge pages it would
//! not look for in a parent, and take for empty; a task that has any is copied.
//!
//! **Invariant:** a lazy entry is what its source has called lazy *and* lies in a mapping that CRIU registers with a
//! userfaultfd, by the image it restores the mappings from. Any other page CRIU reads itself, before the task runs.

use std::fs::{self, Permissions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::unistd::linkat;

use super::fill::note_later;
use super::images::{Copy, create, first_free, image_error, write_pagemap};
use super::mappings::Mappings;
use super::space::{Entry, PageFlags, Space};
use super::store::{Complete, StoredSpace};
use super::{MemoryError, PageStore};
use crate::model::{PAGE_SIZE, Pages};

/// The longest entry of a parent: 4 TiB. CRIUs before 4.2 count in an int.
const LONGEST: u32 = 1 << 30;

/// What became of a store's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placed {
    /// Pages that are where they were, and are read by CRIU.
    pub linked: Pages,
    /// Pages that are where they were, and are brought by the fill.
    pub lazy: Pages,
    /// Pages that had to be copied.
    pub copied: Pages,
}

/// Makes CRIU's images of a complete store in `directory`, which has the other images of the dump and is on the
/// store's file system.
///
/// With `lazy`, what may come after the restore is left out of it: see [`fill`](super::fill).
///
/// The memory is the store's own, held by its names in `directory/parent` until those are removed. Whatever comes of
/// it the store is spent.
pub fn link_images(
    complete: Complete<'_>,
    directory: &Path,
    threads: usize,
    lazy: bool,
) -> Result<Placed, MemoryError> {
    let parent = directory.join("parent");
    // Who restores a user namespace opens it by the directory of the images, to which there is no way for others.
    let made = fs::create_dir(&parent)
        .and_then(|()| fs::set_permissions(&parent, Permissions::from_mode(0o755)));
    made.map_err(image_error("create", directory, "parent"))?;
    let mut placed = Placed::default();
    let mut copy = Copy::new(complete.store, directory);
    for (number, (space, list)) in (first_free(directory)?..).zip(&complete.lists) {
        let count = |list: &[Entry]| list.iter().map(|e| Pages(e.pages.into())).sum::<Pages>();
        let end = list.last().map_or(0, Entry::end);
        let mappings = mappings(directory, *space)?;
        if mappings.may_link() && link(complete.store, *space, &parent, number, end)? {
            let list = placed_by(list, lazy.then_some(&mappings));
            write_pagemap(directory, *space, number, &list)?;
            create(directory, &format!("pages-{number}.img"))?;
            let whole = whole(end);
            write_pagemap(&parent, *space, number, &whole)?;
            leave(complete.store, *space, directory, &list)?;
            let is_lazy = |entry: &&Entry| entry.flags == PageFlags::LAZY;
            let later: Vec<Entry> = list.iter().filter(is_lazy).copied().collect();
            placed.lazy += count(&later);
            placed.linked += Pages(count(&list).0 - count(&later).0);
        } else {
            if let Some(vaddr) = behind(complete.store, *space, list).next().map(|r| r.start) {
                let space = *space;
                return Err(MemoryError::NotBehind { space, vaddr });
            }
            copy.add(*space, number, list)?;
            placed.copied += count(list);
        }
    }
    copy.run(threads)?;
    Ok(placed)
}

/// The list, each entry saying where its pages are: in the parent, or lazy, where `mappings` are given and allow it.
fn placed_by(list: &[Entry], mappings: Option<&Mappings>) -> Vec<Entry> {
    let mut placed = Vec::with_capacity(list.len());
    for entry in list {
        let asked = entry.flags.contains(PageFlags::LAZY);
        let Some(mappings) = mappings.filter(|_| asked) else {
            placed.push(Entry {
                flags: PageFlags::PARENT,
                ..*entry
            });
            continue;
        };
        for (range, lazy) in mappings.split(entry.vaddr..entry.end()) {
            placed.push(Entry {
                vaddr: range.start,
                // No longer than the entry.
                pages: ((range.end - range.start) / PAGE_SIZE) as u32,
                flags: if lazy {
                    PageFlags::LAZY
                } else {
                    PageFlags::PARENT
                },
            });
        }
    }
    placed
}

/// The pages of a list that come later.
fn behind<'a>(
    store: &PageStore,
    space: Space,
    list: &'a [Entry],
) -> impl Iterator<Item = Range<u64>> + 'a {
    let stored = store.known(space);
    let runs = move |entry: &Entry| {
        let state = stored.as_ref().map(|stored| stored.state());
        let runs = state.map(|state| state.presence.behind_runs(entry.vaddr, entry.pages.into()));
        runs.unwrap_or_default()
    };
    let ranges = list.iter().flat_map(runs);
    ranges.map(|(vaddr, pages)| vaddr..vaddr + pages * PAGE_SIZE)
}

/// Notes for the fill which pages come later: each of them must be lazy.
fn leave(
    store: &PageStore,
    space: Space,
    directory: &Path,
    list: &[Entry],
) -> Result<(), MemoryError> {
    let later: Vec<Range<u64>> = behind(store, space, list).collect();
    let Some(first) = later.first() else {
        return Ok(());
    };
    let cannot = |vaddr| MemoryError::NotBehind { space, vaddr };
    let Space::Task(vpid) = space else {
        return Err(cannot(first.start));
    };
    let eager: Vec<Entry> = list
        .iter()
        .filter(|entry| entry.flags != PageFlags::LAZY)
        .copied()
        .collect();
    match behind(store, space, &eager).next() {
        Some(range) => Err(cannot(range.start)),
        None => note_later(directory, vpid, later.into_iter()),
    }
}

/// Gives a space's file its name in the parent; false where it cannot have one there.
fn link(
    store: &PageStore,
    space: Space,
    parent: &Path,
    number: u32,
    end: u64,
) -> Result<bool, MemoryError> {
    let Some(stored) = store.known(space) else {
        return Ok(false);
    };
    let StoredSpace { file, .. } = &*stored;
    // Pages of zeros at its end may never have been written; reading beyond the end would be an error.
    let long_enough = file.metadata().and_then(|data| match data.len() < end {
        true => file.set_len(end),
        false => Ok(()),
    });
    long_enough.map_err(store.failed("size a file"))?;
    let name = format!("pages-{number}.img");
    let here = nix::fcntl::AT_FDCWD;
    let from = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let to = parent.join(&name);
    match linkat(here, from.as_str(), here, &to, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EXDEV) => Ok(false),
        Err(error) => Err(image_error("link", parent, &name)(error.into())),
    }
}

/// Entries that cover everything up to `end`.
fn whole(end: u64) -> Vec<Entry> {
    let step = u64::from(LONGEST) * PAGE_SIZE;
    let entry = |number: u64| {
        let vaddr = number * step;
        let pages = (end - vaddr).min(step) / PAGE_SIZE;
        Entry {
            vaddr,
            pages: pages as u32,
            flags: PageFlags::PRESENT,
        }
    };
    (0..end.div_ceil(step)).map(entry).collect()
}

/// The mappings of a task, by its image; shared memory has none. What cannot be told is copied.
fn mappings(directory: &Path, space: Space) -> Result<Mappings, MemoryError> {
    let Space::Task(vpid) = space else {
        return Ok(Mappings::none());
    };
    let name = format!("mm-{vpid}.img");
    match fs::read(directory.join(&name)) {
        Ok(bytes) => Ok(Mappings::read(&bytes).unwrap_or_else(Mappings::unknown)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Mappings::unknown()),
        Err(error) => Err(image_error("read", directory, &name)(error)),
    }
}

#[cfg(test)]
mod test {
    use super::super::mappings::test::mm_image;
    use super::*;
    use crate::model::Bytes;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const PAGE: usize = PAGE_SIZE as usize;

    #[test]
    fn everything_is_covered_by_entries_an_old_criu_can_count() {
        assert_eq!(whole(0), []);
        for end in [
            PAGE_SIZE,
            1 << 42,
            (1 << 42) + PAGE_SIZE,
            (1 << 47) - PAGE_SIZE,
        ] {
            let entries = whole(end);
            assert_eq!(entries[0].vaddr, 0);
            assert_eq!(entries.last().unwrap().end(), end);
            assert!(entries.windows(2).all(|two| two[0].end() == two[1].vaddr));
            assert!(entries.iter().all(|e| e.pages > 0 && e.pages <= LONGEST));
        }
    }

    #[test]
    fn pages_stay_where_they_are_and_huge_ones_are_copied() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = PageStore::create(directory.path(), Bytes(64 << 20)).unwrap();
        let high = 0x7fff_1234_5000;
        let list = [Entry {
            vaddr: high,
            pages: 2,
            flags: PageFlags::PRESENT,
        }];
        for (vpid, image) in [
            (1, mm_image(2, 1)),
            (2, mm_image(0x4_0000, 1)),
            (3, b"?".to_vec()),
        ] {
            let task = Space::Task(vpid);
            store.write(task, high, &[vpid as u8; PAGE]).unwrap();
            // Declared and never written: the file has to reach over it.
            store.zero(task, high + PAGE_SIZE, 1).unwrap();
            store.list(task, 0, &list, true).unwrap();
            fs::write(directory.path().join(format!("mm-{vpid}.img")), image).unwrap();
        }
        let placed = link_images(store.verify().unwrap(), directory.path(), 1, true).unwrap();
        // Nothing was called lazy.
        assert_eq!(
            (placed.linked, placed.lazy, placed.copied),
            (Pages(2), Pages(0), Pages(4))
        );
        drop(store);
        let path = directory.path();
        let linked = File::open(path.join("parent/pages-1.img")).unwrap();
        let mut both = vec![9; 2 * PAGE];
        linked.read_exact_at(&mut both, high).unwrap();
        assert_eq!(both, [[1; PAGE], [0; PAGE]].concat());
        assert!(linked.metadata().unwrap().blocks() * 512 < 64 * PAGE_SIZE);
        assert_eq!(fs::metadata(path.join("pages-1.img")).unwrap().len(), 0);
        assert_eq!(
            fs::read(path.join("pages-2.img")).unwrap()[..PAGE],
            [2; PAGE]
        );
        assert!(!path.join("parent/pagemap-2.img").exists());
    }

    #[test]
    fn lazy_is_what_both_the_list_and_the_mappings_say() {
        // An ordinary mapping below, a file's above.
        let mappings = Mappings::read(&mm_image(2, 1)).unwrap();
        let border = 1u64 << 46;
        let entry = |vaddr, pages, flags| Entry {
            vaddr,
            pages,
            flags,
        };
        let both = PageFlags::LAZY.with(PageFlags::PRESENT);
        let list = [
            entry(PAGE_SIZE, 2, PageFlags::PRESENT),
            entry(border - 3 * PAGE_SIZE, 4, both),
            entry(border + PAGE_SIZE, 1, both),
        ];
        let (lazy, parent) = (PageFlags::LAZY, PageFlags::PARENT);
        assert_eq!(
            placed_by(&list, Some(&mappings)),
            [
                entry(PAGE_SIZE, 2, parent),
                entry(border - 3 * PAGE_SIZE, 3, lazy),
                entry(border, 1, parent),
                entry(border + PAGE_SIZE, 1, parent),
            ]
        );
        let eager = placed_by(&list, None);
        assert!(eager.iter().all(|e| e.flags == parent) && eager.len() == 3);
    }
}
