//! Large files, deep trees, many files.

use std::fs;
use std::time::Instant;

use godwit::model::Bytes;
use godwit::storage;

use crate::lab::{Lab, ready, run, settle};

#[test]
fn of_a_large_file_only_the_changed_blocks_go() {
    if !ready("of_a_large_file_only_the_changed_blocks_go") {
        return;
    }
    let lab = Lab::new();
    lab.sh("head -c 8000000 /dev/urandom > f; ln f other-name");
    settle();
    let mut snapshot = lab.send_all().0;
    for (change, most) in [
        (
            "printf x | dd of=f bs=1 seek=3000000 conv=notrunc status=none",
            65536,
        ),
        ("echo tail >> f", 2 * 65536),
        ("fallocate -p -o 1000000 -l 500000 f", 2 * 65536),
        ("truncate -s 4000001 f", 65536),
        ("truncate -s 6000000 f", 65536),
        (
            "printf in-the-hole | dd of=f bs=1 seek=5000000 conv=notrunc status=none",
            4096,
        ),
        ("touch -d 2001-02-03 f; chmod 4755 f", 0),
        ("ln f third-name", 0),
        ("rm other-name", 0),
        ("fallocate -d f", 0),
        ("truncate -s 500 f", 500),
    ] {
        lab.sh(change);
        let (next, sent) = lab.send_again(&snapshot);
        lab.check_equal();
        assert!(sent.bytes <= Bytes(most), "{change}: {sent:?}");
        settle();
        snapshot = next;
    }
    lab.sh("mv f g; rm third-name");
    lab.send_changes(&snapshot);
    lab.check_equal();
}

#[test]
fn a_tree_deeper_than_any_path_arrives_and_goes() {
    if !ready("a_tree_deeper_than_any_path_arrives_and_goes") {
        return;
    }
    let lab = Lab::new();
    let deep = |levels: usize, name: &str| {
        lab.sh(&format!(
            "python3 -c \"
import os
for i in range({levels}):
    open('f', 'w').write(str(i)); os.mkdir('{name}'); os.chdir('{name}')
\""
        ));
    };
    // Deeper than a process may have files open, too.
    deep(1100, "deep");
    settle();
    let (snapshot, _) = lab.send_all();
    lab.check_equal();
    lab.sh("mv deep short; echo new > short/new");
    lab.send_changes(&snapshot);
    lab.check_equal();
    lab.sh("rm -r short; echo file > deep");
    let (snapshot, _) = lab.send_all();
    lab.check_equal();
    lab.sh("rm *");
    deep(260, &"d".repeat(255));
    let error = storage::send_again(&lab.source, &snapshot, &mut |_| Ok(())).unwrap_err();
    assert!(
        matches!(error, storage::StorageError::TooDeep { .. }),
        "{error}"
    );
}

#[test]
fn a_file_of_a_terabyte_of_holes_is_quick() {
    if !ready("a_file_of_a_terabyte_of_holes_is_quick") {
        return;
    }
    let lab = Lab::new();
    lab.sh("truncate -s 1T f; printf middle | dd of=f bs=1 seek=500G conv=notrunc status=none; printf end >> f");
    settle();
    let (snapshot, sent) = lab.send_all();
    assert!(sent.bytes <= Bytes(8192), "{sent:?}");
    lab.sh(
        "fallocate -p -o 500G -l 1M f; printf x | dd of=f bs=1 seek=700G conv=notrunc status=none",
    );
    let sent = lab.send_changes(&snapshot);
    assert!(sent.bytes <= Bytes(4096), "{sent:?}");
    for (offset, wished) in [("500G", ""), ("700G", "x"), ("1T", "end")] {
        let script = format!("dd if=f bs=1 count=6 skip={offset} status=none | tr -d '\\000'");
        let seen = run(&lab.destination, &["sh", "-c", &script]);
        assert_eq!(seen, wished, "at {offset}");
    }
    let used = storage::tree_bytes(&lab.destination).unwrap();
    assert!(used < Bytes(100_000), "{used}");
}

#[test]
fn many_files_arrive() {
    if !ready("many_files_arrive") {
        return;
    }
    let lab = Lab::new();
    let count = std::env::var("GODWIT_MANY_FILES").map_or(2000, |text| text.parse().unwrap());
    for number in 0..count {
        let dir = lab.source.join(format!("{:03}", number % 250));
        if number < 250 {
            fs::create_dir(&dir).unwrap();
        }
        fs::write(dir.join(number.to_string()), number.to_string()).unwrap();
    }
    settle();
    let timed = |what: &str, start: Instant| println!("{what}: {:?}", start.elapsed());
    let start = Instant::now();
    let (snapshot, sent) = lab.send_all();
    timed("first pass", start);
    assert_eq!(sent.files, count);
    lab.sh("echo changed > 007/257; rm 008/258");
    let start = Instant::now();
    let sent = lab.send_changes(&snapshot);
    timed("last pass", start);
    assert!(sent.records < 10, "{sent:?}");
    lab.check_equal();
}
