#!/usr/bin/env python3
"""Measures all subjects side by side and writes bench.json, bench.md and bench.svg. Called by scripts/bench."""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from dataclasses import dataclass

import chart
import extras
import hosts
import judge
import measure
import report
import subjects
from hosts import TREE, Failed, Lab

METRICS = (
    "blackout_ms stall_ms total_ms wire_bytes cpu_s extra_source_mib extra_destination_mib kept_throughput"
    " retransmissions reported_blackout_ms reported_wire_bytes"
).split()
EMPTY = ("criu-floor", "criu-bare")


@dataclass(frozen=True)
class Cell:
    mib: int
    rate: int
    data: str


@dataclass(frozen=True)
class Places:
    work: pathlib.Path
    peers: pathlib.Path
    tool: pathlib.Path
    root: pathlib.Path


def numbers(text):
    values = [int(word) for word in text.split(",") if word]
    if not values or min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers")
    return values


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--peers", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--sizes", type=numbers, required=True)
    parser.add_argument("--rates", type=numbers, required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--data", choices=("3:1", "random"), default="3:1")
    parser.add_argument("--subjects", default="")
    parser.add_argument("--extras", default="")
    return parser.parse_args()


def say(*words):
    print(*words, flush=True)


def command_output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def first_line_with(path, pattern):
    try:
        return re.search(pattern, pathlib.Path(path).read_text(encoding="utf-8"), re.M).group(1).strip()
    except (OSError, AttributeError):
        return ""


def machine(option, lab, places):
    """What the figures depend on."""
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "backend": hosts.backend() + (f", {hosts.fact('accel', '')}" if lab.alpha.is_machine else ""),
        "kernel": lab.alpha.run("uname", "-r").strip(),
        "cores": os.cpu_count(),
        "processor": first_line_with("/proc/cpuinfo", r"^model name\s*:\s*(.*)$"),
        "virtual": command_output("systemd-detect-virt") or "unknown",
        "memory_mib": int(first_line_with("/proc/meminfo", r"^MemTotal:\s*(\d+)") or 0) // 1024,
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "soft_dirty": subjects.trackers(lab).get("soft-dirty", "") is None,
        "thp": first_line_with_text(lab.alpha.run("cat", "/sys/kernel/mm/transparent_hugepage/enabled"), r"\[(\w+)\]"),
        "distribution": first_line_with_text(lab.alpha.run("cat", "/etc/os-release"), r'^PRETTY_NAME="(.*)"'),
        "godwit": lab.alpha.run("godwit", "--version").strip(),
        "commit": command_output("git", "-C", str(TREE), "describe", "--always", "--dirty", "--exclude", "*"),
        "criu": first_line_with_text(lab.alpha.run("criu", "--version"), r"^Version: (.*)$"),
        "peers": dict(
            line.split(" ", 1)
            for line in (places.peers / "versions").read_text(encoding="utf-8").splitlines()
            if line.startswith(("runc ", "crun ", "iptables "))
        )
        if (places.peers / "versions").exists()
        else {},
        "memory_accounting": "cgroup v2" if lab.alpha.memory.v2 else "cgroup v1" if lab.alpha.memory.v1 else "none",
        "runs": option.runs,
        "data": option.data,
    }


def first_line_with_text(text, pattern):
    found = re.search(pattern, text, re.M)
    return found.group(1).strip() if found else ""


def chosen(option, lab, places):
    """The subjects that were asked for and can be measured here, and what cannot, with the reason."""
    everybody = subjects.all_subjects(lab, places)
    wanted = option.subjects.split(",") if option.subjects else [subject.name for subject in everybody]
    unknown = set(wanted) - {subject.name for subject in everybody} - {"godwit"}
    if unknown:
        sys.exit(f"no subject is called {', '.join(sorted(unknown))}: {', '.join(s.name for s in everybody)} are")
    mine = [s for s in everybody if s.name in wanted or "godwit" in wanted and s.name.startswith("godwit")]
    return [s for s in mine if not s.missing], {s.name: s.missing for s in mine if s.missing}


def fresh_memory():
    """What the kernel keeps of files goes, and free memory is put together: whoever has built something before has every
    page that is asked for taken from somebody, and 2 GiB then take half as long again."""
    os.sync()
    for path, value in (("/proc/sys/vm/drop_caches", "3"), ("/proc/sys/vm/compact_memory", "1")):
        try:
            pathlib.Path(path).write_text(value, encoding="ascii")
        except OSError as error:
            say(f"memory is as it was: {error}")


def warm_up(lab, places, mine, cell):
    """A machine that has just booted has nothing in its page cache, and its emulator has translated nothing: the first
    move costs twice what the others do."""
    for subject in mine:
        try:
            one(lab, places, subject, cell)
        except (Failed, OSError, subprocess.SubprocessError, ValueError) as error:
            say(f"while warming up, {subject.name}: {error}")


def measure_all(option, lab, places, mine, skipped):
    """Round by round, in each one every subject: so that what disturbs the machine disturbs all alike."""
    samples, failures = {}, {}
    cells = [Cell(mib, rate, option.data) for mib in option.sizes for rate in option.rates]
    if lab.alpha.is_machine:
        warm_up(lab, places, mine, cells[0])
    steps, done, begin = len(cells) * option.runs * len(mine), 0, time.monotonic()
    for cell in cells:
        if option.runs > 1 and not lab.alpha.is_machine:
            fresh_memory()
        for number in range(option.runs):
            for subject in mine:
                done += 1
                key = subject.name, cell
                if len(failures.get(key, [])) >= 2 and key not in samples:
                    continue
                try:
                    sample = one(lab, places, subject, cell)
                    samples.setdefault(key, []).append(sample)
                    told = (
                        f"blackout {sample['blackout_ms']:.0f} ms, stall {sample.get('stall_ms') or float('nan'):.0f} ms,"
                        f" total {sample['total_ms'] / 1e3:.2f} s"
                    )
                except (Failed, OSError, subprocess.SubprocessError, ValueError) as error:
                    failures.setdefault(key, []).append(str(error))
                    told = f"FAILED: {error}"
                left = (time.monotonic() - begin) / done * (steps - done) / 60
                say(f"[{done}/{steps}, {left:.0f} min left] {cell.mib} MiB, {cell.rate}/s, {subject.name}: {told}")
    return [as_cell(key, samples.get(key, []), failures.get(key, [])) for key in keys(cells, mine)]


def one(lab, places, subject, cell):
    if subject.name in EMPTY:
        # Measured beside each cell, and empty each time.
        return measure.run(lab, places.tool, subject, Cell(0, 0, cell.data))
    return measure.run(lab, places.tool, subject, cell)


def keys(cells, mine):
    return [(subject.name, cell) for cell in cells for subject in mine]


def as_cell(key, samples, failures):
    name, cell = key
    out = {"subject": name, "memory_mib": cell.mib, "dirty_pages_per_s": cell.rate, "runs": len(samples)}
    if name in EMPTY:
        out["empty"] = True
    for metric in METRICS:
        out[metric] = measure.summary([sample.get(metric) for sample in samples])
    out["extra_memory_mib"] = {"source": out.pop("extra_source_mib"), "destination": out.pop("extra_destination_mib")}
    out["runs_without_retransmission"] = sum(1 for sample in samples if sample.get("retransmissions") == 0)
    out["failures"] = failures
    out["samples"] = samples
    return out


def write(option, result):
    option.out.mkdir(parents=True, exist_ok=True)
    (option.out / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (option.out / "bench.md").write_text(report.markdown(result), encoding="utf-8")
    (option.out / "bench.svg").write_text(chart.svg(result), encoding="utf-8")


def main():
    option = options()
    lab = Lab()
    places = Places(option.work, option.peers, option.work / "root/bin/bench-tool", option.work / "root")
    lab.alpha.run("godwit", "template", "build", "bench")
    mine, skipped = chosen(option, lab, places)
    for name, why in skipped.items():
        say(f"{name} is left out: {why}")
    result = {"machine": machine(option, lab, places), "skipped": skipped, "cells": [], "extras": {}}
    result["cells"] = measure_all(option, lab, places, mine, skipped)
    for name in option.extras.split(","):
        if name:
            result["extras"][name] = extras.run(name, option, lab, places, say)
    result["must_show"] = judge.judge(result)
    write(option, result)
    say("")
    for rule in result["must_show"]:
        say(report.rule_line(rule))
    say(f"\nwritten: {option.out}/bench.md, bench.svg, bench.json")
    return 1 if any(cell["failures"] for cell in result["cells"]) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except Failed as error:
        sys.exit(f"bench: {error}")
