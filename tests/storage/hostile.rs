//! A source that lies: whatever it sends, nothing outside the root changes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use godwit::storage::wire::{self, Attributes, FileTime, NodeKind, Record, TreePath};
use godwit::storage::{Receiver, StorageError};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::lab::{deadline, first_seed, ready, run, witness};

/// Runs a test where a failure can do no harm: in a mount namespace of its own, in which everything but
/// a fresh tmpfs is read-only. Were the receiver to leave its root, it would find nothing to spoil but
/// what the trap has laid out for it.
fn confined(test: &str, body: impl FnOnce(&Path) + Send) {
    if !ready(test) {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let in_a_thread = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(none, "/", none, private, none).unwrap();
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        for line in mounts.lines() {
            let at = line.split_whitespace().nth(4).unwrap();
            // What refuses (a mount that is hidden below another) cannot be reached either.
            let _ = mount(none, at, none, read_only, none);
        }
        mount(none, place.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let refused = fs::write("/read-only", "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        std::env::set_current_dir(place.path()).unwrap();
        body(place.path());
    };
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(in_a_thread).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A root to receive into, with a precious file outside of it.
struct Trap {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Trap {
    fn within(place: &Path) -> Self {
        let dir = tempfile::tempdir_in(place).unwrap();
        let root = dir.path().join("root");
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("sub")).unwrap();
        fs::create_dir(&root).unwrap();
        fs::write(outside.join("precious"), "precious").unwrap();
        fs::write(outside.join("sub/precious"), "precious").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o750)).unwrap();
        Self { dir, root }
    }

    fn outside(&self) -> String {
        let above = fs::symlink_metadata(self.dir.path()).unwrap();
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        let (mode, mtime) = (above.mode(), above.mtime_nsec());
        format!(
            "{names:?} {mode} {mtime} {}",
            witness(&self.dir.path().join("outside"))
        )
    }
}

fn path(text: &str) -> TreePath<'_> {
    TreePath::new(text.as_bytes()).unwrap()
}

fn attributes() -> Attributes<'static> {
    Attributes {
        mode: 0o4777,
        uid: 4242,
        gid: 4242,
        mtime: FileTime { secs: 1, nanos: 1 },
        xattrs: vec![(b"trusted.planted", b"x")],
    }
}

/// One record of each kind for `path`.
fn one_of_each<'a>(path: TreePath<'a>, other: TreePath<'a>) -> Vec<Record<'a>> {
    let attributes = attributes();
    let name: &[u8] = b"trusted.planted";
    let (target, bytes): (&[u8], &[u8]) = (b"/", b"overwritten");
    let (offset, length, rdev, value, size) = (0, 4096, 0, bytes, 1);
    let kind = NodeKind::Fifo;
    let to = path;
    vec![
        Record::Data {
            path,
            offset,
            bytes,
        },
        Record::Resize { path, size },
        Record::Hole {
            path,
            offset,
            length,
        },
        Record::Attributes { path, attributes },
        Record::Xattr { path, name, value },
        Record::Link { path: other, to },
        Record::File { path, size },
        Record::Symlink { path, target },
        Record::Node { path, kind, rdev },
        Record::Directory { path },
        Record::Link { path, to: other },
        Record::Delete { path },
    ]
}

fn batch(records: &[Record<'_>]) -> Vec<u8> {
    let mut batch = wire::begin();
    records.iter().for_each(|record| record.encode(&mut batch));
    batch
}

/// A path of ten bytes that the encoder takes; in the encoded batch it is then replaced by one that it
/// would not take.
const HOLDER: &str = "0123456789";

#[test]
fn no_record_reaches_outside_the_root() {
    confined("no_record_reaches_outside_the_root", |place| {
        for planted in [
            "../outside",
            "/",
            "..",
            "../outside/precious",
            "/proc/thread-self/cwd",
        ] {
            let trap = Trap::within(place);
            let before = trap.outside();
            let absolute = trap.dir.path().join("outside");
            for target in [planted.as_bytes(), absolute.as_os_str().as_encoded_bytes()] {
                for at in [
                    "link",
                    "link/precious",
                    "link/outside/precious",
                    "link/sub/precious",
                    "link/new",
                ] {
                    for record in one_of_each(path(at), path("mine")) {
                        let plant = Record::Symlink {
                            path: path("link"),
                            target,
                        };
                        let mut receiver = Receiver::new(&trap.root).unwrap();
                        receiver.apply(&batch(&[plant])).unwrap();
                        let _ = receiver.apply(&batch(&[record]));
                        let _ = fs::remove_dir_all(trap.root.join("link"));
                        let _ = fs::remove_file(trap.root.join("link"));
                        let _ = fs::remove_file(trap.root.join("mine"));
                    }
                }
            }
            assert_eq!(trap.outside(), before, "{planted}");
        }
    });
}

#[test]
fn a_path_upwards_is_refused_as_a_whole() {
    confined("a_path_upwards_is_refused_as_a_whole", |place| {
        let trap = Trap::within(place);
        for bad in [
            "../outside",
            "/tmp/away/",
            "x/../../xx",
            "a/b/../../",
            "xxxxxxx/..",
            "x//yyyyyyy",
        ] {
            assert_eq!(bad.len(), HOLDER.len());
            for record in one_of_each(path(HOLDER), path("other")) {
                let good = Record::Directory { path: path("good") };
                let bytes = batch(&[good, record]);
                let at = bytes
                    .windows(HOLDER.len())
                    .position(|part| part == HOLDER.as_bytes());
                let mut bytes = bytes;
                let at = at.unwrap();
                bytes[at..at + bad.len()].copy_from_slice(bad.as_bytes());
                let mut receiver = Receiver::new(&trap.root).unwrap();
                let error = receiver.apply(&bytes).unwrap_err();
                assert!(matches!(error, StorageError::Batch { .. }), "{error}");
                assert_eq!(fs::read_dir(&trap.root).unwrap().count(), 0, "{bad}");
            }
        }
    });
}

/// Opening a pipe would wait, opening a device would do whatever the device does.
#[test]
fn nothing_but_a_file_is_opened_for_contents() {
    confined("nothing_but_a_file_is_opened_for_contents", |place| {
        let trap = Trap::within(place);
        let at = path("node");
        for kind in [
            NodeKind::Fifo,
            NodeKind::Character,
            NodeKind::Block,
            NodeKind::Socket,
        ] {
            for record in &one_of_each(at, path("other"))[..3] {
                // A device number that no driver has: were it opened, the error would be another.
                let rdev = match kind {
                    NodeKind::Fifo | NodeKind::Socket => 0,
                    NodeKind::Character | NodeKind::Block => nix::sys::stat::makedev(4000, 1),
                };
                let mut receiver = Receiver::new(&trap.root).unwrap();
                let node = Record::Node {
                    path: at,
                    kind,
                    rdev,
                };
                receiver.apply(&batch(&[node])).unwrap();
                let error = receiver
                    .apply(&batch(std::slice::from_ref(record)))
                    .unwrap_err();
                assert!(
                    matches!(error, StorageError::NotAFile { .. }),
                    "{kind:?}: {error}"
                );
            }
        }
        for bad in [path(""), path("missing")] {
            for record in &one_of_each(bad, path("other"))[..3] {
                let mut receiver = Receiver::new(&trap.root).unwrap();
                receiver
                    .apply(&batch(std::slice::from_ref(record)))
                    .unwrap_err();
            }
        }
    });
}

#[test]
fn a_file_with_another_name_is_replaced_and_not_written_to() {
    confined(
        "a_file_with_another_name_is_replaced_and_not_written_to",
        |place| {
            let trap = Trap::within(place);
            fs::write(trap.root.join("one"), "kept").unwrap();
            fs::hard_link(trap.root.join("one"), trap.root.join("two")).unwrap();
            let (at, bytes): (_, &[u8]) = (path("two"), b"new");
            let mut receiver = Receiver::new(&trap.root).unwrap();
            let file = Record::File { path: at, size: 3 };
            let data = Record::Data {
                path: at,
                offset: 0,
                bytes,
            };
            receiver.apply(&batch(&[file, data])).unwrap();
            assert_eq!(fs::read(trap.root.join("one")).unwrap(), b"kept");
            assert_eq!(fs::read(trap.root.join("two")).unwrap(), b"new");
        },
    );
}

#[test]
fn a_root_that_is_a_link_is_meant_by_who_gives_it() {
    confined("a_root_that_is_a_link_is_meant_by_who_gives_it", |place| {
        let trap = Trap::within(place);
        symlink("root", trap.dir.path().join("alias")).unwrap();
        let mut receiver = Receiver::new(&trap.dir.path().join("alias")).unwrap();
        receiver
            .apply(&batch(&[Record::Directory { path: path("d") }]))
            .unwrap();
        assert!(trap.root.join("d").is_dir());
        Receiver::new(&trap.dir.path().join("missing")).unwrap_err();
        Receiver::new(&trap.dir.path().join("outside/precious")).unwrap_err();
    });
}

/// Records that fit together by chance, with bytes changed here and there.
#[test]
fn nothing_outside_changes_whatever_is_sent() {
    confined("nothing_outside_changes_whatever_is_sent", |place| {
        let (deadline, mut seed) = (deadline(), first_seed());
        while Instant::now() < deadline {
            let trap = Trap::within(place);
            let before = trap.outside();
            let mut dice = StdRng::seed_from_u64(seed);
            let (mut good, mut all) = (0, 0);
            let mut receiver = Receiver::new(&trap.root).unwrap();
            for _ in 0..400 {
                let bytes = random_batch(&mut dice);
                all += 1;
                good += usize::from(receiver.apply(&bytes).is_ok());
                if dice.random_bool(0.02) {
                    receiver = Receiver::new(&trap.root).unwrap();
                }
            }
            assert_eq!(trap.outside(), before, "seed {seed}");
            assert!(
                good > all / 50,
                "seed {seed}: only {good} of {all} did anything"
            );
            println!("seed {seed}: {good} of {all} batches applied");
            run(trap.dir.path(), &["rm", "-rf", "root"]);
            seed += 1;
        }
    });
}

/// The decoder alone, which is faster, and is given the bytes as they are. What it takes has only one
/// spelling, and no path in it leads upwards.
#[test]
fn any_bytes_are_decoded_or_refused() {
    let (deadline, seed) = (deadline(), first_seed());
    let mut dice = StdRng::seed_from_u64(seed);
    let (mut taken, mut all) = (0, 0);
    while Instant::now() < deadline {
        let bytes = random_batch(&mut dice);
        all += 1;
        let Ok(records) = wire::decode(&bytes) else {
            continue;
        };
        taken += 1;
        assert_eq!(batch(&records), bytes, "seed {seed}, batch {all}");
        for name in records.iter().flat_map(names) {
            assert!(
                ![&b""[..], b".", b".."].contains(&name),
                "seed {seed}, batch {all}"
            );
        }
    }
    println!("seed {seed}: {taken} of {all} taken");
    assert!(taken > all / 10);
}

/// Every single name in the paths of a record.
fn names<'a>(record: &Record<'a>) -> Vec<&'a [u8]> {
    let (path, other) = match *record {
        Record::Link { path, to } => (path, Some(to)),
        Record::Directory { path }
        | Record::File { path, .. }
        | Record::Resize { path, .. }
        | Record::Data { path, .. }
        | Record::Hole { path, .. }
        | Record::Symlink { path, .. }
        | Record::Node { path, .. }
        | Record::Attributes { path, .. }
        | Record::Xattr { path, .. }
        | Record::Delete { path } => (path, None),
    };
    let paths = [Some(path), other].into_iter().flatten();
    let inside = paths.map(TreePath::bytes).filter(|path| !path.is_empty());
    inside
        .flat_map(|path| path.split(|&byte| byte == b'/'))
        .collect()
}

fn random_batch(dice: &mut StdRng) -> Vec<u8> {
    const PATHS: [&str; 12] = [
        "a",
        "b",
        "a/b",
        "a/b/c",
        "link",
        "link/precious",
        "link/x",
        "a/link",
        "a/link/precious",
        "a/link/sub/precious",
        "",
        HOLDER,
    ];
    const TARGETS: [&str; 6] = [
        "..",
        "../outside",
        "../../outside",
        "a",
        "link",
        "/proc/thread-self/cwd",
    ];
    const BAD: [&str; 4] = ["../outside", "a/../../ou", "link/../ou", "/etc/hosts"];
    let pick = |dice: &mut StdRng| path(PATHS.choose(dice).unwrap());
    let mut records = Vec::new();
    for _ in 0..dice.random_range(1..3) {
        let (at, other) = (pick(dice), pick(dice));
        let mut each = one_of_each(at, other);
        each.push(Record::Symlink {
            path: at,
            target: TARGETS.choose(dice).unwrap().as_bytes(),
        });
        each.push(Record::Directory { path: at });
        records.push(each.choose(dice).unwrap().clone());
    }
    let mut bytes = batch(&records);
    if dice.random_bool(0.3) {
        let holder = HOLDER.as_bytes();
        let bad = BAD.choose(dice).unwrap().as_bytes();
        while let Some(at) = bytes.windows(holder.len()).position(|part| part == holder) {
            bytes[at..at + bad.len()].copy_from_slice(bad);
        }
    }
    for _ in 0..[0, 0, 0, 0, 1, 3].choose(dice).copied().unwrap_or(0) {
        let at = dice.random_range(0..bytes.len());
        bytes[at] = match dice.random_range(0..3) {
            0 => dice.random(),
            1 => b'.',
            _ => b'/',
        };
    }
    if dice.random_bool(0.1) {
        bytes.truncate(dice.random_range(0..=bytes.len()));
    }
    bytes
}
