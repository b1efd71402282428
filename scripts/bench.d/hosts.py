"""The lab's hosts, as the bench needs them: commands on them, and what they have used of the machine."""

import os
import pathlib
import re
import subprocess
import threading
import time

TREE = pathlib.Path(__file__).resolve().parents[2]
LAB = str(TREE / "scripts" / "lab")
LAB_DIR = pathlib.Path(os.environ["GODWIT_LAB_DIR"])
# What a virtual machine does to tell and set its time, at a line each: as little as possible between the two.
CLOCK = """
import sys, time
for line in sys.stdin:
    if line.strip():
        time.clock_settime(time.CLOCK_REALTIME, time.time() + float(line))
    print(time.time(), flush=True)
"""


class Failed(Exception):
    """A step of a measurement did not do what it must; the run is noted as failed and the bench goes on."""


def mounts(kind):
    """Mount points of a file system type with its options."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            fields = line.split()
            rest = fields[fields.index("-") + 1 :]
            if rest[0] == kind:
                yield pathlib.Path(fields[4]), rest[2].split(",")


def fact(name, otherwise):
    """What `scripts/lab up` has written down."""
    try:
        return (LAB_DIR / name).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return otherwise


def backend():
    return fact("backend", "netns")


def emulated():
    """The factor by which the hosts themselves are slower: none but emulated machines are."""
    return int(fact("slow", "1"))


def slow():
    """The factor for time limits."""
    return int(os.environ.get("GODWIT_SLOW") or fact("slow", "1"))


class Host:
    def __init__(self, name):
        self.name = name
        self.cgroup = lab_cgroup() / name
        self.is_machine = backend() == "vm" and name != "client"
        # What a virtual machine takes of this one's memory says nothing.
        self.memory = Memory(self, name != "client" and not self.is_machine)
        self.clock = None

    def spawn(self, *command, **options):
        """A process on this host; its memory is charged to it."""
        begin = ["sh", "-c", 'for f in $0; do echo $$ >"$f" || exit; done; exec "$@"', self.memory.procs]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*begin, LAB, "exec", self.name, *map(str, command)], text=True, **options)

    def run(self, *command, timeout=None, check=True, **options):
        process = self.spawn(*command, **options)
        timeout = (timeout or 300) * (slow() if self.is_machine else 1)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Failed(f"{self.name}: {' '.join(map(str, command))} took longer than {timeout} s") from None
        if check and process.returncode != 0:
            end = " | ".join((err or out or "").strip().splitlines()[-3:])
            raise Failed(f"{self.name}: {' '.join(map(str, command))[:120]} ended with {process.returncode}: {end}")
        return out

    def spawn_until(self, *command, **options):
        """A process that ends with its standard input: a signal to what we started does not go through to the host."""
        guard = '"$@" </dev/null & read -r line; kill $! 2>/dev/null; wait'
        return self.spawn("sh", "-c", guard, "sh", *command, stdin=subprocess.PIPE, **options)

    def script(self, text, *arguments, **options):
        return self.run("sh", "-ec", text, "sh", *arguments, **options)

    def write(self, path, text):
        self.script('mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"', path, text)

    def fresh(self, directory):
        self.script('rm -rf "$1"; mkdir -p "$1"', directory)

    def size(self, directory):
        """Bytes in the files beneath a directory."""
        return sum(map(int, self.script('find "$1" -type f -printf "%s\\n"', directory).split()))

    def set_clock(self):
        """A machine of its own has a time of its own. To a millisecond or two it is ours after this."""
        if not self.is_machine:
            return
        if not self.clock:
            self.clock = self.spawn("python3", "-uc", CLOCK, stdin=subprocess.PIPE)
        self.ask_clock("")
        best = min((self.ask_clock("") for _ in range(20)), key=lambda answer: answer[0])
        self.ask_clock(-best[1])

    def ask_clock(self, change):
        """How long the answer took, and by how much that clock was ahead of ours in the middle of that time."""
        begin = time.time()
        self.clock.stdin.write(f"{change}\n")
        self.clock.stdin.flush()
        told = float(self.clock.stdout.readline())
        end = time.time()
        return end - begin, told - (begin + end) / 2

    def cpu_seconds(self):
        text = (self.cgroup / "cpu.stat").read_text(encoding="utf-8")
        return int(re.search(r"usage_usec (\d+)", text).group(1)) / 1e6

    def pid(self):
        return (LAB_DIR / self.name / "pid").read_text(encoding="utf-8").split()[0]

    def sent_over(self, device):
        """Bytes that this host's network has sent by a device."""
        return counters(self.pid(), device)[1]


def own_group(controller):
    """The v1 group that this process is in: the hosts' groups lie beneath it, so that the hosts can see them."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.strip().split(":", 2)
            if controller in controllers.split(","):
                return path.lstrip("/")
    return ""


def lab_cgroup():
    """Where `scripts/lab` keeps this lab's processes."""
    script = f'. "{TREE}/scripts/lib/base.sh"; . "{TREE}/scripts/lib/lab.sh"; lab_cgroup'
    return pathlib.Path(subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.strip())


def counters(pid, device):
    """Received and sent bytes of a device in the network of a process."""
    with open(f"/proc/{pid}/net/dev", encoding="utf-8") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name.strip() == device:
                fields = rest.split()
                return int(fields[0]), int(fields[8])
    raise Failed(f"there is no device {device}")


class Wire:
    """What goes over the cables between the daemons, counted on the switch."""

    def __init__(self):
        self.pid = (LAB_DIR / "switch" / "pid").read_text(encoding="utf-8").split()[0]

    def bytes(self):
        return sum(counters(self.pid, f"{host}-lan")[0] for host in ("alpha", "beta"))


class Memory:
    """What a host holds of the machine's memory: its processes', its tmpfs's, its page cache's, the kernel's for it.

    The host's own cgroup tells where the memory controller is in the v2 hierarchy; elsewhere a group of the v1
    controller is made for the host, and whatever is started on the host goes into it.
    """

    def __init__(self, host, wanted):
        self.procs = ""
        self.stop = self.thread = None
        self.top = 0
        self.v1 = self.v2 = None
        if not wanted:
            return
        if (host.cgroup / "memory.current").exists():
            self.v2 = host.cgroup / "memory.current"
            return
        for point, options in mounts("cgroup"):
            if "memory" in options:
                self.v1 = point / own_group("memory") / f"{host.cgroup.parent.name}-{host.name}"
                self.v1.mkdir(exist_ok=True)
                self.procs = str(self.v1 / "cgroup.procs")
                self.adopt(host.cgroup)

    def adopt(self, cgroup):
        """What runs on the host already."""
        for file in cgroup.rglob("cgroup.procs"):
            for pid in file.read_text(encoding="utf-8").split():
                try:
                    pathlib.Path(self.procs).write_text(pid, encoding="utf-8")
                except ProcessLookupError:
                    pass

    def known(self):
        return bool(self.v1 or self.v2)

    def now(self):
        file = self.v2 or self.v1 / "memory.usage_in_bytes"
        return int(file.read_text(encoding="utf-8"))

    def begin(self):
        """From here on the peak is looked for; returns what is in use."""
        if not self.known():
            return 0
        if self.v1:
            (self.v1 / "memory.max_usage_in_bytes").write_text("0", encoding="utf-8")
            return self.now()
        self.top = now = self.now()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return now

    def sample(self):
        while not self.stop.wait(0.005):
            self.top = max(self.top, self.now())

    def peak(self):
        """The most since `begin`."""
        if self.v1:
            return int((self.v1 / "memory.max_usage_in_bytes").read_text(encoding="utf-8"))
        if self.thread:
            self.stop.set()
            self.thread.join()
            self.thread = None
        return self.top


class Lab:
    def __init__(self):
        self.alpha, self.beta, self.client = (Host(name) for name in ("alpha", "beta", "client"))
        self.wire = Wire()

    def both(self):
        return self.alpha, self.beta

    def set_clocks(self):
        for host in self.both():
            host.set_clock()

    def cap(self, rate):
        """What each cable between the daemons carries: `1gbit`, or `full` for as much as it can."""
        for host in self.both():
            subprocess.run([LAB, "link", host.name, "rate", rate], check=True)
