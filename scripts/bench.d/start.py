"""Lives of minimal containers, one of each runtime in turn, and what they cost: start.json and start.md."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

RUNTIMES = ("godwit", "runc", "crun")
FIELDS = ("create_ms", "start_ms", "delete_ms", "whole_ms", "verbs_kib", "process_kib")
SCALE = (1e-6, 1e-6, 1e-6, 1e-6, 1, 1)
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
PLAIN = ["nosuid", "noexec", "nodev"]

NOTES = """
Median (5 %–95 %) of {lives} lives each. *Verbs*: create, start and delete together; *whole*: with the container's own
life in between. *Memory*: the most that any of these processes ever had resident, the container's first process
before its exec included.
"""


def config():
    """What `runc spec` writes, with a program that ends at once."""
    mounts = (
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", [*PLAIN, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", PLAIN),
        ("/sys", "sysfs", "sysfs", [*PLAIN, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*PLAIN, "relatime", "ro"]),
    )
    masked = "acpi asound kcore keys latency_stats timer_list timer_stats sched_debug scsi".split()
    protected = "bus fs irq sys sysrq-trigger".split()
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/busybox", "true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": where, "type": kind, "source": source, "options": options}
            for where, kind, source, options in mounts
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "maskedPaths": [f"/proc/{name}" for name in masked] + ["/sys/firmware"],
            "readonlyPaths": [f"/proc/{name}" for name in protected],
        },
    }


class Runtime:
    def __init__(self, work, name):
        self.work, self.name = work, name
        self.program = work / "bin" / name
        self.state = work / "state" / name
        self.samples = {field: [] for field in FIELDS}

    def live(self, keep=True):
        """One container's life."""
        self.state.mkdir(parents=True, exist_ok=True)
        tool = [self.work / "bench-tool", "lives", "--runtime", self.program, "--state", self.state]
        tool += ["--bundle", self.work / "bundle", "--pid-file", self.work / "pid"]
        done = subprocess.run(tool, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{self.name}: {done.stderr.strip()}")
        if keep:
            for field, scale, text in zip(FIELDS, SCALE, done.stdout.split()):
                self.samples[field].append(int(text) * scale)

    def version(self):
        said = subprocess.run([self.program, "--version"], capture_output=True, text=True, check=False).stdout
        return said.splitlines()[0] if said else "?"

    def result(self):
        samples = self.samples
        verbs = [sum(three) for three in zip(samples["create_ms"], samples["start_ms"], samples["delete_ms"])]
        memory = [max(two) for two in zip(samples["verbs_kib"], samples["process_kib"])]
        both = {**samples, "verbs_ms": verbs, "memory_kib": memory}
        return {field: summary(values) for field, values in both.items()} | {"version": self.version()}


def summary(values):
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered),
        "low": ordered[round(last * 0.05)],
        "high": ordered[round(last * 0.95)],
        "most": ordered[-1],
    }


def rules(results):
    """What must be shown of Godwit."""
    mine = results["godwit"]
    if "crun" in results:
        limit, found = results["crun"]["verbs_ms"]["median"], mine["verbs_ms"]["median"]
        yield {"rule": f"as fast as crun: {found:.2f} ms, {limit:.2f} ms", "holds": found <= limit}
    if "runc" in results:
        limit, found = results["runc"]["memory_kib"]["most"], mine["memory_kib"]["most"]
        yield {"rule": f"less memory than runc: {found} KiB, {limit} KiB", "holds": found < limit}


def report(document):
    head = ("create", "start", "delete", "verbs", "whole")
    lines = ["# Containers that begin and end", ""]
    machine = document["machine"]
    lines.append(f"- kernel {machine['kernel']}, {machine['cores']} cores, load at the start {machine['load']:.2f}")
    lines += [f"- {name}: {found['version']}" for name, found in document["results"].items()]
    lines += ["", "| | " + " | ".join(f"{name}, ms" for name in head) + " | memory, MiB |", "|---" * 7 + "|"]
    for name, found in document["results"].items():
        times = (found[f"{column}_ms"] for column in head)
        cells = [f"{t['median']:.2f} ({t['low']:.2f}–{t['high']:.2f})" for t in times]
        cells.append(f"{found['memory_kib']['most'] / 1024:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(NOTES.format(lives=document["lives"]))
    lines += [f"- {'yes' if rule['holds'] else 'NO'}: {rule['rule']}" for rule in document["rules"]]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--lives", type=int, required=True)
    asked = parser.parse_args()
    (asked.work / "bundle/config.json").write_text(json.dumps(config(), indent=1), encoding="utf-8")
    here = [Runtime(asked.work, name) for name in RUNTIMES if (asked.work / "bin" / name).exists()]
    machine = {"kernel": platform.release(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    for runtime in here:
        # The first life of each pays for what is then cached.
        runtime.live(keep=False)
    for number in range(asked.lives):
        turn = number % len(here)
        for runtime in here[turn:] + here[:turn]:
            runtime.live()
    results = {runtime.name: runtime.result() for runtime in here}
    document = {"machine": machine, "lives": asked.lives, "results": results, "rules": list(rules(results))}
    (asked.out / "start.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    text = report(document)
    (asked.out / "start.md").write_text(text, encoding="utf-8")
    print(text)


main()
