#!/usr/bin/env python3
"""Runs all cases with all runtimes and writes conformance.json and conformance.md. Called by scripts/conformance."""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import bundle
from case import CASES, Container, Failed, Refused

import cases_file  # noqa: F401  each registers its cases
import cases_hook  # noqa: F401
import cases_life  # noqa: F401
import cases_limit  # noqa: F401
import cases_mount  # noqa: F401
import cases_network  # noqa: F401
import cases_process  # noqa: F401
import cases_seccomp  # noqa: F401

# A refusal for what this machine's cgroup v2 hierarchy does not have.
NO_CONTROLLER = re.compile(r"cgroup v2 has no|controller")


CGROUPS = pathlib.Path("/sys/fs/cgroup")


def run_case(function, runtime, place, root):
    """The result, and the reason where it is not a pass."""
    container = Container(runtime, place, root)
    try:
        result = "pass", ""
        function(container)
    except Refused as error:
        result = "refused", str(error)
    except Failed as error:
        result = "fail", str(error)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        result = "fail", f"{type(error).__name__}: {error}"
    container.clean()
    cgroup = CGROUPS / container.cgroup.lstrip("/")
    if cgroup.exists():
        remove_cgroups(cgroup)
        if result[0] != "fail":
            result = "fail", f"its cgroup was left behind; {result[0]} otherwise: {result[1]}"
    return result


def remove_cgroups(path):
    """Removes a tree of cgroups in which nobody is."""
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)


def version(program):
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "?"


def falls_behind(results):
    """Whether somebody else passes what Godwit does not."""
    result, reason = results.get("godwit", ("pass", ""))
    if result == "pass" or (result == "refused" and NO_CONTROLLER.search(reason)):
        return False
    return any(other == "pass" for name, (other, _) in results.items() if name != "godwit")


def table(names, versions, rows):
    lines = ["| case | clause | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for name, clause, results in rows:
        lines.append(f"| {name} | {clause} | " + " | ".join(results[n][0] for n in names) + " |")
    counts = [sum(results[n][0] == "pass" for _, _, results in rows) for n in names]
    lines += ["| **passed** | | " + " | ".join(f"**{count}** of {len(rows)}" for count in counts) + " |", ""]
    lines += [f"- {name}: {versions[name]}" for name in names]
    lines += ["", "What is not a pass, and why:", ""]
    for name, _, results in rows:
        lines += [f"- {name}, {n}: {results[n][0]}: {results[n][1]}" for n in names if results[n][0] != "pass"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--runtimes", default="godwit,runc,crun")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--peers", required=True, type=pathlib.Path)
    parser.add_argument("--godwit", required=True)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    chosen = [one for one in CASES if options.only in one[0]]
    if options.list:
        for name, clause, _ in chosen:
            print(f"{name}: {clause}")
        return 0
    names = options.runtimes.split(",")
    programs = {name: options.godwit if name == "godwit" else str(options.peers / "bin" / name) for name in names}
    for name, program in programs.items():
        if not os.access(program, os.X_OK):
            print(f"conformance: {name} is not at {program}: run scripts/setup --bench", file=sys.stderr)
            return 2
    # Programs may print it, and a case compares it.
    os.umask(0o022)
    place = pathlib.Path(tempfile.mkdtemp(prefix="godwit-conformance-"))
    os.chmod(place, 0o755)
    rows, behind = [], []
    try:
        bundle.make_root(place / "rootfs")
        for name, clause, function in chosen:
            results = {}
            for runtime in names:
                results[runtime] = run_case(function, programs[runtime], place / f"{runtime}-{len(rows)}", place / "rootfs")
            rows.append((name, clause, results))
            marks = "  ".join(f"{runtime}: {results[runtime][0]}" for runtime in names)
            print(f"{name:44} {marks}", flush=True)
            if falls_behind(results):
                behind.append(name)
                print(f"    godwit: {results['godwit'][1]}", flush=True)
    finally:
        if (CGROUPS / "godwit-conformance").exists():
            remove_cgroups(CGROUPS / "godwit-conformance")
        if options.keep:
            print(f"left at {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    versions = {name: version(program) for name, program in programs.items()}
    (options.out / "conformance.md").write_text(table(names, versions, rows), encoding="utf-8")
    report = [
        {"case": name, "clause": clause, "results": {n: dict(zip(("result", "reason"), results[n])) for n in names}}
        for name, clause, results in rows
    ]
    (options.out / "conformance.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    for name in names:
        passed = sum(results[name][0] == "pass" for _, _, results in rows)
        print(f"{name}: {passed} of {len(rows)} passed")
    if behind:
        print(f"godwit falls behind in {len(behind)}: {', '.join(behind)}")
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
