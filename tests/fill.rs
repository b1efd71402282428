//! Containers whose memory comes behind them: real CRIU, real userfaultfds, a workload that knows what every page of
//! its memory is, and processes that are killed in the middle.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use godwit::criu::{Criu, DumpRequest, Notify, RestoreRequest, Server, Session, Spawn, Verdict};
use godwit::memory::fill::{FillPlan, FillState, Guard, fill_is_spent, fill_state, kill_container};
use godwit::memory::{
    Decoder, DumpSink, PageServer, PageStore, Placed, Pool, Sender, SentPages, link_images,
};
use godwit::model::{Bytes, Compress, Pages};
use godwit::sys::before_exec::{BeforeExec, before_exec};
use godwit::sys::pidfd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(60);
/// What those are named that keep a filler's descriptors.
const KEEPER: &str = "godwit-keeper";

/// Whether the tests that need root run; says so where they do not. One at a time.
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

#[track_caller]
fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The workload, compiled once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = PROGRAM.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("fill");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workload/fill.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-pthread", "-o"]).arg(&program);
        assert!(compiler.arg(source).status().unwrap().success());
        (directory, program)
    });
    program
}

/// Random numbers, the same ones for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(2_685_821_657_736_338_717) >> 20) % end
    }
}

fn seed() -> u64 {
    let given = std::env::var("GODWIT_FILL_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_nanos() as u64
    });
    println!("GODWIT_FILL_SEED={seed}");
    seed | 1
}

/// A cgroup of the test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let at = mount.unwrap().split(' ').nth(1).unwrap();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("godwit-fill-test-{}-{number}", std::process::id());
        let path = Path::new(at).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        kill_container(&self.0).unwrap();
        reap();
        eventually("the end of the cgroup", || {
            reap();
            fs::remove_dir(&self.0).ok()
        });
    }
}

/// Reaps what has come to this process, its subreaper.
fn reap() {
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// What the workload counts; see `struct state` in `tests/workload/fill.c`.
struct Counters(File);

impl Counters {
    fn new(directory: &Path) -> Self {
        let file = File::create_new(directory.join("state")).unwrap();
        file.set_len(4096).unwrap();
        Self(file)
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn ready(&self) -> u64 {
        self.word(0)
    }

    fn checks(&self) -> u64 {
        self.word(1)
    }

    /// What the workload found wrong first.
    fn complaint(&self) -> Option<String> {
        let mut text = [0; 256];
        self.0.read_exact_at(&mut text, 48).unwrap();
        let text = String::from_utf8_lossy(&text);
        (self.word(2) > 0).then(|| text.trim_end_matches('\0').to_owned())
    }

    fn hurry(&self, on: bool) {
        self.set_hurry(on.into());
    }

    /// From now on it does nothing but move its mappings.
    fn only_move(&self) {
        self.set_hurry(2);
    }

    fn set_hurry(&self, how: u64) {
        self.0.write_all_at(&how.to_ne_bytes(), 304).unwrap();
    }
}

/// A workload that was dumped, its images, and where it is restored.
struct Case {
    root: i32,
    /// Where all of it is, for as long as it is needed.
    _scratch: tempfile::TempDir,
    images: PathBuf,
    counters: Counters,
    cgroup: Cgroup,
    criu: Criu,
    placed: Placed,
}

impl Case {
    /// Lets a workload live for a moment, dumps it, and makes images of it whose memory comes later.
    fn new(seed: u64, mib: u32, threads: u64) -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let counters = Counters::new(scratch.path());
        let cgroup = Cgroup::new();
        let mut command = Command::new(program());
        command
            .arg(scratch.path().join("state"))
            .args([seed.to_string(), mib.to_string(), threads.to_string()])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let steps = BeforeExec {
            new_session: true,
            cgroup: Some(
                File::options()
                    .write(true)
                    .open(cgroup.0.join("cgroup.procs"))
                    .unwrap(),
            ),
            ..BeforeExec::default()
        };
        before_exec(&mut command, steps);
        let mut child = command.spawn().unwrap();
        let root = child.id() as i32;
        eventually("the workload's start", || {
            (counters.ready() == threads).then_some(())
        });
        thread::sleep(Duration::from_millis(200));
        let criu = Criu::find(None).unwrap();
        let images = scratch.path().join("images");
        fs::create_dir(&images).unwrap();
        let store = PageStore::create(scratch.path(), Bytes(u64::from(mib) << 24)).unwrap();
        dump(&criu, root, &images, &store);
        child.wait().unwrap();
        // Its children end with it, or with the dump.
        eventually("the end of what was dumped", || {
            reap();
            let procs = fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap();
            procs.is_empty().then_some(())
        });
        assert_eq!(counters.complaint(), None, "before anything was moved");
        let placed = link_images(store.verify().unwrap(), &images, 2, true).unwrap();
        println!("{placed:?}");
        assert!(placed.lazy > Pages(u64::from(mib) * 256 / 4), "{placed:?}");
        Self {
            root,
            _scratch: scratch,
            images,
            counters,
            cgroup,
            criu,
            placed,
        }
    }

    fn plan(&self) -> FillPlan {
        FillPlan {
            program: env!("CARGO_BIN_EXE_godwit").into(),
            images: self.images.clone(),
            cgroup: self.cgroup.0.clone(),
        }
    }

    /// Restores, the memory to come later. `held` is called before anything runs.
    fn restore(&self, guard: &Guard, held: &mut dyn FnMut()) {
        let request = RestoreRequest {
            lazy_pages: true,
            ..RestoreRequest::new(&self.images)
        };
        let spawn = Spawn {
            cgroup: Some(self.cgroup.0.clone()),
            ..Spawn::default()
        };
        let begin = Instant::now();
        let done = Session::start(&self.criu, spawn)
            .unwrap()
            .restore(&request, &mut |step| {
                if let Notify::PostRestore { .. } = step {
                    guard.sync(PATIENCE).unwrap();
                    println!("restored, not running: {:?}", begin.elapsed());
                    held();
                }
                Verdict::Continue
            });
        if done.is_err() {
            let log = fs::read_to_string(self.images.join("restore.log"));
            println!("{}", log.unwrap_or_default());
        }
        assert_eq!(done.unwrap().pid, self.root);
        println!("restored: {:?}", begin.elapsed());
        guard.release();
    }

    /// The fillers of these images: processes of this program's own. Not their keepers.
    fn fillers(&self) -> Vec<i32> {
        let all = self.processes().into_iter();
        all.filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() != KEEPER
        })
        .collect()
    }

    /// Fillers and keepers.
    fn processes(&self) -> Vec<i32> {
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let ours = words.contains(&&b"fill"[..])
                && words.contains(&self.images.as_os_str().as_encoded_bytes());
            ours.then_some(pid)
        });
        all.collect()
    }

    /// Kills the filler there is; false where there is none.
    fn kill_filler(&self) -> bool {
        let fillers = self.fillers();
        for pid in &fillers {
            if let Ok(process) = pidfd::open(*pid) {
                let _ = pidfd::signal(process.as_fd(), libc::SIGKILL);
            }
        }
        !fillers.is_empty()
    }

    /// All memory is there, and the workload finds nothing wrong with it.
    fn check_filled(&self) {
        let begin = Instant::now();
        eventually("the end of the fill", || {
            assert_eq!(self.counters.complaint(), None, "while it was filled");
            let state = fill_state(&self.images).unwrap();
            assert_ne!(state, FillState::Lost);
            (state == FillState::Filled).then_some(())
        });
        println!("filled: {:?}", begin.elapsed());
        let before = self.counters.checks();
        self.counters.hurry(false);
        eventually("the workload's going on", || {
            (self.counters.checks() > before + 50_000).then_some(())
        });
        assert_eq!(self.counters.complaint(), None, "after it was filled");
        eventually("the end of the filler, and of every keeper", || {
            reap();
            self.processes().is_empty().then_some(())
        });
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.root)).unwrap();
        let registered = smaps
            .lines()
            .filter(|l| l.starts_with("VmFlags:") && l.contains(" um"));
        assert_eq!(registered.count(), 0, "a userfaultfd is left in the task");
    }
}

fn dump(criu: &Criu, root: i32, images: &Path, store: &PageStore) {
    let mut request = DumpRequest::new(root, images);
    let mut spawn = Spawn::default();
    let (server, theirs) = PageServer::pair(criu.version()).unwrap();
    request.page_server = Some(Server::Passed(spawn.pass(theirs)));
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let mut decoder = Decoder::new().unwrap();
            let mut out = |frame: Vec<u8>| {
                store.take(&mut decoder, &frame).unwrap();
                Ok(())
            };
            let pool = Pool::new(Compress::None).unwrap();
            let mut sender = Sender::new(&pool, &mut out);
            let nothing = SentPages::default();
            server
                .serve(&mut DumpSink::new(&mut sender, &nothing, false))
                .unwrap();
        });
        let session = Session::start(criu, spawn).unwrap();
        let dumped = session.dump(&request, &mut |_| Verdict::Continue);
        if dumped.is_err() {
            let log = fs::read_to_string(images.join("dump.log"));
            println!("{}", log.unwrap_or_default());
        }
        dumped.unwrap();
        serving.join().unwrap();
    });
}

#[test]
fn memory_comes_behind_a_running_container_and_is_what_it_was() {
    let Some(_turn) = root("memory_comes_behind_a_running_container_and_is_what_it_was") else {
        return;
    };
    let case = Case::new(seed(), 256, 4);
    assert_eq!(fill_state(&case.images).unwrap(), FillState::None);
    let guard = Guard::start(case.plan()).unwrap();
    case.restore(&guard, &mut || case.counters.hurry(true));
    case.check_filled();
    assert!(fill_is_spent(&case.images));
    // It was given back as it was used.
    let left: u64 = fs::read_dir(case.images.join("parent"))
        .unwrap()
        .map(|entry| {
            use std::os::unix::fs::MetadataExt;
            entry.unwrap().metadata().unwrap().blocks() * 512
        })
        .sum();
    println!(
        "left of the store: {} of {}",
        Bytes(left),
        case.placed.lazy.bytes()
    );
}

/// Which of two threads has changed the address space first the kernel does not tell in that order.
#[test]
fn mappings_that_take_each_others_places_keep_their_pages() {
    let Some(_turn) = root("mappings_that_take_each_others_places_keep_their_pages") else {
        return;
    };
    let case = Case::new(seed(), 256, 6);
    let guard = Guard::start(case.plan()).unwrap();
    case.restore(&guard, &mut || case.counters.only_move());
    let end = Instant::now() + Duration::from_secs(4);
    while fill_state(&case.images).unwrap() == FillState::Filling && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
        assert_eq!(case.counters.complaint(), None, "while it moved about");
    }
    println!("{} moves", case.counters.word(4));
    case.counters.hurry(true);
    case.check_filled();
}

#[test]
fn a_filler_that_is_killed_again_and_again_loses_nothing() {
    let Some(_turn) = root("a_filler_that_is_killed_again_and_again_loses_nothing") else {
        return;
    };
    let seed = seed();
    let mut random = Random(seed);
    let case = Case::new(seed, 384, 3);
    let guard = Guard::start(case.plan()).unwrap();
    let mut killed = 0;
    case.restore(&guard, &mut || {
        case.counters.hurry(true);
        // Held: CRIU still waits for an answer, and nothing runs.
        if random.below(2) == 0 && case.kill_filler() {
            killed += 1;
        }
    });
    let end = Instant::now() + Duration::from_secs(20);
    while fill_state(&case.images).unwrap() == FillState::Filling
        && killed < 30
        && Instant::now() < end
    {
        thread::sleep(Duration::from_micros(random.below(40_000)));
        killed += u32::from(case.kill_filler());
        assert_eq!(case.counters.complaint(), None, "after {killed} kills");
    }
    println!("{killed} fillers were killed");
    assert!(killed > 3, "{killed}");
    case.check_filled();
}

/// What a filler has been told by the kernel and has not taken note of yet, if that is more than a fault: see
/// `progress.rs`, whose header holds what was told last.
fn unlogged(images: &Path) -> Option<u8> {
    let files = fs::read_dir(images.join("fill")).ok()?;
    files.flatten().find_map(|file| {
        let state = file.file_name().as_encoded_bytes().ends_with(b".state");
        let mut kind = [0; 1];
        let read = |file: File| file.read_exact_at(&mut kind, 12 * 8);
        let read = state && File::open(file.path()).and_then(read).is_ok();
        (read && kind[0] > UFFD_EVENT_PAGEFAULT).then_some(kind[0])
    })
}

const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_EVENT_FORK: u8 = 0x13;
const UFFD_EVENT_UNMAP: u8 = 0x16;

/// Kills fillers at the moment at which the kernel has told them this, and they have told nobody.
fn fillers_are_killed_when(event: u8) {
    // A fill may be over before it was caught at such a moment.
    let mut caught = 0;
    for _ in 0..6 {
        let case = Case::new(seed(), 384, 3);
        let guard = Guard::start(case.plan()).unwrap();
        case.restore(&guard, &mut || case.counters.hurry(true));
        while fill_state(&case.images).unwrap() == FillState::Filling && caught < 30 {
            if unlogged(&case.images) == Some(event) && case.kill_filler() {
                caught += 1;
            }
            assert_eq!(case.counters.complaint(), None, "after {caught} kills");
        }
        case.check_filled();
        if caught >= 5 {
            break;
        }
    }
    println!("{caught} fillers were killed at such a moment");
    assert!(caught > 0, "no filler was killed at such a moment");
}

#[test]
fn a_child_that_is_born_while_its_filler_is_killed_has_its_memory() {
    let Some(_turn) = root("a_child_that_is_born_while_its_filler_is_killed_has_its_memory") else {
        return;
    };
    fillers_are_killed_when(UFFD_EVENT_FORK);
}

#[test]
fn what_is_unmapped_while_the_filler_is_killed_is_gone() {
    let Some(_turn) = root("what_is_unmapped_while_the_filler_is_killed_is_gone") else {
        return;
    };
    fillers_are_killed_when(UFFD_EVENT_UNMAP);
}
