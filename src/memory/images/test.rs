use super::*;
use crate::model::Bytes;

const PAGE: usize = PAGE_SIZE as usize;

fn entry(vaddr: u64, pages: u32, flags: PageFlags) -> Entry {
    Entry {
        vaddr,
        pages,
        flags,
    }
}

#[test]
fn a_pagemap_has_the_bytes_that_criu_writes() {
    let list = [entry(0x40_0000, 3, PageFlags::PRESENT)];
    let bytes = pagemap(1, &list);
    let expected = [
        0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, // magic numbers
        2, 0, 0, 0, 0x08, 1, // head
        11, 0, 0, 0, 0x08, 0x80, 0x80, 0x80, 0x02, 0x10, 3, 0x20, 4, 0x28, 3,
    ];
    assert_eq!(bytes, expected);
    assert_eq!(read_pagemap(&bytes), Some((1, list.to_vec())));
    for length in 0..bytes.len() {
        // Cut between two records it is a shorter list.
        let cut = read_pagemap(&bytes[..length]);
        assert_eq!(cut.is_some(), length == 14, "{length}");
    }
}

/// Copies every space of a store, whatever could be linked.
fn copy_all(store: &PageStore, directory: &Path) -> Result<(), MemoryError> {
    let complete = store.verify().unwrap();
    let mut copy = Copy::new(store, directory);
    for (number, (space, list)) in (first_free(directory)?..).zip(&complete.lists) {
        copy.add(*space, number, list)?;
    }
    copy.run(3)
}

#[test]
fn pages_are_in_the_order_of_the_list_and_the_store_is_empty() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = PageStore::create(directory.path(), Bytes(64 << 20)).unwrap();
    let (task, shared) = (Space::Task(3), Space::Shared(9));
    // More than is moved at once, a zero run in the middle, a page no list names, two spaces.
    for page in 0..1500u64 {
        store
            .write(task, page * PAGE_SIZE, &[(page % 251) as u8 | 1; PAGE])
            .unwrap();
    }
    store.zero(task, 700 * PAGE_SIZE, 50).unwrap();
    store.write(shared, 0, &[7; PAGE]).unwrap();
    let lazy = PageFlags::PRESENT.with(PageFlags::LAZY);
    let list = [
        entry(0, 10, lazy),
        entry(20 * PAGE_SIZE, 1480, PageFlags::PARENT),
    ];
    store.list(task, 0, &list, true).unwrap();
    store
        .list(shared, 0, &[entry(0, 1, PageFlags::PRESENT)], true)
        .unwrap();
    fs::write(directory.path().join("pages-4.img"), b"criu's own").unwrap();
    copy_all(&store, directory.path()).unwrap();
    assert_eq!(
        fs::read(directory.path().join("pages-4.img")).unwrap(),
        b"criu's own"
    );
    let bytes = fs::read(directory.path().join("pages-5.img")).unwrap();
    assert_eq!(bytes.len(), 1490 * PAGE);
    let at = |n: usize| {
        let page = &bytes[n * PAGE..(n + 1) * PAGE];
        assert!(page.iter().all(|&b| b == page[0]));
        page[0]
    };
    for n in 0..1490usize {
        let page = if n < 10 { n } else { n + 10 };
        let expected = if (700..750).contains(&page) {
            0
        } else {
            (page % 251) as u8 | 1
        };
        assert_eq!(at(n), expected, "page {page}");
    }
    assert_eq!(
        fs::read(directory.path().join("pages-6.img")).unwrap(),
        [7; PAGE]
    );
    assert!(directory.path().join("pagemap-shmem-9.img").exists());
    // Ten pages that no list named, and what it takes to know of two spaces.
    assert!(store.used() < Bytes(64 << 10), "{}", store.used());
}

#[test]
fn an_image_that_is_there_already_is_not_overwritten() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = PageStore::create(directory.path(), Bytes(1 << 20)).unwrap();
    store.list(Space::Task(3), 0, &[], true).unwrap();
    fs::write(directory.path().join("pagemap-3.img"), b"other").unwrap();
    let result = copy_all(&store, directory.path());
    assert!(matches!(
        result,
        Err(MemoryError::Image {
            operation: "create",
            ..
        })
    ));
}
