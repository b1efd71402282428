use super::*;
use crate::memory::PageFlags;
use crate::memory::frame::{HEADER, seal_changes};
use std::os::unix::fs::MetadataExt;

const PAGE: usize = PAGE_SIZE as usize;
const TASK: Space = Space::Task(1);

fn store(limit: u64) -> (PageStore, tempfile::TempDir) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = PageStore::create(directory.path(), Bytes(limit)).unwrap();
    (store, directory)
}

fn entry(vaddr: u64, pages: u32) -> Entry {
    Entry {
        vaddr,
        pages,
        flags: PageFlags::PRESENT,
    }
}

fn page_of(store: &PageStore, vaddr: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    let stored = store.known(TASK).unwrap();
    stored.file.read_exact_at(&mut bytes, vaddr).unwrap();
    bytes
}

#[test]
fn addresses_up_to_the_last_are_kept_sparsely() {
    let (store, _directory) = store(1 << 20);
    let last = crate::memory::space::ADDRESS_END - 2 * PAGE_SIZE;
    for vaddr in [0, 0x5555_5555_5000, (1 << 47) - PAGE_SIZE, 1 << 56, last] {
        let fill = (vaddr >> 40) as u8 | 1;
        store.write(TASK, vaddr, &[fill; PAGE]).unwrap();
        assert_eq!(page_of(&store, vaddr), [fill; PAGE], "{vaddr:#x}");
    }
    let blocks = store.known(TASK).unwrap().file.metadata().unwrap().blocks();
    assert!(blocks * 512 <= 6 * PAGE_SIZE, "{blocks}");
}

#[test]
fn the_last_writer_wins_and_is_charged_once() {
    let (store, _directory) = store(1 << 20);
    store.write(TASK, 0x1000, &[1; 2 * PAGE]).unwrap();
    let used = store.used();
    store.write(TASK, 0x2000, &[2; PAGE]).unwrap();
    assert_eq!(store.used(), used);
    assert_eq!(page_of(&store, 0x1000), [1; PAGE]);
    assert_eq!(page_of(&store, 0x2000), [2; PAGE]);
    store.zero(TASK, 0x1000, 1).unwrap();
    assert_eq!(store.used().0, used.0 - PAGE_SIZE);
    assert_eq!(page_of(&store, 0x1000), [0; PAGE]);
}

#[test]
fn a_missing_page_is_an_error_and_never_a_zero() {
    let (store, _directory) = store(1 << 20);
    assert!(matches!(store.verify(), Err(MemoryError::NoList)));
    store.write(TASK, 0x1000, &[1; PAGE]).unwrap();
    store.zero(TASK, 0x2000, 1).unwrap();
    store.list(TASK, 0, &[entry(0x1000, 3)], true).unwrap();
    assert!(matches!(
        store.verify(),
        Err(MemoryError::PageMissing { vaddr: 0x3000, .. })
    ));
    store.zero(TASK, 0x3000, 1).unwrap();
    assert_eq!(store.verify().unwrap().pages, Pages(3));
}

#[test]
fn unchanged_pages_must_be_here() {
    let (store, _directory) = store(1 << 20);
    assert!(store.unchanged(TASK, 0x1000, 1).is_err());
    store.write(TASK, 0x1000, &[1; PAGE]).unwrap();
    store.zero(TASK, 0x2000, 3).unwrap();
    store.unchanged(TASK, 0x1000, 4).unwrap();
    assert!(matches!(
        store.unchanged(TASK, 0x1000, 5),
        Err(MemoryError::PageMissing { vaddr: 0x5000, .. })
    ));
}

/// Has the store take what makes of pages others.
fn change(store: &PageStore, vaddr: u64, before: &[u8], now: &[u8]) -> Result<(), MemoryError> {
    let mut frame = vec![0; HEADER];
    frame.extend(before.iter().zip(now).map(|(before, now)| before ^ now));
    seal_changes(&mut frame, TASK, vaddr, now);
    store.take(&mut Decoder::new().unwrap(), &frame)
}

#[test]
fn changes_are_of_what_is_here_or_change_nothing() {
    let (store, _directory) = store(1 << 20);
    let (one, two, zero) = ([1; PAGE], [2; PAGE], [0; PAGE]);
    let missing = change(&store, 0x1000, &one, &two);
    assert!(matches!(
        missing,
        Err(MemoryError::PageMissing { vaddr: 0x1000, .. })
    ));
    store.write(TASK, 0x1000, &one).unwrap();
    let used = store.used();
    change(&store, 0x1000, &one, &two).unwrap();
    assert_eq!(page_of(&store, 0x1000), two);
    // They come once.
    let again = change(&store, 0x1000, &one, &two);
    assert!(matches!(
        again,
        Err(MemoryError::Changes { vaddr: 0x1000, .. })
    ));
    assert_eq!(page_of(&store, 0x1000), two);
    assert_eq!(store.used(), used);
    // A page of zeros is behind the end of the file.
    store.zero(TASK, 0x9000, 1).unwrap();
    change(&store, 0x9000, &zero, &one).unwrap();
    assert_eq!(page_of(&store, 0x9000), one);
    assert_eq!(store.used().0, used.0 + PAGE_SIZE);
    let beyond = change(&store, 0x1000, &[2; 2 * PAGE], &[3; 2 * PAGE]);
    assert!(matches!(
        beyond,
        Err(MemoryError::PageMissing { vaddr: 0x2000, .. })
    ));
}

#[test]
fn a_list_comes_in_any_order_but_must_be_whole() {
    let (one, two, three) = (entry(0x1000, 1), entry(0x3000, 1), entry(0x5000, 1));
    let parts: [(u64, &[Entry], bool); 3] =
        [(0, &[one], false), (1, &[two], false), (2, &[three], true)];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let (store, _directory) = store(1 << 20);
        store.write(TASK, 0x1000, &[1; 5 * PAGE]).unwrap();
        for (done, at) in order.into_iter().enumerate() {
            if done > 0 {
                assert!(store.verify().is_err(), "{order:?}, {done} parts");
            }
            let (first, entries, last) = parts[at];
            store.list(TASK, first, entries, last).unwrap();
        }
        assert_eq!(store.verify().unwrap().pages, Pages(3), "{order:?}");
    }
}

#[test]
fn a_list_that_contradicts_itself_is_refused() {
    let (store, _directory) = store(1 << 20);
    store.write(TASK, 0x1000, &[1; 5 * PAGE]).unwrap();
    store.list(TASK, 0, &[entry(0x1000, 1)], false).unwrap();
    assert!(store.list(TASK, 0, &[entry(0x2000, 1)], false).is_err());
    assert!(
        store
            .list(TASK, u64::MAX, &[entry(0x2000, 1)], true)
            .is_err()
    );
    store.list(TASK, 1, &[entry(0x1000, 2)], true).unwrap();
    assert!(store.list(TASK, 2, &[], true).is_err());
    assert!(matches!(store.verify(), Err(MemoryError::List { .. })));
}

#[test]
fn nothing_is_kept_beyond_the_limit() {
    let (store, _directory) = store(64 << 10);
    let mut kept = 0;
    let error = loop {
        match store.write(TASK, kept * PAGE_SIZE, &[1; PAGE]) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, MemoryError::Full { .. }));
    assert!((10..16).contains(&kept), "{kept}");
    // Marks and lists cost too, or a sender could make the store grow with them.
    let far = |n: u64| (n << 30, 1);
    let marks = (0..1000).map(|n| store.zero(TASK, far(n).0, far(n).1));
    assert!(marks.into_iter().any(|marked| marked.is_err()));
    let list = vec![entry(0, 1); 4096];
    assert!(store.list(Space::Task(2), 0, &list, false).is_err());
    assert!(store.used() <= Bytes(64 << 10));
}

#[test]
fn there_are_only_so_many_spaces() {
    let (store, _directory) = store(1 << 30);
    let result: Result<(), _> =
        (1..=MOST_SPACES as u32 + 1).try_for_each(|id| store.zero(Space::Task(id), 0, 1));
    // Whichever comes first: the store's own limit, or the system's on open files.
    assert!(matches!(
        result,
        Err(MemoryError::TooManySpaces { .. } | MemoryError::Store { .. })
    ));
}

#[test]
fn writers_on_several_threads_lose_nothing() {
    let (store, _directory) = store(64 << 20);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for page in (thread..1024).step_by(4) {
                    let bytes = [page as u8 | 1; PAGE];
                    store.write(TASK, page * PAGE_SIZE, &bytes).unwrap();
                }
            });
        }
    });
    store.list(TASK, 0, &[entry(0, 1024)], true).unwrap();
    assert_eq!(store.verify().unwrap().pages, Pages(1024));
    for page in 0..1024u64 {
        assert_eq!(page_of(&store, page * PAGE_SIZE)[0], page as u8 | 1);
    }
}
