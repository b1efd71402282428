"""The bundle that every case begins with: a busybox, what an engine puts around it, and nothing more."""

import copy
import json
import os
import pathlib
import shutil

APPLETS = (
    "sh cat chmod chown cut dd echo env false grep head hostname id ionice ip kill ln ls mkdir mknod mount mv nice od"
    " printf ps pwd readlink rm sed seq sleep sort stat sync tail tee test touch tr true tty umount uname unshare wc"
).split()

DEFAULT_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
]  # fmt: skip

BASE = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["sh", "-c", "true"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {kind: DEFAULT_CAPABILITIES for kind in ("bounding", "effective", "permitted")},
    },
    "root": {"path": "rootfs", "readonly": False},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "mount", "uts", "ipc", "network", "cgroup")],
    },
}


def config(cgroup):
    """A fresh configuration, to be changed by a case."""
    base = copy.deepcopy(BASE)
    base["linux"]["cgroupsPath"] = cgroup
    return base


def make_root(path):
    """A root file system: one program under many names."""
    path = pathlib.Path(path)
    for name in "bin dev etc home mnt proc sys tmp".split():
        (path / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), path / "bin/busybox")
    for applet in APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n", encoding="utf-8")
    (path / "etc/group").write_text("root:x:0:\nuser:x:1000:\n", encoding="utf-8")
    os.chmod(path / "tmp", 0o1777)


def write(bundle, configuration):
    with open(pathlib.Path(bundle) / "config.json", "w", encoding="utf-8") as file:
        json.dump(configuration, file, indent=1)
