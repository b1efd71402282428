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
fn what_is_read_straight_into_a_batch_is_what_would_have_been_copied_there() {
    // Runs of noise, of zeros, and of pages that nobody wants, the borders of which are nowhere near a piece's.
    let mut memory = noise(3000);
    for (from, to) in [(100, 101), (300, 700), (1024, 1280), (2990, 3000)] {
        memory[from * PAGE..to * PAGE].fill(0);
    }
    let known = |at: u64| (1500..1800).contains(&(at / PAGE_SIZE)) || at / PAGE_SIZE == 50;
    // The last three cannot be read.
    let end = 2997 * PAGE;
    let mut judged = Vec::new();
    let (store, sent, _directory) = sent_by(Compress::None, |sender| {
        let mut seen = |at: u64, page: &[u8]| {
            judged.push(at);
            assert_eq!(page, &memory[at as usize..][..PAGE]);
            match () {
                () if known(at) => Seen::Known,
                () if page.iter().all(|byte| *byte == 0) => Seen::Zero,
                () => Seen::Changed,
            }
        };
        let mut at = 0;
        loop {
            // More than a batch has room for, and half a page behind the end of what can be read.
            let mut read = |length: usize, into: &mut Vec<u8>| {
                let length = length.min((end - at).next_multiple_of(PAGE).min(end + 99 - at));
                into.extend_from_slice(&memory[at..][..length]);
                length
            };
            match sender.read(TASK, at as u64, 150 * PAGE, &mut read, &mut seen)? {
                0 => break,
                read => at += read,
            }
        }
        assert_eq!(at, end);
        sender.flush()
    });
    let pages = (0..2997).map(|page| page * PAGE_SIZE);
    assert!(judged.iter().copied().eq(pages), "each page is judged once");
    assert_eq!(
        (sent.zero, sent.pages),
        (Pages(664), Pages(2997 - 664 - 301))
    );
    let mut stored = vec![0; end];
    let file = &store.known(TASK).unwrap().file;
    std::os::unix::fs::FileExt::read_at(file, &mut stored, 0).unwrap();
    let mut wanted = memory[..end].to_vec();
    for page in wanted.chunks_exact_mut(PAGE).zip((0..).step_by(PAGE)) {
        if known(page.1) {
            page.0.fill(0);
        }
    }
    assert!(stored == wanted);
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

/// What happens to a page between two rounds.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Word(u16),
    Much,
    Zeros,
    Nothing,
}

/// A sender over many rounds, and the store that has taken them.
struct Rounds {
    pool: Pool,
    store: PageStore,
    memory: Vec<u8>,
    _directory: tempfile::TempDir,
}

impl Rounds {
    fn new(compress: Compress, pages: usize, copies: Bytes) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        Self {
            pool: Pool::with_copies(compress, 2, copies).unwrap(),
            store: PageStore::create(directory.path(), Bytes(64 << 20)).unwrap(),
            memory: noise(pages),
            _directory: directory,
        }
    }

    /// One round, in which so much happens before it, to the pages in turn.
    fn round(&mut self, happens: &[Happens], salt: u64) -> Sent {
        let mut dirty = Vec::new();
        for (number, page) in self.memory.chunks_mut(PAGE).enumerate() {
            match happens.get(number % happens.len().max(1)) {
                Some(Happens::Word(at)) => {
                    page[usize::from(*at) % PAGE] ^= salt as u8 | 1;
                }
                Some(Happens::Much) => page.iter_mut().for_each(|byte| *byte ^= salt as u8 | 1),
                Some(Happens::Zeros) => page.fill(0),
                Some(Happens::Nothing) => continue,
                None => {}
            }
            dirty.push(number);
        }
        let mut decoder = Decoder::new().unwrap();
        let store = &self.store;
        let mut out = |batch: Vec<u8>| store.take(&mut decoder, &batch).map_err(io::Error::other);
        self.pool.next_round();
        let mut sender = Sender::new(&self.pool, &mut out);
        for number in dirty {
            let page = &self.memory[number * PAGE..][..PAGE];
            let seen = if number % 3 == 0 && page.iter().all(|byte| *byte == 0) {
                Seen::Zero
            } else {
                Seen::Changed
            };
            sender
                .pages(TASK, (number * PAGE) as u64, page, &mut |_, _| seen)
                .unwrap();
        }
        sender.flush().unwrap();
        sender.sent()
    }

    fn stored(&self) -> Vec<u8> {
        let mut stored = vec![0; self.memory.len()];
        let file = &self.store.known(TASK).unwrap().file;
        // Pages of zeros at the end are behind the file's.
        let length = (file.metadata().unwrap().len() as usize).min(stored.len());
        std::os::unix::fs::FileExt::read_exact_at(file, &mut stored[..length], 0).unwrap();
        stored
    }
}

#[test]
fn a_page_that_is_sent_again_goes_as_what_has_changed() {
    for compress in [Compress::None, Compress::Level(1)] {
        let mut rounds = Rounds::new(compress, 1000, Bytes(16 << 20));
        let whole = rounds.round(&[], 0);
        assert_eq!((whole.pages, whole.changed), (Pages(1000), Pages(0)));
        for salt in 1..4 {
            let again = rounds.round(&[Happens::Word(17), Happens::Nothing], salt);
            assert_eq!((again.pages, again.changed), (Pages(500), Pages(500)));
            assert!(again.wire.0 * 40 < 500 * PAGE_SIZE, "{}", again.wire.0);
            assert!(rounds.stored() == rounds.memory);
        }
        let much = rounds.round(&[Happens::Much], 9);
        assert_eq!((much.pages, much.changed), (Pages(1000), Pages(0)));
        assert!(rounds.stored() == rounds.memory);
    }
}

#[test]
fn without_a_round_between_there_is_nothing_to_tell_changes_against() {
    let mut rounds = Rounds::new(Compress::None, 10, Bytes(16 << 20));
    rounds.round(&[], 0);
    let bytes = rounds.memory.clone();
    let mut out = |_: Vec<u8>| Ok(());
    let mut sender = Sender::new(&rounds.pool, &mut out);
    for _ in 0..2 {
        sender
            .pages(TASK, 0, &bytes, &mut |_, _| Seen::Changed)
            .unwrap();
        sender.flush().unwrap();
    }
    assert_eq!(sender.sent().changed, Pages(0));
}

mod property {
    use super::*;
    use proptest::prelude::*;

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            4 => any::<u16>().prop_map(Happens::Word),
            1 => Just(Happens::Much),
            1 => Just(Happens::Zeros),
            2 => Just(Happens::Nothing),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_rounds_end_with_the_memory_as_it_is(
            rounds in prop::collection::vec(prop::collection::vec(happens(), 1..40), 1..6),
            pages in 1usize..300,
            copies in prop::sample::select(vec![0u64, 100 << 10, 1 << 20, 8 << 20]),
            compress in prop::sample::select(vec![Compress::None, Compress::Level(1)]),
        ) {
            let mut run = Rounds::new(compress, pages, Bytes(copies));
            run.round(&[], 0);
            for (salt, happens) in rounds.iter().enumerate() {
                run.round(happens, salt as u64 + 1);
                prop_assert!(run.stored() == run.memory);
            }
        }
    }
}
