"""Cases about root, mounts, devices, and protected paths."""

import os
import pathlib
import subprocess

from case import Failed, case, expect, expect_in

HERE = "while read -r _ _ _ _ at options _; do [ \"$at\" = {0} ] && echo $options; done < /proc/self/mountinfo; true"


def bind(c, destination, options, source="source"):
    path = c.bundle / source
    path.mkdir(exist_ok=True)
    (path / "file").write_text("content", encoding="utf-8")
    c.config["mounts"].append(
        {"destination": destination, "type": "bind", "source": str(path), "options": options.split()}
    )
    return path


@case("root.readonly", "config.md: root.readonly")
def readonly(c):
    c.config["root"]["readonly"] = True
    c.script("touch /x 2>/dev/null && echo written; echo done")
    c.prints("done")


@case("root.path is the whole world", "config.md: root")
def whole_world(c):
    (c.root / "etc/mark").write_text("ours", encoding="utf-8")
    c.script("cat /etc/mark; ls / | tr '\\n' ' '; cd /..; ls -d etc")
    expect_in("what is seen", "ours", c.run())


@case("root.path absolute", "config.md: root.path")
def root_absolute(c):
    c.config["root"]["path"] = str(c.root)
    c.script("echo here")
    c.prints("here")


@case("root.path not there", "config.md: root.path MUST be a directory")
def root_missing(c):
    c.config["root"]["path"] = "nowhere"
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
    c.fails("state", c.id)


@case("mounts bind", "config.md: mounts")
def mounts_bind(c):
    path = bind(c, "/mnt/made/for/it", "bind")
    c.script("cat /mnt/made/for/it/file; echo new > /mnt/made/for/it/new")
    c.prints("content")
    expect("the file on the host", (path / "new").read_text(encoding="utf-8"), "new\n")


@case("mounts bind of a file", "config.md: mounts")
def mounts_file(c):
    path = bind(c, "/mnt/unused", "bind")
    c.config["mounts"][-1].update(destination="/etc/new/name", source=str(path / "file"))
    c.script("cat /etc/new/name")
    c.prints("content")


@case("mounts bind, source relative", "config.md: mounts.source is relative to the bundle")
def mounts_relative(c):
    bind(c, "/mnt", "bind")
    c.config["mounts"][-1]["source"] = "source"
    c.script("cat /mnt/file")
    c.prints("content")


@case("mounts bind, source not there", "config.md: mounts; an error")
def mounts_missing(c):
    c.config["mounts"].append({"destination": "/mnt", "type": "bind", "source": "/no/such", "options": ["bind"]})
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("mounts bind,ro", "config.md: mount options")
def mounts_ro(c):
    bind(c, "/mnt", "bind ro")
    c.script("echo x 2>/dev/null > /mnt/new; cat /mnt/file; ls /mnt")
    c.prints("contentfile")


@case("mounts bind,nosuid,nodev,noexec", "config.md: mount options")
def mounts_flags(c):
    bind(c, "/mnt", "bind nosuid nodev noexec")
    c.script(HERE.format("/mnt"))
    seen = set(c.run().split(","))
    expect("what is missing", {"nosuid", "nodev", "noexec"} - seen, set())


@case("mounts rbind,rro", "config.md: recursive attributes")
def mounts_rro(c):
    path = bind(c, "/mnt", "rbind rro")
    below = path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        c.script("touch /mnt/x 2>/dev/null && echo top; touch /mnt/below/x 2>/dev/null && echo below; echo done")
        c.prints("done")
    finally:
        subprocess.run(["umount", "-l", below], check=True)


@case("mounts rbind takes what is below", "config.md: mount options")
def mounts_rbind(c):
    path = bind(c, "/mnt", "rbind")
    below = path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        (below / "deep").write_text("deep", encoding="utf-8")
        c.script("cat /mnt/below/deep")
        c.prints("deep")
    finally:
        subprocess.run(["umount", "-l", below], check=True)


@case("mounts tmpfs with size and mode", "config.md: mounts; options of the file system")
def mounts_tmpfs(c):
    c.config["mounts"].append(
        {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=65536", "mode=1750"]}
    )
    c.script("stat -c %a /mnt; dd if=/dev/zero of=/mnt/x bs=4096 count=100 2>/dev/null; stat -c %s /mnt/x")
    c.prints("1750\n65536")


@case("mounts tmpcopyup", "runtimes' extension: what was there is copied")
def mounts_copyup(c):
    (c.root / "mnt/kept").write_text("kept", encoding="utf-8")
    c.config["mounts"].append({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]})
    c.script("cat /mnt/kept; echo new > /mnt/kept")
    c.prints("kept")
    expect("the original", (c.root / "mnt/kept").read_text(encoding="utf-8"), "kept")


@case("mounts in their order", "config.md: mounts MUST be made in the listed order")
def mounts_order(c):
    tmpfs = {"type": "tmpfs", "source": "tmpfs", "options": []}
    c.config["mounts"] += [{"destination": "/mnt", **tmpfs}, {"destination": "/mnt/a", **tmpfs}]
    c.script("grep -c ' /mnt' /proc/self/mountinfo; ls /mnt")
    c.prints("2\na")


@case("mounts over a link out of the root", "a link in the image leads nowhere outside of it")
def mounts_link(c):
    outside = c.directory / "outside"
    outside.mkdir()
    (c.root / "link").symlink_to(outside)
    bind(c, "/link/made", "bind")
    c.write()
    c.call("run", "--bundle", c.bundle, c.id)
    expect("what was made outside", os.listdir(outside), [])


@case("mounts proc over a link", "a link in the place of /proc is not followed")
def mounts_proc_link(c):
    os.rmdir(c.root / "proc")
    (c.root / "proc").symlink_to("/tmp")
    c.script("echo ran; cat /proc/self/attr/current")
    c.write()
    code, _, _ = c.call("run", "--bundle", c.bundle, c.id)
    expect("it was refused", code != 0, True)


@case("mounts mqueue", "config-linux.md: default filesystems")
def mounts_mqueue(c):
    c.config["mounts"].append({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]})
    c.script("grep -c ' - mqueue ' /proc/self/mountinfo")
    c.prints("1")


@case("mounts cgroup", "config-linux.md: the container's own cgroups")
def mounts_cgroup(c):
    c.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]}
    )
    c.script("grep -q ' /sys/fs/cgroup.* - cgroup' /proc/self/mountinfo && echo mounted")
    c.prints("mounted")


@case("mounts propagation", "config.md: mount options rslave, rshared")
def mounts_propagation(c):
    bind(c, "/mnt", "rbind rshared")
    c.script("grep ' /mnt ' /proc/self/mountinfo")
    expect_in("the mount", "shared:", c.run())


@case("mounts idmap", "config.md: uidMappings of mounts")
def mounts_idmap(c):
    path = bind(c, "/mnt", "bind idmap")
    os.chown(path / "file", 0, 0)
    maps = [{"containerID": 0, "hostID": 5000, "size": 10}]
    c.config["mounts"][-1].update(uidMappings=maps, gidMappings=maps)
    c.script("stat -c %u:%g /mnt/file")
    c.prints("5000:5000")


@case("linux.rootfsPropagation", "config-linux.md: rootfsPropagation")
def propagation(c):
    c.linux["rootfsPropagation"] = "shared"
    c.script("grep ' / / \\| / .* / ' /proc/self/mountinfo; grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo")
    expect_in("the root", "shared:", c.run())


@case("mounts do not reach the host", "the default propagation is private to the container")
def no_way_back(c):
    c.process["capabilities"] = {
        kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")
    }
    c.script("mount -t tmpfs none /mnt && echo mounted")
    c.prints("mounted")
    expect("it is seen outside", str(c.root) in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8"), False)


@case("linux.maskedPaths", "config-linux.md: maskedPaths")
def masked(c):
    (c.root / "mnt/dir").mkdir()
    (c.root / "mnt/dir/secret").write_text("secret", encoding="utf-8")
    (c.root / "mnt/file").write_text("secret", encoding="utf-8")
    c.linux["maskedPaths"] = ["/mnt/dir", "/mnt/file", "/proc/kcore", "/not/there"]
    c.script("cat /mnt/file; ls /mnt/dir; head -c 1 /proc/kcore; echo done")
    c.prints("done")


@case("linux.readonlyPaths", "config-linux.md: readonlyPaths")
def readonly_paths(c):
    (c.root / "mnt/dir").mkdir()
    c.linux["readonlyPaths"] = ["/mnt/dir", "/proc/sys", "/not/there"]
    c.script("touch /mnt/dir/x 2>/dev/null && echo dir; echo 1 2>/dev/null > /proc/sys/kernel/msgmax && echo sys; echo done")
    c.prints("done")


@case("default devices", "config-linux.md: default devices")
def devices(c):
    c.script("cd /dev; for d in null zero full random urandom tty; do [ -c $d ] || echo no $d; done; stat -c %a null; readlink ptmx")
    out = c.run().splitlines()
    expect("null's mode and ptmx", (out[0], out[1].lstrip("/")), ("666", "pts/ptmx"))


@case("links in /dev", "runtime-linux.md: /dev symbolic links")
def links(c):
    c.script("cd /dev; readlink fd; readlink stdin; readlink stdout; readlink stderr")
    c.prints("/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2")


@case("linux.devices", "config-linux.md: devices")
def listed(c):
    c.linux["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
    ]
    c.script("stat -c '%F %t:%T %a %u %g' /dev/mine; stat -c '%F %a' /dev/pipe; echo x > /dev/mine && echo works")
    c.prints("character special file 1:3 640 7 8\nfifo 600\nworks")


def spare():
    """A device that opens for everybody who may, and that no container has by itself."""
    for line in pathlib.Path("/proc/misc").read_text(encoding="utf-8").splitlines():
        minor, name = line.split()
        if name in ("fuse", "loop-control"):
            return {"type": "c", "major": 10, "minor": int(minor)}
    raise Failed("the machine has no device to try it with")


TRY = "mknod /tmp/d c 10 {0}; (: < /tmp/d) 2>/dev/null && echo read; (: >> /tmp/d) 2>/dev/null && echo written; echo done"


@case("linux.resources.devices", "config-linux.md: allowed device list")
def allowed(c):
    c.script(TRY.format(spare()["minor"]) + "; (: < /dev/null) && echo null")
    c.prints("done\nnull")


@case("linux.resources.devices allow", "config-linux.md: allowed device list")
def allowed_too(c):
    device = spare()
    c.linux["resources"]["devices"] += [{"allow": True, **device, "access": "r"}]
    c.script(TRY.format(device["minor"]))
    c.prints("read\ndone")


@case("linux.resources.devices, the later rule counts", "config-linux.md: entries are applied in the listed order")
def allowed_order(c):
    device = spare()
    c.linux["resources"]["devices"] += [
        {"allow": True, **device, "access": "rw"},
        {"allow": False, **device, "access": "r"},
    ]
    c.script(TRY.format(device["minor"]))
    c.prints("written\ndone")


@case("devices in a user namespace", "config-linux.md: default devices")
def devices_mapped(c):
    c.in_user_namespace()
    c.script("echo x > /dev/null && head -c 1 /dev/zero | wc -c")
    c.prints("1")


@case("a bundle without linux.namespaces mount", "an error, or the host's mounts stay as they are")
def no_mount_namespace(c):
    before = pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").count("\n")
    c.without("mount")
    c.write()
    c.call("run", "--bundle", c.bundle, c.id)
    lines = pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    for place in reversed([line.split()[4] for line in lines if str(c.directory) in line]):
        subprocess.run(["umount", "-l", place], check=False)
    after = len(lines)
    if after != before:
        raise Failed(f"the host had {before} mounts and has {after}")
