#!/usr/bin/env python3
"""A hostile container beside a neighbour, in the lab: every attack is a case with a name and the reason why it fails.

    suite.py --tree DIR --templates DIR [--slow N] [--format text|json] [--out FILE]

The lab is up, and "evil" and "victim" run on alpha, which has the templates where this machine has them and frames.py
in /run/lab/host. An attempt that is refused in the container is made once more
where the defence is missing (by root on the host, or with the port's filter taken off): where it works there, the
defence is what stopped it; where it does not, the table says so. The exit status is 0 only if no attack works. A FILE
whose name ends with .md gets the table of attack, kernel feature, rule and outcome.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time

import defences

HOST = "alpha"


class Lab:
    def __init__(self, tree, slow):
        self.script = f"{tree}/scripts/lab"
        self.slow = slow  # the factor by which this lab is slower than a machine of its own

    def on(self, host, *command, check=True, timeout=60, **more):
        line = [self.script, "exec", host, *command]
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=timeout * self.slow, check=False, stdin=subprocess.DEVNULL, **more
        )
        if check and done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def start(self, host, *command, stdin=subprocess.DEVNULL):
        line = [self.script, "exec", host, *command]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=stdin)

    def hold(self, program):
        """A program in Python that says that it is ready, and then waits for the end of its input, on the host."""
        held = self.start(HOST, "python3", "-c", program, stdin=subprocess.PIPE)
        if held.stdout.readline() != "ready\n":
            raise SystemExit(f"on {HOST}: {held.stdout.read()}")
        return held

    def inspect(self, name):
        return json.loads(self.on(HOST, "godwit", "inspect", name, "--format", "json").stdout)


class Table:
    """works: in the container. control: whether it works without the defence; None where that was not tried."""

    def __init__(self):
        self.rows = []

    def add(self, case, works, reason, control=None, control_reason="", otherwise=None):
        """otherwise: neither refused nor a failure, but `skipped` here."""
        feature, rule, file = defences.of(case)
        self.rows.append(
            {
                "case": case,
                "kernel_feature": feature,
                "rule": rule,
                "file": file,
                "result": otherwise or ("WORKS" if works else "refused"),
                "reason": "; ".join(reason.split("\n"))[:120],
                "without_defence": control,
                "without_defence_reason": control_reason,
            }
        )

    def text(self):
        told = {True: "works", False: "does not", None: "-"}
        lines = [("CASE", "RESULT", "WHY", "WITHOUT THE DEFENCE")]
        for row in self.rows:
            control = told[row["without_defence"]]
            if row["without_defence"] is False:
                control += f": {row['without_defence_reason']}"
            lines.append((row["case"], row["result"], row["reason"], control))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths + [0])).rstrip() for line in lines
        )

    def markdown(self):
        """The table of what stands against what."""
        lines = ["| attack | kernel feature | rule | where | outcome | reason |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            cells = ("case", "kernel_feature", "rule", "file", "result", "reason")
            lines.append("| " + " | ".join(row[cell].replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def counts(self):
        found = {"refused": 0, "WORKS": 0, "skipped": 0}
        for row in self.rows:
            found[row["result"]] += 1
        return found


# ---- what a program tries


def programs(lab, table, a):
    """The attempts of attack.c, in the container and by root on the host."""
    victim = lab.inspect("victim")
    outside = {
        "pid": victim["pid"],
        "file": "/run/lab/host/secret",
        "abstract": "godwit-attack",
        "shm": "0x60d017",
    }
    keys = [f"{key}={value}" for key, value in outside.items()]
    # A segment and a socket of the host, for as long as the attempts last.
    holder = lab.hold(
        "import ctypes, socket, sys\n"
        "ctypes.CDLL(None).shmget(0x60d017, 4096, 0o1666)\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0godwit-attack'); s.listen(8)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    lab.on(HOST, "sh", "-c", "echo secret >/run/lab/host/secret")
    try:
        inside = lab.on(HOST, "godwit", "exec", "--user", "0:0", "evil", "--", "/attack", "try", *keys).stdout
        user = lab.on(HOST, "godwit", "exec", "--user", "1000:1000", "evil", "--", "/attack", "try", *keys).stdout
        control = lab.on(HOST, a.attack, "try", *keys).stdout
    finally:
        holder.communicate()
        lab.on(HOST, "sh", "-c", "rm -f /run/lab/host/secret; ipcrm -M 0x60d017", check=False)
    read = lambda text: {row["case"]: row for row in map(json.loads, text.splitlines())}
    inside, user, control = read(inside), read(user), read(control)
    expected = set(subprocess.run([a.attack, "list"], capture_output=True, text=True, check=True).stdout.splitlines())
    for name in expected:
        if name not in inside or name not in user:
            table.add(name, True, "the attempt ended without an answer")
    for name, row in inside.items():
        if name == "runtime: overwrite its program":
            continue
        other = control.get(name, {"works": False, "reason": "no answer"})
        works, reason = row["works"], row["reason"]
        if not works and user[name]["works"]:
            works, reason = True, f"as a user: {user[name]['reason']}"
        table.add(name, works, reason, other["works"], other["reason"])


def runtime_program(lab, table):
    """CVE-2019-5736: the runtime's own program, entered by every exec, overwritten from inside."""
    find = ["sh", "-c", 'sha256sum "$(command -v godwit)"']
    before = lab.on(HOST, *find).stdout
    watch = lab.start(
        HOST, "godwit", "exec", "--user", "0:0", "evil", "--", "/attack", "one", "runtime: overwrite its program",
        "exe=godwit", f"seconds={6 * lab.slow}",
    )
    end, runs = time.monotonic() + 5 * lab.slow, 0
    while time.monotonic() < end:
        # /bait is a script whose interpreter is /proc/self/exe: the runtime's program, had it still been that.
        lab.on(HOST, "godwit", "exec", "--user", "0:0", "evil", "--", "/bait", check=False)
        runs += 1
    row = json.loads(watch.communicate(timeout=60 * lab.slow)[0].strip().splitlines()[-1])
    changed = lab.on(HOST, *find).stdout != before
    reason = "the program on the host is changed" if changed else f"{row['reason']} ({runs} times entered)"
    table.add("runtime: overwrite its program", row["works"] or changed, reason)


def directories(lab, table):
    """CVE-2024-21626: the working directory given as a descriptor that is still open."""
    works, reasons = False, set()
    for number in (*range(0, 24), 63, 255):
        for where in (f"/proc/self/fd/{number}", f"/proc/1/fd/{number}", f"/proc/self/fd/{number}/../../../.."):
            done = lab.on(HOST, "godwit", "exec", "--cwd", where, "evil", "--", "/attack", "cat", "etc/hostname", "../etc/hostname",
                          "../../../../../etc/hostname", check=False)
            if done.returncode == 0 and HOST in done.stdout.split():
                works = True
                reasons = {f"{where} is outside"}
            elif done.returncode == 0:
                reasons.add("it is inside")
            else:
                reasons.add(done.stderr.strip().rsplit(": ", 1)[-1] or f"status {done.returncode}")
    table.add("file: working directory by descriptor", works, ", ".join(sorted(reasons))[:120])


# ---- the network


def network(lab, table, a):
    evil, victim = lab.inspect("evil"), lab.inspect("victim")
    port = lab.on(HOST, "sh", "-c", "ip -o link show | grep -B0 'godwit evil' | cut -d: -f2 | cut -d@ -f1").stdout.strip()
    if not port:
        raise SystemExit("evil has no port")
    tool = "/run/lab/host/frames.py"
    lease = evil["spec"]["lease"]
    sends = [
        "nsenter", "--net", "--target", str(evil["pid"]), "python3", tool, "send", "--interface", "eth0",
        "--own-mac", lease["mac"], "--own-ip", lease["address"],
        "--victim-mac", victim["spec"]["lease"]["mac"], "--victim-ip", victim["spec"]["lease"]["address"],
        "--gateway-ip", "10.88.0.3",
    ]

    def heard():
        hears = ["nsenter", "--net", "--target", str(victim["pid"]), "python3", tool, "hear", "--interface", "eth0",
                 "--seconds", str(2 * lab.slow)]
        listener = lab.start(HOST, *hears)
        listener.stdout.readline()
        lab.on(HOST, *sends)
        return set(listener.communicate(timeout=30 * lab.slow)[0].splitlines())

    # The host's own services, from inside: a listener on every address of it, and the peer port.
    service = lab.hold("import socket, sys\n"
        "s = socket.create_server(('0.0.0.0', 8099)); print('ready', flush=True); sys.stdin.read()")
    targets = {"the host by its bridge address": "10.88.0.3:8099", "the host by another address": "10.77.0.1:8099",
               "the peer port": "10.77.0.1:7117"}
    connect = lambda: {
        name: lab.on(HOST, "godwit", "exec", "evil", "--", "/attack", "connect", *where.split(":"), check=False)
        for name, where in targets.items()
    }
    # Of itself a container of the lab has no way out of its network; root in there can make one.
    lab.on(HOST, "nsenter", "--net", "--target", str(evil["pid"]), "ip", "route", "add", "10.77.0.0/24", "via", "10.88.0.3")
    with_filter, reached = heard(), connect()
    lab.on(HOST, "tc", "qdisc", "del", "dev", port, "clsact")
    without_filter, reached_without = heard(), connect()
    service.communicate()
    if "own frame" not in with_filter:
        raise SystemExit("the container's own frames do not arrive")
    names = subprocess.run(
        ["python3", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import frames, argparse\n"
         "a = argparse.Namespace(own_mac='02:00:00:00:00:01', victim_mac='02:00:00:00:00:02', own_ip='10.88.0.1',"
         " victim_ip='10.88.0.2', gateway_ip='10.88.0.3')\n"
         "print('\\n'.join(name for name, _ in frames.forged(a)))", os.path.dirname(__file__)],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()
    for name in names:
        if name != "own frame":
            works = name in with_filter
            table.add(f"frame: {name}", works, "it arrives" if works else "the port's filter drops it",
                      name in without_filter, "it does not arrive")
    for name in targets:
        done, other = reached[name], reached_without[name]
        table.add(f"network: {name}", done.returncode == 0, done.stdout.strip() or done.stderr.strip(),
                  other.returncode == 0, other.stdout.strip())


# ---- images, and peers


def hostile_images(lab, table, a):
    """Templates whose trees lie: built and run, nothing outside is touched or seen."""
    witness = "/run/lab/host/witness"
    lab.on(HOST, "sh", "-c", f"rm -rf {witness}; mkdir -p {witness}; echo untouched >{witness}/file")
    census = ["sh", "-c", f"cd {witness} && find . | sort && cat file"]
    before = lab.on(HOST, *census).stdout

    def image(case, template, probe=None, control=None):
        name = "image"
        done = lab.on(HOST, "godwit", "run", "--template", template, "--name", name, check=False, timeout=120)
        reason, works = done.stderr.strip().splitlines()[-1] if done.returncode else "it runs", done.returncode == 0
        if done.returncode == 0:
            seen = lab.on(HOST, "godwit", "exec", "--user", "1000:1000", name, "--", *probe, check=False)
            works, reason = seen.returncode == 0, (seen.stdout + seen.stderr).strip()
        lab.on(HOST, "godwit", "delete", name, "--force", check=False)
        if lab.on(HOST, *census).stdout != before:
            works, reason = True, "something outside has changed"
        # The same tree, used by the host as it is.
        there, told = None, ""
        if control:
            tree = f"{a.templates}/{template}/tree"
            user = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
            done = lab.on(HOST, *user, *(word.format(tree=tree) for word in control), check=False)
            there, told = done.returncode == 0, (done.stdout + done.stderr).strip()
        table.add(f"image: {case}", works, reason, there, told)

    image("absolute links to the host", "hostile-links", ["/attack", "cat", "/absolute/file"],
          ["cat", "{tree}/absolute/file"])
    image("climbing links to the host", "hostile-links", ["/attack", "cat", "/climbing/file"],
          ["cat", "{tree}/climbing/file"])
    image("device nodes", "hostile-devices", ["/attack", "cat", "/zero", "/kmsg", "/disk"], ["head", "-c", "1", "{tree}/zero"])
    image("set-user-id", "hostile-setuid", ["/attack", "become-root"], ["{tree}/root-shell", "whoami"])
    image("/proc is a link", "hostile-proc")
    image("/dev is a link", "hostile-dev")
    image("/etc is a link to the host", "hostile-etc")


def peer_port(lab, table):
    """Bytes that mean nothing, or too much, at the port of the peers; from the client, as no container gets there."""
    daemon = lambda: lab.on(HOST, "sh", "-c", "cat /run/lab/daemon.pid 2>/dev/null || systemctl show -P MainPID godwit").stdout
    before = daemon()
    program = """
import os, random, socket, ssl, struct, sys
random.seed(7)
patience = 5 * int(sys.argv[1])
where = ("10.77.0.1", 7117)
tries = [b"GET / HTTP/1.0\\r\\n\\r\\n", b"\\x16\\x03\\x01\\xff\\xff" + b"A" * 70000, b"\\0" * 100000]
tries += [random.randbytes(random.randrange(1, 4096)) for _ in range(200)]
for bytes_ in tries:
    try:
        with socket.create_connection(where, timeout=patience) as s:
            s.sendall(bytes_); s.shutdown(socket.SHUT_WR)
            s.settimeout(patience)
            while s.recv(4096): pass
    except OSError: pass
idle = [socket.create_connection(where, timeout=patience) for _ in range(300)]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
answered = 0
for _ in range(20):
    try:
        with context.wrap_socket(socket.create_connection(where, timeout=patience)) as s:
            s.sendall(random.randbytes(1000)); answered += bool(s.recv(10))
    except OSError: pass
print(answered)
"""
    done = lab.on("client", "python3", "-c", program, str(lab.slow), check=False, timeout=180)
    alive = lab.on(HOST, "godwit", "list", check=False, timeout=30)
    works = done.stdout.strip() != "0" or alive.returncode != 0 or daemon() != before
    reason = f"{done.stdout.strip()} answered, the daemon {'lives' if alive.returncode == 0 else 'does not answer'}"
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
    table.add("peer port: hostile bytes", works, reason)


# ---- too much of everything


class Latency(threading.Thread):
    """Asks the neighbour all the time, from outside, and keeps how long each answer took."""

    PROGRAM = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 6379)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.settimeout(120)
print("ready", flush=True)
end, took = time.monotonic() + float(sys.argv[2]), []
while time.monotonic() < end:
    begin = time.monotonic(); s.sendall(b"PING\\r\\n")
    assert s.recv(100) == b"+PONG\\r\\n"
    took.append(time.monotonic() - begin); time.sleep(0.002)
took.sort()
print(len(took), took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6, took[-1] * 1e6)
"""

    def __init__(self, lab, address, seconds):
        super().__init__()
        self.job = lab.start("client", "python3", "-c", self.PROGRAM, address, str(seconds))
        if self.job.stdout.readline() != "ready\n":
            raise SystemExit(f"the neighbour does not answer: {self.job.stdout.read()}")
        self.start()

    def run(self):
        self.said = self.job.communicate()[0]

    def result(self):
        self.join()
        count, median, slow, worst = map(float, self.said.split())
        return {"answers": count, "median_us": median, "p99_us": slow, "worst_us": worst}


# What it is: the controller without which nothing bounds it, and the limit that the container is given.
BOMBS = {"fork": ("pids", ["--pids", "200"]), "memory": ("memory", ["--memory", "64M"])}


def bombs(lab, table, address):
    controllers = lab.on(HOST, "cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    quiet = Latency(lab, address, 8).result()
    for name, (controller, limit) in BOMBS.items():
        if controller not in controllers:
            reason = f"not tried: this kernel's cgroup v2 has no controller {controller}"
            table.add(f"bomb: {name}", False, reason, otherwise="skipped")
            table.add(f"neighbour: {name} bomb", False, reason, otherwise="skipped")
            continue
        lab.on(HOST, "godwit", "run", "--template", "hostile", "--name", "bomber", *limit)
        ignite = ["godwit", "exec", "--user", "0:0", "bomber", "--", "/attack", "bomb", name]
        done = lab.on(HOST, *ignite, check=False)
        table.add(f"bomb: {name}", done.returncode == 0, done.stdout.strip() or f"ended with status {done.returncode}")
        neighbour(lab, table, f"neighbour: {name} bomb", address, quiet, controllers, [*ignite, "6"])
        lab.on(HOST, "godwit", "delete", "bomber", "--force")
    watches(lab, table)
    neighbour(lab, table, "neighbour: starve it", address, quiet, controllers,
              ["godwit", "exec", "--user", "0:0", "evil", "--", "/attack", "busy", "6"])


def neighbour(lab, table, case, address, quiet, controllers, attack):
    """How long the neighbour's answers take meanwhile, beside what they took before, on the same machine."""
    under = Latency(lab, address, 8)
    attacking = lab.start(HOST, *attack)
    attacked = under.result()
    said = attacking.communicate(timeout=60 * lab.slow)[0].strip()
    if attacking.returncode:
        raise SystemExit(f"{case}: the attack itself failed: {said}")
    reason = "median {:.0f} µs, 99 of 100 {:.0f} µs; before: {:.0f}, {:.0f}".format(
        attacked["median_us"], attacked["p99_us"], quiet["median_us"], quiet["p99_us"]
    ) + (f"; {said}" if said else "")
    # Nothing but the scheduler shares the processors where there is no controller for them.
    bounded = "cpu" in controllers
    slower = attacked["median_us"] > 4 * quiet["median_us"] + 1000
    table.add(case, slower, reason if bounded else f"no controller cpu; {reason}", otherwise=None if bounded else "skipped")


def watches(lab, table):
    """What the kernel counts by user, it must not count for root of the host and of a container together."""
    asks = ["python3", "-c", "import ctypes, os; e = ctypes.CDLL(None, use_errno=True)\n"
            "print('has' if e.inotify_init() >= 0 else 'has not')"]
    before = lab.on(HOST, *asks).stdout.strip()
    taker = lab.start(HOST, "godwit", "exec", "--user", "0:0", "evil", "--", "/attack", "watch", "5")
    taken = taker.stdout.readline().strip()
    after = lab.on(HOST, *asks).stdout.strip()
    taker.wait(timeout=60 * lab.slow)
    works = (before, after) == ("has", "has not")
    table.add("bomb: root's inotify instances", works, f"in the container {taken}; the host's root {after} one more")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tree", required=True)
    parser.add_argument("--templates", required=True)
    parser.add_argument("--slow", type=int, default=1)
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--out")
    a = parser.parse_args()
    a.attack = f"{a.templates}/hostile/tree/attack"
    lab, table = Lab(a.tree, a.slow), Table()
    address = lab.inspect("victim")["spec"]["lease"]["address"]
    programs(lab, table, a)
    runtime_program(lab, table)
    directories(lab, table)
    network(lab, table, a)
    hostile_images(lab, table, a)
    peer_port(lab, table)
    bombs(lab, table, address)
    if a.out:
        with open(a.out, "w", encoding="utf-8") as file:
            file.write(table.markdown() if a.out.endswith(".md") else json.dumps(table.rows, indent=1))
    print(json.dumps(table.rows, indent=1) if a.format == "json" else table.text())
    counts = table.counts()
    print(f"{counts['refused']} refused, {counts['WORKS']} work, {counts['skipped']} skipped", file=sys.stderr)
    return 1 if counts["WORKS"] else 0


if __name__ == "__main__":
    sys.exit(main())
