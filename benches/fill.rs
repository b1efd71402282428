//! How long a container waits for a page while its memory is being filled, and how long the fill takes:
//! `cargo bench --bench fill`. Needs root and a userfaultfd.
//!
//! A child process is what CRIU would have restored: memory without pages, its userfaultfd handed over on CRIU's
//! socket. It touches pages in a random order while a real filler fills them, and clocks each touch that was a fault;
//! once with the processors to itself, and once beside as many busy processes as there are processors.
//!
//! The child's thread never waits for a processor: what is measured is the filler.
//!
//! `MIB` and `RATE` in the environment are other sizes and touches per second than these, `PROGRAM` is another build
//! of godwit.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write, stdin};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use godwit::memory::fill::{FillPlan, FillState, Guard, fill_state};
use godwit::model::PAGE_SIZE;
use godwit::sys::scheduling::{self, Attributes};
use godwit::sys::{fdpass, userfaultfd};
use nix::sys::resource::{UsageWho, getrusage};

const PATIENCE: Duration = Duration::from_secs(60);
/// The first of the arguments of a child.
const CHILD: &str = "be-filled";
const BUSY: &str = "be-busy";
/// What CRIU says when all is restored.
const FINISHED: i32 = 0x5253_5446;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.get(1..) {
        Some([CHILD, images, mib, rate]) => {
            return be_filled(Path::new(images), number(mib), number(rate));
        }
        Some([BUSY]) => loop {
            std::hint::spin_loop();
        },
        _ => {}
    }
    let given = |name, usual: &[u64]| match std::env::var(name) {
        Ok(text) => vec![number(&text)],
        Err(_) => usual.to_vec(),
    };
    println!("  MiB  touches/s  busy |  fill, ms  faults |  median, µs     90 %     99 %   worst");
    for mib in given("MIB", &[1024]) {
        for rate in given("RATE", &[1000, 20000]) {
            for busy in [0, thread::available_parallelism().map_or(1, usize::from)] {
                measure(mib, rate, busy);
            }
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

/// What the first words of a page are.
fn content(page: u64) -> u64 {
    (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A child process that ends with this.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

fn child(arguments: &[&str]) -> Ends {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ends(command.spawn().unwrap())
}

fn measure(mib: u64, rate: u64, busy: usize) {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let images = scratch.path().to_str().unwrap();
    let mut filled = child(&[CHILD, images, &mib.to_string(), &rate.to_string()]);
    let mut says = BufReader::new(filled.0.stdout.take().unwrap()).lines();
    let mut hears = filled.0.stdin.take().unwrap();
    let mut said = || says.next().unwrap().unwrap();
    write_images(scratch.path(), number(&said()), mib << 20);
    let guard = Guard::start(FillPlan {
        program: std::env::var_os("PROGRAM")
            .unwrap_or(env!("CARGO_BIN_EXE_godwit").into())
            .into(),
        images: scratch.path().into(),
        // Without a cgroup nobody is killed; a fill that fails leaves the child waiting for the wrong bytes.
        cgroup: PathBuf::from("/nonexistent"),
    })
    .unwrap();
    writeln!(hears, "go").unwrap();
    assert_eq!(said(), "told");
    guard.sync(PATIENCE).unwrap();
    let _hogs: Vec<Ends> = (0..busy).map(|_| child(&[BUSY])).collect();
    writeln!(hears, "run").unwrap();
    guard.release();
    let begin = Instant::now();
    while fill_state(scratch.path()).unwrap() != FillState::Filled {
        assert!(guard.is_well() && begin.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    let length = begin.elapsed().as_millis();
    writeln!(hears, "stop").unwrap();
    println!("{mib:5}  {rate:9}  {busy:4} | {length:9}  {}", said());
}

/// Images of one process with one mapping: its pagemap, one lazy entry, and the store's file.
fn write_images(images: &Path, address: u64, length: u64) {
    let mut entry = vec![0x08];
    varint(&mut entry, address);
    entry.push(0x10);
    varint(&mut entry, length / PAGE_SIZE);
    // Lazy, and the count once more.
    entry.extend([0x20, 2, 0x28]);
    varint(&mut entry, length / PAGE_SIZE);
    let mut pagemap = Vec::from([
        0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 2, 0, 0, 0, 8, 1,
    ]);
    pagemap.extend((entry.len() as u32).to_le_bytes());
    pagemap.extend(entry);
    fs::write(images.join("pagemap-1.img"), pagemap).unwrap();
    fs::create_dir(images.join("parent")).unwrap();
    let store = File::create_new(images.join("parent/pages-1.img")).unwrap();
    let mut chunk = vec![0; 1 << 20];
    for at in (0..length).step_by(chunk.len()) {
        for (n, page) in chunk.chunks_exact_mut(PAGE_SIZE as usize).enumerate() {
            let bytes = content(at / PAGE_SIZE + n as u64).to_le_bytes();
            page[..8].copy_from_slice(&bytes);
            page[4088..].copy_from_slice(&bytes);
        }
        store.write_all_at(&chunk, address + at).unwrap();
    }
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// What the child does.
fn be_filled(images: &Path, mib: u64, rate: u64) {
    let page = PAGE_SIZE as usize;
    let pages = mib << 20 >> PAGE_SIZE.trailing_zeros();
    // Fresh memory, which nobody has touched.
    let memory = vec![0; (mib << 20) as usize + page];
    let skipped = memory.as_ptr().addr().next_multiple_of(page) - memory.as_ptr().addr();
    let memory = &memory[skipped..][..(mib << 20) as usize];
    let start = memory.as_ptr().addr() as u64;
    let features = userfaultfd::FEATURE_EVENT_FORK
        | userfaultfd::FEATURE_EVENT_REMAP
        | userfaultfd::FEATURE_EVENT_REMOVE
        | userfaultfd::FEATURE_EVENT_UNMAP;
    let uffd = userfaultfd::create(0).unwrap();
    uffd.handshake(features).unwrap();
    let range = start..start + (mib << 20);
    uffd.register(range, userfaultfd::MODE_MISSING).unwrap();
    let mut lines = stdin().lines();
    println!("{start}");
    assert_eq!(lines.next().unwrap().unwrap(), "go");
    let mut criu = UnixStream::connect(images.join("lazy-pages.socket")).unwrap();
    criu.write_all(&1i32.to_ne_bytes()).unwrap();
    fdpass::send(criu.as_fd(), &[0], &[uffd.as_fd()], true).unwrap();
    drop(uffd);
    criu.write_all(&FINISHED.to_ne_bytes()).unwrap();
    println!("told");
    assert_eq!(lines.next().unwrap().unwrap(), "run");
    let over = AtomicBool::new(false);
    let mut waits = thread::scope(|scope| {
        let touching = scope.spawn(|| touch(memory, pages, rate, &over));
        assert_eq!(lines.next().unwrap().unwrap(), "stop");
        over.store(true, Ordering::Relaxed);
        touching.join().unwrap()
    });
    for number in 0..pages {
        check(memory, number);
    }
    waits.sort_unstable();
    let at = |part: usize| {
        waits
            .get(waits.len() * part / 1000)
            .map_or(0, Duration::as_micros)
    };
    let worst = waits.last().map_or(0, Duration::as_micros);
    let [median, most, nearly] = [at(500), at(900), at(990)];
    println!(
        "{:6} | {median:11}  {most:7}  {nearly:7}  {worst:6}",
        waits.len()
    );
}

fn check(memory: &[u8], number: u64) {
    let page = &black_box(memory)[(number * PAGE_SIZE) as usize..][..PAGE_SIZE as usize];
    let expected = content(number).to_le_bytes();
    assert_eq!((&page[..8], &page[4088..]), (&expected[..], &expected[..]));
}

/// Touches pages until it is over. Returns how long it waited for each page that was missing.
fn touch(memory: &[u8], pages: u64, rate: u64, over: &AtomicBool) -> Vec<Duration> {
    let faults = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        usage.major_page_faults() + usage.minor_page_faults()
    };
    let first = Attributes {
        policy: libc::SCHED_FIFO as u32,
        priority: 1,
        ..Attributes::default()
    };
    scheduling::schedule(0, first).unwrap();
    let mut waits = Vec::with_capacity(1 << 20);
    let pause = Duration::from_nanos(1_000_000_000 / rate);
    let mut random = 1u64;
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = faults();
        let begin = Instant::now();
        let number = random % pages;
        black_box(black_box(memory)[(number * PAGE_SIZE) as usize]);
        let waited = begin.elapsed();
        if faults() != before {
            waits.push(waited);
        }
        check(memory, number);
        next = (next + pause).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    waits
}
