//! What the preloaded object answers, asked by programs that ask as CRIU does.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::criu::Hidden;
use crate::sys::before_exec::{BeforeExec, before_exec};

/// Whether owners and devices can be made; says so where not.
fn root(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some();
        assert!(!required, "{name} needs root");
        println!("SKIP {name}: needs root");
    }
    root
}

/// What CRIU packs and unpacks with.
const PACK: &str = "tar --create --gzip --no-unquote --no-wildcards --one-file-system --check-links \
                    --preserve-permissions --sparse --numeric-owner --directory /proc/self/fd/0 .";
const UNPACK: &str = "tar --extract --gzip --no-unquote --no-wildcards --directory";

/// Becomes `arguments` the way CRIU does, by `execvp`, with the object preloaded or without.
fn run(inside: bool, arguments: &[&str], input: &Path, output: &Path) -> bool {
    let mut command = Command::new("env");
    let asked = Asked {
        tar: inside,
        ..Asked::default()
    };
    let pass = asked.preload(&mut command).unwrap();
    let steps = BeforeExec {
        pass,
        ..BeforeExec::default()
    };
    before_exec(&mut command, steps);
    command
        .args(arguments)
        .stdin(File::open(input).unwrap())
        .stdout(File::create(output).unwrap());
    command.status().unwrap().success()
}

fn pack(inside: bool, from: &Path, to: &Path) -> bool {
    run(
        inside,
        &PACK.split_whitespace().collect::<Vec<_>>(),
        from,
        to,
    )
}

fn unpack(inside: bool, from: &Path, to: &Path) -> bool {
    let mut arguments: Vec<&str> = UNPACK.split_whitespace().collect();
    arguments.push(to.to_str().unwrap());
    run(inside, &arguments, from, Path::new("/dev/null"))
}

/// Whether an archive was made without gzip: its blocks are stored, the first of 64 KiB or all there is.
fn stored(archive: &Path) -> bool {
    let bytes = fs::read(archive).unwrap();
    bytes[10] <= 1 && bytes[11] == !bytes[13] && bytes[12] == !bytes[14]
}

/// Mode, owner, group, device, time and content of a name.
type Facts = (u32, u32, u32, u64, i64, Vec<u8>);

/// Everything there is to know about a tree.
fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut facts = BTreeMap::new();
    let mut next = vec![root.to_owned()];
    while let Some(path) = next.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = match () {
            () if meta.is_symlink() => fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes(),
            () if meta.is_file() => fs::read(&path).unwrap(),
            () => Vec::new(),
        };
        if meta.is_dir() {
            next.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let name = path.strip_prefix(root).unwrap().to_owned();
        let told = (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.rdev(),
            meta.mtime(),
            content,
        );
        facts.insert(name, told);
    }
    facts
}

/// What is in a container's `/dev`, and more.
fn tree(root: &Path) {
    fs::create_dir(root.join("shm")).unwrap();
    fs::write(root.join("shm/large"), vec![7; 200_000]).unwrap();
    fs::write(root.join("shm/empty"), b"").unwrap();
    fs::create_dir(root.join("shm/inner")).unwrap();
    fs::write(root.join("shm/inner/file"), b"content").unwrap();
    fs::set_permissions(root.join("shm"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(
        root.join("shm/inner/file"),
        fs::Permissions::from_mode(0o4640),
    )
    .unwrap();
    symlink("/proc/self/fd", root.join("fd")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    let mode = Mode::from_bits_truncate(0o666);
    mknod(&root.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
    std::os::unix::fs::chown(root.join("shm/inner"), Some(1000), Some(2000)).unwrap();
    std::os::unix::fs::lchown(root.join("fd"), Some(5), Some(6)).unwrap();
    for name in ["shm/inner", "shm", ""] {
        let path = File::open(root.join(name)).unwrap();
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        path.set_modified(then).unwrap();
    }
}

#[test]
fn a_tree_packed_and_unpacked_inside_is_what_tar_makes_of_it() {
    if !root("a_tree_packed_and_unpacked_inside_is_what_tar_makes_of_it") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let from = scratch.path().join("from");
    fs::create_dir(&from).unwrap();
    tree(&from);
    let before = facts(&from);
    for (packs, unpacks) in [(true, true), (true, false), (false, true)] {
        let archive = scratch.path().join("archive");
        let to = scratch.path().join(format!("to-{packs}-{unpacks}"));
        fs::create_dir(&to).unwrap();
        assert!(pack(packs, &from, &archive));
        assert_eq!(stored(&archive), packs);
        assert!(unpack(unpacks, &archive, &to));
        assert_eq!(facts(&to), before, "{packs} {unpacks}");
    }
}

#[test]
fn what_is_large_or_unusual_is_left_to_tar() {
    if !root("what_is_large_or_unusual_is_left_to_tar") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("archive");
    let cases: [&dyn Fn(&Path); 3] = [
        &|root| fs::write(root.join("large"), vec![7; 2 << 20]).unwrap(),
        &|root| fs::write(root.join("n".repeat(120)), b"").unwrap(),
        &|root| {
            fs::write(root.join("one"), b"").unwrap();
            fs::hard_link(root.join("one"), root.join("two")).unwrap();
        },
    ];
    for (number, make) in cases.iter().enumerate() {
        let [from, to] = ["from", "to"].map(|s| scratch.path().join(format!("{s}-{number}")));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        make(&from);
        assert!(pack(true, &from, &archive));
        assert!(!stored(&archive), "{number}");
        assert!(unpack(true, &archive, &to));
        assert_eq!(facts(&to), facts(&from), "{number}");
    }
}

#[test]
fn an_archive_that_is_damaged_or_leads_outside_makes_nothing_there() {
    if !root("an_archive_that_is_damaged_or_leads_outside_makes_nothing_there") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let [from, to, archive] = ["from", "to", "archive"].map(|n| scratch.path().join(n));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("file"), b"content").unwrap();
    assert!(pack(true, &from, &archive));
    let good = fs::read(&archive).unwrap();
    // A byte of the content that is not what the checksum says: tar is asked too, and says no.
    let mut bad = good.clone();
    let at = good.windows(7).position(|w| w == b"content").unwrap();
    bad[at] ^= 1;
    fs::write(&archive, &bad).unwrap();
    assert!(!unpack(true, &archive, &to));
    assert_ne!(
        fs::read(to.join("file")).ok().as_deref(),
        Some(&b"content"[..])
    );
    for cut in [0, 9, 11, 100, 600, good.len() - 1] {
        fs::write(&archive, &good[..cut]).unwrap();
        assert!(!unpack(true, &archive, &to), "{cut}");
    }
    // Whole, but with a name that leads outside, which tar refuses as well.
    let mut bad = good;
    let at = bad.windows(6).position(|w| w == b"./file").unwrap();
    bad[at..at + 6].copy_from_slice(b"../fil");
    repair(&mut bad, at);
    File::create(&archive)
        .unwrap()
        .write_all_at(&bad, 0)
        .unwrap();
    assert!(!unpack(true, &archive, &to));
    assert!(!scratch.path().join("fil").exists());
}

/// Makes the checksums right again after a change in the record at `at`.
fn repair(archive: &mut [u8], at: usize) {
    let sum: u32 = (0..512)
        .map(|n| {
            if (148..156).contains(&n) {
                32
            } else {
                u32::from(archive[at + n])
            }
        })
        .sum();
    archive[at + 148..at + 155].copy_from_slice(format!("{sum:07o}").as_bytes());
    let end = archive.len() - 8;
    let mut crc = !0u32;
    for byte in &archive[15..end] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                0xedb8_8320 ^ crc >> 1
            } else {
                crc >> 1
            };
        }
    }
    archive[end..end + 4].copy_from_slice(&(!crc).to_le_bytes());
}

/// Asks for the tracked connections of a new network namespace as CRIU does, before there is one and after.
const CONNECTIONS: &str = r#"
import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000): raise OSError(ctypes.get_errno(), "unshare")
NETFILTER, DUMP, DONE = 12, 0x300, 3
def attribute(kind, value): return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
def ask(kind, flags, body=b"", family=0):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    sock.sendmsg([struct.pack("IHHIIBBH", 20 + len(body), kind, 1 | flags, 24680, 0, family, 0, 0) + body], [], 0, (0, 0))
    kinds, port = [], None
    while True:
        answer = sock.recvmsg(16384)[0]
        while answer:
            size, kind, flags, number, port = struct.unpack_from("IHHII", answer)
            assert number == 24680, number
            kinds.append(kind)
            if kind == 2: return kinds, port, struct.unpack_from("i", answer, 16)[0]
            if kind == DONE: return kinds, port, 0
            answer = answer[(size + 3) & ~3:]
for subsystem in (1, 2): print(ask(subsystem << 8 | 1, DUMP))
def side(kind, source, target):
    addresses = attribute(1, socket.inet_aton(source)) + attribute(2, socket.inet_aton(target))
    protocol = attribute(1, bytes([17])) + attribute(2, b"\1\0") + attribute(3, b"\2\0")
    return attribute(kind, attribute(0x8001, addresses) + attribute(0x8002, protocol))
new = side(0x8001, "10.0.0.1", "10.0.0.2") + side(0x8002, "10.0.0.2", "10.0.0.1") + attribute(7, struct.pack(">I", 600))
print(ask(1 << 8, 0x400 | 4, new, 2))
print(ask(1 << 8 | 1, DUMP))
"#;

#[test]
fn an_empty_table_of_connections_is_not_searched_and_any_other_is() {
    if !root("an_empty_table_of_connections_is_not_searched_and_any_other_is") {
        return;
    }
    let mut command = Command::new("/usr/bin/python3");
    let asked = Asked {
        conntrack: true,
        ..Asked::default()
    };
    let pass = asked.preload(&mut command).unwrap();
    let steps = BeforeExec {
        pass,
        ..BeforeExec::default()
    };
    before_exec(&mut command, steps);
    command.args(["-c", CONNECTIONS]).stderr(Stdio::inherit());
    let told = command.output().unwrap();
    let text = String::from_utf8(told.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    println!("{text}");
    // The kernel's answer would bear the number of the socket.
    assert_eq!(lines[..2], ["([3], 0, 0)"; 2]);
    if !lines[2].ends_with(", 0)") {
        println!("SKIP: this kernel tracks no connection that is told to it");
        return;
    }
    // There is one now: it is told, and then the end, by the kernel.
    assert!(
        lines[3].starts_with("([256, 3], ") && !lines[3].contains(", 0, 0)"),
        "{text}"
    );
}

/// A child of known pages, scanned as CRIU does, by ioctl(), and past the preloaded object, by syscall(). Prints
/// what it has, reads a line when the table is set, and compares.
const SCANS: &str = r#"
import ctypes, fcntl, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
PAGE, PAGES, SCAN = 4096, 2048, 0xc0606610
base = libc.mmap(None, PAGES * PAGE, 3, 0x22, -1, ctypes.c_long(0))
for n in range(PAGES):
    if n % 3 or n in range(600, 900): ctypes.memset(base + n * PAGE, 7, 1)
guards = libc.madvise(ctypes.c_void_p(base + 1000 * PAGE), 50 * PAGE, 102) == 0
libc.madvise(ctypes.c_void_p(base + 1500 * PAGE), 5 * PAGE, 102)
ready, wait = os.pipe()
child = os.fork()
if child == 0:
    os.close(wait); os.read(ready, 1); os._exit(0)
print(child, base, flush=True)
hidden = eval(sys.stdin.readline())
pagemap = os.open("/proc/%d/pagemap" % child, os.O_RDONLY)
CONTENT, GUARDS = (0x24, 0x24, 0x18, 0x198), (0, 0x100, 0, 0x100)
def scan(call, start, end, length, most, what):
    regions = ctypes.create_string_buffer(24 * length)
    arguments = ctypes.create_string_buffer(struct.pack("12Q", 96, 0, start, end, 0, ctypes.addressof(regions), length, most, *what))
    found = call(arguments)
    return struct.unpack_from("Q", arguments, 32)[0], [struct.unpack_from("3Q", regions, 24 * n) for n in range(found)]
def through(arguments): return fcntl.ioctl(pagemap, SCAN, arguments, True)
def past(arguments):
    found = libc.syscall(16, pagemap, ctypes.c_ulong(SCAN), arguments)
    assert found >= 0, ctypes.get_errno()
    return found
def pages(call, start, end, length, most, what):
    found = {}
    while start < end:
        reached, regions = scan(call, start, end, length, most, what)
        total = sum((b - a) // PAGE for a, b, _ in regions)
        assert start < reached <= end and len(regions) <= length and (not most or total <= most), (start, reached, regions)
        for a, b, kind in regions:
            # Beyond 512 regions the kernel may say that it came less far than it did, and tell the same again.
            assert start <= a < b and (b <= reached or length > 512), (a, b)
            for page in range(a, b, PAGE):
                assert page not in found or length > 512
                found[page] = kind
        start = reached
    return found
def is_hidden(page, what):
    for a, b, keeps in hidden:
        if a <= page < b: return not (keeps and what is GUARDS)
    return False
checks = 0
for first, last in ((0, PAGES), (0, 1), (100, 101), (90, 700), (1000, 1050), (599, 2047), (300, 1600)):
    start, end = base + first * PAGE, base + last * PAGE
    for what in (CONTENT, GUARDS) if guards else (CONTENT,):
        everything = pages(past, start, end, 500, 0, what)
        left = {page: kind for page, kind in everything.items() if not is_hidden(page, what)}
        for length in (1, 2, 7, 1000):
            for most in (0, 1, 10, 333):
                seen = pages(through, start, end, length, most, what)
                assert seen == left, (first, last, length, most, len(seen), len(left))
                checks += 1
try: scan(through, base + 1, base + PAGES * PAGE, 10, 0, CONTENT); print("not refused")
except OSError as error: print(error.errno)
os.close(wait); os.wait()
print(checks, guards)
"#;

#[test]
fn a_scan_finds_what_the_kernel_would_find_if_nothing_were_hidden() {
    if !root("a_scan_finds_what_the_kernel_would_find_if_nothing_were_hidden") {
        return;
    }
    let table = HideTable::new().unwrap();
    let mut command = Command::new("/usr/bin/python3");
    let asked = Asked {
        hide: Some(&table),
        ..Asked::default()
    };
    let pass = asked.preload(&mut command).unwrap();
    let steps = BeforeExec {
        pass,
        ..BeforeExec::default()
    };
    before_exec(&mut command, steps);
    command
        .args(["-c", SCANS])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut scanner = command.spawn().unwrap();
    let mut answers = BufReader::new(scanner.stdout.take().unwrap()).lines();
    let line = answers.next().unwrap().unwrap();
    let (pid, base) = line.split_once(' ').unwrap();
    let (pid, base): (i32, u64) = (pid.parse().unwrap(), base.parse().unwrap());
    // Whole runs, parts of runs, holes, neighbours of two kinds, guard pages that stay and such that go.
    let ranges = [
        (0..1, false),
        (50..100, false),
        (101..102, true),
        (650..700, false),
        (700..710, true),
        (990..1020, true),
        (1030..1040, false),
        (1499..1502, false),
        (2040..3000, false),
    ];
    let hidden: Vec<Hidden> = ranges
        .iter()
        .map(|(pages, guards)| Hidden {
            pid,
            range: base + pages.start * 4096..base + pages.end * 4096,
            guards: *guards,
        })
        .collect();
    table.set(&hidden).unwrap();
    let list: Vec<String> = hidden
        .iter()
        .map(|h| {
            format!(
                "({}, {}, {})",
                h.range.start,
                h.range.end,
                u8::from(h.guards)
            )
        })
        .collect();
    let mut stdin = scanner.stdin.take().unwrap();
    writeln!(stdin, "[{}]", list.join(", ")).unwrap();
    let rest: Vec<String> = answers.map(Result::unwrap).collect();
    assert!(scanner.wait().unwrap().success());
    println!("{rest:?}");
    assert_eq!(
        rest[0], "22",
        "a scan that is not of pages is refused as by the kernel"
    );
    assert!(
        rest[1].starts_with("224 True") || rest[1].starts_with("112 False"),
        "{rest:?}"
    );
}
