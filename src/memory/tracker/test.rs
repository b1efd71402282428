//! Trackers over real tasks: `tests/workload/memory.c` does at random what a program can do to its memory; it is
//! frozen, and what the store has is compared with what the tasks have, byte by byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::list::HOT;
use super::*;
use crate::memory::{Decoder, PageFlags, PageStore, Pool, Sent, Space};
use crate::model::{Bytes, Compress, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;

/// A workload of `tests/workload`, compiled; where there is no compiler, somebody has done so (GODWIT_WORKLOADS).
pub(super) fn workload(name: &str) -> PathBuf {
    if let Some(built) = std::env::var_os("GODWIT_WORKLOADS") {
        return Path::new(&built).join(name);
    }
    static BUILT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        for name in ["memory", "calls", "moved", "grown"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workload");
            let built = Command::new("cc")
                .args(["-O1", "-pthread", "-o"])
                .arg(directory.path().join(name))
                .arg(source.join(name).with_extension("c"))
                .status();
            assert!(built.unwrap().success());
        }
        directory
    });
    directory.path().join(name)
}

/// Whether a test that needs root and the kernel's help can run; says so where it cannot.
pub(super) fn can_run(name: &str, kind: TrackerChoice) -> bool {
    if !crate::sys::process::is_root() {
        assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
        println!("SKIP {name}: needs root");
        return false;
    }
    let offer = offered()
        .into_iter()
        .find(|offer| offer.kind == kind)
        .unwrap();
    if !offer.usable {
        println!("SKIP {name}: {}", offer.why);
    }
    offer.usable
}

/// Processes in a cgroup of their own, which end with this.
pub(super) struct World {
    pub cgroup: PathBuf,
    pub child: Child,
    pub said: BufReader<ChildStdout>,
}

impl World {
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.procs").exists())
            .unwrap();
        let cgroup = root.join(format!("godwit-tracker-{}-{number}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo $$ > $0/cgroup.procs; exec \"$@\""])
            .args([&cgroup, program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self {
            cgroup,
            child,
            said,
        }
    }

    pub fn targets(&self) -> Vec<Target> {
        let procs = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap();
        let target = |pid: i32| Target {
            pid,
            vpid: pid.cast_unsigned(),
        };
        procs
            .lines()
            .map(|pid| target(pid.parse().unwrap()))
            .collect()
    }

    pub fn freeze(&self, on: bool) {
        fs::write(
            self.cgroup.join("cgroup.freeze"),
            if on { "1" } else { "0" },
        )
        .unwrap();
        self.wait_for(if on { "frozen 1" } else { "frozen 0" });
    }

    fn wait_for(&self, what: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let events = fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap();
            if events.lines().any(|line| line == what) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {events}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        fs::write(self.cgroup.join("cgroup.kill"), "1").unwrap();
        self.child.wait().unwrap();
        self.wait_for("populated 0");
        fs::remove_dir(&self.cgroup).unwrap();
    }
}

/// The destination: a store at the other end of a sender.
struct Destination {
    store: PageStore,
    _directory: tempfile::TempDir,
}

impl Destination {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        Self {
            store: PageStore::create(directory.path(), Bytes(8 << 30)).unwrap(),
            _directory: directory,
        }
    }

    fn receive<T>(&self, act: impl FnOnce(&mut Sender<'_>) -> Result<T, MemoryError>) -> (T, Sent) {
        self.receive_and(&mut || {}, act)
    }

    /// The same, and `meanwhile` before each batch.
    fn receive_and<T>(
        &self,
        meanwhile: &mut (dyn FnMut() + Send),
        act: impl FnOnce(&mut Sender<'_>) -> Result<T, MemoryError>,
    ) -> (T, Sent) {
        let mut decoder = Decoder::new().unwrap();
        let mut out = |frame: Vec<u8>| {
            meanwhile();
            self.store.take(&mut decoder, &frame).unwrap();
            Ok(())
        };
        let pool = Pool::with_workers(Compress::None, 1).unwrap();
        let mut sender = Sender::new(&pool, &mut out);
        let done = act(&mut sender).unwrap();
        sender.flush().unwrap();
        (done, sender.sent())
    }
}

/// What an independent look finds in a frozen task: its private pages by address, and whether each may be lazy.
fn look(pid: i32) -> BTreeMap<u64, bool> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let mut found = BTreeMap::new();
    let mut stacks = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let call = fs::read_to_string(thread.unwrap().path().join("syscall")).unwrap();
        let numbers: Vec<_> = call.split_whitespace().collect();
        let pointer = numbers[numbers.len() - 2].trim_start_matches("0x");
        stacks.push(u64::from_str_radix(pointer, 16).unwrap() / PAGE_SIZE * PAGE_SIZE);
    }
    let mut header = "";
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap();
        if first.contains('-') {
            header = line;
        }
        let Some(flags) = line.strip_prefix("VmFlags: ") else {
            continue;
        };
        let has = |flag: &str| flags.split(' ').any(|f| f == flag);
        let fields: Vec<_> = header.split_whitespace().collect();
        let path = fields.get(5).copied().unwrap_or_default();
        let private = fields[1].ends_with('p') && !path.starts_with("[v");
        if !private || has("ht") || has("ss") || has("io") || has("pf") {
            continue;
        }
        let (start, end) = fields[0].split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let anonymous = fields[4] == "0";
        for page in (number(start)..number(end)).step_by(PAGE) {
            let mut entry = [0; 8];
            pagemap
                .read_exact_at(&mut entry, page / PAGE_SIZE * 8)
                .unwrap();
            let entry = u64::from_ne_bytes(entry);
            let own = entry >> 62 != 0 && entry >> 61 & 1 == 0 && entry >> 58 & 1 == 0;
            let zero = own && entry >> 63 == 1 && is_zero_frame(entry & ((1 << 55) - 1));
            if own && !zero {
                let lazy = anonymous && !has("lo") && !has("dp") && !stacks.contains(&page);
                found.insert(page, lazy);
            }
        }
    }
    found
}

/// Whether a frame is the kernel's frame of zeros, or one of its huge one: KPF_ZERO_PAGE.
fn is_zero_frame(frame: u64) -> bool {
    static FLAGS: OnceLock<File> = OnceLock::new();
    let file = FLAGS.get_or_init(|| File::open("/proc/kpageflags").unwrap());
    let mut flags = [0; 8];
    file.read_exact_at(&mut flags, frame * 8).unwrap();
    u64::from_ne_bytes(flags) >> 24 & 1 == 1
}

/// Compares what was listed and sent of frozen tasks with what they have.
fn verify(world: &World, residual: &Residual, destination: &Destination) -> u64 {
    let mut pages = 0;
    let alive = world.targets();
    let alive: Vec<_> = alive.iter().filter(|t| !is_zombie(t.pid)).collect();
    assert!(!alive.is_empty(), "the workload has died");
    assert_eq!(alive.len(), residual.spaces.len());
    for target in alive {
        let of = |space: &&OwnedSpace| space.pid == target.pid;
        let owned = residual.spaces.iter().find(of).unwrap();
        assert_eq!(owned.space, Space::Task(target.vpid));
        let mut listed = BTreeMap::new();
        let memory = File::open(format!("/proc/{}/mem", target.pid)).unwrap();
        let stored = destination.store.known(owned.space).unwrap();
        for entry in &owned.list {
            let within = |range: &OwnedRange| {
                range.range.start <= entry.vaddr && entry.vaddr < range.range.end
            };
            assert!(owned.ranges.iter().any(within), "{entry:x?} is not owned");
            let missing =
                stored
                    .state()
                    .presence
                    .first_missing(entry.vaddr, entry.pages.into(), true);
            assert_eq!(missing, None, "{entry:x?} was not sent");
            for page in (entry.vaddr..entry.end()).step_by(PAGE) {
                let (mut here, mut there) = ([1; PAGE], [2; PAGE]);
                memory.read_exact_at(&mut here, page).unwrap();
                stored
                    .file
                    .read_at(&mut there, page)
                    .map(|n| there[n..].fill(0))
                    .unwrap();
                assert!(here == there, "{page:#x} of {} differs", target.pid);
                assert_eq!(
                    listed.insert(page, entry.flags.contains(PageFlags::LAZY)),
                    None
                );
                pages += 1;
            }
        }
        assert_listed(target.pid, &listed);
        pages += verify_segments(target.pid, residual, destination);
    }
    pages
}

fn assert_listed(pid: i32, listed: &BTreeMap<u64, bool>) {
    let expected = look(pid);
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    // Pages that could be lazy and are not, as they were written to a moment ago.
    let mut hot = 0;
    for (page, lazy) in &expected {
        let found = listed.get(page);
        let mut content = [1; PAGE];
        memory.read_exact_at(&mut content, *page).unwrap();
        // The kernel makes huge pages of small ones by itself, also in a process that stands still: pages that were
        // not there then are, and are zero.
        let is_new = found.is_none() && content == [0; PAGE];
        let mapping = || mapping(pid, *page);
        let is_hot = *lazy && found == Some(&false);
        hot += u64::from(is_hot);
        assert!(
            found == Some(lazy) || is_hot || is_new && mapping().contains(" hg "),
            "{page:#x} of {pid}: {found:?}, not {lazy}: {}",
            mapping()
        );
    }
    assert!(
        hot <= HOT,
        "{hot} pages of {pid} that could be lazy are not"
    );
    for page in listed.keys() {
        assert!(
            expected.contains_key(page),
            "{page:#x} of {pid} does not exist"
        );
    }
}

/// What is said about a page, for people.
fn mapping(pid: i32, page: u64) -> String {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let mut entry = [0; 8];
    pagemap
        .read_exact_at(&mut entry, page / PAGE_SIZE * 8)
        .unwrap();
    let mut found = format!("entry {:#x}", u64::from_ne_bytes(entry));
    let mut within = false;
    for line in smaps.lines() {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        if let Some((start, end)) = range {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            within = (number(start)..number(end)).contains(&page);
        }
        if within {
            found += "\n";
            found += line;
        }
    }
    found
}

/// Every page that exists in the segments of a task is listed, and was sent as it is.
fn verify_segments(pid: i32, residual: &Residual, destination: &Destination) -> u64 {
    let mut pages = 0;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    for mapping in maps::parse(&maps) {
        let maps::Mapping::Shared { range, inode, .. } = mapping else {
            continue;
        };
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", range.start, range.end);
        let file = File::open(link).unwrap();
        let length = file.metadata().unwrap().len();
        let of = |segment: &&OwnedSegment| segment.inode == inode;
        let Some(owned) = residual.segments.iter().find(of) else {
            assert_ne!(length % PAGE_SIZE, 0, "segment {inode} is nobody's");
            continue;
        };
        let listed = |at| {
            let mut list = owned.list.iter();
            list.any(|entry| (entry.vaddr..entry.end()).contains(&at))
        };
        for at in (0..length).step_by(PAGE) {
            let (mut here, mut there) = ([0; PAGE], [0; PAGE]);
            file.read_exact_at(&mut here, at).unwrap();
            if !listed(at) {
                assert!(here == there, "{at:#x} of segment {inode} is not listed");
                continue;
            }
            let stored = destination.store.known(owned.space).unwrap();
            assert_eq!(stored.state().presence.first_missing(at, 1, true), None);
            stored.file.read_at(&mut there, at).unwrap();
            assert!(here == there, "{at:#x} of segment {inode}");
            pages += 1;
        }
    }
    pages
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// No task has a tracker's descriptor.
fn assert_no_descriptor(world: &World) {
    for target in world.targets() {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", target.pid));
        for descriptor in descriptors.into_iter().flatten() {
            let file = fs::read_link(descriptor.unwrap().path()).unwrap();
            assert!(!file.to_string_lossy().contains("userfaultfd"), "{file:?}");
        }
    }
}

/// Nothing of a tracker is in any of the tasks.
pub(super) fn assert_no_trace(world: &World) {
    assert_no_descriptor(world);
    for target in world.targets() {
        let of = |name: &str| format!("/proc/{}/{name}", target.pid);
        let smaps = fs::read_to_string(of("smaps")).unwrap_or_default();
        let flags = smaps
            .lines()
            .filter_map(|line| line.strip_prefix("VmFlags: "));
        for flags in flags {
            assert!(!flags.split(' ').any(|flag| ["uw", "um"].contains(&flag)));
        }
        for thread in fs::read_dir(of("task")).into_iter().flatten() {
            let status = thread.unwrap().path().join("status");
            let status = fs::read_to_string(status).unwrap_or("TracerPid:\t0\n".to_owned());
            assert!(status.contains("TracerPid:\t0\n"), "{status}");
        }
    }
}

/// Rounds over a workload that runs, then the last look, and everything compared.
fn migrate(tracker: &mut dyn Tracker, seed: u64, rounds: u32) {
    let kind = tracker.kind();
    let world = World::start(&workload("memory"), &[&seed.to_string(), "4"]);
    let destination = Destination::new();
    let mut changed = Pages(0);
    for _ in 0..rounds {
        thread::sleep(Duration::from_millis(30));
        let (stats, _) = destination.receive(|s| tracker.round(&world.targets(), s));
        changed += stats.changed;
    }
    assert_ne!(changed, Pages(0));
    thread::sleep(Duration::from_millis(seed % 4 * 5));
    world.freeze(true);
    if seed.is_multiple_of(2) {
        // It has to run for a moment more: what was found is void.
        Destination::new().receive(|s| tracker.last(&world.targets(), s));
        world.freeze(false);
        thread::sleep(Duration::from_millis(10));
        world.freeze(true);
    }
    let (residual, at_once) = destination.receive(|s| tracker.last(&world.targets(), s));
    assert_no_descriptor(&world);
    let (stats, rest) = destination.receive(|s| residual.send(tracker.sent(), s, false));
    tracker.release();
    assert_no_trace(&world);
    let pages = verify(&world, &residual, &destination);
    println!(
        "{kind} seed {seed}: {pages} pages in {} spaces; rounds sent {}, then {} at once, {} of {} later",
        residual.spaces.len(),
        changed.0,
        at_once.pages.0,
        rest.pages.0,
        stats.scanned.0,
    );
}

#[test]
fn every_page_of_a_changing_workload_arrives_by_content_hash() {
    if can_run("content hash", TrackerChoice::Hash) {
        migrate(&mut HashTracker::new(), 1, 3);
        migrate(&mut HashTracker::new(), 2, 3);
    }
}

#[test]
fn every_page_of_a_changing_workload_arrives_by_write_protection() {
    if can_run("write protection", TrackerChoice::UffdWp) {
        many_seeds(TrackerChoice::UffdWp);
    }
}

#[test]
fn every_page_of_a_changing_workload_arrives_by_soft_dirty_bits() {
    if can_run("soft-dirty bits", TrackerChoice::SoftDirty) {
        many_seeds(TrackerChoice::SoftDirty);
    }
}

/// For some seconds, or all of GODWIT_SEEDS (`1..200`).
fn many_seeds(kind: TrackerChoice) {
    let end = Instant::now() + Duration::from_secs(6);
    let seeds = std::env::var("GODWIT_SEEDS").ok();
    let seeds = seeds.map_or(1..200, |seeds| {
        let (from, to) = seeds.split_once("..").unwrap();
        from.parse().unwrap()..to.parse().unwrap()
    });
    for seed in seeds {
        migrate(&mut *choose(kind), seed, 4);
        if Instant::now() > end && std::env::var_os("GODWIT_SEEDS").is_none() {
            break;
        }
    }
}

#[test]
fn page_tables_that_were_moved_are_noticed() {
    for kind in [
        TrackerChoice::Hash,
        TrackerChoice::UffdWp,
        TrackerChoice::SoftDirty,
    ] {
        if !can_run(&format!("moved page tables, {kind}"), kind) {
            continue;
        }
        let mut tracker = choose(kind);
        let mut world = World::start(&workload("moved"), &[]);
        let destination = Destination::new();
        for turn in 0..4 {
            let (stats, _) = destination.receive(|s| tracker.round(&world.targets(), s));
            assert_ne!(stats.changed, Pages(0), "{kind}, turn {turn}");
            world
                .child
                .stdin
                .as_mut()
                .unwrap()
                .write_all(b"go\n")
                .unwrap();
            let mut line = String::new();
            world.said.read_line(&mut line).unwrap();
            assert_eq!(line, "moved\n");
        }
        world.freeze(true);
        let (residual, _) = destination.receive(|s| tracker.last(&world.targets(), s));
        destination.receive(|s| residual.send(tracker.sent(), s, false));
        verify(&world, &residual, &destination);
    }
}

#[test]
fn a_mapping_that_grows_in_the_middle_of_a_round_stays_one() {
    if !can_run("a mapping that grows", TrackerChoice::UffdWp) {
        return;
    }
    let maps = File::open("/proc/self/maps").unwrap();
    if crate::sys::procmap::mapping(&maps, 0).is_err() {
        println!("SKIP a mapping that grows: this kernel cannot be asked for one mapping");
        return;
    }
    let mut tracker = choose(TrackerChoice::UffdWp);
    let mut world = World::start(&workload("grown"), &[]);
    let destination = Destination::new();
    let targets = world.targets();
    let (mut input, said) = (world.child.stdin.take().unwrap(), &mut world.said);
    let mut turn = || {
        input.write_all(b"go\n").unwrap();
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    };
    // While the large one below it is sent; what is known of the mappings is older.
    let mut grown = None;
    let mut grow = || {
        grown.get_or_insert_with(&mut turn);
    };
    destination.receive_and(&mut grow, |s| tracker.round(&targets, s));
    assert_eq!(grown.as_deref(), Some("grown\n"));
    assert_eq!(turn(), "moved\n");
    world.freeze(true);
    let (residual, _) = destination.receive(|s| tracker.last(&targets, s));
    destination.receive(|s| residual.send(tracker.sent(), s, false));
    verify(&world, &residual, &destination);
}

#[test]
fn memory_that_nobody_writes_is_read_once() {
    for kind in [TrackerChoice::UffdWp, TrackerChoice::SoftDirty] {
        if !can_run(&format!("memory that nobody writes, {kind}"), kind) {
            continue;
        }
        let mut tracker = choose(kind);
        let world = World::start(&workload("moved"), &[]);
        let destination = Destination::new();
        let (first, _) = destination.receive(|s| tracker.round(&world.targets(), s));
        let (second, _) = destination.receive(|s| tracker.round(&world.targets(), s));
        world.freeze(true);
        let (residual, _) = destination.receive(|s| tracker.last(&world.targets(), s));
        let (rest, _) = destination.receive(|s| residual.send(tracker.sent(), s, false));
        let read = [first, second, rest].map(|stats| stats.scanned.0);
        println!("{kind}: read {read:?} pages");
        assert!(
            read[0] >= 2048 && read[1] < 100 && read[2] < 100,
            "{kind}: {read:?}"
        );
        verify(&world, &residual, &destination);
    }
}
