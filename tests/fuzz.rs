//! The migration protocol's decoders under hostile bytes: seeded, bounded, for `GODWIT_FUZZ_SECONDS` each.
//!
//! The other decoders (page frames, CRIU's page-server wire, file records, join messages) have theirs beside the
//! code.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use godwit::migration::Link;
use godwit::migration::behind::wire::{Ask, LONGEST, LONGEST_RUN, MOST_RUNS, Run};
use godwit::migration::codec::{
    Chunk, CodecError, HEADER, Kind, MAX_PAYLOAD, Numbered, header, is_plain, parse_header, taken,
};
use godwit::migration::destination::greet;
use godwit::migration::link::Inbound;
use godwit::migration::message::{Message, Purpose, Summary, Verdict};
use godwit::migration::stream::StreamToken;
use godwit::model::{Finding, Generation, MigrationId, Phase};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

fn time() -> Duration {
    let seconds = std::env::var("GODWIT_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(0.5))
}

/// Valid bytes, damaged a little, or none of it valid.
fn damage(random: &mut StdRng, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..random.random_range(0..6) {
        match random.random_range(0..5) {
            0 if !bytes.is_empty() => {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            1 => bytes.truncate(random.random_range(0..=bytes.len())),
            2 => bytes.extend((0..random.random_range(0..40)).map(|_| random.random::<u8>())),
            3 if bytes.len() > 4 => {
                let at = random.random_range(0..bytes.len() - 4);
                let extreme = [0u32, 1, u32::MAX, 1 << 31, MAX_PAYLOAD as u32 + 1];
                let value = extreme[random.random_range(0..extreme.len())];
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            _ => {
                let at = random.random_range(0..=bytes.len());
                bytes.insert(at, random.random());
            }
        }
    }
    bytes
}

#[test]
fn a_chunk_is_refused_or_names_a_file_of_its_directory() {
    let mut random = StdRng::seed_from_u64(1);
    let until = Instant::now() + time();
    let mut taken = 0;
    while Instant::now() < until {
        let name = ["core-1.img", "pages-1.img", "../x", "a/b", ".", ""][random.random_range(0..6)];
        let bytes = vec![7; random.random_range(0..50)];
        let valid = Chunk {
            name,
            offset: random.random(),
            bytes: &bytes,
        }
        .encode();
        let wire = damage(&mut random, &valid);
        if let Ok(chunk) = Chunk::decode(&wire) {
            taken += 1;
            assert!(is_plain(chunk.name), "{:?}", chunk.name);
            assert!(chunk.offset.checked_add(chunk.bytes.len() as u64).is_some());
            assert_eq!(chunk.encode(), wire, "what is decoded is what was sent");
        }
    }
    assert!(taken > 0, "every chunk was refused: nothing was tested");
}

#[test]
fn a_header_is_refused_or_is_within_its_limit() {
    let mut random = StdRng::seed_from_u64(2);
    let until = Instant::now() + time();
    let mut taken = 0;
    while Instant::now() < until {
        let valid = header(Kind::Pages, &vec![0; random.random_range(0..2000)]).unwrap();
        let mut wire = damage(&mut random, &valid);
        wire.resize(HEADER, 0);
        match parse_header(wire.try_into().unwrap()) {
            Ok((_, length)) => {
                taken += 1;
                assert!(length <= MAX_PAYLOAD);
            }
            Err(CodecError::TooLong { length, limit, .. }) => assert!(length > limit),
            Err(_) => {}
        }
    }
    assert!(taken > 0, "every header was refused: nothing was tested");
}

#[test]
fn a_frame_of_pages_is_refused_or_has_its_number() {
    let mut random = StdRng::seed_from_u64(5);
    let until = Instant::now() + time();
    let (mut numbered, mut confirmed) = (0, 0);
    while Instant::now() < until {
        let number: u64 = random.random();
        let mut valid = number.to_le_bytes().to_vec();
        valid.extend(vec![7; random.random_range(0..20) / 10 * 5]);
        let wire = damage(&mut random, &valid);
        match Numbered::decode(&wire) {
            Ok(frame) => {
                numbered += 1;
                assert_eq!([&frame.number.to_le_bytes(), frame.batch].concat(), wire);
            }
            Err(_) => assert!(wire.len() < 8),
        }
        match taken(&wire) {
            Ok(count) => {
                confirmed += 1;
                assert_eq!(count.to_le_bytes()[..], wire);
            }
            Err(_) => assert!(wire.len() != 8),
        }
    }
    assert!(numbered > 0 && confirmed > 0, "nothing was tested");
}

#[tokio::test]
async fn a_link_under_hostile_bytes_gives_messages_or_one_error() {
    let mut random = StdRng::seed_from_u64(3);
    let until = Instant::now() + time();
    let (mut messages, mut errors) = (0, 0);
    while Instant::now() < until {
        let (mut hostile, ours) = tokio::io::duplex(1 << 16);
        let mut bytes = Vec::new();
        for message in conversation(&mut random) {
            let payload = serde_json::to_vec(&message).unwrap();
            bytes.extend(header(Kind::Control, &payload).unwrap());
            bytes.extend(payload);
        }
        hostile
            .write_all(&damage(&mut random, &bytes))
            .await
            .unwrap();
        drop(hostile);
        let mut link = Link::new(ours, CancellationToken::new());
        // One error is the end: nothing more comes after it.
        loop {
            match link.receive(Phase::Memory).await {
                Ok(Inbound::Message(_) | Inbound::Data(_)) => messages += 1,
                Err(_) => break errors += 1,
            }
        }
        assert!(link.receive(Phase::Memory).await.is_err());
    }
    assert!(messages > 0 && errors > 0);
}

#[tokio::test]
async fn a_greeting_under_hostile_bytes_is_answered_or_refused() {
    let mut random = StdRng::seed_from_u64(4);
    let until = Instant::now() + time();
    let mut greeted = 0;
    while Instant::now() < until {
        let (mut hostile, ours) = tokio::io::duplex(1 << 16);
        let purpose = Purpose::Stream {
            token: StreamToken::random(),
            index: random.random(),
        };
        let hello = Message::Hello {
            oldest: random.random_range(0..4),
            newest: random.random_range(0..4),
            migration: MigrationId(random.random()),
            purpose: [purpose, Purpose::Migrate][random.random_range(0..2)],
        };
        let payload = serde_json::to_vec(&hello).unwrap();
        let mut bytes = header(Kind::Control, &payload).unwrap().to_vec();
        bytes.extend(payload);
        let bytes = if random.random_bool(0.3) {
            bytes
        } else {
            damage(&mut random, &bytes)
        };
        hostile.write_all(&bytes).await.unwrap();
        hostile.shutdown().await.unwrap();
        let mut ours = ours;
        let greeting = tokio::time::timeout(Duration::from_secs(5), greet(&mut ours)).await;
        greeted += usize::from(
            greeting
                .expect("a greeting never waits for more than it was sent")
                .is_ok(),
        );
    }
    assert!(
        greeted > 0,
        "every greeting was refused: nothing was tested"
    );
}

fn conversation(random: &mut StdRng) -> Vec<Message> {
    let all = [
        Message::Welcome { version: 1 },
        Message::Refusal {
            findings: vec![Finding::blocking("no-room", "there is none")],
        },
        Message::StorageEnd,
        Message::RoundEnd {
            number: random.random(),
            frames: random.random(),
        },
        Message::DumpEnd {
            frames: random.random(),
            summary: Summary {
                images: vec![("a.img".into(), random.random())],
                ..Summary::default()
            },
        },
        Message::HandOver {
            generation: Generation(random.random()),
        },
        Message::Verdict(Verdict::HandedOver {
            generation: Generation(1),
        }),
        Message::Cancel {
            why: "x".repeat(random.random_range(0..300)),
        },
    ];
    let count = random.random_range(0..5);
    (0..count)
        .map(|_| all[random.random_range(0..all.len())].clone())
        .collect()
}

#[test]
fn a_question_for_pages_is_refused_or_asks_for_what_there_can_be() {
    let mut random = StdRng::seed_from_u64(11);
    let until = Instant::now() + time();
    let run = |random: &mut StdRng| Run {
        process: random.random_range(1..1 << 22),
        address: random.random_range(0..1u64 << 35) * 4096,
        pages: random.random_range(1..=LONGEST_RUN),
    };
    let (mut taken, mut refused) = (0u64, 0u64);
    while Instant::now() < until {
        let runs = (0..random.random_range(1..=8))
            .map(|_| run(&mut random))
            .collect();
        let urgent = random.random();
        let valid = Ask { urgent, runs };
        assert_eq!(Ask::decode(&valid.encode()).unwrap(), valid);
        let bytes = damage(&mut random, &valid.encode());
        match Ask::decode(&bytes) {
            Ok(ask) => {
                taken += 1;
                assert_eq!(ask.encode(), bytes, "there is one way to say it");
                assert!((1..=MOST_RUNS).contains(&ask.runs.len()) && bytes.len() <= LONGEST);
                for run in ask.runs {
                    assert!((1..=LONGEST_RUN).contains(&run.pages) && run.process > 0);
                    assert!(run.address.is_multiple_of(4096) && run.address < 1 << 63);
                }
            }
            Err(CodecError::Ask { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} {refused}");
}
