use super::*;
use crate::memory::{Decoder, PageStore};
use crate::model::Compress;

const PAGE: usize = PAGE_SIZE as usize;
const TASK: Space = Space::Task(1);

fn noise(pages: usize) -> Vec<u8> {
    let word = |n: usize| {
        (n as u64 + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes()
    };
    (0..pages * PAGE / 8).flat_map(word).collect()
}

/// A store, and what a sender to it has sent.
fn sent_by(
    compress: Compress,
    act: impl FnOnce(&mut Sender<'_>) -> Result<(), MemoryError>,
) -> (PageStore, Sent, tempfile::TempDir) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = PageStore::create(directory.path(), Bytes(64 << 20)).unwrap();
    let mut decoder = Decoder::new().unwrap();
    let mut out = |batch: Vec<u8>| store.take(&mut decoder, &batch).map_err(io::Error::other);
    let pool = Pool::with_workers(compress, 3).unwrap();
    let mut sender = Sender::new(&pool, &mut out);
    act(&mut sender).unwrap();
    let sent = sender.sent();
    drop(sender);
    (store, sent, directory)
}

fn list_of(pages: u32) -> [Entry; 1] {
    [Entry {
        vaddr: 0,
        pages,
        flags: crate::memory::PageFlags::PRESENT,
    }]
}

#[test]
fn after_a_flush_everything_is_there_by_whatever_worker() {
    let mut bytes = noise(2000);
    bytes[700 * PAGE..900 * PAGE].fill(0);
    for compress in [Compress::None, Compress::Level(1), Compress::Auto] {
        let (store, sent, _directory) = sent_by(compress, |sender| {
            for (number, part) in bytes.chunks(37 * PAGE).enumerate() {
                let at = (number * 37 * PAGE) as u64;
                sender.pages(TASK, at, part, &mut |_, _| Seen::Changed)?;
            }
            sender.list(TASK, &list_of(2000))
        });
        assert_eq!((sent.pages, sent.zero), (Pages(1800), Pages(200)));
        assert_eq!(store.verify().unwrap().pages, Pages(2000));
        let mut stored = vec![1; bytes.len()];
        let file = &store.known(TASK).unwrap().file;
        std::os::unix::fs::FileExt::read_exact_at(file, &mut stored, 0).unwrap();
        assert!(stored == bytes, "{compress:?}");
    }
}

#[test]
fn an_out_that_fails_ends_the_round_with_its_error() {
    let pool = Pool::with_workers(Compress::None, 2).unwrap();
    let mut handed = 0;
    let mut out = |_: Vec<u8>| {
        handed += 1;
        if handed < 3 {
            Ok(())
        } else {
            Err(io::Error::other("the link is cut"))
        }
    };
    let bytes = noise(4000);
    let mut sender = Sender::new(&pool, &mut out);
    let result = sender.pages(TASK, 0, &bytes, &mut |_, _| Seen::Changed);
    let result = result.and_then(|()| sender.flush());
    assert!(
        matches!(result, Err(MemoryError::Send { .. })),
        "{result:?}"
    );
    drop(sender);
    // The pool is none the worse for it.
    let mut length = 0;
    let mut out = |batch: Vec<u8>| {
        length += batch.len();
        Ok(())
    };
    let mut sender = Sender::new(&pool, &mut out);
    sender
        .pages(TASK, 0, &bytes[..PAGE], &mut |_, _| Seen::Changed)
        .unwrap();
    sender.flush().unwrap();
    drop(sender);
    assert_eq!(length, PAGE + frame::HEADER);
}

#[test]
fn marks_of_either_kind_are_one_frame_per_run() {
    let seen = |at: u64, _: &[u8]| match at / PAGE_SIZE {
        0..10 => Seen::Unchanged,
        10..20 => Seen::Zero,
        _ => Seen::Known,
    };
    let mut wire = 0;
    let mut out = |batch: Vec<u8>| {
        wire += batch.len();
        Ok(())
    };
    let pool = Pool::with_workers(Compress::None, 1).unwrap();
    let mut sender = Sender::new(&pool, &mut out);
    sender.pages(TASK, 0, &noise(30), &mut { seen }).unwrap();
    sender.flush().unwrap();
    let sent = sender.sent();
    drop(sender);
    assert_eq!(
        (sent.zero, sent.unchanged, sent.pages),
        (Pages(10), Pages(10), Pages(0))
    );
    assert_eq!(wire, 2 * frame::HEADER);
}
