//! CRIU itself, and memory through it: real dumps and restores. Needs root, CRIU and python3.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use godwit::checkpoint::{Standby, Subject};
use godwit::criu::{
    Criu, CriuError, DumpRequest, Hidden, HideTable, Leave, NotHiding, Notify, RestoreRequest,
    Server, Session, Spawn, Verdict,
};
use godwit::memory::{
    Complete, Decoder, DumpSink, HashTracker, MemoryError, PageServer, PageStore, Pool, RoundStats,
    Sender, Sent, SentPages, Served, Target, Tracker, link_images,
};
use godwit::model::{Bytes, Compress, Pages};
use godwit::sys::before_exec::{BeforeExec, before_exec};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Patterned memory that is written and checked without end. It keeps what every page should be in a table of its
/// own, so that a page of an older version is noticed, and says in a log what it found.
const WORKLOAD: &str = r#"
import ctypes, hashlib, mmap, os, random, sys, time
mib, path = int(sys.argv[1]), sys.argv[2]
PAGE, count = 4096, int(sys.argv[1]) * 256
log = open(path, "w", buffering=1)
def page(number, version): return hashlib.shake_128(b"%d.%d" % (number, version)).digest(PAGE)
memory = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
versions = [0] * count
shared = mmap.mmap(-1, 64 * PAGE)
for n in range(count): memory[n * PAGE:(n + 1) * PAGE] = page(n, 0) if n % 16 else bytes(PAGE)
for n in range(32): shared[n * PAGE:(n + 1) * PAGE] = page(n, 7)
child = os.fork()
if child == 0:
    versions = versions[:256]
    log = open(path + ".child", "w", buffering=1)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
log.write("ready %d %d %d\n" % (address, count, child))
tick = 0
while True:
    for n in random.sample(range(256), 8):
        if n % 16 == 0: continue
        versions[n] += 1
        memory[n * PAGE:(n + 1) * PAGE] = page(n, versions[n])
    for n in random.sample(range(len(versions)), 24):
        expected = page(n, versions[n]) if n % 16 else bytes(PAGE)
        if memory[n * PAGE:(n + 1) * PAGE] != expected: log.write("BAD page %d\n" % n)
    n = random.randrange(32)
    if shared[n * PAGE:(n + 1) * PAGE] != page(n, 7): log.write("BAD shared %d\n" % n)
    if shared[(n + 32) * PAGE:(n + 33) * PAGE] != bytes(PAGE): log.write("BAD shared zero %d\n" % n)
    tick += 1
    log.write("tick %d\n" % tick)
    time.sleep(0.005)
"#;

/// Whether the tests that need root run; says so where they do not. One at a time: they measure.
fn root(name: &str) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("GODWIT_REQUIRE_ROOT").is_none(),
            "{name} needs root"
        );
        println!("SKIP {name}: needs root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Waits until `ready` finds something.
#[track_caller]
fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A running workload: two processes, of which the second is a fork of the first.
struct Workload {
    root: i32,
    child: i32,
    address: u64,
    pages: u64,
    log: PathBuf,
    reap: Option<Child>,
}

impl Workload {
    fn start(directory: &Path, mib: u32) -> Self {
        // So that the second process becomes ours to reap when the first is killed.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let log = directory.join("log");
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", WORKLOAD, &mib.to_string()])
            .arg(&log)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let steps = BeforeExec {
            new_session: true,
            ..BeforeExec::default()
        };
        before_exec(&mut command, steps);
        let child = command.spawn().unwrap();
        let mut workload = Self {
            root: child.id() as i32,
            child: 0,
            address: 0,
            pages: 0,
            log,
            reap: Some(child),
        };
        let line = eventually("the workload's start", || {
            let both = fs::metadata(workload.child_log()).is_ok();
            let text = fs::read_to_string(&workload.log).ok().filter(|_| both)?;
            text.lines()
                .next()
                .filter(|_| text.contains("tick"))
                .map(str::to_owned)
        });
        let mut fields = line.split(' ').skip(1).map(|n| n.parse::<u64>().unwrap());
        let mut next = || fields.next().unwrap();
        workload.address = next();
        workload.pages = next();
        workload.child = next() as i32;
        workload
    }

    fn child_log(&self) -> PathBuf {
        self.log.with_extension("child")
    }

    fn targets(&self) -> [Target; 2] {
        [self.root, self.child].map(|pid| Target {
            pid,
            vpid: pid as u32,
        })
    }

    /// The whole patterned memory of both processes, as it is now.
    fn memory(&self) -> Vec<Vec<u8>> {
        let read = |pid: &i32| {
            let mut bytes = vec![0; (self.pages * 4096) as usize];
            let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
            memory.read_exact_at(&mut bytes, self.address).unwrap();
            bytes
        };
        [self.root, self.child].iter().map(read).collect()
    }

    /// Both processes go on, and never found a page wrong.
    fn check_runs(&self) {
        for log in [self.log.clone(), self.child_log()] {
            let ticks = || fs::read_to_string(&log).unwrap().matches("tick").count();
            let before = ticks();
            eventually("the workload's going on", || {
                (ticks() > before + 10).then_some(())
            });
            let text = fs::read_to_string(&log).unwrap();
            let bad: Vec<&str> = text.lines().filter(|l| l.contains("BAD")).collect();
            assert!(bad.is_empty(), "{log:?}: {bad:?}");
        }
    }

    /// After a dump that killed it: until it is reaped its process ids are taken.
    fn reap(&mut self) {
        self.reap.take().unwrap().wait().unwrap();
        waitpid(Pid::from_raw(self.child), None).unwrap();
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        for pid in [self.root, self.child].map(Pid::from_raw) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        for pid in [self.root, self.child].map(Pid::from_raw) {
            let end = Instant::now() + Duration::from_secs(5);
            while let Ok(nix::sys::wait::WaitStatus::StillAlive) =
                waitpid(pid, Some(WaitPidFlag::WNOHANG))
            {
                if Instant::now() > end {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn agree(_: Notify) -> Verdict {
    Verdict::Continue
}

/// A round of a tracker into a store.
fn round(
    tracker: &mut HashTracker,
    targets: &[Target],
    store: &PageStore,
    compress: Compress,
) -> (RoundStats, Sent) {
    let mut decoder = Decoder::new().unwrap();
    let mut out = |frame: Vec<u8>| {
        store.take(&mut decoder, &frame).unwrap();
        Ok(())
    };
    let pool = Pool::new(compress).unwrap();
    let mut sender = Sender::new(&pool, &mut out);
    let stats = tracker.round(targets, &mut sender).unwrap();
    (stats, sender.sent())
}

struct Dumped {
    served: Served,
    sent: Sent,
    took: Duration,
}

/// A dump whose memory goes by way of page server and frames into a store.
fn dump(
    criu: &Criu,
    mut request: DumpRequest,
    known: &SentPages,
    store: &PageStore,
    on: &mut dyn FnMut(Notify) -> Verdict,
) -> Result<Dumped, CriuError> {
    let mut spawn = Spawn::default();
    let (server, theirs) = PageServer::pair(criu.version()).unwrap();
    request.page_server = Some(Server::Passed(spawn.pass(theirs)));
    let begin = Instant::now();
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let mut decoder = Decoder::new().unwrap();
            let mut out = |frame: Vec<u8>| {
                store.take(&mut decoder, &frame).unwrap();
                Ok(())
            };
            let pool = Pool::new(Compress::Level(1)).unwrap();
            let mut sender = Sender::new(&pool, &mut out);
            let served = server.serve(&mut DumpSink::new(&mut sender, known, false));
            (served, sender.sent())
        });
        let result = Session::start(criu, spawn)?.dump(&request, on);
        let took = begin.elapsed();
        let (served, sent) = serving.join().unwrap();
        if let Ok(done) = &result {
            println!("{:?}", done.stats);
        }
        result.map(|_| Dumped {
            served: served.unwrap(),
            sent,
            took,
        })
    })
}

/// Restores from a complete store and checks, before anything runs, that the memory is what it was.
fn restore(
    criu: &Criu,
    consume: bool,
    images: &Path,
    complete: Complete<'_>,
    workload: &Workload,
    before: &[Vec<u8>],
) {
    let pages = complete.pages;
    let begin = Instant::now();
    let placed = link_images(complete, images, 2, false).unwrap();
    assert_eq!((placed.linked, placed.copied), (pages, Pages(0)));
    println!("{pages} pages: {:?}", begin.elapsed());
    let mut request = RestoreRequest::new(images);
    request.consume = consume;
    let begin = Instant::now();
    let mut same = None;
    let done = Session::start(criu, Spawn::default())
        .unwrap()
        .restore(&request, &mut |step| {
            if let Notify::PostRestore { .. } = step {
                println!("restored, not running: {:?}", begin.elapsed());
                same = Some(workload.memory() == before);
            }
            Verdict::Continue
        })
        .unwrap();
    println!("restore: {:?} {:?}", begin.elapsed(), done.stats);
    assert_eq!(done.pid, workload.root);
    assert_eq!(same, Some(true), "the restored memory is what was dumped");
    workload.check_runs();
    if consume {
        // Consumed: what is left on the tmpfs is far less than the memory was.
        let left: u64 = fs::read_dir(images.join("parent"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
            .sum();
        println!("left of the images: {}", Bytes(left));
        assert!(left < pages.bytes().0 / 8, "{left}");
    }
}

#[test]
fn criu_works_on_this_host() {
    let Some(_turn) = root("criu_works_on_this_host") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    println!("CRIU {} at {}", criu.version(), criu.program().display());
    criu.check(scratch().path()).unwrap();
    println!("{:?}", criu.features().unwrap());
    let scratch = scratch();
    let mut task = Command::new("sleep");
    task.arg("1000");
    assert_eq!(criu.hides_pages(), Err(NotHiding::Untested));
    let test = criu.self_test(scratch.path(), task).unwrap();
    println!("{test:?}");
    assert_eq!(criu.clone().hides_pages(), test.hides_pages);
    // PAGEMAP_SCAN came with Linux 6.7, and hiding is hiding from it.
    let release = nix::sys::utsname::uname().unwrap();
    let mut numbers = release.release().to_str().unwrap().split(['.', '-']);
    let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
    let new = (number(), number()) >= (6, 7);
    assert_eq!(test.hides_pages.is_ok(), new, "{test:?}");
    // For one task there are iterators since 6.1, where the kernel describes its types.
    let described = Path::new("/sys/kernel/btf/vmlinux").exists();
    assert_eq!(test.spares_smaps.is_ok(), described, "{test:?}");
    assert_eq!(criu.mapping_flags().map(drop), test.spares_smaps);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_tree_of_processes_moves_through_frames_and_is_what_it_was() {
    let Some(_turn) = root("a_tree_of_processes_moves_through_frames_and_is_what_it_was") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let mut workload = Workload::start(scratch.path(), 64);
    let store = PageStore::create(scratch.path(), Bytes(512 << 20)).unwrap();
    let mut before = Vec::new();
    let nothing = SentPages::default();
    let request = DumpRequest::new(workload.root, images.path());
    let dumped = dump(&criu, request, &nothing, &store, &mut |step| {
        if let Notify::PostDump = step {
            before = workload.memory();
        }
        Verdict::Continue
    })
    .unwrap();
    println!(
        "dump: {:?} {:?} {:?}",
        dumped.took, dumped.served, dumped.sent
    );
    // Two processes and a shared segment; the fork shares no page any more that was counted once.
    assert!(dumped.served.spaces >= 3);
    assert!(dumped.served.pages > Pages(2 * 64 * 256 * 15 / 16));
    workload.reap();
    let complete = store.verify().unwrap();
    assert_eq!(complete.pages, dumped.served.pages);
    restore(&criu, false, images.path(), complete, &workload, &before);
}

#[test]
fn after_rounds_the_final_dump_sends_only_what_has_changed() {
    let Some(_turn) = root("after_rounds_the_final_dump_sends_only_what_has_changed") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let mut workload = Workload::start(scratch.path(), 64);
    let store = PageStore::create(scratch.path(), Bytes(512 << 20)).unwrap();
    let mut tracker = HashTracker::new();
    for number in 0..3 {
        let begin = Instant::now();
        let (stats, sent) = round(
            &mut tracker,
            &workload.targets(),
            &store,
            Compress::Level(1),
        );
        println!("round {number}: {:?} {stats:?} {sent:?}", begin.elapsed());
        match number {
            0 => assert!(sent.pages > Pages(2 * 64 * 256 * 15 / 16)),
            _ => assert!(sent.pages < Pages(4000), "{sent:?}"),
        }
        assert!(stats.scanned > Pages(2 * 64 * 256 * 15 / 16));
    }
    let mut before = Vec::new();
    let request = DumpRequest::new(workload.root, images.path());
    let dumped = dump(&criu, request, tracker.sent(), &store, &mut |step| {
        if let Notify::PostDump = step {
            before = workload.memory();
        }
        Verdict::Continue
    })
    .unwrap();
    println!(
        "dump: {:?} {:?} {:?}",
        dumped.took, dumped.served, dumped.sent
    );
    assert!(dumped.sent.pages < Pages(4000), "{:?}", dumped.sent);
    assert!(dumped.sent.pages > Pages(0));
    workload.reap();
    let complete = store.verify().unwrap();
    assert_eq!(complete.pages, dumped.served.pages);
    restore(&criu, true, images.path(), complete, &workload, &before);
}

#[test]
fn a_page_lost_on_the_way_is_noticed_before_anything_is_restored() {
    let Some(_turn) = root("a_page_lost_on_the_way_is_noticed_before_anything_is_restored") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let workload = Workload::start(scratch.path(), 4);
    let store = PageStore::create(scratch.path(), Bytes(512 << 20)).unwrap();
    // The source believes that a round was sent of which nothing arrived.
    let mut tracker = HashTracker::new();
    let mut lost = |_: Vec<u8>| Ok(());
    let pool = Pool::new(Compress::None).unwrap();
    let mut sender = Sender::new(&pool, &mut lost);
    tracker.round(&workload.targets(), &mut sender).unwrap();
    let mut request = DumpRequest::new(workload.root, images.path());
    request.leave = Leave::Running;
    let mut spawn = Spawn::default();
    let (server, theirs) = PageServer::pair(criu.version()).unwrap();
    request.page_server = Some(Server::Passed(spawn.pass(theirs)));
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let mut decoder = Decoder::new().unwrap();
            let mut out = |frame: Vec<u8>| match store.take(&mut decoder, &frame) {
                Ok(()) => Ok(()),
                Err(error) => Err(std::io::Error::other(error)),
            };
            let pool = Pool::new(Compress::None).unwrap();
            let mut sender = Sender::new(&pool, &mut out);
            server.serve(&mut DumpSink::new(&mut sender, tracker.sent(), false))
        });
        let result = Session::start(&criu, spawn)
            .unwrap()
            .dump(&request, &mut agree);
        println!("{}", result.as_ref().unwrap_err());
        assert!(
            matches!(result, Err(CriuError::Failed { .. })),
            "{result:?}"
        );
        let served = serving.join().unwrap();
        assert!(
            matches!(served, Err(MemoryError::Send { .. })),
            "{served:?}"
        );
    });
    assert!(store.verify().is_err());
    workload.check_runs();
}

/// The cgroup of a test, in the one hierarchy that has a freezer for it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after
                .starts_with("cgroup2 ")
                .then(|| before.split(' ').nth(4).unwrap().to_owned())
        });
        let path = Path::new(&mount.expect("a cgroup2 mount"))
            .join(format!("godwit-criu-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    fn add(&self, workload: &Workload) {
        for pid in [workload.root, workload.child] {
            self.write("cgroup.procs", &pid.to_string());
        }
    }

    fn frozen(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.events"))
            .unwrap()
            .contains("frozen 1")
    }

    fn freeze(&self) {
        self.write("cgroup.freeze", "1");
        eventually("the freeze", || self.frozen().then_some(()));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Nothing traces the processes, and none of them has anything of CRIU's in it.
fn check_let_go(workload: &Workload) {
    for pid in [workload.root, workload.child] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Refuse,
    Die,
}

/// A dump that comes to `post-dump` and no further.
fn dump_and(criu: &Criu, request: &DumpRequest, end: End, at_post_dump: &dyn Fn()) {
    let mut steps = Vec::new();
    let mut on = |step: Notify| {
        steps.push(format!("{step:?}"));
        if !matches!(step, Notify::PostDump) {
            return Verdict::Continue;
        }
        at_post_dump();
        match end {
            End::Refuse => Verdict::Refuse,
            // The client ends in the middle of the notification, as in a crash of its own.
            End::Die => panic!("the client dies"),
        }
    };
    let session = Session::start(criu, Spawn::default()).unwrap();
    let dumped = catch_unwind(AssertUnwindSafe(|| session.dump(request, &mut on)));
    match (end, dumped) {
        (End::Refuse, Ok(result)) => {
            let error = result.unwrap_err();
            println!("{error}");
            assert!(
                matches!(&error, CriuError::Refused { step, .. } if step == "post-dump"),
                "{error}"
            );
        }
        (End::Die, Err(_)) => {}
        (end, other) => panic!("{end:?}: {other:?}"),
    }
    println!("{steps:?}");
}

#[test]
fn a_dump_refused_after_it_lets_the_tasks_run_on() {
    let Some(_turn) = root("a_dump_refused_after_it_lets_the_tasks_run_on") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    for end in [End::Refuse, End::Die] {
        let (scratch, images) = (scratch(), scratch());
        let workload = Workload::start(scratch.path(), 4);
        let request = DumpRequest::new(workload.root, images.path());
        dump_and(&criu, &request, end, &|| {});
        check_let_go(&workload);
        workload.check_runs();
    }
}

#[test]
fn a_cgroup_frozen_again_after_the_dump_stays_frozen_whatever_criu_does() {
    let name = "a_cgroup_frozen_again_after_the_dump_stays_frozen_whatever_criu_does";
    let Some(_turn) = root(name) else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    for end in [End::Refuse, End::Die] {
        let (scratch, images) = (scratch(), scratch());
        let cgroup = Cgroup::create("fence");
        let workload = Workload::start(scratch.path(), 4);
        cgroup.add(&workload);
        cgroup.freeze();
        let mut request = DumpRequest::new(workload.root, images.path());
        request.freeze_cgroup = Some(cgroup.0.clone());
        dump_and(&criu, &request, end, &|| {
            assert!(!cgroup.frozen(), "CRIU holds the tasks by ptrace meanwhile");
            cgroup.write("cgroup.freeze", "1");
        });
        eventually("the freeze", || cgroup.frozen().then_some(()));
        check_let_go(&workload);
        let ticks = || {
            fs::read_to_string(&workload.log)
                .unwrap()
                .matches("tick")
                .count()
        };
        let before = ticks();
        thread::sleep(Duration::from_millis(200));
        assert_eq!((ticks(), cgroup.frozen()), (before, true), "{end:?}");
        cgroup.write("cgroup.freeze", "0");
        workload.check_runs();
    }
}

#[test]
fn a_restore_refused_before_it_runs_leaves_no_process() {
    let Some(_turn) = root("a_restore_refused_before_it_runs_leaves_no_process") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let mut workload = Workload::start(scratch.path(), 4);
    let request = DumpRequest::new(workload.root, images.path());
    let session = Session::start(&criu, Spawn::default()).unwrap();
    let done = session.dump(&request, &mut agree).unwrap();
    println!("{:?}", done.stats);
    workload.reap();
    for end in [End::Refuse, End::Die] {
        let mut on = |step: Notify| match step {
            Notify::PostRestore { pid } => {
                assert_eq!(pid, workload.root);
                assert!(Path::new(&format!("/proc/{pid}")).exists());
                assert_ne!(end, End::Die, "the client dies");
                Verdict::Refuse
            }
            _ => Verdict::Continue,
        };
        let request = RestoreRequest::new(images.path());
        let session = Session::start(&criu, Spawn::default()).unwrap();
        let restored = catch_unwind(AssertUnwindSafe(|| session.restore(&request, &mut on)));
        match restored {
            Ok(result) => assert!(
                matches!(result, Err(CriuError::Refused { .. })),
                "{result:?}"
            ),
            Err(_) => assert_eq!(end, End::Die),
        }
        // The root task was a child of ours: it is dead, and ours to reap.
        for pid in [workload.root, workload.child].map(Pid::from_raw) {
            eventually("the end of the restored tasks", || {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
            });
        }
    }
    // And the images are still good.
    let session = Session::start(&criu, Spawn::default()).unwrap();
    session
        .restore(&RestoreRequest::new(images.path()), &mut agree)
        .unwrap();
    workload.check_runs();
}

#[test]
fn restored_tasks_are_born_in_the_cgroup_they_belong_to() {
    let Some(_turn) = root("restored_tasks_are_born_in_the_cgroup_they_belong_to") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let cgroup = Cgroup::create("born");
    let mut workload = Workload::start(scratch.path(), 4);
    let request = DumpRequest::new(workload.root, images.path());
    let session = Session::start(&criu, Spawn::default()).unwrap();
    session.dump(&request, &mut agree).unwrap();
    workload.reap();
    let mut spawn = Spawn {
        cgroup: Some(cgroup.0.clone()),
        new_cgroup_namespace: true,
        ..Spawn::default()
    };
    // A standard output of its own, in the place of what it had: nothing needs it here but to be accepted.
    let (reader, writer) = std::io::pipe().unwrap();
    let number = spawn.pass(writer.as_fd().try_clone_to_owned().unwrap());
    let mut request = RestoreRequest::new(images.path());
    request.inherit.push(("pipe:[1]".to_owned(), number));
    let session = Session::start(&criu, spawn).unwrap();
    session.restore(&request, &mut agree).unwrap();
    drop((reader, writer));
    let members = fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap();
    for pid in [workload.root, workload.child] {
        assert!(
            members.lines().any(|line| line == pid.to_string()),
            "{members}"
        );
        let ours = fs::read_link("/proc/self/ns/cgroup").unwrap();
        let theirs = fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap();
        assert_ne!(ours, theirs);
    }
    workload.check_runs();
}

#[test]
fn a_dump_that_fails_says_why_and_leaves_the_tasks_running() {
    let Some(_turn) = root("a_dump_that_fails_says_why_and_leaves_the_tasks_running") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let workload = Workload::start(scratch.path(), 4);
    // A process whose session leader is outside cannot be dumped.
    let request = DumpRequest::new(workload.child, images.path());
    let session = Session::start(&criu, Spawn::default()).unwrap();
    let error = session.dump(&request, &mut agree).unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("session"), "{error}");
    // Without soft-dirty bits, tracking is refused before anything is done; with them this would be a dump.
    if !criu.features().unwrap().mem_track {
        let mut request = DumpRequest::new(workload.root, images.path());
        request.track_mem = true;
        let session = Session::start(&criu, Spawn::default()).unwrap();
        let error = session.dump(&request, &mut agree).unwrap_err();
        println!("{error}");
    }
    check_let_go(&workload);
    workload.check_runs();
    let request = DumpRequest::new(workload.root, images.path().join("nowhere"));
    let session = Session::start(&criu, Spawn::default()).unwrap();
    let error = session.dump(&request, &mut agree).unwrap_err();
    assert!(matches!(error, CriuError::Directory { .. }), "{error}");
}

#[test]
fn a_canceller_ends_a_dump_and_the_tasks_run_on() {
    let Some(_turn) = root("a_canceller_ends_a_dump_and_the_tasks_run_on") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let workload = Workload::start(scratch.path(), 32);
    let mut spawn = Spawn::default();
    let (server, theirs) = PageServer::pair(criu.version()).unwrap();
    let stopper = server.stopper().unwrap();
    let mut request = DumpRequest::new(workload.root, images.path());
    request.page_server = Some(Server::Passed(spawn.pass(theirs)));
    let session = Session::start(&criu, spawn).unwrap();
    let canceller = session.canceller().unwrap();
    let mut seen = BTreeMap::new();
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            // Cancelled when the first frame comes out.
            let mut out = |_: Vec<u8>| {
                canceller.cancel().unwrap();
                stopper.stop();
                Ok(())
            };
            let pool = Pool::new(Compress::None).unwrap();
            let mut sender = Sender::new(&pool, &mut out);
            let nothing = SentPages::default();
            server.serve(&mut DumpSink::new(&mut sender, &nothing, false))
        });
        let result = session.dump(&request, &mut |step| {
            *seen.entry(format!("{step:?}")).or_insert(0) += 1;
            Verdict::Continue
        });
        println!("{}", result.as_ref().unwrap_err());
        assert!(matches!(
            result,
            Err(CriuError::Ended { .. } | CriuError::Connection { .. })
        ));
        assert!(serving.join().unwrap().is_err());
    });
    assert!(!seen.contains_key("PostDump"), "{seen:?}");
    eventually("CRIU's letting go", || {
        let status = fs::read_to_string(format!("/proc/{}/status", workload.root)).unwrap();
        status.contains("TracerPid:\t0\n").then_some(())
    });
    check_let_go(&workload);
    workload.check_runs();
}

/// The ranges of a task's `pagemap` image.
fn dumped_ranges(images: &Path, pid: i32) -> Vec<std::ops::Range<u64>> {
    let bytes = fs::read(images.join(format!("pagemap-{pid}.img"))).unwrap();
    let mut rest = &bytes[8..];
    let mut ranges = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_at(4);
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        let (record, after) = after.split_at(length);
        rest = after;
        let mut fields = BTreeMap::new();
        let mut at = record;
        let varint = |at: &mut &[u8]| {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = at[0];
                *at = &at[1..];
                value |= u64::from(byte & 127) << shift;
                if byte < 128 {
                    break;
                }
            }
            value
        };
        while !at.is_empty() {
            let key = varint(&mut at);
            fields.insert(key >> 3, varint(&mut at));
        }
        // The first record is the head: it has one field.
        if let Some(count) = fields.get(&5).or(fields.get(&2)) {
            ranges.push(fields[&1]..fields[&1] + count * 4096);
        }
    }
    ranges
}

/// How many pages of `range` are in the images.
fn dumped_in(ranges: &[std::ops::Range<u64>], range: &std::ops::Range<u64>) -> u64 {
    let both = |r: &std::ops::Range<u64>| {
        r.end
            .min(range.end)
            .saturating_sub(r.start.max(range.start))
            / 4096
    };
    ranges.iter().map(both).sum()
}

#[test]
fn hidden_pages_are_not_dumped_and_all_others_are() {
    let Some(_turn) = root("hidden_pages_are_not_dumped_and_all_others_are") else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let scratch = scratch();
    let workload = Workload::start(scratch.path(), 16);
    let all = workload.address..workload.address + workload.pages * 4096;
    let dump = |hide: Option<&dyn Fn(&HideTable)>| {
        let images = tempfile::tempdir_in(scratch.path()).unwrap();
        let mut request = DumpRequest::new(workload.root, images.path());
        request.leave = Leave::Running;
        let table = HideTable::new().unwrap();
        let spawn = Spawn {
            hide: hide.is_some().then(|| table.clone()),
            ..Spawn::default()
        };
        // The table comes when CRIU waits already.
        let session = Session::start(&criu, spawn).unwrap();
        if let Some(hide) = hide {
            thread::sleep(Duration::from_millis(100));
            hide(&table);
        }
        let done = session.dump(&request, &mut agree).unwrap();
        let of = |pid| dumped_ranges(images.path(), pid);
        (of(workload.root), of(workload.child), done.stats.unwrap())
    };
    let (plain, plain_child, stats) = dump(None);
    println!("nothing hidden: {stats:?}");
    assert!(dumped_in(&plain, &all) > workload.pages * 9 / 10);
    let outside = |ranges: &[std::ops::Range<u64>]| {
        dumped_in(ranges, &(0..all.start)) + dumped_in(ranges, &(all.end..u64::MAX))
    };
    // Of the first process, all but five pages; one range is split in the middle, another begins in front of the
    // mapping, where there is nothing.
    let kept = [7, 8, 100, 101, workload.pages - 1];
    let page = |n: u64| all.start + n * 4096;
    let hidden = [
        page(0) - 4096..page(7),
        page(9)..page(50),
        page(50)..page(100),
        page(102)..page(workload.pages - 1),
    ];
    let (mine, child, stats) = dump(Some(&|table| {
        let hidden = hidden.iter().map(|range| Hidden {
            pid: workload.root,
            range: range.clone(),
            guards: false,
        });
        table.set(&hidden.collect::<Vec<_>>()).unwrap();
    }));
    println!("nearly everything hidden: {stats:?}");
    for hidden in &hidden {
        assert_eq!(dumped_in(&mine, hidden), 0, "{hidden:?} {mine:?}");
    }
    let kept = |ranges| {
        kept.map(|n| dumped_in(ranges, &(page(n)..page(n + 1))))
            .to_vec()
    };
    assert_eq!(kept(&mine), kept(&plain));
    assert!(kept(&mine).contains(&1));
    // Whatever else the process has is dumped as before; it runs between the dumps and may have a page more.
    let (now, before) = (outside(&mine), outside(&plain));
    assert!(
        before > 500 && now.abs_diff(before) < before / 10,
        "{now} {before}"
    );
    // The other process has the same addresses, and nothing of it is hidden.
    assert_eq!(dumped_in(&child, &all), dumped_in(&plain_child, &all));
    // An empty table hides nothing.
    let (empty, _, _) = dump(Some(&|table| table.set(&[]).unwrap()));
    assert_eq!(dumped_in(&empty, &all), dumped_in(&plain, &all));
    workload.check_runs();
}

#[test]
fn a_table_that_was_never_set_fails_the_dump_and_says_why() {
    let name = "a_table_that_was_never_set_fails_the_dump_and_says_why";
    let Some(_turn) = root(name) else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let workload = Workload::start(scratch.path(), 4);
    let spawn = Spawn {
        hide: Some(HideTable::new().unwrap()),
        ..Spawn::default()
    };
    let session = Session::start(&criu, spawn).unwrap();
    let request = DumpRequest::new(workload.root, images.path());
    let error = session.dump(&request, &mut agree).unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("never set"), "{error}");
    check_let_go(&workload);
    workload.check_runs();
}

#[test]
fn a_criu_that_waits_costs_little_and_ends_when_it_is_not_wanted() {
    let name = "a_criu_that_waits_costs_little_and_ends_when_it_is_not_wanted";
    let Some(_turn) = root(name) else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let cgroup = Cgroup::create("waits");
    let spawn = Spawn {
        cgroup: Some(cgroup.0.clone()),
        ..Spawn::default()
    };
    let mut session = Session::start(&criu, spawn).unwrap();
    let pid = session.pid();
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    eventually("CRIU's waiting", || stat().contains(") S ").then_some(()));
    // Fields 14 and 15: hundredths of a second in user and kernel mode.
    let used = |stat: String| {
        let fields = stat.rsplit_once(") ").unwrap().1.to_owned();
        let fields: Vec<u64> = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|n| n.parse().unwrap())
            .collect();
        fields[0] + fields[1]
    };
    let before = used(stat());
    thread::sleep(Duration::from_millis(500));
    assert_eq!(used(stat()), before);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let own = status
        .lines()
        .find(|line| line.starts_with("RssAnon"))
        .unwrap();
    println!("{own}");
    assert!(session.waits());
    // Even where it is frozen, which would keep it from noticing that it is not wanted any more.
    cgroup.freeze();
    let begin = Instant::now();
    drop(session);
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    // One that was killed while it waited is noticed.
    let mut session = Session::start(&criu, Spawn::default()).unwrap();
    kill(Pid::from_raw(session.pid()), Signal::SIGKILL).unwrap();
    eventually("its end", || (!session.waits()).then_some(()));
    let images = scratch();
    let request = DumpRequest::new(1, images.path());
    let error = session.dump(&request, &mut agree).unwrap_err();
    assert!(
        matches!(
            error,
            CriuError::Ended { .. } | CriuError::Connection { .. }
        ),
        "{error}"
    );
}

/// How nice a process is (`/proc/PID/stat`, field 19).
fn niceness(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let behind_its_name = stat.rsplit(')').next().unwrap();
    behind_its_name
        .split_whitespace()
        .nth(16)
        .unwrap()
        .to_owned()
}

#[test]
fn a_restore_s_criu_may_wait_outside_of_the_cgroup_it_restores_into() {
    let name = "a_restore_s_criu_may_wait_outside_of_the_cgroup_it_restores_into";
    let Some(_turn) = root(name) else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let (cgroup, outside) = (Cgroup::create("inside"), Cgroup::create("outside"));
    let members = |cgroup: &Cgroup| fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap();
    // Before there are any images, or a container.
    let spawn = Spawn {
        cgroup: Some(cgroup.0.clone()),
        new_cgroup_namespace: true,
        spare_tar: true,
        urgent: true,
        ..Spawn::default()
    };
    let session = Session::start(&criu, spawn).unwrap();
    assert_eq!(niceness(session.pid()), "-15");
    session.enter_cgroup(&outside.0).unwrap();
    assert_eq!(members(&cgroup), "");
    assert_eq!(members(&outside), format!("{}\n", session.pid()));
    let mut workload = Workload::start(scratch.path(), 4);
    let request = DumpRequest::new(workload.root, images.path());
    let dumping = Session::start(&criu, Spawn::default()).unwrap();
    dumping.dump(&request, &mut agree).unwrap();
    workload.reap();
    session.enter_cgroup(&cgroup.0).unwrap();
    session
        .restore(&RestoreRequest::new(images.path()), &mut agree)
        .unwrap();
    assert_eq!(members(&outside), "");
    let tasks = members(&cgroup);
    assert_eq!(tasks.lines().count(), 2, "{tasks}");
    // In a hurry was who restored them.
    for task in tasks.lines() {
        assert_eq!(niceness(task.parse().unwrap()), "0");
    }
    // Seen from inside, their cgroup is the root.
    let seen = Command::new("nsenter")
        .args([
            "--cgroup",
            "--target",
            &workload.root.to_string(),
            "--",
            "cat",
        ])
        .arg(format!("/proc/{}/cgroup", workload.root))
        .output()
        .unwrap();
    let seen = String::from_utf8(seen.stdout).unwrap();
    assert!(seen.lines().any(|line| line == "0::/"), "{seen}");
    workload.check_runs();
    let error = Session::start(&criu, Spawn::default())
        .unwrap()
        .enter_cgroup(Path::new("/nowhere"));
    assert!(matches!(error, Err(CriuError::Start { .. })));
}

#[test]
fn a_dump_may_be_asked_for_before_the_tasks_are_frozen() {
    let name = "a_dump_may_be_asked_for_before_the_tasks_are_frozen";
    let Some(_turn) = root(name) else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let cgroup = Cgroup::create("early");
    let workload = Workload::start(scratch.path(), 4);
    cgroup.add(&workload);
    let table = HideTable::new().unwrap();
    let spawn = Spawn {
        hide: Some(table.clone()),
        spare_conntrack: true,
        spare_tar: true,
        ..Spawn::default()
    };
    let mut request = DumpRequest::new(workload.root, images.path());
    request.freeze_cgroup = Some(cgroup.0.clone());
    request.leave = Leave::Running;
    request.timeout = 1;
    let all = workload.address..workload.address + workload.pages * 4096;
    let session = Session::start(&criu, spawn).unwrap();
    session
        .dump(&request, &mut |step| {
            if let Notify::PreDump = step {
                // Longer than the timeout, which counts from when CRIU stops the tasks.
                workload.check_runs();
                thread::sleep(Duration::from_millis(1500));
                cgroup.freeze();
                let hidden = Hidden {
                    pid: workload.root,
                    range: all.clone(),
                    guards: false,
                };
                table.set(&[hidden]).unwrap();
            }
            Verdict::Continue
        })
        .unwrap();
    assert_eq!(
        dumped_in(&dumped_ranges(images.path(), workload.root), &all),
        0
    );
    assert!(dumped_in(&dumped_ranges(images.path(), workload.child), &all) > 0);
    cgroup.write("cgroup.freeze", "0");
    workload.check_runs();
}

#[test]
fn a_standby_that_is_not_needed_leaves_the_tasks_as_they_were() {
    let name = "a_standby_that_is_not_needed_leaves_the_tasks_as_they_were";
    let Some(_turn) = root(name) else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let (scratch, images) = (scratch(), scratch());
    let cgroup = Cgroup::create("standby");
    let workload = Workload::start(scratch.path(), 4);
    cgroup.add(&workload);
    let subject = Subject {
        bound: Vec::new(),
        pid: workload.root,
        cgroup: godwit::cgroup::Cgroup::at(cgroup.0.clone()),
        images: images.path().to_owned(),
        netns_inode: 0,
        null: None,
        watched: Vec::new(),
    };
    let tracer = || {
        let status = fs::read_to_string(format!("/proc/{}/status", workload.root)).unwrap();
        let line = status.lines().find(|line| line.starts_with("TracerPid:"));
        line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    // Before it began …
    let standby = Standby::start(&criu, false, &subject).unwrap();
    workload.check_runs();
    drop(standby);
    workload.check_runs();
    // … and when it holds them.
    let mut standby = Standby::start(&criu, false, &subject).unwrap();
    subject.cgroup.freeze(Duration::from_secs(5)).unwrap();
    assert_eq!(tracer(), "0");
    standby.begin();
    eventually("its hold", || (tracer() != "0").then_some(()));
    drop(standby);
    assert_eq!(tracer(), "0");
    subject.cgroup.thaw().unwrap();
    workload.check_runs();
}

#[test]
fn a_task_in_a_network_of_its_own_moves_without_a_search_for_connections() {
    let name = "a_task_in_a_network_of_its_own_moves_without_a_search_for_connections";
    let Some(_turn) = root(name) else {
        return;
    };
    let criu = Criu::find(None).unwrap();
    let images = scratch();
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--", "sleep", "1000"])
        .current_dir("/");
    let null = Stdio::null;
    command.stdin(null()).stdout(null()).stderr(null());
    let steps = BeforeExec {
        new_session: true,
        ..BeforeExec::default()
    };
    before_exec(&mut command, steps);
    let mut task = command.spawn().unwrap();
    let pid = task.id() as i32;
    let file = |file: &str| format!("/proc/{pid}/{file}");
    eventually("the task's start", || {
        let name = fs::read_to_string(file("comm")).unwrap();
        (name == "sleep\n").then_some(())
    });
    let network = File::open(file("ns/net")).unwrap();
    let number = network.metadata().unwrap().ino();
    let all = || Spawn {
        limits_from_proc: true,
        spare_conntrack: true,
        spare_tar: true,
        ..Spawn::default()
    };
    let mut request = DumpRequest::new(pid, images.path());
    request.external = vec![format!("net[{number}]:network")];
    let session = Session::start(&criu, all()).unwrap();
    println!("{:?}", session.dump(&request, &mut agree).unwrap());
    task.wait().unwrap();
    let names = fs::read_dir(images.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let tracked: Vec<String> = names.filter(|name| name.starts_with("netns-ct")).collect();
    assert!(tracked.is_empty(), "{tracked:?}");
    let mut spawn = all();
    let key = spawn.pass(network.into());
    let mut request = RestoreRequest::new(images.path());
    request.inherit.push(("network".to_owned(), key));
    let session = Session::start(&criu, spawn).unwrap();
    let restored = session.restore(&request, &mut agree).unwrap();
    assert_eq!(restored.pid, pid);
    assert_eq!(fs::metadata(file("ns/net")).unwrap().ino(), number);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    waitpid(Pid::from_raw(pid), None).unwrap();
}
