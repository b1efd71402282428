"""What is measured: Godwit by each of its trackers, what others use today, and CRIU's own floor."""

import json
import subprocess

import bundle
import measure
from hosts import Failed, slow

ADDRESS = "10.88.0.201"
ETHERNET = "02:00:0a:58:00:c9"
LAZY_PORT = 7119
# Of the first page server less one, and of whatever is no page.
PAGES_PORT = 7120
NETNS = "/run/netns/bench"


def fresh_network(host, places, attached=True):
    """The peers' network on a host, with the same addresses on both; whatever an earlier restore left in it is gone."""
    host.script(
        f"""
        ip link del bench0 2>/dev/null || :
        ip netns del bench 2>/dev/null || :
        ip netns add bench
        ip link add bench0 type veth peer name eth0 address {ETHERNET} netns bench
        ip link set bench0 up
        ip -n bench link set lo up
        ip -n bench address add {ADDRESS}/24 dev eth0
        ip -n bench link set eth0 up
        """
    )
    if attached:
        attach(host, places)


def attach(host, places):
    """The bridges on the way learn where the address is now."""
    host.script(f"ip link set bench0 master godwit0; {announce(places)}")


def announce(places):
    return f"ip netns exec bench {places.tool} announce --to 10.88.0.255"


class Subject:
    # Whether it copies memory while the container runs: then the workload's slowdown means something.
    copies_while_running = False
    keeps_connections = True
    # Whether source and destination are the same host.
    one_host = True
    # Why it cannot be measured here; None when it can.
    missing = None

    def __init__(self, name, lab, places):
        self.name, self.lab, self.places = name, lab, places


def last_json(text):
    """The last of a stream of JSON values."""
    decoder, at, value = json.JSONDecoder(), 0, None
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        while at < len(text) and text[at].isspace():
            at += 1
    return value


def seconds(duration):
    """A duration as serde writes it."""
    return duration["secs"] + duration["nanos"] / 1e9


class Godwit(Subject):
    copies_while_running = True
    one_host = False
    count = 0

    def __init__(self, name, lab, places, arguments=()):
        super().__init__(name, lab, places)
        self.arguments, self.container = arguments, None

    def start(self, cell):
        Godwit.count += 1
        self.container = f"bench-{Godwit.count}"
        return start_godwit(self.lab, "bench", self.container, measure.serve(cell))

    def move(self, _):
        return migrate(self.lab, self.container, *self.arguments)

    def stop(self):
        delete_godwit(self.lab, self.container)


def start_godwit(lab, template, name, command=()):
    lab.alpha.run("godwit", "run", "--userns", "host", "--template", template, "--name", name, *(["--", *command] if command else []))
    status = last_json(lab.alpha.run("godwit", "inspect", name, "--format", "json"))
    return status["spec"]["lease"]["address"]


def delete_godwit(lab, name):
    for host in lab.both():
        host.run("godwit", "delete", "--force", name, check=False)


def migrate(lab, name, *arguments):
    # An emulated processor takes its time to compress and to encrypt.
    limit = f"{110 * (slow() if lab.alpha.is_machine else 1)}s"
    out = lab.alpha.run(
        "godwit", "migrate", name, "--to", "beta", "--timeout", limit, "--format", "json", *arguments, check=False
    )
    report = last_json(out)
    if not report or report["outcome"]["result"] != "moved":
        raise Failed(f"godwit migrate: {report['outcome'].get('why') if report else 'no report'}")
    return {
        "reported_blackout_ms": round(seconds(report["blackout"]) * 1e3, 2),
        "reported_wire_bytes": report["wire"],
        "report": report,
    }


def criu_errors(host, directory):
    """What CRIU says went wrong, without what it only tried."""
    text = host.script('cat "$1"/*.log 2>/dev/null', directory, check=False)
    lines = [line for line in text.splitlines() if "Error (" in line and "RLIMIT_NOFILE" not in line]
    return "; ".join(lines[:3])


class Peer(Subject):
    """An OCI runtime's checkpoint and restore, on one host, through images on tmpfs: nothing has to be sent."""

    # Without CRIU's management of cgroups: it costs time, and on machines with v1 hierarchies it fails.
    options = "--tcp-established --manage-cgroups-mode ignore"

    def __init__(self, name, lab, places, program):
        super().__init__(name, lab, places)
        self.program = program
        self.images = places.work / "images"
        self.bundle = places.work / "bundle"
        self.missing = None if (places.peers / "bin" / program).exists() else f"{program} is not in {places.peers}"

    def environment(self):
        return (
            f"PATH={self.places.peers}/bin:$PATH XTABLES_LIBDIR={self.places.peers}/xtables; "
            "export PATH XTABLES_LIBDIR;"
        )

    def start(self, cell):
        fresh_network(self.lab.alpha, self.places)
        self.lab.alpha.fresh(self.images)
        config = bundle.config(self.places.root, measure.serve(cell), NETNS, "/bench")
        self.lab.alpha.write(self.bundle / "config.json", json.dumps(config, indent=1))
        self.lab.alpha.script(self.environment() + f"cd {self.bundle}; {self.program} run -d bench >/dev/null 2>&1")
        return ADDRESS

    def move(self, _):
        # One shell does both, so that nothing of the bench is between them.
        arguments = f"{self.options} --image-path {self.images}"
        try:
            self.lab.alpha.script(
                self.environment()
                + f"{self.program} checkpoint {arguments} bench;"
                + f"exec {self.program} restore -d {arguments} --bundle {self.bundle} bench >/dev/null 2>&1"
            )
        except Failed as error:
            raise Failed(f"{self.program}: {criu_errors(self.lab.alpha, self.images) or error}") from None
        return {"wire_bytes": self.lab.alpha.size(self.images)}

    def stop(self):
        self.lab.alpha.script(self.environment() + f"{self.program} delete --force bench", check=False)
        self.lab.alpha.script('rm -rf "$1"', self.images)


class Lazy(Peer):
    """runc's post-copy: restored without memory on the other host, which it fetches as it is wanted."""

    one_host = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if self.lab.alpha.is_machine:
            self.missing = "both hosts would have to see the same images"

    def move(self, _):
        alpha, beta = self.lab.both()
        wire = self.lab.wire.bytes()
        common = f"{self.options} --image-path {self.images}"
        # It waits for its input, so that its own start is not in the blackout.
        restore = beta.spawn("sh", "-ec", self.environment() + self.restore(common), stdin=subprocess.PIPE)
        dump = alpha.spawn(
            "sh", "-ec",
            self.environment()
            + f"exec {self.program} checkpoint --lazy-pages --page-server 0.0.0.0:{LAZY_PORT} --status-fd 1 {common} bench",
        )  # fmt: skip
        # It writes one zero byte when the images are there and its pages can be asked for.
        ready = dump.stdout.read(1) == "\0"
        _, told = restore.communicate("go\n" if ready else "", timeout=120)
        if not ready or restore.returncode != 0:
            why = criu_errors(alpha, self.images) or told or dump.stderr.read()
            raise Failed(f"{self.program}, {'restore' if ready else 'checkpoint'}: {why[-300:]}")
        dump.communicate(timeout=60)
        return {"wire_bytes": alpha.size(self.images) + self.lab.wire.bytes() - wire}

    def restore(self, common):
        return f"""
            read -r go
            criu lazy-pages --page-server --address 10.77.0.1 --port {LAZY_PORT} -D {self.images} -W {self.images} \
              -o lazy.log >/dev/null 2>&1 &
            lazy=$!
            trap 'kill $lazy 2>/dev/null || :' EXIT
            until [ -S {self.images}/lazy-pages.socket ]; do sleep 0.002; done
            cd {self.images}
            {self.program} restore -d --lazy-pages {common} --bundle {self.bundle} bench >/dev/null 2>&1
            ip link set bench0 master godwit0
            {announce(self.places)}
            wait
            """

    def start(self, cell):
        fresh_network(self.lab.beta, self.places, attached=False)
        return super().start(cell)

    def stop(self):
        super().stop()
        self.lab.beta.script(self.environment() + f"{self.program} delete --force bench", check=False)
        self.lab.beta.script("ip link set bench0 nomaster")


class PreDump(Peer):
    """What a user can put together of stock parts: runc's pre-dumps through page servers on the other host, which gets the
    rest of the images in a tar and restores."""

    one_host = False
    copies_while_running = True
    # Rounds before the last one.
    rounds = 2

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if not self.missing:
            self.missing = trackers(self.lab).get("soft-dirty", "this Godwit does not know soft-dirty bits")

    def start(self, cell):
        beta = self.lab.beta
        fresh_network(beta, self.places, attached=False)
        beta.fresh(self.images)
        address = super().start(cell)
        beta.write(self.bundle / "config.json", self.lab.alpha.run("cat", self.bundle / "config.json"))
        return address

    def move(self, _):
        alpha, beta = self.lab.both()
        wire = self.lab.wire.bytes()
        there = beta.spawn("bash", "-ec", self.environment() + self.receive())
        if there.stdout.readline() != "ready\n":
            raise Failed(f"the page servers did not start: {there.communicate()[1][-300:]}")
        try:
            alpha.run("bash", "-ec", self.environment() + self.send())
            _, told = there.communicate(timeout=120 * slow())
        except (Failed, subprocess.TimeoutExpired) as error:
            there.kill()
            raise Failed(f"{self.program}: {self.errors(alpha) or self.errors(beta) or error}") from None
        if there.returncode != 0:
            raise Failed(f"{self.program}, restore: {self.errors(beta) or told[-300:]}")
        return {"wire_bytes": self.lab.wire.bytes() - wire}

    def errors(self, host):
        numbers = range(self.rounds + 1, 0, -1)
        return next(filter(None, (criu_errors(host, self.images / str(number)) for number in numbers)), "")

    def send(self):
        """On the source: one round after the other, then the end."""
        lines = []
        for number in range(1, self.rounds + 2):
            parent = f"--parent-path ../{number - 1}" if number > 1 else ""
            kind = "--pre-dump" if number <= self.rounds else ""
            lines.append(f"mkdir -p {self.images}/{number}")
            lines.append(
                f"{self.program} checkpoint {kind} {self.options} --image-path {self.images}/{number} {parent}"
                f" --page-server 10.77.0.2:{PAGES_PORT + number} bench"
            )
        lines.append(f"tar -C {self.images}/{self.rounds + 1} -cf - . >/dev/tcp/10.77.0.2/{PAGES_PORT}")
        return "\n".join(lines)

    def receive(self):
        """On the destination: page servers and somebody for the rest, all started before the first round; then the restore."""
        last = self.rounds + 1
        return f"""
            for n in $(seq {last}); do
              mkdir -p {self.images}/$n
              before=
              [ $n = 1 ] || before="--prev-images-dir ../$((n - 1))"
              criu page-server -D {self.images}/$n --port $(({PAGES_PORT} + n)) $before -o page-server.log >/dev/null 2>&1 &
            done
            {self.places.tool} sink --port {PAGES_PORT} --write {self.images}/rest.tar >/dev/null &
            for n in $(seq 0 {last}); do
              port=$(printf '%04X' $(({PAGES_PORT} + n)))
              until grep -q ":$port [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done
            done
            echo ready
            wait
            tar -C {self.images}/{last} -xf {self.images}/rest.tar
            cd {self.images}
            {self.program} restore -d {self.options} --image-path {self.images}/{last} --bundle {self.bundle} bench >/dev/null 2>&1
            ip link set bench0 master godwit0
            {announce(self.places)}
            """

    def stop(self):
        super().stop()
        self.lab.beta.script(self.environment() + f"{self.program} delete --force bench", check=False)
        # Those that nobody came to, where a round has failed.
        self.lab.beta.script(f'pkill -f "page-server -D {self.images}/"; pkill -f "sink --port {PAGES_PORT}"', check=False)
        self.lab.beta.script('ip link set bench0 nomaster; rm -rf "$1"', self.images, check=False)


class Floor(Subject):
    """Stock `criu dump` and `criu restore` of an empty container: external network, no lock, no memory."""

    keeps_connections = False

    def __init__(self, name, lab, places, mounts):
        super().__init__(name, lab, places)
        self.mounts = mounts
        self.images = places.work / "floor"
        self.pid = None

    def start(self, cell):
        fresh_network(self.lab.alpha, self.places)
        self.lab.alpha.fresh(self.images)
        tool, root = self.places.tool, self.places.root
        command = f"{tool} contain --root {root} --netns {NETNS} --mounts {self.mounts} -- {' '.join(measure.serve(cell))}"
        self.pid = self.lab.alpha.script(command).strip()
        return ADDRESS

    def move(self, _):
        root = self.places.root
        out = self.lab.alpha.script(
            f"""
            inode=$(stat -Lc %i {NETNS})
            common="-D {self.images} --root {root} --external net[$inode]:bench --network-lock skip"
            exec 7<{NETNS}
            criu dump -t {self.pid} $common -o dump.log --manage-cgroups=ignore
            exec criu restore -d $common -o restore.log --manage-cgroups=ignore --inherit-fd fd[7]:bench \
              --pidfile pid </dev/null >/dev/null
            """,
            stderr=None,
        )
        self.pid = self.lab.alpha.run("cat", self.images / "pid").strip()
        return {"wire_bytes": self.lab.alpha.size(self.images), "out": out}

    def stop(self):
        if self.pid:
            self.lab.alpha.script(f"kill -9 {self.pid}", check=False)
        self.pid = None
        self.lab.alpha.script('rm -rf "$1"', self.images)


def trackers(lab):
    """What the host says of each tracker: None where it can be used, else why not."""
    facts = last_json(lab.alpha.run("godwit", "host", "--format", "json"))
    return {offer["kind"]: None if offer["usable"] else offer["why"] for offer in facts["trackers"]}


def godwit_subjects(lab, places):
    """A subject per tracker."""
    subjects = []
    for name, missing in trackers(lab).items():
        subjects.append(Godwit(f"godwit-{name}", lab, places, ("--tracker", name)))
        subjects[-1].missing = missing
    return subjects


def all_subjects(lab, places):
    return [
        *godwit_subjects(lab, places),
        Peer("runc", lab, places, "runc"),
        Lazy("runc-lazy", lab, places, "runc"),
        PreDump("runc-predump", lab, places, "runc"),
        Peer("crun", lab, places, "crun"),
        Floor("criu-floor", lab, places, "all"),
        # What no container is: CRIU's cost of a mount, and there are more than a dozen, is not in it.
        Floor("criu-bare", lab, places, "least"),
    ]
