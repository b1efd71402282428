use super::*;
use proptest::prelude::*;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

const PAGE: usize = PAGE_SIZE as usize;
const TASK: Space = Space::Task(7);

fn noise(pages: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; pages * PAGE];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn pages(space: Space, vaddr: u64, bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(bytes);
    seal_pages(&mut frame, space, vaddr);
    frame
}

/// What makes of pages others.
fn changes(vaddr: u64, before: &[u8], now: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(before.iter().zip(now).map(|(before, now)| before ^ now));
    seal_changes(&mut frame, TASK, vaddr, now);
    frame
}

/// These frames as one that is packed.
fn pack(frames: &[&[u8]]) -> Vec<u8> {
    let content = frames.concat();
    let payload = zstd::bulk::compress(&content, 1).unwrap();
    let mut frame = packed(frames.len(), content.len(), payload.len()).to_vec();
    frame.extend(payload);
    frame
}

/// What is decoded, as text, or the error.
fn decode(batch: &[u8]) -> Result<Vec<String>, MemoryError> {
    let mut decoder = Decoder::new().unwrap();
    let mut all = Vec::new();
    decoder.decode(batch, &mut |frame| {
        all.push(format!("{frame:?}"));
        Ok(())
    })?;
    Ok(all)
}

fn check(batch: &[u8], expected: &[Frame<'_>]) {
    let expected: Vec<String> = expected.iter().map(|f| format!("{f:?}")).collect();
    assert_eq!(decode(batch).unwrap(), expected);
}

fn entry(n: usize) -> Entry {
    Entry {
        vaddr: n as u64 * 2 * PAGE_SIZE,
        pages: 1,
        flags: PageFlags::PRESENT.with(PageFlags::LAZY),
    }
}

#[test]
fn frames_survive_alone_in_a_batch_and_packed() {
    let (space, bytes) = (TASK, noise(2, 1));
    let one = pages(space, 0x7000, &bytes);
    let two = zero(Space::Shared(3), 0, MARK_PAGES);
    let three = unchanged(TASK, 0x1000, 1);
    let four = behind(TASK, 0x3000, MARK_PAGES);
    assert_eq!(
        (two.len(), three.len(), four.len()),
        (HEADER, HEADER, HEADER)
    );
    let expected = [
        Frame::Pages {
            space,
            vaddr: 0x7000,
            bytes: &bytes,
        },
        Frame::Zero {
            space: Space::Shared(3),
            vaddr: 0,
            pages: MARK_PAGES,
        },
        Frame::Unchanged {
            space,
            vaddr: 0x1000,
            pages: 1,
        },
        Frame::Behind {
            space,
            vaddr: 0x3000,
            pages: MARK_PAGES,
        },
    ];
    check(&one, &expected[..1]);
    let batch = [&one[..], &two, &three, &four].concat();
    check(&batch, &expected);
    let many = vec![&three[..]; 20];
    assert!(pack(&many).len() < 4 * HEADER);
    assert_eq!(decode(&pack(&many)).unwrap().len(), 20);
    check(&[], &[]);
}

#[test]
fn a_long_list_comes_in_parts_and_only_the_last_says_so() {
    let entries: Vec<Entry> = (0..LIST_ENTRIES + 1).map(entry).collect();
    let frames = list(TASK, &entries);
    let mut decoder = Decoder::new().unwrap();
    let mut all = Vec::new();
    let mut ends = Vec::new();
    for frame in &frames {
        let mut each = |frame: &Frame<'_>| {
            let Frame::List {
                first,
                entries,
                last,
                ..
            } = frame
            else {
                panic!("{frame:?}")
            };
            assert_eq!(*first, all.len() as u64);
            all.extend(entries.clone());
            ends.push(*last);
            Ok(())
        };
        decoder.decode(frame, &mut each).unwrap();
    }
    assert_eq!(all, entries);
    assert_eq!(ends, [false, true]);
    assert_eq!(list(TASK, &[]).len(), 1);
}

#[test]
fn a_batch_cut_anywhere_or_too_long_is_refused() {
    for batch in [
        pages(TASK, 0, &vec![1; 3 * PAGE]),
        pack(&[&pages(TASK, 0, &vec![1; 3 * PAGE])]),
    ] {
        for cut in 1..batch.len() {
            assert!(decode(&batch[..cut]).is_err(), "{cut}");
        }
        let mut longer = batch.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
    }
    assert!(decode(&vec![1; LONGEST_BATCH + 1]).is_err());
    let mark = zero(TASK, 0, 1);
    assert!(decode(&mark.repeat(BATCH_FRAMES)).is_ok());
    assert!(decode(&mark.repeat(BATCH_FRAMES + 1)).is_err());
}

#[test]
fn a_bit_flipped_anywhere_is_noticed() {
    let page = pages(TASK, 0x1000, &vec![9; PAGE]);
    let mut frames = list(TASK, &[entry(1)]);
    frames.push(zero(TASK, 0x1000, 5).to_vec());
    frames.push(unchanged(TASK, 0x1000, 5).to_vec());
    frames.push(pack(&[&page]));
    frames.push(page);
    for frame in frames {
        let meant = decode(&frame).unwrap();
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A compressed payload may have bits that mean nothing: then the pages are what they were.
            if let Ok(decoded) = decode(&damaged) {
                assert_eq!(decoded, meant);
                assert!(bit >= HEADER * 8, "bit {bit} of the header");
            }
        }
    }
}

/// What comes out of a frame of changes, applied to these pages.
fn applied(frame: &[u8], before: &[u8]) -> Result<Vec<u8>, MemoryError> {
    let mut pages = before.to_vec();
    let mut decoder = Decoder::new().unwrap();
    decoder.decode(frame, &mut |frame| match frame {
        Frame::Changes(changes) => changes.apply(&mut pages),
        other => panic!("{other:?}"),
    })?;
    Ok(pages)
}

#[test]
fn changes_make_what_was_meant_or_are_noticed() {
    let before = noise(3, 1);
    let mut now = before.clone();
    now[5000..5100].fill(9);
    let frame = changes(0x7000, &before, &now);
    assert_eq!(applied(&frame, &before).unwrap(), now);
    assert_eq!(applied(&pack(&[&frame]), &before).unwrap(), now);
    let mut other = before.clone();
    other[0] ^= 1;
    for wrong in [&other[..], &now, &before[..2 * PAGE], &noise(4, 1), &[]] {
        assert!(applied(&frame, wrong).is_err());
    }
    for cut in 1..HEADER + 2 {
        assert!(applied(&frame[..frame.len() - cut], &before).is_err());
    }
    for bit in (0..frame.len() * 8).step_by(7).chain(0..HEADER * 8) {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = Decoder::new().unwrap();
        let damaged = decoder.decode(&damaged, &mut |frame| match frame {
            Frame::Changes(changes) => changes.apply(&mut before.clone()),
            // Another kind is told by its checksum.
            _ => Ok(()),
        });
        assert!(damaged.is_err(), "bit {bit}");
    }
}

/// A frame that is right in every respect but one, which the checksum cannot tell.
fn forged(change: impl FnOnce(&mut Header), payload: &[u8]) -> Vec<u8> {
    let mut header = Header::new(PAGES, TASK, 1, 0, 0, payload.len());
    change(&mut header);
    let content = if header.kind == PACKED { &[] } else { payload };
    [&header.seal(content)[..], payload].concat()
}

#[test]
fn a_frame_with_a_right_checksum_and_wrong_numbers_is_refused() {
    let page = vec![1; PAGE];
    assert!(decode(&forged(|_| {}, &page)).is_ok());
    let wrong: [fn(&mut Header); 9] = [
        |h| h.kind = 0,
        |h| h.kind = 7,
        |h| h.space_type = 0,
        |h| h.space_id = 0,
        |h| h.count = 2,
        |h| h.count = u32::MAX,
        |h| h.first = 5,
        |h| h.first = 1 << 63,
        |h| h.flags = 1,
    ];
    for (number, change) in wrong.into_iter().enumerate() {
        assert!(decode(&forged(change, &page)).is_err(), "{number}");
    }
    for kind in [ZERO, UNCHANGED] {
        let too_many = forged(
            |h| {
                h.kind = kind;
                h.count = MARK_PAGES as u32 + 1;
            },
            &[],
        );
        assert!(decode(&too_many).is_err());
    }
}

/// A packed frame that says this of its content.
fn forged_pack(frames: u32, length: u64, payload: &[u8]) -> Vec<u8> {
    let change = |header: &mut Header| {
        (header.kind, header.space_type, header.space_id) = (PACKED, 0, 0);
        (header.count, header.first) = (frames, length);
    };
    forged(change, payload)
}

#[test]
fn what_unpacks_to_something_else_than_it_says_is_refused() {
    let mark = zero(TASK, 0, 1);
    let content = mark.repeat(8);
    let payload = zstd::bulk::compress(&content, 1).unwrap();
    let length = content.len() as u64;
    assert!(decode(&forged_pack(8, length, &payload)).is_ok());
    for (frames, length) in [
        (7, length),
        (9, length),
        (8, length - 1),
        (8, length + 1),
        (8, LONGEST_BATCH as u64 + 1),
        (BATCH_FRAMES as u32 + 1, length),
    ] {
        let forged = forged_pack(frames, length, &payload);
        assert!(decode(&forged).is_err(), "{frames} {length}");
    }
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(bomb.len() < RUN_BYTES);
    assert!(decode(&forged_pack(1, LONGEST_BATCH as u64, &bomb)).is_err());
    let nested = pack(&[&pack(&[&content[..HEADER]; 8])]);
    assert!(decode(&nested).is_err());
}

#[test]
fn random_bytes_are_frames_or_an_error() {
    let mut random = StdRng::seed_from_u64(815);
    let mut decoder = Decoder::new().unwrap();
    let good = [
        pages(TASK, 0x3000, &vec![7; 2 * PAGE]),
        pages(TASK, 0x3000, &noise(1, 2)),
        zero(TASK, 0, 9).to_vec(),
        list(TASK, &[entry(3)]).remove(0),
        changes(0x3000, &[0; 2 * PAGE], &noise(2, 3)),
        pack(&[&changes(0x3000, &[0; PAGE], &[3; PAGE])]),
        pack(&[&zero(TASK, 0, 9), &pages(TASK, 0x3000, &vec![7; PAGE])]),
        pack(&[&list(TASK, &[entry(1); 40])[0]]),
    ];
    let (mut understood, mut changed) = (0, 0);
    crate::memory::fuzz::run(3_000, || {
        let mut bytes = good[random.random_range(0..good.len())].clone();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        if random.random_range(0..3) == 0 {
            bytes.truncate(random.random_range(0..=bytes.len()));
        }
        // Half of them with a right checksum, or nothing behind it is ever reached.
        if bytes.len() >= HEADER && random.random() {
            let length = (bytes.len() - HEADER) as u32;
            bytes[28..32].copy_from_slice(&length.to_le_bytes());
            let content = if bytes[0] == PACKED {
                &[]
            } else {
                &bytes[HEADER..]
            };
            let sum = xxh3_64_with_seed(content, xxh3_64(&bytes[..32]));
            bytes[32..40].copy_from_slice(&sum.to_le_bytes());
        }
        if random.random_range(0..4) == 0 {
            bytes.extend(&good[random.random_range(0..good.len())]);
        }
        let _ = decoder.decode(&bytes, &mut |frame| {
            understood += 1;
            if let Frame::Pages { bytes, .. } = frame {
                assert!(!bytes.is_empty() && bytes.len() <= RUN_BYTES);
            }
            if let Frame::Changes(changes) = frame {
                assert!((1..=RUN_PAGES).contains(&changes.pages()));
                let mut pages = vec![0; changes.pages() as usize * PAGE];
                changed += usize::from(changes.apply(&mut pages).is_ok());
            }
            Ok(())
        });
    });
    assert!(understood > 100, "everything was refused: {understood}");
    assert!(changed > 10, "no changes could be applied: {changed}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_pages_survive(
        count in 1usize..16,
        page_number in 0u64..1 << 40,
        id in 0u64..1 << 56,
        seed: u64,
        sparse: bool,
    ) {
        let mut bytes = if sparse { vec![0; count * PAGE] } else { noise(count, seed) };
        bytes[0] = 1;
        let (space, vaddr) = (Space::Shared(id), page_number * PAGE_SIZE);
        let frame = pages(space, vaddr, &bytes);
        let expected = format!("{:?}", Frame::Pages { space, vaddr, bytes: &bytes });
        prop_assert_eq!(decode(&frame).unwrap(), [expected]);
    }
}
