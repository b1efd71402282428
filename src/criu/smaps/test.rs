//! What a program that is preloaded as CRIU is reads for smaps.

use super::*;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::criu::preload::Asked as Preloaded;
use crate::sys::before_exec::{BeforeExec, before_exec};

/// Whether there are iterators here, and what this process has learnt; says so where not.
fn flags(name: &str) -> Option<MappingFlags> {
    match MappingFlags::of_this_process() {
        Ok(flags) => Some(flags),
        Err(error) => {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some();
            assert!(!required, "{name} needs {error}");
            println!("SKIP {name}: {error}");
            None
        }
    }
}

/// A program of many kinds of mappings, also such as nobody else has. Takes a line, makes another mapping, waits.
const MANY: &str = r#"
import ctypes, itertools, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
fd = os.memfd_create("shared")
os.ftruncate(fd, 16384)
name = "/tmp/godwit-test-a b\nc-%d" % os.getpid()
open(name, "wb").write(bytes(16384))
file = os.open(name, os.O_RDWR)
only = os.open(name, os.O_RDONLY)
os.unlink(name)
made = 0
def make(protection, flags, fd, *advice):
    global made
    at = libc.mmap(None, 16384, protection, flags, fd, 0)
    if at in (None, 2**64 - 1): return
    for a in advice: libc.madvise(at + 4096, 8192, a)
    if protection & 2: ctypes.memset(at, 1, 16384)
    made += 1
PRIVATE, SHARED, GROWS, LOCKED, NORESERVE, ANONYMOUS, HUGE = 2, 1, 0x100, 0x2000, 0x4000, 0x20, 0x40000
kinds = [(PRIVATE | ANONYMOUS, -1), (SHARED | ANONYMOUS, -1), (PRIVATE | ANONYMOUS | NORESERVE, -1), (PRIVATE | ANONYMOUS | GROWS, -1),
         (PRIVATE | ANONYMOUS | LOCKED, -1), (PRIVATE, fd), (SHARED, fd), (PRIVATE, file), (SHARED, file), (PRIVATE, only), (SHARED, only)]
advices = [(), (16,), (10,), (18,), (14,), (15,), (12,), (2,), (1,), (16, 10), (18, 16, 15), (14, 10, 1), (1, 15, 10, 16)]
for (flags, f), protection, advice in itertools.product(kinds, (0, 1, 3, 5, 7), advices):
    if f == only and flags == SHARED and protection & 2: continue
    make(protection, flags, f, *advice)
print(made, flush=True)
for line in sys.stdin:
    make(3, PRIVATE | ANONYMOUS | NORESERVE | GROWS, -1, 10, 2, 12, 16, 15)
    print("more", flush=True)
"#;

struct Task {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<std::process::ChildStdout>,
}

impl Task {
    fn start(program: &str) -> (Self, String) {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut task = Self {
            ask: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        let first = task.answer();
        (task, first)
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn end(mut self) {
        drop(self.ask);
        self.child.wait().unwrap();
    }
}

/// Opens the smaps of a task as CRIU does, by its directory, and prints it.
const READS: &str = "import os, sys\n\
                     d = os.open('/proc/' + sys.argv[1], os.O_PATH | os.O_DIRECTORY)\n\
                     f = os.open('smaps', os.O_RDONLY, dir_fd=d)\n\
                     while (b := os.read(f, 1024)): os.write(1, b)";

/// What a program reads that has the table.
fn read_with(table: &SmapsTable, pid: i32) -> String {
    let mut command = Command::new("/usr/bin/python3");
    let asked = Preloaded {
        smaps: Some(table),
        ..Preloaded::default()
    };
    let pass = asked.preload(&mut command).unwrap();
    let steps = BeforeExec {
        pass,
        ..BeforeExec::default()
    };
    before_exec(&mut command, steps);
    let pid = pid.to_string();
    let done = command
        .args(["-c", READS, &pid])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(done.status.success());
    String::from_utf8(done.stdout).unwrap()
}

/// The lines of smaps that CRIU looks at.
fn looked_at(smaps: &str) -> Vec<&str> {
    let is_count = |line: &str| {
        line.split_once(':')
            .is_some_and(|(word, _)| !word.contains([' ', '-']))
    };
    let wanted = |line: &&str| line.starts_with("VmFlags: ") || !is_count(line);
    smaps.lines().filter(wanted).collect()
}

fn smaps(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap()
}

/// Whether this is what the kernel says: its counts may be others by now.
#[track_caller]
fn assert_real(read: &str, real: &str) {
    assert!(read.contains("\nRss:"), "composed");
    assert!(looked_at(read) == looked_at(real), "of others");
}

fn counts(table: &SmapsTable) -> (u32, u32) {
    let asked = table.asked().unwrap();
    (asked.composed, asked.real)
}

#[test]
fn what_is_composed_is_what_smaps_says_and_what_is_not_known_is_read_there() {
    let Some(mut flags) =
        flags("what_is_composed_is_what_smaps_says_and_what_is_not_known_is_read_there")
    else {
        return;
    };
    let (mut task, made) = Task::start(MANY);
    let pid = task.pid();
    let real = smaps(pid);
    let lines = looked_at(&real);
    println!("{made} mappings made, {} lines", lines.len());
    assert!(lines.len() > 2 * 500);
    // It has flags that nobody has seen.
    let table = SmapsTable::new().unwrap();
    assert_eq!(flags.describe(pid).unwrap(), None);
    table.set(&[], flags.everybody()).unwrap();
    assert_real(&read_with(&table, pid), &real);
    assert_eq!(counts(&table), (0, 1));
    // They are learnt while it runs; from then on nothing is read again.
    flags.learn(pid).unwrap();
    let described = flags.describe(pid).unwrap().unwrap();
    table.set(&[described], flags.everybody()).unwrap();
    let composed = read_with(&table, pid);
    assert_eq!(counts(&table), (1, 0));
    assert!(composed.lines().collect::<Vec<_>>() == lines);
    // A mapping that the table does not know.
    writeln!(task.ask).unwrap();
    assert_eq!(task.answer(), "more");
    assert_eq!(flags.describe(pid).unwrap(), None, "flags of a new kind");
    let real = smaps(pid);
    assert_real(&read_with(&table, pid), &real);
    assert_eq!(counts(&table), (1, 1));
    // Another copy has learnt nothing of it.
    assert!(
        self::flags("again")
            .unwrap()
            .describe(pid)
            .unwrap()
            .is_none()
    );
    flags.learn(pid).unwrap();
    table
        .set(&[flags.describe(pid).unwrap().unwrap()], flags.everybody())
        .unwrap();
    assert_eq!(
        read_with(&table, pid).lines().collect::<Vec<_>>(),
        looked_at(&real)
    );
    task.end();
}

#[test]
fn a_table_that_is_not_set_or_not_whole_or_of_others_is_of_no_effect() {
    let Some(flags) = flags("a_table_that_is_not_set_or_not_whole_or_of_others_is_of_no_effect")
    else {
        return;
    };
    let (task, _) = Task::start("print(flush=True)\nimport sys\nsys.stdin.read()");
    let pid = task.pid();
    let real = smaps(pid);
    let mut described = flags
        .describe(pid)
        .unwrap()
        .expect("a program without anything special");
    let table = SmapsTable::new().unwrap();
    assert_real(&read_with(&table, pid), &real);
    assert_eq!(counts(&table), (0, 0), "not set");
    table
        .set(std::slice::from_ref(&described), flags.everybody())
        .unwrap();
    assert!(looked_at(&real) == read_with(&table, pid).lines().collect::<Vec<_>>());
    let own = std::process::id().cast_signed();
    assert!(read_with(&table, own).contains("Rss:"), "another task");
    assert_eq!(counts(&table), (1, 1));
    let whole = fs::read(format!("/proc/self/fd/{}", fd(&table))).unwrap();
    for length in [0, 20, 39, 41, 60, 100, 1000, whole.len() - 1] {
        table.0.set_len(length as u64).unwrap();
        assert_real(&read_with(&table, pid), &real);
    }
    // Every count and number of the head and of the first rows, far too large.
    for at in (8..100).step_by(4) {
        let mut bad = whole.clone();
        bad[at..at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        table.0.write_all_at(&bad, 0).unwrap();
        assert!(
            looked_at(&read_with(&table, pid)) == looked_at(&real),
            "{at}"
        );
    }
    // One mapping too few, and one that is another.
    let last = described.mappings.pop().unwrap();
    table
        .set(std::slice::from_ref(&described), flags.everybody())
        .unwrap();
    assert_real(&read_with(&table, pid), &real);
    let range = last.range.start..last.range.end + 4096;
    described.mappings.push(Told { range, ..last });
    table.set(&[described], flags.everybody()).unwrap();
    assert_real(&read_with(&table, pid), &real);
    task.end();
}

fn fd(table: &SmapsTable) -> i32 {
    use std::os::fd::AsRawFd;
    table.0.as_raw_fd()
}

#[test]
fn many_kinds_are_known_without_a_look_at_the_container() {
    let Some(flags) = flags("many_kinds_are_known_without_a_look_at_the_container") else {
        return;
    };
    let samples = crate::sys::sample_mappings::SampleMappings::make().unwrap();
    let range = samples.range();
    println!("{range:x?}");
    let own = std::process::id().cast_signed();
    let inside = |told: Vec<Told>| -> Vec<Told> {
        told.into_iter()
            .filter(|told| range.contains(&told.range.start))
            .collect()
    };
    // The other tests' mappings may be of any kind, and come and go in between the samples.
    let mut tries = 0..5;
    loop {
        let mut text = String::new();
        fs::File::open("/proc/self/smaps")
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        let real = inside(text::mappings(&text));
        assert!(real.len() > 400, "{}", real.len());
        let Some(described) = flags.describe(own).unwrap() else {
            println!("another test has mappings that are not known");
            return;
        };
        let described = inside(described.mappings);
        let differ = described.iter().zip(&real).find(|(a, b)| a != b);
        if (differ, described.len()) == (None, real.len()) {
            return;
        }
        assert!(
            tries.next().is_some(),
            "{differ:?}, {} {}",
            described.len(),
            real.len()
        );
    }
}
