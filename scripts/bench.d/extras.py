"""What the table of moves does not show: pre-copy against a plain copy, a slow link, and a busy Redis."""

import json
import statistics
import subprocess
import time
from dataclasses import dataclass

import measure
import subjects
from hosts import TREE, Failed

MIB = 1 << 20
SINK_PORT = 7999
PAGE = 4096


@dataclass(frozen=True)
class Extra:
    mib: int
    runs: int
    rate: int = 0
    data: str = "random"


def run(name, option, lab, places, say):
    """One extra; a failure is told in its result."""
    say(f"[{name}]")
    size = min(2048, max(option.sizes))
    runs = option.runs if name == "precopy" else min(3, option.runs)
    try:
        if name == "precopy":
            found = precopy(lab, places, Extra(size, runs))
        elif name == "link":
            found = link(lab, places, Extra(size, runs, data="3:1"))
        elif name == "redis":
            found = redis(lab, places, min(512, size), runs)
        else:
            found = {"failed": f"no extra is called {name}"}
    except (Failed, OSError, subprocess.SubprocessError, ValueError) as error:
        found = {"failed": str(error)}
    say(f"[{name}] " + ", ".join(f"{key} {value}" for key, value in found.items() if key != "samples"))
    return found


def with_container(lab, extra, work):
    """A container of the workload for each run, and the medians of what `work` returns for it, by name."""
    samples = []
    for _ in range(extra.runs):
        address = subjects.start_godwit(lab, "bench", "bench-extra", measure.serve(extra))
        try:
            workload = measure.Workload(lab, TOOL, address)
            workload.wait()
            samples.append(work())
            workload.verify()
        finally:
            subjects.delete_godwit(lab, "bench-extra")
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]} | {"samples": samples}


TOOL = None


def copied(text):
    """MiB a second of a plain copy."""
    found = json.loads(text)
    return found["bytes"] / found["seconds"] / MIB


def first_round(report):
    """MiB of memory a second that the first round has taken to the destination."""
    rounds = report["rounds"]
    if not rounds or not rounds[0]["sent"]:
        raise Failed("the migration had no pre-copy round")
    return rounds[0]["sent"] * PAGE / subjects.seconds(rounds[0]["duration"]) / MIB


def container_pid(lab):
    return json.loads(lab.alpha.run("godwit", "inspect", "bench-extra", "--format", "json"))["pid"]


def warm(lab, places, mib):
    """Something that keeps so much free memory at hand, and ends with its input."""
    process = lab.client.spawn_until(places.tool, "warm", "--mib", mib)
    if process.stdout.readline() != "ready\n":
        raise Failed(f"memory could not be touched: {process.communicate()[1]}")
    return process


def available_mib():
    with open("/proc/meminfo", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) // 1024


def precopy(lab, places, extra):
    global TOOL
    TOOL = places.tool
    target = places.work / "copy"
    # The container's, the plain copy's, the page store's and what is restored of it.
    warmed = warm(lab, places, min(5 * extra.mib, available_mib() - 1024))
    try:
        return against_plain(lab, places, extra, target)
    finally:
        warmed.communicate(timeout=60)


def against_plain(lab, places, extra, target):

    def work():
        pid = container_pid(lab)
        plain = {}
        for way in ("write", "map"):
            plain[way] = copied(lab.alpha.run(places.tool, "copy", "--pid", pid, f"--{way}", target))
            target.unlink()
        report = subjects.migrate(lab, "bench-extra")["report"]
        return {
            "godwit_mib_per_s": first_round(report),
            # Read straight into a mapping of the file; and read into a buffer that is then written to it.
            "plain_mib_per_s": plain["map"],
            "buffered_mib_per_s": plain["write"],
        }

    found = with_container(lab, extra, work)
    godwit = found["godwit_mib_per_s"]
    ratios = {"ratio": godwit / found["plain_mib_per_s"], "ratio_buffered": godwit / found["buffered_mib_per_s"]}
    return found | {"mib": extra.mib} | ratios


def link(lab, places, extra):
    """3:1 memory over cables of 1 Gbit/s: Godwit's first round, and the plain copy sent as it is."""
    global TOOL
    TOOL = places.tool
    target = places.work / "copy"

    def work():
        pid = container_pid(lab)
        sink = lab.beta.spawn_until(places.tool, "sink", "--port", SINK_PORT, "--write", target)
        try:
            if sink.stdout.readline() != "ready\n":
                raise Failed("the plain copy's other end did not start")
            plain = copied(lab.alpha.run(places.tool, "copy", "--pid", pid, "--to", f"10.77.0.2:{SINK_PORT}"))
        finally:
            sink.communicate(timeout=20)
            target.unlink(missing_ok=True)
        report = subjects.migrate(lab, "bench-extra")["report"]
        return {"godwit_mib_per_s": first_round(report), "plain_mib_per_s": plain}

    lab.cap("1gbit")
    try:
        found = with_container(lab, extra, work)
    finally:
        lab.cap("full")
    return found | {"mib": extra.mib, "ratio": found["godwit_mib_per_s"] / found["plain_mib_per_s"]}


# ---- Redis

REDIS_PORT = 6379
# The load runs this long before the move; the last seconds of it are what is compared with.
REDIS_BUSY = 5.0


class Commands:
    """How many commands the server has served, asked by its own count over time."""

    def __init__(self, lab, address):
        script = (
            "import socket,sys,time\n"
            f"s=socket.create_connection(('{address}',{REDIS_PORT}))\n"
            "s.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1)\n"
            "while True:\n"
            " s.sendall(b'INFO stats\\r\\n'); d=b''\n"
            " while b'total_commands_processed:' not in d or not d.endswith(b'\\r\\n'):\n"
            "  m=s.recv(65536)\n"
            "  if not m: sys.exit()\n"
            "  d+=m\n"
            " n=d.split(b'total_commands_processed:')[1].split(b'\\r\\n')[0].decode()\n"
            " print(time.time(),n,flush=True); time.sleep(0.02)\n"
        )
        self.process = lab.client.spawn_until("python3", "-c", script)

    def end(self):
        out, _ = self.process.communicate(timeout=20)
        counts = []
        for line in out.splitlines():
            at, count = line.split()
            counts.append((float(at), int(count)))
        return counts


def rate_between(counts, begin, end):
    inside = [point for point in counts if begin <= point[0] <= end]
    if len(inside) < 2:
        raise Failed("too few counts of Redis's commands in the time of interest")
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def redis(lab, places, mib, runs):
    """redis-benchmark against a container with data: commands a second before, and while it is being copied."""
    lab.alpha.run("godwit", "template", "build", "redis", timeout=600)
    samples = [redis_once(lab, places, mib) for _ in range(runs)]
    found = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    return found | {"mib": mib, "samples": samples}


def redis_once(lab, places, mib):
    address = subjects.start_godwit(lab, "redis", "bench-redis")
    load = counter = None
    try:
        deadline = time.monotonic() + 30
        while "PONG" not in lab.client.run("redis-cli", "-h", address, "ping", check=False):
            if time.monotonic() > deadline:
                raise Failed("redis does not answer")
            time.sleep(0.1)
        client = str(TREE / "scripts/lib/redis_client.py")
        lab.client.run(
            "python3", client, "load", "--host", address, "--state", places.work / "redis-keys", "--mib", mib
        )
        load = lab.client.spawn_until(
            "redis-benchmark", "-h", address, "-t", "get", "-c", "2", "-n", "100000000", "-q",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        counter = Commands(lab, address)
        time.sleep(REDIS_BUSY)
        begin = time.time()
        report = subjects.migrate(lab, "bench-redis")["report"]
        freeze = next(p for p in report["phases"] if p["phase"] == "freeze")
        memory = next(p for p in report["phases"] if p["phase"] == "memory")
        total = subjects.seconds(report["total"])
        end = time.time()
        counts = counter.end()
        counter = None
        # The report counts from its own begin, which is its end less its length.
        origin = max(begin, end - total - 0.05)
        from_, to = origin + subjects.seconds(memory["begin"]), origin + subjects.seconds(freeze["begin"])
        before, copying = rate_between(counts, begin - 3.0, begin), rate_between(counts, from_, to)
        return {
            "before_per_s": before,
            "copying_per_s": copying,
            "ratio": copying / before,
            "copying_s": to - from_,
        }
    finally:
        for process in (load, counter and counter.process):
            if process and process.poll() is None:
                process.communicate(timeout=20)
        subjects.delete_godwit(lab, "bench-redis")
