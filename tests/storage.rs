//! Moves trees between two directories and compares them with an independent program.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "storage/hostile.rs"]
mod hostile;
#[path = "storage/lab.rs"]
mod lab;
#[path = "storage/live.rs"]
mod live;
#[path = "storage/size.rs"]
mod size;
#[path = "storage/writer.rs"]
mod writer;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use godwit::model::Bytes;
use godwit::storage;

use lab::{Lab, ready, run, settle, witness};

#[test]
fn everything_a_filesystem_holds_arrives() {
    if !ready("everything_a_filesystem_holds_arrives") {
        return;
    }
    let lab = Lab::new();
    lab.sh(EVERYTHING);
    let (snapshot, totals) = lab.send_all();
    lab.check_equal();
    assert!(totals.files > 20, "{totals:?}");
    settle();
    let (snapshot, _) = lab.send_again(&snapshot);
    settle();
    let (snapshot, _) = lab.send_again(&snapshot);
    let again = lab.send_changes(&snapshot);
    assert_eq!(again, Default::default(), "nothing changed");
    lab.check_equal();
}

#[test]
fn what_changes_between_two_passes_is_changed() {
    if !ready("what_changes_between_two_passes_is_changed") {
        return;
    }
    let before = "mkdir -p d/sub e; echo 1 > f; echo 2 > d/g; echo 3 > d/sub/h; ln f d/f2; ln -s f l; mkfifo p; ln d/g e/g2
        mknod w c 0 0; ln w e/w; : > x; mkdir m; : > m/in; chmod 700 m";
    for change in [
        // Types.
        "rm f; mkdir f; echo in > f/in",
        "rm -r d; echo file > d",
        "rm -r d; ln -s e d",
        "rm l; mkdir l; mkfifo l/p",
        "rm p; ln f p; rm l; ln d/g l",
        // Names.
        "mv d d2; mv f e/f",
        "mv e/g2 d/f2; rm w",
        "mv d/sub e/sub; rm -r d; mv e d",
        "rm -r d e f l p w x m",
        "mv f t; mv x f; mv t x",
        // Links: made, cut, exchanged, and a file rewritten under one of its names.
        "ln f e/f3; ln p p2; ln -P l l2; ln w w2",
        "cp f n; mv n f",
        "cp -p d/g n; mv n e/g2; echo changed >> d/g",
        "rm d/f2; ln d/g d/f2; rm e/g2; ln f e/g2",
        "echo changed > d/f2",
        // Attributes alone.
        "chmod 4711 f; chown 5:6 d; chmod 2750 e; chown -h 7:8 l; chmod 600 p; chown 3:3 w; chmod 000 m",
        "touch -d 2001-02-03 f d e p; touch -h -d 2002-03-04 l",
        "python3 -c \"import os; os.setxattr('f','user.a',b'1'); os.setxattr('m','trusted.overlay.opaque',b'y')\"",
        "touch m/in; touch -r d m",
    ] {
        let lab = Lab::new();
        lab.sh(before);
        settle();
        let (snapshot, _) = lab.send_all();
        lab.check_equal();
        lab.sh(change);
        lab.send_changes(&snapshot);
        lab.check_equal();
    }
}

#[test]
fn what_was_at_the_destination_before_the_first_pass_goes() {
    if !ready("what_was_at_the_destination_before_the_first_pass_goes") {
        return;
    }
    let lab = Lab::new();
    lab.sh("mkdir d; echo f > d/f");
    for script in [
        "mkdir -p old/er d; ln -s / d/f; : > .hidden",
        "rm -r d; mkfifo d",
    ] {
        run(&lab.destination, &["sh", "-ec", script]);
        lab.send_all();
        lab.check_equal();
    }
}

/// The kernel sees a first write through a mapping, but not the second.
#[test]
fn a_suspect_is_compared_whatever_its_times_say() {
    if !ready("a_suspect_is_compared_whatever_its_times_say") {
        return;
    }
    const PROGRAM: &str = "
import mmap, os, sys
for name, size in ((b'small', 5000), (b'large', 3000000)):
    os.close(os.open(name, os.O_RDWR | os.O_CREAT)); os.truncate(name, size)
maps = [mmap.mmap(os.open(name, os.O_RDWR), 0) for name in (b'small', b'large')]
os.link(b'small', b'alias')
for step in (b'A', b'B'):
    for m in maps: m[1000:1001] = step
    print(flush=True); sys.stdin.readline()
";
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let lab = Lab::within(&place);
        let mut program = Command::new("python3")
            .args(["-c", PROGRAM])
            .current_dir(&lab.source)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut to, from) = (
            program.stdin.take().unwrap(),
            program.stdout.take().unwrap(),
        );
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(from));
        lines.next().unwrap().unwrap();
        settle();
        let (snapshot, _) = lab.send_all();
        std::io::Write::write_all(&mut to, b"\n").unwrap();
        lines.next().unwrap().unwrap();
        let sent = lab.send_suspects(&snapshot, &["alias", "large", "not-there"]);
        lab.check_equal();
        let changed = fs::read(lab.destination.join("large")).unwrap();
        assert_eq!(changed[1000], b'B');
        assert!(sent.bytes < Bytes(200_000), "{sent:?}");
        drop(to);
        program.wait().unwrap();
    }
}

#[test]
fn the_room_a_tree_takes_is_what_du_says() {
    if !ready("the_room_a_tree_takes_is_what_du_says") {
        return;
    }
    let lab = Lab::new();
    lab.sh(EVERYTHING);
    let du = run(&lab.source, &["du", "-s", "--block-size=1", "."]);
    let du: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
    // `du` counts the root too.
    let root = fs::metadata(&lab.source).unwrap().blocks() * 512;
    assert_eq!(storage::tree_bytes(&lab.source).unwrap(), Bytes(du - root));
}

/// What the container saw through its overlay, it sees on the other host through the copy.
#[test]
fn an_overlay_looks_the_same_with_the_copied_upper() {
    if !ready("an_overlay_looks_the_same_with_the_copied_upper") {
        return;
    }
    let lab = Lab::new();
    let base = lab.source.parent().unwrap();
    let within = |upper: &str, script: &str| {
        let layers = format!("lowerdir=lower,upperdir={upper},workdir=work-{upper}");
        let script = format!("mount -t overlay overlay -o {layers} merged; cd merged; {script}");
        run(base, &["unshare", "-m", "sh", "-ec", &script])
    };
    let lower = "mkdir -p work-source work-destination merged lower; cd lower;
        mkdir -p a/b gone replaced kept; echo 1 > a/b/f; echo 2 > gone/f; echo 3 > replaced/f;
        echo 4 > kept/f; echo 5 > top";
    run(base, &["sh", "-ec", lower]);
    within(
        "source",
        "rm -r gone replaced top; mkdir replaced; echo new > replaced/new; chmod 700 kept/f",
    );
    settle();
    let (snapshot, _) = lab.send_all();
    within(
        "source",
        "echo more >> a/b/f; rm kept/f; mkdir gone; rm -r replaced; ln a/b/f top",
    );
    lab.send_changes(&snapshot);
    lab.check_equal();
    let seen = witness(&lab.destination);
    assert!(seen.contains("trusted.overlay.opaque"), "{seen}");
    let look = |upper: &str| {
        let contents = "find . -type f -printf '%p %m %U %s %n ' -exec cat {} \\;";
        let script = format!("{contents}; find . -printf '%p %y\\n' | sort");
        within(upper, &script)
    };
    let (source, destination) = (look("source"), look("destination"));
    assert_eq!(source, destination);
    assert!(
        source.contains("more") && !source.contains("kept/f"),
        "{source}"
    );
}

/// Python where a shell has no word for it.
const EVERYTHING: &str = r#"
umask 022
echo text > file; : > empty; printf 'no newline' > 'name with space'
mkdir -p dir/sub/deeper empty-dir; echo deep > dir/sub/deeper/file
ln -s file link; ln -s /nowhere/at/all dangling; ln -s ../../../../etc escape; ln -s . dir/self
ln file hard; ln file dir/hard-too; ln -P link hard-link-of-link
mkfifo fifo; ln fifo fifo-too
mknod whiteout c 0 0; ln whiteout dir/whiteout; mknod device c 1 3; mknod disk b 7 200
echo secret > nobody; chmod 000 nobody; echo ro > read-only; chmod 444 read-only
echo su > setuid; chmod 4755 setuid; echo sg > setgid; chmod 2755 setgid
mkdir sticky; chmod 1777 sticky; mkdir group-dir; chmod 2775 group-dir; mkdir closed; : > closed/in; chmod 000 closed
echo other > owned; chown 1234:5678 owned; chown -h 77:88 link; chown 9:9 dir; chown 4:5 fifo
truncate -s 10M hole; truncate -s 3M sparse; printf x | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
dd if=/dev/zero of=zeros bs=64k count=4 status=none; dd if=/dev/urandom of=big bs=1M count=3 status=none; printf tail >> big
truncate -s 1234567 hole-at-end; printf head | dd of=hole-at-end conv=notrunc status=none
python3 - <<'P'
import os, socket, struct
s = socket.socket(socket.AF_UNIX); s.bind("socket"); s.close()
open(b"not-\xff\xfe-utf8", "w").close(); open(b"new\nline", "w").close()
open("n" * 255, "w").close()
os.symlink("t" * 4095, "long-link")
for i in range(3): os.setxattr("file", f"user.attr{i}", b"v\0" * i)
os.setxattr("file", "user.large", b"L" * 3000)
os.setxattr("dir", "trusted.overlay.opaque", b"y")
os.setxattr("dir/sub", "trusted.overlay.redirect", b"/was/here")
os.setxattr("empty", "trusted.overlay.whiteout", b"")
os.setxattr("link", "trusted.on-link", b"1", follow_symlinks=False)
os.setxattr("device", "trusted.on-device", b"2"); os.setxattr("fifo", "trusted.on-fifo", b"3")
os.setxattr("setgid", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
acl = lambda *e: struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *x) for x in e)
U = 0xffffffff
os.setxattr("owned", "system.posix_acl_access", acl((1, 6, U), (2, 7, 1000), (4, 4, U), (16, 7, U), (32, 0, U)))
os.setxattr("empty-dir", "system.posix_acl_default", acl((1, 7, U), (2, 5, 99), (4, 5, U), (16, 5, U), (32, 5, U)))
open("empty-dir/inherits", "w").close()
os.utime("file", ns=(1, 1_000_000_000_123_456_789)); os.utime("empty", ns=(0, -5_000_000_001))
os.utime("link", ns=(5, 123_000_000_007), follow_symlinks=False); os.utime("fifo", ns=(0, 1))
os.utime("dir/sub", ns=(7, 77_000_000_077)); os.utime("dir", ns=(7, 78_000_000_078)); os.utime(".", ns=(7, 79_000_000_079))
P
"#;
