use super::*;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::carry::Way;
use crate::migration::bare::{Duplex, Wire, say, wait_for};
use crate::migration::codec::{Kind, header};
use crate::migration::conclude::{Dial, DialFuture};
use crate::migration::destination::greet;
use crate::migration::message::{Message, Purpose};
use crate::migration::{Cause, Link, MigrationError, Outbox};
use crate::model::{MigrationId, Name, Rate};

const ID: MigrationId = MigrationId([5; 8]);

/// What arrived, and how often.
#[derive(Default)]
struct Kept {
    batches: Mutex<BTreeMap<Vec<u8>, usize>>,
    fails: bool,
    pause: Duration,
}

impl TakePages for Kept {
    fn take(&self, batch: &[u8]) -> Result<(), Cause> {
        std::thread::sleep(self.pause);
        if self.fails {
            return Err("the store is full because the test says so".into());
        }
        *self
            .batches
            .lock()
            .unwrap()
            .entry(batch[..8].to_vec())
            .or_default() += 1;
        Ok(())
    }
}

/// A destination that is reached through wires that can be cut.
struct There {
    door: Arc<Door>,
    source: Name,
    cut: Arc<Notify>,
    /// Dials that fail from now on.
    gone: CancellationToken,
    /// From now on wires carry the beginning of what is sent, and no more.
    narrow: AtomicBool,
    dialled: Mutex<usize>,
}

impl There {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            door: Arc::default(),
            source: name("alpha"),
            cut: Arc::default(),
            gone: CancellationToken::new(),
            narrow: AtomicBool::new(false),
            dialled: Mutex::default(),
        })
    }
}

struct Dialler(Arc<There>);

impl Dial for Dialler {
    fn dial<'a>(&'a self, _: &'a Name) -> DialFuture<'a> {
        Box::pin(async move {
            if self.0.gone.is_cancelled() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            *self.0.dialled.lock().unwrap() += 1;
            let (near, a) = tokio::io::duplex(1 << 16);
            let (far, b) = tokio::io::duplex(1 << 16);
            if self.0.narrow.load(Ordering::Relaxed) {
                tokio::spawn(narrow_wire(a, b));
            } else {
                tokio::spawn(wire(a, b, self.0.cut.clone()));
            }
            let there = self.0.clone();
            tokio::spawn(async move {
                let mut far = far;
                let greeting = greet(&mut far).await.unwrap();
                let Purpose::Stream { token, index } = greeting.purpose else {
                    panic!("{greeting:?}")
                };
                let (door, source) = (&there.door, &there.source);
                let _ = door
                    .enter(far, |_| Ok(()), source, greeting.migration, token, index)
                    .await;
            });
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

async fn wire(mut a: DuplexStream, mut b: DuplexStream, cut: Arc<Notify>) {
    tokio::select! {
        () = cut.notified() => {}
        _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
    }
}

/// As a cable that drops long frames: a greeting gets there, and TCP gives up over what comes after it.
async fn narrow_wire(mut a: DuplexStream, mut b: DuplexStream) {
    let ((from_a, mut to_a), (mut from_b, mut to_b)) =
        (tokio::io::split(&mut a), tokio::io::split(&mut b));
    let there = async {
        let greeting = tokio::io::copy(&mut from_a.take(1000), &mut to_b).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        greeting
    };
    tokio::select! {
        _ = there => {}
        _ = tokio::io::copy(&mut from_b, &mut to_a) => {}
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn way(there: &Arc<There>, offer: StreamOffer) -> Way {
    Way {
        dial: Arc::new(Dialler(there.clone())),
        peer: name("beta"),
        migration: ID,
        offer,
        patience: Duration::from_millis(300),
    }
}

/// An outbox whose pages go by streams. Nobody is at the other end of its own connection.
async fn outbox(there: &Arc<There>, offer: StreamOffer, count: u8) -> (Outbox, Streams, Link) {
    let (near, _) = tokio::io::duplex(1);
    let link = Link::new(near, CancellationToken::new());
    let outbox = link.outbox();
    let (streams, queue) = Streams::open(way(there, offer), count, outbox.wire())
        .await
        .unwrap();
    outbox.use_streams(queue);
    (outbox, streams, link)
}

/// Frames of which each begins with its number.
fn send(outbox: &Outbox, frames: std::ops::Range<u64>, length: usize) -> Result<(), String> {
    for number in frames {
        let mut payload = vec![7; length];
        payload[..8].copy_from_slice(&number.to_le_bytes());
        outbox
            .send(Kind::Pages, payload)
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

async fn sent(outbox: &Outbox, frames: std::ops::Range<u64>, length: usize) -> Result<(), String> {
    let outbox = outbox.clone();
    tokio::task::spawn_blocking(move || send(&outbox, frames, length))
        .await
        .unwrap()
}

async fn all(intake: &Intake, frames: u64) -> Result<(), MigrationError> {
    let all = tokio::time::timeout(Duration::from_secs(20), intake.until(frames)).await;
    all.expect("everything comes in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_come_by_all_streams_and_each_is_taken_once() {
    let (there, kept) = (There::new(), Arc::new(Kept::default()));
    let intake = Intake::new(kept.clone());
    let awaited = there.door.expect(ID, &there.source, &intake);
    let (outbox, streams, _link) = outbox(&there, awaited.offer, 3).await;
    sent(&outbox, 0..300, 10_000).await.unwrap();
    assert_eq!(outbox.pages(), 300);
    all(&intake, 300).await.unwrap();
    // A count that is too low is as wrong as a frame that never comes.
    assert!(all(&intake, 299).await.is_err());
    intake.end().await;
    drop(intake);
    drop(awaited);
    let batches = kept.batches.lock().unwrap();
    assert_eq!((batches.len(), batches.values().max()), (300, Some(&1)));
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_cut_again_and_again_lose_nothing_and_repeat_nothing() {
    for count in [1, 3] {
        let (there, kept) = (There::new(), Arc::new(Kept::default()));
        let intake = Intake::new(kept.clone());
        let awaited = there.door.expect(ID, &there.source, &intake);
        let (outbox, _streams, _link) = outbox(&there, awaited.offer, count).await;
        let cutting = tokio::spawn({
            let cut = there.cut.clone();
            async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(23)).await;
                    cut.notify_waiters();
                }
            }
        });
        let mut total = 0;
        for round in 1..=8 {
            sent(&outbox, total..total + 60, 40_000).await.unwrap();
            total += 60;
            tokio::time::sleep(Duration::from_millis(round * 5)).await;
        }
        // As long as it is cut it may never be quiet long enough.
        cutting.abort();
        all(&intake, total).await.unwrap();
        let batches = kept.batches.lock().unwrap();
        assert_eq!(
            (batches.len() as u64, batches.values().max()),
            (total, Some(&1))
        );
        let dialled = *there.dialled.lock().unwrap();
        assert!(dialled > usize::from(count), "no stream broke: {dialled}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_the_destination_makes_is_no_failure() {
    let (there, kept) = (There::new(), Arc::new(Kept::default()));
    let intake = Intake::new(kept.clone());
    let awaited = there.door.expect(ID, &there.source, &intake);
    let (outbox, _streams, _link) = outbox(&there, awaited.offer, 2).await;
    sent(&outbox, 0..5, 100).await.unwrap();
    all(&intake, 5).await.unwrap();
    intake.end().await;
    drop((awaited, intake));
    assert_eq!(Arc::strong_count(&kept), 1, "somebody still has the store");
    let lost = tokio::time::timeout(Duration::from_millis(500), outbox.streams_lost()).await;
    assert!(lost.is_err(), "the streams count as lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_is_told_and_a_host_that_is_gone_is_lost() {
    let there = There::new();
    let intake = Intake::new(Arc::new(Kept {
        fails: true,
        ..Kept::default()
    }));
    let awaited = there.door.expect(ID, &there.source, &intake);
    let (near, _streams, _link) = outbox(&there, awaited.offer, 2).await;
    sent(&near, 0..1, 100).await.unwrap();
    let error = intake.failure().await;
    assert!(
        error.chain().contains("full because the test"),
        "{}",
        error.chain()
    );
    // Whoever is refused is refused for good.
    drop(awaited);
    there.gone.cancel();
    there.cut.notify_waiters();
    let sending = tokio::spawn({
        let near = near.clone();
        async move { sent(&near, 1..10_000, 100).await }
    });
    tokio::time::timeout(Duration::from_secs(60), near.streams_lost())
        .await
        .unwrap();
    assert!(sending.await.unwrap().unwrap_err().contains("lost"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_can_be_dialled_and_carry_nothing_are_lost_and_it_is_said_why() {
    let there = There::new();
    let intake = Intake::new(Arc::new(Kept::default()));
    let awaited = there.door.expect(ID, &there.source, &intake);
    there.narrow.store(true, Ordering::Relaxed);
    let (near, _streams, _link) = outbox(&there, awaited.offer, 2).await;
    let begin = std::time::Instant::now();
    let sending = tokio::spawn({
        let near = near.clone();
        async move { sent(&near, 0..10_000, 10_000).await }
    });
    tokio::time::timeout(Duration::from_secs(60), near.streams_lost())
        .await
        .unwrap();
    // Not at the first connection that breaks: something may come through the next.
    assert!(begin.elapsed() > Duration::from_millis(600));
    assert!(*there.dialled.lock().unwrap() >= 4);
    let why = near.why_streams_lost().unwrap();
    assert!(why.contains("nothing came through"), "{why}");
    assert!(sending.await.unwrap().unwrap_err().contains("lost"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_stranger_is_refused() {
    let there = There::new();
    let intake = Intake::new(Arc::new(Kept::default()));
    let awaited = there.door.expect(ID, &name("alpha"), &intake);
    let right = awaited.offer.token;
    let enter = async |peer: &str, id: MigrationId, token, index| {
        let (mut near, far) = tokio::io::duplex(1 << 10);
        let door = there.door.clone();
        let peer = name(peer);
        let serving =
            tokio::spawn(async move { door.enter(far, |_| Ok(()), &peer, id, token, index).await });
        let said = wait_for(&mut near).await.unwrap();
        drop(near);
        (said, serving.await.unwrap())
    };
    let other = MigrationId([6; 8]);
    for (peer, id, token, index) in [
        ("mallory", ID, right, 0),
        ("alpha", other, right, 0),
        ("alpha", ID, StreamToken::random(), 0),
        ("alpha", ID, right, MOST_STREAMS),
    ] {
        let (said, served) = enter(peer, id, token, index).await;
        assert!(matches!(said, Message::Failed { .. }), "{said:?}");
        assert!(served.is_err());
    }
    let (said, served) = enter("alpha", ID, right, 0).await;
    assert!(matches!(said, Message::Welcome { .. }) && served.is_ok());
    drop(awaited);
    assert!(
        enter("alpha", ID, right, 0).await.1.is_err(),
        "the migration is over"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_stream_of_pages_fails_the_migration() {
    let word = |kind, payload: &[u8]| [&header(kind, payload).unwrap()[..], payload].concat();
    let far_ahead = (1u64 << 40).to_le_bytes();
    for bytes in [
        word(Kind::Storage, b"x"),
        word(Kind::Pages, b"short"),
        word(Kind::Pages, &far_ahead),
        vec![0xff; 64],
    ] {
        let there = There::new();
        let intake = Intake::new(Arc::new(Kept::default()));
        let awaited = there.door.expect(ID, &there.source, &intake);
        let dialler = Dialler(there.clone());
        let mut stream = dialler.dial(&name("beta")).await.unwrap();
        let purpose = Purpose::Stream {
            token: awaited.offer.token,
            index: 0,
        };
        let hello = Message::Hello {
            oldest: 1,
            newest: 1,
            migration: ID,
            purpose,
        };
        say(&mut stream, &hello).await.unwrap();
        wait_for(&mut stream).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let failure = tokio::time::timeout(Duration::from_secs(5), intake.failure()).await;
        assert!(failure.is_ok(), "{bytes:02x?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_streams_together_keep_to_the_bandwidth() {
    let (there, kept) = (There::new(), Arc::new(Kept::default()));
    let intake = Intake::new(kept);
    let awaited = there.door.expect(ID, &there.source, &intake);
    let (outbox, _streams, _link) = outbox(&there, awaited.offer, 3).await;
    outbox.set_bandwidth(Some(Rate(2_000_000)));
    let begin = std::time::Instant::now();
    sent(&outbox, 0..30, 100_000).await.unwrap();
    all(&intake, 30).await.unwrap();
    let rate = 3_000_000.0 / begin.elapsed().as_secs_f64();
    assert!((1_500_000.0..2_050_000.0).contains(&rate), "{rate}");
}

#[tokio::test]
async fn a_link_keeps_to_the_bandwidth_too() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let wire = Wire::default();
    wire.set_rate(Some(Rate(1_000_000)));
    let reading = tokio::spawn(async move { far.read_to_end(&mut Vec::new()).await });
    let begin = std::time::Instant::now();
    let mut near = near;
    wire.write(&mut near, Kind::Storage, None, &vec![0; 500_000])
        .await
        .unwrap();
    drop(near);
    assert_eq!(reading.await.unwrap().unwrap(), 500_008);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(480), "{took:?}");
}

#[test]
fn a_token_survives_its_text_and_is_not_shown() {
    let token = StreamToken::random();
    let text = serde_json::to_string(&token).unwrap();
    assert_eq!(serde_json::from_str::<StreamToken>(&text).unwrap(), token);
    assert_ne!(StreamToken::random(), token);
    assert!(!format!("{token:?}").contains(&text[1..33]));
    for bad in [
        "\"\"",
        "\"+0102030405060708090a0b0c0d0e0f1\"",
        "\"zz\"",
        "7",
    ] {
        assert!(serde_json::from_str::<StreamToken>(bad).is_err(), "{bad}");
    }
}
