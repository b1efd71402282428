//! CRIU's memory images without a copy: the store's own files become the pages of a parent.
//!
//! CRIU reads an incremental dump through its `parent`, and finds a page there by adding up the entries before
//! it. A parent that claims to have *every* page from address 0 on therefore has page `a` at offset `a`: which is
//! how the store keeps it.
//!
//! ```text
//! images/pagemap-7.img           the list, every entry "in the parent"
//! images/pages-3.img             empty
//! images/parent/pagemap-7.img    [0 .. end), present
//! images/parent/pages-3.img      the store's file of task 7, page at offset = address
//! ```
//!
//! What the parent claims beyond the list nobody ever asks for: CRIU reads what the list names. Huge pages it would
//! not look for in a parent, and take for empty; a task that has any is copied.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::unistd::linkat;
use prost::Message;

use super::images::{Copy, create, first_free, image_error, write_pagemap};
use super::space::{Entry, PageFlags, Space};
use super::store::{Complete, StoredSpace};
use super::{MemoryError, PageStore};
use crate::model::{PAGE_SIZE, Pages};

/// The longest entry of a parent: 4 TiB. CRIUs before 4.2 count in an int.
const LONGEST: u32 = 1 << 30;
const MM_MAGIC: u32 = 0x5749_2820;
const MAP_HUGETLB: u32 = 0x4_0000;
/// Mapped by a plugin: such are not read through a parent either.
const BY_PLUGIN: u32 = 1 << 27;

/// What became of a store's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placed {
    /// Pages that are where they were.
    pub linked: Pages,
    /// Pages that had to be copied.
    pub copied: Pages,
}

/// Makes CRIU's images of a complete store in `directory`, which has the other images of the dump and is on the
/// store's file system.
///
/// The memory is the store's own, held by its names in `directory/parent` until those are removed. A restore with
/// `consume` (CRIU's auto-dedup) gives it back page by page as it reads, so that all memory exists once. Whatever comes of it the
/// store is spent.
pub fn link_images(
    complete: Complete<'_>,
    directory: &Path,
    threads: usize,
) -> Result<Placed, MemoryError> {
    let parent = directory.join("parent");
    let made = DirBuilder::new().mode(0o700).create(&parent);
    made.map_err(image_error("create", directory, "parent"))?;
    let mut placed = Placed::default();
    let mut copy = Copy::new(complete.store, directory);
    for (number, (space, list)) in (first_free(directory)?..).zip(&complete.lists) {
        let pages: Pages = list.iter().map(|entry| Pages(entry.pages.into())).sum();
        let end = list.last().map_or(0, Entry::end);
        if may_link(directory, *space)? && link(complete.store, *space, &parent, number, end)? {
            write_pagemap(directory, *space, number, list, PageFlags::PARENT)?;
            create(directory, &format!("pages-{number}.img"))?;
            write_pagemap(&parent, *space, number, &whole(end), PageFlags::PRESENT)?;
            placed.linked += pages;
        } else {
            copy.add(*space, number, list)?;
            placed.copied += pages;
        }
    }
    copy.run(threads)?;
    Ok(placed)
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

#[derive(Clone, PartialEq, Message)]
struct Mm {
    #[prost(message, repeated, tag = "14")]
    mappings: Vec<MappingFlags>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct MappingFlags {
    #[prost(uint32, required, tag = "6")]
    flags: u32,
    #[prost(uint32, required, tag = "7")]
    status: u32,
}

/// Whether CRIU looks for every page of a space in the parent. What cannot be told is copied.
fn may_link(directory: &Path, space: Space) -> Result<bool, MemoryError> {
    let Space::Task(vpid) = space else {
        return Ok(true);
    };
    let name = format!("mm-{vpid}.img");
    let bytes = match fs::read(directory.join(&name)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(image_error("read", directory, &name)(error)),
    };
    let linkable = |mapping: &MappingFlags| {
        mapping.flags & MAP_HUGETLB == 0 && mapping.status & BY_PLUGIN == 0
    };
    Ok(mm(&bytes).is_some_and(|mm| mm.mappings.iter().all(linkable)))
}

/// The message of an mm image.
fn mm(bytes: &[u8]) -> Option<Mm> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if word(4)? != MM_MAGIC {
        return None;
    }
    let length = usize::try_from(word(8)?).ok()?;
    Mm::decode(bytes.get(12..12usize.checked_add(length)?)?).ok()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::Bytes;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const PAGE: usize = PAGE_SIZE as usize;

    fn mm_image(flags: u32, status: u32) -> Vec<u8> {
        let mapping = MappingFlags { flags, status };
        let mappings = vec![
            MappingFlags {
                flags: 2,
                status: 1,
            },
            mapping,
        ];
        let message = Mm { mappings }.encode_to_vec();
        let mut bytes = [0x5456_4319u32.to_le_bytes(), MM_MAGIC.to_le_bytes()].concat();
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
        bytes
    }

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
            (2, mm_image(MAP_HUGETLB, 1)),
            (3, b"?".to_vec()),
        ] {
            let task = Space::Task(vpid);
            store.write(task, high, &[vpid as u8; PAGE]).unwrap();
            // Declared and never written: the file has to reach over it.
            store.zero(task, high + PAGE_SIZE, 1).unwrap();
            store.list(task, 0, &list, true).unwrap();
            fs::write(directory.path().join(format!("mm-{vpid}.img")), image).unwrap();
        }
        let placed = link_images(store.verify().unwrap(), directory.path(), 1).unwrap();
        assert_eq!((placed.linked, placed.copied), (Pages(2), Pages(4)));
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
}
