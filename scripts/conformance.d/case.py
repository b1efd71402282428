"""What a case is, and what it can do with a runtime."""

import json
import os
import pathlib
import shutil
import subprocess
import time

import bundle

PATIENCE = 20
CASES = []


class Failed(Exception):
    """The case does not hold, and why."""


class Refused(Exception):
    """The runtime said that it cannot do what the case asks for."""


def case(name, clause):
    """Registers a function of a Container as the case of this name, about this clause of the specification."""

    def register(function):
        CASES.append((name, clause, function))
        return function

    return register


def expect(what, seen, expected):
    if seen != expected:
        raise Failed(f"{what} is {short(seen)}, expected {short(expected)}")


def expect_in(what, part, whole):
    if part not in whole:
        raise Failed(f"{what}: {short(part)} is not in {short(whole)}")


def short(value):
    text = repr(value)
    return text if len(text) < 160 else text[:157] + "..."


class Container:
    """One container of one runtime, with a bundle of its own."""

    count = 0

    def __init__(self, runtime, place, root):
        Container.count += 1
        self.runtime, self.directory = runtime, pathlib.Path(place)
        self.id = f"conf-{os.getpid()}-{Container.count}"
        self.bundle = self.directory / "bundle"
        self.state_root = self.directory / "root"
        self.bundle.mkdir(parents=True)
        subprocess.run(["cp", "-a", str(root), str(self.bundle / "rootfs")], check=True)
        self.root = self.bundle / "rootfs"
        self.cgroup = f"/godwit-conformance/{self.id}"
        self.config = bundle.config(self.cgroup)
        self.log = self.directory / "log"
        self.template = root

    def another(self):
        """One more container of the same runtime."""
        return Container(self.runtime, f"{self.directory}-other", self.template)

    # ---- what a case changes

    @property
    def process(self):
        return self.config["process"]

    @property
    def linux(self):
        return self.config["linux"]

    def script(self, text):
        self.process["args"] = ["sh", "-c", text]

    def without(self, namespace):
        self.linux["namespaces"] = [n for n in self.linux["namespaces"] if n["type"] != namespace]

    def join(self, namespace, path):
        self.without(namespace)
        self.linux["namespaces"].append({"type": namespace, "path": str(path)})

    def in_user_namespace(self):
        self.linux["namespaces"].append({"type": "user"})
        self.linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        self.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        for path in [self.root, *self.root.rglob("*")]:
            os.lchown(path, 100000, 100000)
        for path in [self.directory, self.bundle]:
            os.chmod(path, 0o755)

    # ---- what a runtime does

    def call(self, *arguments, stdin=None):
        """The verb, with its output; whatever it answers."""
        command = [self.runtime, "--root", str(self.state_root), "--log", str(self.log), *map(str, arguments)]
        out, errors = self.directory / "out", self.directory / "err"
        # Files and not pipes: a container that lives on would keep a pipe open.
        with open(out, "wb") as stdout, open(errors, "wb") as stderr:
            try:
                done = subprocess.run(
                    command, stdin=stdin or subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=PATIENCE, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise Failed(f"{arguments[0]} took longer than {PATIENCE} s") from error
        read = lambda path: path.read_text(encoding="utf-8", errors="replace")
        return done.returncode, read(out), read(errors)

    def ok(self, *arguments):
        code, out, errors = self.call(*arguments)
        if code != 0:
            raise Failed(f"{arguments[0]} answered {code}: {last_line(errors)}")
        return out

    def fails(self, *arguments):
        code, _, errors = self.call(*arguments)
        if code == 0:
            raise Failed(f"{' '.join(map(str, arguments[:1]))} succeeded and must not")
        return errors

    def write(self):
        bundle.write(self.bundle, self.config)

    def run(self, expected=0):
        """Runs the container to its end; what it printed."""
        self.write()
        code, out, errors = self.call("run", "--bundle", self.bundle, self.id)
        if code != expected:
            # Our scripts print something in every case; a runtime that refuses prints nothing.
            kind = Refused if code != 0 and not out and errors.strip() else Failed
            raise kind(f"run answered {code}: {last_line(errors)}")
        return out.strip()

    def prints(self, expected):
        expect("the output", self.run(), expected)

    def create(self, *options):
        self.write()
        code, _, errors = self.call("create", "--bundle", self.bundle, *options, self.id)
        if code != 0:
            raise Refused(f"create answered {code}: {last_line(errors)}")

    def start(self):
        self.ok("start", self.id)

    def sleeping(self):
        self.script("sleep 1000 & wait")
        self.create()
        self.start()

    def state(self):
        return json.loads(self.ok("state", self.id))

    def status(self):
        return self.state()["status"]

    def wait_for(self, status):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            seen = self.status()
            if seen == status:
                return
            time.sleep(0.02)
        raise Failed(f"it is {seen} after {PATIENCE} s, expected {status}")

    def exec(self, *arguments, options=()):
        return self.ok("exec", *options, self.id, *arguments).strip()

    def wait_for_file(self, path, text):
        end = time.monotonic() + PATIENCE
        seen = ""
        while time.monotonic() < end:
            seen = path.read_text(encoding="utf-8") if path.exists() else ""
            if text in seen:
                return seen
            time.sleep(0.02)
        raise Failed(f"{path.name} has {short(seen)}, expected {short(text)}")

    def clean(self):
        """Whatever became of the case, nothing of it stays."""
        self.call("delete", "--force", self.id)
        shutil.rmtree(self.directory, ignore_errors=True)


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word"
