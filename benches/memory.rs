//! What the steps of a page's way cost, one by one: `cargo bench`.
//!
//! `scripts/bench` measures whole moves; this tells which step to look at.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use godwit::memory::frame::{HEADER, RUN_PAGES, seal_pages};
use godwit::memory::{Decoder, PageStore, Pool, Seen, Sender, Space};
use godwit::model::{Bytes, Compress, PAGE_SIZE};
use godwit::sys::pagemap::{self, OWN};
use godwit::sys::process_memory::ProcessMemory;

const PAGE: usize = PAGE_SIZE as usize;
/// As much as a frame has room for.
const RUN: usize = RUN_PAGES as usize * PAGE;
/// What is moved in the benchmarks of more than one run.
const MUCH: usize = 64 << 20;
/// Set in the child whose memory is read: how much it is to have.
const CHILD: &str = "GODWIT_BENCH_CHILD";
const SPACE: Space = Space::Task(1);

fn main() {
    if let Ok(length) = std::env::var(CHILD) {
        be_read(length.parse().unwrap());
        return;
    }
    divan::main();
}

/// The two kinds of memory that `scripts/bench` has too: such that compresses to a third, and such that does not.
#[derive(Debug, Clone, Copy)]
enum Data {
    Third,
    Random,
}

const DATA: [Data; 2] = [Data::Third, Data::Random];

impl Data {
    fn bytes(self, length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(length);
        for word in 0..length / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let same = (word * 8 / PAGE) as u64;
            let random = matches!(self, Self::Random) || word % 64 < 20;
            bytes.extend(if random { state } else { same }.to_le_bytes());
        }
        bytes
    }
}

/// A child process that has memory, until it is dropped.
struct Memory {
    child: Child,
    address: u64,
}

impl Memory {
    fn new(length: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(CHILD, length.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().parse().unwrap();
        Self { child, address }
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

fn be_read(length: usize) {
    let memory = Data::Random.bytes(length);
    println!("{}", memory.as_ptr().addr());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    black_box(memory);
}

/// Asking the kernel which pages there are.
#[divan::bench(args = [16 << 20, 256 << 20])]
fn scan(bencher: Bencher<'_, '_>, length: usize) {
    let memory = Memory::new(length);
    let file = File::open(format!("/proc/{}/pagemap", memory.pid())).unwrap();
    let start = memory.address.next_multiple_of(PAGE_SIZE);
    let range = start..start + length as u64 - PAGE_SIZE;
    bencher.counter(BytesCount::new(length)).bench_local(|| {
        let mut pages = 0;
        let each = &mut |run: pagemap::Run| pages += (run.end - run.start) / PAGE_SIZE;
        pagemap::pages(&file, range.clone(), OWN, each).unwrap();
        assert_eq!(pages, (range.end - range.start) / PAGE_SIZE);
    });
}

/// Reading another process's pages, a frame's worth at a time.
#[divan::bench]
fn read(bencher: Bencher<'_, '_>) {
    let memory = Memory::new(MUCH);
    let task = ProcessMemory::open(memory.pid()).unwrap();
    let mut buffer = vec![0; RUN];
    bencher.counter(BytesCount::new(MUCH)).bench_local(|| {
        for at in (0..MUCH).step_by(RUN) {
            let read = task.read(memory.address + at as u64, &mut buffer).unwrap();
            assert_eq!(read, RUN);
        }
    });
}

/// Compressing a frame's worth at each of these levels, on one core.
mod compress {
    use super::*;

    fn at(bencher: Bencher<'_, '_>, data: Data, level: i32) {
        let plain = data.bytes(RUN);
        let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
        let mut packed = vec![0; zstd::zstd_safe::compress_bound(RUN)];
        bencher.counter(BytesCount::new(RUN)).bench_local(|| {
            compressor
                .compress_to_buffer(black_box(&plain), &mut packed)
                .unwrap()
        });
    }

    #[divan::bench(args = [-5, -1, 1, 3, 6, 9])]
    fn third(bencher: Bencher<'_, '_>, level: i32) {
        at(bencher, Data::Third, level);
    }

    #[divan::bench(args = [-5, -1, 1, 3])]
    fn random(bencher: Bencher<'_, '_>, level: i32) {
        at(bencher, Data::Random, level);
    }
}

/// Frames with their checksums, not compressed.
mod frame {
    use super::*;

    #[divan::bench]
    fn encode(bencher: Bencher<'_, '_>) {
        let mut frame = vec![0; HEADER];
        frame.extend(Data::Random.bytes(RUN));
        bencher
            .counter(BytesCount::new(RUN))
            .bench_local(|| seal_pages(black_box(&mut frame), SPACE, 0x1000));
    }

    #[divan::bench(args = DATA)]
    fn decode(bencher: Bencher<'_, '_>, data: Data) {
        let batches = batches(data, RUN, Compress::Level(1));
        let mut decoder = Decoder::new().unwrap();
        bencher.counter(BytesCount::new(RUN)).bench_local(|| {
            for batch in &batches {
                decoder
                    .decode(black_box(batch), &mut |frame| {
                        black_box(frame);
                        Ok(())
                    })
                    .unwrap();
            }
        });
    }
}

/// What goes over the link for pages of this kind.
fn batches(data: Data, length: usize, compress: Compress) -> Vec<Vec<u8>> {
    let pool = Pool::new(compress).unwrap();
    let mut batches = Vec::new();
    send(&pool, &data.bytes(length), &mut |batch| batches.push(batch));
    batches
}

fn send(pool: &Pool, bytes: &[u8], take: &mut (dyn FnMut(Vec<u8>) + Send)) {
    let mut out = |batch| {
        take(batch);
        Ok(())
    };
    let mut sender = Sender::new(pool, &mut out);
    for (number, run) in bytes.chunks(RUN).enumerate() {
        let vaddr = 0x1000_0000 + (number * RUN) as u64;
        sender
            .pages(SPACE, vaddr, run, &mut |_, _| Seen::Changed)
            .unwrap();
    }
    sender.flush().unwrap();
}

/// Pages to frames by the pool of threads, handed on and dropped.
mod pack {
    use super::*;

    static THIRD: LazyLock<Vec<u8>> = LazyLock::new(|| Data::Third.bytes(MUCH));
    static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| Data::Random.bytes(MUCH));

    fn with(bencher: Bencher<'_, '_>, bytes: &[u8], compress: Compress) {
        let pool = Pool::new(compress).unwrap();
        bencher
            .counter(BytesCount::new(bytes.len()))
            .bench_local(|| send(&pool, bytes, &mut |batch| drop(black_box(batch))));
    }

    #[divan::bench(args = [Compress::None, Compress::Level(1)])]
    fn third(bencher: Bencher<'_, '_>, compress: Compress) {
        with(bencher, &THIRD, compress);
    }

    #[divan::bench(args = [Compress::None, Compress::Level(1)])]
    fn random(bencher: Bencher<'_, '_>, compress: Compress) {
        with(bencher, &RANDOM, compress);
    }
}

/// Who writes to memory while it is copied.
#[derive(Debug, Clone, Copy)]
enum Writer {
    /// A counter in every page goes on.
    Counter,
    /// In every page a value is replaced, and a few pointers are.
    Redis,
}

impl Writer {
    fn write(self, memory: &mut [u8], round: u64) {
        let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for page in memory.chunks_exact_mut(PAGE) {
            match self {
                Self::Counter => page[64..72].copy_from_slice(&round.to_le_bytes()),
                Self::Redis => {
                    let at = random() as usize % 15 * 256;
                    for word in page[at..at + 200].chunks_exact_mut(8) {
                        word.copy_from_slice(&random().to_le_bytes());
                    }
                    for _ in 0..3 {
                        let at = random() as usize % (PAGE / 8) * 8;
                        let pointer = 0x7f00_0000_0000 + random() % (1 << 30);
                        page[at..at + 8].copy_from_slice(&pointer.to_le_bytes());
                    }
                }
            }
        }
    }
}

/// Pages that are sent again and again, without copies of what was sent before and with them: how fast, and how many
/// bytes that is.
mod again {
    use super::*;

    fn by(bencher: Bencher<'_, '_>, writer: Writer, (data, compress, copies): Case) {
        let mut memory = data.bytes(MUCH / 2);
        let pool = Pool::with_copies(compress, 2, copies).unwrap();
        let (mut round, mut wire) = (0, 0);
        let counter = BytesCount::new(memory.len());
        bencher.counter(counter).bench_local(|| {
            writer.write(&mut memory, round);
            pool.next_round();
            wire = 0;
            send(&pool, &memory, &mut |batch| wire += batch.len());
            round += 1;
        });
        let part = 100.0 * wire as f64 / memory.len() as f64;
        eprintln!(
            "  {writer:?} {data:?} {compress:?}, {copies} of copies: {part:.2} % on the wire"
        );
    }

    type Case = (Data, Compress, Bytes);

    const NONE: Bytes = Bytes(0);
    const SOME: Bytes = Bytes(64 << 20);
    const CASES: [Case; 6] = [
        (Data::Third, Compress::Level(1), NONE),
        (Data::Third, Compress::Level(1), SOME),
        (Data::Random, Compress::Level(1), NONE),
        (Data::Random, Compress::Level(1), SOME),
        (Data::Random, Compress::None, NONE),
        (Data::Random, Compress::None, SOME),
    ];

    #[divan::bench(args = [0, 1, 2, 3, 4, 5])]
    fn counter(bencher: Bencher<'_, '_>, case: usize) {
        by(bencher, Writer::Counter, CASES[case]);
    }

    #[divan::bench(args = [0, 1, 2, 3, 4, 5])]
    fn redis(bencher: Bencher<'_, '_>, case: usize) {
        by(bencher, Writer::Redis, CASES[case]);
    }
}

/// Batches into the destination's store, on tmpfs: pages that are new to it, and such that it has.
#[divan::bench(args = ["new", "again"])]
fn store(bencher: Bencher<'_, '_>, pages: &str) {
    let batches = batches(Data::Random, MUCH, Compress::None);
    let mut decoder = Decoder::new().unwrap();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let fresh = || PageStore::create(directory.path(), Bytes(2 * MUCH as u64)).unwrap();
    let mut take = |store: &PageStore| {
        for batch in &batches {
            store.take(&mut decoder, batch).unwrap();
        }
    };
    let bencher = bencher.counter(BytesCount::new(MUCH));
    if pages == "new" {
        // It is dropped outside of the measured time.
        bencher
            .with_inputs(fresh)
            .bench_local_refs(|store| take(store));
    } else {
        let store = fresh();
        take(&store);
        bencher.bench_local(|| take(&store));
    }
}
