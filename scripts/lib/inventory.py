#!/usr/bin/env python3
"""Counts what a lab host has of everything that could be left behind, and compares two such counts.

    inventory.py take                          (on the host) JSON on standard output
    inventory.py compare BEFORE AFTER          status 1 when AFTER has more of anything; a line for each

It asks the kernel alone (/proc, /sys, `ip`), never Godwit.
"""

import collections
import json
import os
import re
import subprocess
import sys

# A tmpfs may differ by a page here and there (a socket's inode, a journal of another length).
TMPFS_SLACK = 128 * 1024


def processes():
    """pid → command line, for all but this program, those that brought it here, and the kernel's own threads."""
    mine, pid = set(), os.getpid()
    while pid:
        mine.add(pid)
        pid = parent(pid)
    found = {}
    has_kernel = name_of(2) == "kthreadd"
    for entry in os.listdir("/proc"):
        # Where this host has a kernel of its own, 2 is the parent of that one's threads.
        if not entry.isdigit() or int(entry) in mine or (has_kernel and 2 in (int(entry), parent(entry))):
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")[:3]
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue  # it has ended
        name = text[text.index("(") + 1 : text.rindex(")")]
        state = text[text.rindex(")") + 2]
        command = " ".join(word.decode(errors="replace") for word in words if word) or f"[{name}]"
        found[int(entry)] = f"zombie {name}" if state == "Z" else command
    return found


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def mounts(pids):
    """Mount points of every mount namespace on the host, and the tmpfs among the host's own."""
    seen, points = set(), collections.Counter()
    for pid in pids:
        try:
            space = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if space in seen:
                continue
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        seen.add(space)
        for line in lines:
            left, right = line.split(" - ", 1)
            point = left.split(" ")[4]
            points[f"{right.split(' ')[0]} {unnumbered(point)}"] += 1
    return points


def tmpfs():
    """Bytes used in each tmpfs of the host's own tree."""
    used = {}
    with open("/proc/1/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            left, right = line.split(" - ", 1)
            point = left.split(" ")[4]
            if right.split(" ")[0] == "tmpfs":
                try:
                    facts = os.statvfs(point)
                except OSError:
                    continue
                used[unnumbered(point)] = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    return used


def namespaces(pids):
    kinds = collections.defaultdict(set)
    for pid in pids:
        for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "uts", "user"):
            try:
                kinds[kind].add(os.stat(f"/proc/{pid}/ns/{kind}").st_ino)
            except OSError:
                pass
    return {kind: len(inodes) for kind, inodes in kinds.items()}


def links():
    out = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = [line.split(": ")[1].split("@")[0] for line in out.splitlines()]
    return collections.Counter(names)


def cgroups():
    return collections.Counter(
        os.path.relpath(path, "/sys/fs/cgroup") for path, _, _ in os.walk("/sys/fs/cgroup")
    )


def open_files(running):
    """What Godwit's processes hold open, by process and kind."""
    count = collections.Counter()
    for pid, command in running.items():
        if not re.search(r"(^|/)(godwit|criu)( |$)", command):
            continue
        verb = " ".join(command.split(" ")[:2])
        try:
            for entry in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{entry}")
                kind = target.split(":", 1)[0] if not target.startswith("/") else unnumbered(target)
                count[f"{verb}: {kind}"] += 1
        except OSError:
            continue
    return count


def files():
    """Files in the host's state and run directories: names, without what an image or a log has in it, and
    without the journal of migrations, which remembers the last 200."""
    count = collections.Counter()
    for top in ("/run/godwit", "/var/lib/godwit"):
        for path, names, here in os.walk(top):
            if re.search(r"/images/[^/]+|/rootfs|/upper|^/var/lib/godwit/migrations", path):
                names.clear()
                continue
            for name in here:
                count[unnumbered(os.path.join(path, name))] += 1
    return count


def unnumbered(path):
    """A path without what differs from one migration to the next: ids, pids, digests."""
    return re.sub(r"(?<=/)[0-9a-f-]{8,}(?=$|[./])|\d{3,}", "N", path)


def take():
    running = processes()
    report = {
        "processes": collections.Counter(unnumbered(command) for command in running.values()),
        "namespaces": namespaces(running),
        "mounts": mounts(running),
        "links": links(),
        "cgroups": cgroups(),
        "open files": open_files(running),
        "files": files(),
        "tmpfs": tmpfs(),
    }
    json.dump(report, sys.stdout, indent=1, sort_keys=True)
    print()
    return 0


def compare(before_path, after_path):
    with open(before_path, encoding="utf-8") as file:
        before = json.load(file)
    with open(after_path, encoding="utf-8") as file:
        after = json.load(file)
    grown = 0
    for kind, things in after.items():
        slack = TMPFS_SLACK if kind == "tmpfs" else 0
        for thing, count in things.items():
            had = before[kind].get(thing, 0)
            if count > had + slack:
                print(f"{kind}: {thing}: {had} before, {count} after")
                grown += 1
    return 1 if grown else 0


def main():
    match sys.argv[1:]:
        case ["take"]:
            return take()
        case ["compare", before, after]:
            return compare(before, after)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
