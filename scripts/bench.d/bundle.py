"""The OCI bundle that the peers run: the same program, root, mounts, devices and namespaces as Godwit's container."""

# No /dev/shm and no other tmpfs: each costs CRIU a `tar` in the dump and one in the restore.
MOUNTS = (
    ("/proc", "proc", "nosuid noexec nodev"),
    ("/dev", "tmpfs", "nosuid noexec mode=755 size=65536k"),
    ("/dev/pts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
    ("/dev/mqueue", "mqueue", "nosuid noexec nodev"),
    ("/sys", "sysfs", "nosuid noexec nodev ro"),
    ("/sys/fs/cgroup", "cgroup", "nosuid noexec nodev ro"),
)
# As `runc spec` has it, and every engine; Godwit's containers have theirs from src/rootfs/plan.rs.
READ_ONLY = tuple(f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger"))
MASKED = (
    *(f"/proc/{name}" for name in ("acpi", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi")),
    *(f"/proc/{name}" for name in ("timer_list", "timer_stats")),
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
CAPABILITIES = ("CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID")


def config(root, command, network, cgroup):
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": "bench",
        "mounts": [
            {"destination": where, "type": kind, "source": kind, "options": options.split()}
            for where, kind, options in MOUNTS
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "readonlyPaths": READ_ONLY,
            "maskedPaths": MASKED,
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "uts", "ipc", "cgroup")]
            + [{"type": "network", "path": network}],
        },
    }

