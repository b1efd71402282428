"""Cases about the options that mounts have."""

import subprocess

from case import case, expect, expect_in
from cases_file import HERE, bind


def flags(options, expected, absent=()):
    @case(f"mounts {options}", "config.md: mount options")
    def check(c):
        bind(c, "/mnt", f"bind {options.replace(',', ' ')}")
        c.script(HERE.format("/mnt"))
        seen = set(c.run().split(","))
        expect("what is missing", set(expected) - seen, set())
        expect("what is too much", set(absent) & seen, set())


flags("noatime", ["noatime"])
flags("nodiratime", ["nodiratime"])
flags("relatime", ["relatime"])
flags("strictatime", [], ["relatime", "noatime"])
flags("nosymfollow", ["nosymfollow"])
flags("ro,rw", ["rw"], ["ro"])
flags("noexec,exec,nodev,dev,nosuid,suid", ["rw"], ["noexec", "nodev", "nosuid"])


def recursive(options, expected):
    @case(f"mounts rbind,{options}", "config.md: recursive attributes")
    def check(c):
        path = bind(c, "/mnt", f"rbind {options.replace(',', ' ')}")
        below = path / "below"
        below.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
        try:
            c.script(HERE.format("/mnt") + ";" + HERE.format("/mnt/below"))
            lines = c.run().splitlines()
            expect("the number of mounts", len(lines), 2)
            for where, line in zip(("above", "below"), lines):
                expect(f"what is missing {where}", set(expected) - set(line.split(",")), set())
        finally:
            subprocess.run(["umount", "-l", below], check=True)


recursive("rnosuid,rnodev,rnoexec", ["nosuid", "nodev", "noexec"])
recursive("rnoatime", ["noatime"])
recursive("rnosymfollow", ["nosymfollow"])
recursive("rro,rnosuid", ["ro", "nosuid"])


@case("mounts rbind,ro", "config.md: mount options; without the r, the top alone")
def top_alone(c):
    path = bind(c, "/mnt", "rbind ro")
    below = path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        c.script("touch /mnt/x 2>/dev/null || echo top; touch /mnt/below/x && echo below")
        c.prints("top\nbelow")
    finally:
        subprocess.run(["umount", "-l", below], check=True)


def propagation(option, mark, absent=False):
    @case(f"mounts {option}", "config.md: mount options; propagation")
    def check(c):
        path = bind(c, "/mnt", f"rbind {option}")
        subprocess.run(["mount", "--bind", path, path], check=True)
        subprocess.run(["mount", "--make-shared", path], check=True)
        try:
            c.script("grep ' /mnt ' /proc/self/mountinfo")
            expect(f"{mark} is there", mark in c.run(), not absent)
        finally:
            subprocess.run(["umount", "-l", path], check=True)


propagation("rslave", "master:")
propagation("slave", "master:")
propagation("rprivate", "shared:", absent=True)
propagation("runbindable", "unbindable")


@case("mounts rslave, what is mounted later", "config.md: mount options; it arrives")
def later(c):
    path = bind(c, "/mnt", "rbind rslave")
    (path / "late").mkdir()
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "--make-shared", path], check=True)
    try:
        c.linux["rootfsPropagation"] = "rslave"
        c.sleeping()
        subprocess.run(["mount", "-t", "tmpfs", "none", path / "late"], check=True)
        (path / "late/file").write_text("late", encoding="utf-8")
        expect("the file", c.exec("cat", "/mnt/late/file"), "late")
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def root(value, mark, absent=False):
    @case(f"linux.rootfsPropagation {value}", "config-linux.md: rootfsPropagation")
    def check(c):
        c.linux["rootfsPropagation"] = value
        c.script("grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo")
        expect(f"{mark} is there", mark in c.run(), not absent)


root("private", "shared:", absent=True)
root("slave", "shared:", absent=True)
root("unbindable", "unbindable")


@case("mounts.destination relative", "config.md: mounts.destination; taken from the root")
def relative(c):
    bind(c, "mnt", "bind")
    c.script("cat /mnt/file")
    c.prints("content")


@case("mounts, a file system that does not exist", "config.md: mounts.type; an error")
def unknown_type(c):
    c.config["mounts"].append({"destination": "/mnt", "type": "no-such-fs", "source": "none"})
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
    c.fails("state", c.id)


@case("mounts, an option that does not exist", "config.md: mounts.options; the file system refuses it")
def unknown_option(c):
    c.config["mounts"].append({"destination": "/mnt", "type": "tmpfs", "source": "none", "options": ["no-such-option"]})
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("mounts ridmap", "config.md: uidMappings of mounts; what is below, too")
def ridmap(c):
    path = bind(c, "/mnt", "rbind ridmap")
    below = path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        (below / "file").write_text("x", encoding="utf-8")
        maps = [{"containerID": 0, "hostID": 5000, "size": 10}]
        c.config["mounts"][-1].update(uidMappings=maps, gidMappings=maps)
        c.script("stat -c %u:%g /mnt/file /mnt/below/file")
        c.prints("5000:5000\n5000:5000")
    finally:
        subprocess.run(["umount", "-l", below], check=True)


@case("mounts idmap in a user namespace", "config.md: uidMappings of mounts; a volume whose files are root's on the host")
def idmap_user(c):
    path = bind(c, "/mnt", "bind idmap")
    c.in_user_namespace()
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    c.config["mounts"][-1].update(uidMappings=maps, gidMappings=maps)
    c.script("stat -c %u:%g /mnt/file; echo new > /mnt/new && echo written")
    c.prints("0:0\nwritten")
    seen = (path / "new").stat()
    expect("the owner on the host", (seen.st_uid, seen.st_gid), (0, 0))


@case("linux.devices in the way of a file", "config-linux.md: devices; a file that does not match is an error")
def devices_mismatch(c):
    (c.root / "etc/device").write_text("x", encoding="utf-8")
    c.linux["devices"] = [{"path": "/etc/device", "type": "c", "major": 1, "minor": 3}]
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("linux.devices of a block device", "config-linux.md: devices.type")
def devices_block(c):
    c.linux["devices"] = [{"path": "/dev/block0", "type": "b", "major": 7, "minor": 0}]
    c.script("stat -c '%F %t:%T' /dev/block0")
    expect_in("it", "block special file 7:0", c.run())


@case("root missing", "config.md: root is REQUIRED")
def no_root(c):
    del c.config["root"]
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
