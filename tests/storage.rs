//! Moves trees between two directories and compares them with an independent program.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "storage/lab.rs"]
mod lab;

use lab::{Lab, ready, settle};

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
