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

fn check(frame: &[u8], expected: &Frame<'_>) {
    let mut decoder = Decoder::new().unwrap();
    assert_eq!(&decoder.decode(frame).unwrap(), expected);
}

#[test]
fn pages_survive_raw_and_compressed() {
    let even = vec![0x5a; 128 * PAGE];
    let noise = noise(128, 1);
    for level in [0, 1, 3, -5] {
        let mut encoder = Encoder::new(level).unwrap();
        for bytes in [&even, &noise] {
            let frame = encoder.pages(TASK, 0x7000, bytes).unwrap();
            assert!(frame.len() <= LONGEST_FRAME);
            if level != 0 && bytes == &even {
                assert!(frame.len() < 2 * PAGE, "{} at {level}", frame.len());
            }
            check(
                &frame,
                &Frame::Pages {
                    space: TASK,
                    vaddr: 0x7000,
                    bytes,
                },
            );
        }
    }
}

#[test]
fn marks_cost_a_header_alone() {
    let encoder = Encoder::new(1).unwrap();
    let zero = encoder.zero(Space::Shared(3), 0, MARK_PAGES);
    assert_eq!(zero.len(), HEADER);
    check(
        &zero,
        &Frame::Zero {
            space: Space::Shared(3),
            vaddr: 0,
            pages: MARK_PAGES,
        },
    );
    check(
        &encoder.unchanged(TASK, 0x1000, 1),
        &Frame::Unchanged {
            space: TASK,
            vaddr: 0x1000,
            pages: 1,
        },
    );
}

#[test]
fn a_long_list_comes_in_parts_and_only_the_last_says_so() {
    let encoder = Encoder::new(0).unwrap();
    let entry = |n: usize| Entry {
        vaddr: n as u64 * 2 * PAGE_SIZE,
        pages: 1,
        flags: PageFlags::PRESENT.with(PageFlags::LAZY),
    };
    let entries: Vec<Entry> = (0..LIST_ENTRIES + 1).map(entry).collect();
    let frames = encoder.list(TASK, &entries);
    let mut decoder = Decoder::new().unwrap();
    let mut all = Vec::new();
    let mut ends = Vec::new();
    for frame in &frames {
        match decoder.decode(frame).unwrap() {
            Frame::List {
                first,
                entries,
                last,
                ..
            } => {
                assert_eq!(first, all.len() as u64);
                all.extend(entries);
                ends.push(last);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all, entries);
    assert_eq!(ends, [false, true]);
    assert_eq!(encoder.list(TASK, &[]).len(), 1);
}

#[test]
fn a_frame_cut_anywhere_or_too_long_is_refused() {
    let mut encoder = Encoder::new(1).unwrap();
    let mut decoder = Decoder::new().unwrap();
    let frame = encoder.pages(TASK, 0, &vec![1; 3 * PAGE]).unwrap();
    for cut in 0..frame.len() {
        assert!(decoder.decode(&frame[..cut]).is_err(), "{cut}");
    }
    let mut longer = frame.clone();
    longer.push(0);
    assert!(decoder.decode(&longer).is_err());
    assert!(decoder.decode(&vec![1; LONGEST_FRAME + 1]).is_err());
}

#[test]
fn a_bit_flipped_anywhere_is_noticed() {
    let mut encoder = Encoder::new(1).unwrap();
    let mut decoder = Decoder::new().unwrap();
    let entries = [Entry {
        vaddr: 0x1000,
        pages: 4,
        flags: PageFlags::PRESENT,
    }];
    let mut frames = encoder.list(TASK, &entries);
    frames.push(encoder.zero(TASK, 0x1000, 5));
    frames.push(encoder.unchanged(TASK, 0x1000, 5));
    frames.push(encoder.pages(TASK, 0x1000, &vec![9; PAGE]).unwrap());
    for frame in frames {
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A compressed payload may have bits that mean nothing: then the pages are what they were.
            if let Ok(decoded) = decoder.decode(&damaged) {
                let decoded = format!("{decoded:?}");
                let mut again = Decoder::new().unwrap();
                assert_eq!(decoded, format!("{:?}", again.decode(&frame).unwrap()));
                assert!(bit >= HEADER * 8, "bit {bit} of the header");
            }
        }
    }
}

/// A frame that is right in every respect but one, which the checksum cannot tell.
fn forged(change: impl FnOnce(&mut Header), payload: &[u8]) -> Vec<u8> {
    let mut header = Header::new(RAW, TASK, 1, 0, 0, payload.len());
    change(&mut header);
    header.frame(payload, payload)
}

#[test]
fn a_frame_with_a_right_checksum_and_wrong_numbers_is_refused() {
    let mut decoder = Decoder::new().unwrap();
    let page = vec![1; PAGE];
    assert!(decoder.decode(&forged(|_| {}, &page)).is_ok());
    let wrong: [fn(&mut Header); 9] = [
        |h| h.kind = 0,
        |h| h.kind = 6,
        |h| h.space_type = 0,
        |h| h.space_id = 0,
        |h| h.count = 2,
        |h| h.count = u32::MAX,
        |h| h.first = 5,
        |h| h.first = 1 << 63,
        |h| h.flags = 1,
    ];
    for (number, change) in wrong.into_iter().enumerate() {
        assert!(decoder.decode(&forged(change, &page)).is_err(), "{number}");
    }
    for kind in [ZERO, UNCHANGED] {
        let too_many = forged(
            |h| {
                h.kind = kind;
                h.count = MARK_PAGES as u32 + 1;
            },
            &[],
        );
        assert!(decoder.decode(&too_many).is_err());
    }
}

#[test]
fn a_payload_that_unpacks_to_more_than_it_says_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(bomb.len() < RUN_BYTES);
    let mut header = Header::new(ZSTD, TASK, RUN_PAGES, 0, 0, bomb.len());
    header.checksum = header.checksum_of(&bomb);
    let frame = header.frame(&bomb, &bomb);
    assert!(Decoder::new().unwrap().decode(&frame).is_err());
}

#[test]
fn random_bytes_are_a_frame_or_an_error() {
    let mut random = StdRng::seed_from_u64(815);
    let mut encoder = Encoder::new(1).unwrap();
    let mut decoder = Decoder::new().unwrap();
    let good = [
        encoder.pages(TASK, 0x3000, &vec![7; 2 * PAGE]).unwrap(),
        encoder.pages(TASK, 0x3000, &noise(1, 2)).unwrap(),
        encoder.zero(TASK, 0, 9),
        encoder.list(TASK, &[]).remove(0),
    ];
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
            let mut hasher = blake3::Hasher::new();
            hasher.update(&bytes[..32]).update(&bytes[HEADER..]);
            let sum = hasher.finalize();
            bytes[32..40].copy_from_slice(&sum.as_bytes()[..8]);
        }
        if let Ok(Frame::Pages { bytes, .. }) = decoder.decode(&bytes) {
            assert!(!bytes.is_empty() && bytes.len() <= RUN_BYTES);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_pages_survive(
        pages in 1usize..16,
        page_number in 0u64..1 << 40,
        id in 0u64..1 << 56,
        level in -3i32..4,
        seed: u64,
        sparse: bool,
    ) {
        let mut bytes = if sparse { vec![0; pages * PAGE] } else { noise(pages, seed) };
        bytes[0] = 1;
        let mut encoder = Encoder::new(level).unwrap();
        let (space, vaddr) = (Space::Shared(id), page_number * PAGE_SIZE);
        let frame = encoder.pages(space, vaddr, &bytes).unwrap();
        let mut decoder = Decoder::new().unwrap();
        prop_assert_eq!(decoder.decode(&frame).unwrap(), Frame::Pages { space, vaddr, bytes: &bytes });
    }
}
