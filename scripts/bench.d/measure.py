"""One move of one container, measured from outside: by the workload's own tick log and by a client's pings."""

import json
import statistics
import subprocess
import time

from hosts import Failed, emulated, slow

TOOL = "/bin/bench-tool"
PORT = 7000
# The workload's own throughput is taken over this long before the move.
BEFORE = 1.0
# The hosts are at rest when they use less than this part of a core for themselves.
AT_REST = 0.15


def every():
    """Milliseconds between two ticks, and between two pings. On an emulated processor, which does less in one, there are
    fewer: else both do little but answer pings, and the subject that has no client (the floor) is compared with one
    that shares its processor with it."""
    return ["--every", str(emulated())]


def serve(cell):
    """The workload's command line, in every container the same."""
    # So does the writer.
    memory = ["--mib", str(cell.mib), "--rate", str(cell.rate // emulated()), "--data", cell.data]
    return [TOOL, "serve", "--port", str(PORT), *memory, *every()]


class Workload:
    """The program in the container, asked over the network by the client."""

    def __init__(self, lab, tool, address):
        self.lab, self.tool, self.at = lab, tool, f"{address}:{PORT}"

    def ask(self, question, timeout=120):
        return self.lab.client.run(self.tool, "ask", "--to", self.at, question, timeout=timeout)

    def wait(self, seconds=60):
        """Until it answers: it listens when its memory is filled."""
        deadline = time.monotonic() + seconds * slow()
        while True:
            try:
                self.ask("reset", timeout=10)
                return
            except Failed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def log(self):
        """The tick log: (time, CPU time, pages written, pings answered), in seconds."""
        ticks = []
        for line in self.ask("log").splitlines():
            real, cpu, writes, pings = map(int, line.split())
            ticks.append((real / 1e9, cpu / 1e9, writes, pings))
        if len(ticks) < 2:
            raise Failed("the workload has no tick log")
        return ticks

    def verify(self):
        """Every page is what it must be."""
        answer = self.ask("verify", timeout=300)
        if not answer.strip().endswith(", 0 wrong"):
            raise Failed(f"the memory is not what it was: {answer.strip()}")


class Pinger:
    """A client's connection that asks every millisecond, or as often as `every` says."""

    def __init__(self, workload):
        self.process = workload.lab.client.spawn(workload.tool, "ping", "--to", workload.at, *every(), stdin=subprocess.PIPE)
        if self.process.stdout.readline() != "ready\n":
            raise Failed(f"the client cannot connect: {self.process.stderr.read()}")

    def end(self):
        out, err = self.process.communicate(timeout=30)
        if self.process.returncode != 0:
            raise Failed(f"the client ended with {self.process.returncode}: {err}")
        return json.loads(out)

    def kill(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(30)


def longest_gap(ticks, begin, end):
    """The longest time between two ticks that touches the move: (from, to)."""
    gaps = [(a[0], b[0]) for a, b in zip(ticks, ticks[1:]) if b[0] >= begin and a[0] <= end]
    if not gaps:
        raise Failed("the tick log does not reach over the move")
    return max(gaps, key=lambda gap: gap[1] - gap[0])


def own_cpu(ticks, begin, end):
    """CPU seconds of the workload itself. A restored process counts from the start again."""
    inside = [tick for tick in ticks if begin <= tick[0] <= end]
    return sum(max(0.0, b[1] - a[1]) for a, b in zip(inside, inside[1:]))


def throughput(ticks, begin, end, rate):
    """Pages written per second, or, of an idle writer, ticks per second."""
    inside = [tick for tick in ticks if begin <= tick[0] <= end]
    if len(inside) < 2 or end - begin < 0.05:
        return None
    done = inside[-1][2] - inside[0][2] if rate else len(inside) - 1
    return done / (inside[-1][0] - inside[0][0])


def wait_for_rest(lab, cell, limit=15.0):
    """What goes on behind the move's back (filling, freeing) belongs to it: until the hosts are at rest."""
    calm, last = 0, sum(host.cpu_seconds() for host in lab.both())
    allowance = AT_REST + cell.rate * 3e-6
    deadline = time.monotonic() + limit
    while calm < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = sum(host.cpu_seconds() for host in lab.both())
        calm = calm + 1 if now - last < 0.1 * allowance else 0
        last = now


def run(lab, tool, subject, cell):
    """Starts a container, moves it, and returns what that was like."""
    pinger = None
    lab.set_clocks()
    address = subject.start(cell)
    workload = Workload(lab, tool, address)
    try:
        workload.wait()
        if subject.keeps_connections:
            pinger = Pinger(workload)
        time.sleep(BEFORE + 0.2)
        used = [host.memory.begin() for host in lab.both()]
        cpu = sum(host.cpu_seconds() for host in lab.both())
        wire = lab.wire.bytes()
        begin = time.time()
        sample = subject.move(cell)
        end = time.time()
        wait_for_rest(lab, cell)
        rested = time.time()
        cpu = sum(host.cpu_seconds() for host in lab.both()) - cpu
        peaks = [host.memory.peak() for host in lab.both()]
        stall = pinger.end() if pinger else None
        ticks = workload.log()
        workload.verify()
    finally:
        if pinger:
            pinger.kill()
        subject.stop()
    gap = longest_gap(ticks, begin, end)
    before = throughput(ticks, begin - BEFORE, begin, cell.rate)
    copying = throughput(ticks, begin, gap[0], cell.rate) if subject.copies_while_running else None
    mib = 1 << 20
    sample.setdefault("wire_bytes", lab.wire.bytes() - wire)
    if lab.alpha.memory.known():
        sample["extra_source_mib"] = round((peaks[0] - used[0]) / mib, 1)
        sample["extra_destination_mib"] = round((peaks[1] - used[1]) / mib, 1)
        if subject.one_host:
            # What it needs, it needs on that one host, be it as source or as destination.
            sample["extra_destination_mib"] = sample["extra_source_mib"]
    sample |= {
        "blackout_ms": round((gap[1] - gap[0]) * 1e3, 2),
        "total_ms": round((end - begin) * 1e3, 1),
        "cpu_s": round(max(0.0, cpu - own_cpu(ticks, begin, rested)), 3),
        "kept_throughput": round(copying / before, 3) if copying and before else None,
    }
    if stall:
        if stall["broken"]:
            raise Failed("the client's connection broke")
        sample |= {"stall_ms": stall["longest_ms"], "retransmissions": stall["retransmissions"]}
    return sample


def summary(values):
    """Median, with min and max."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
