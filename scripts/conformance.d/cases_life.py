"""Cases about the verbs: a container's life, its state, its hooks."""

import json
import os
import socket
import subprocess

from case import PATIENCE, Failed, case, expect, expect_in


@case("create, start, kill, delete", "runtime.md: lifecycle")
def life(c):
    c.script("sleep 1000 & wait")
    c.create()
    expect("the status", c.status(), "created")
    c.start()
    expect("the status", c.status(), "running")
    c.ok("kill", c.id, "KILL")
    c.wait_for("stopped")
    c.ok("delete", c.id)
    c.fails("state", c.id)


@case("state", "runtime.md: state")
def state(c):
    c.config["annotations"] = {"org.example.key": "value"}
    c.script("sleep 1000 & wait")
    c.create()
    seen = c.state()
    expect("id, status, bundle", (seen["id"], seen["status"], seen["bundle"]), (c.id, "created", str(c.bundle)))
    expect("annotations", seen["annotations"]["org.example.key"], "value")
    expect("the process is there", os.path.exists(f"/proc/{seen['pid']}"), True)
    expect_in("ociVersion", "1.", seen["ociVersion"])


@case("nothing runs before start", "runtime.md: create; the program MUST NOT be run")
def not_before_start(c):
    mark = c.root / "mark"
    c.script("echo ran > /mark; sleep 1000 & wait")
    c.create()
    expect("it ran", mark.exists(), False)
    c.start()
    c.wait_for_file(mark, "ran")


@case("an id is used once", "runtime.md: create; an error")
def same_id(c):
    c.script("sleep 1000 & wait")
    c.create()
    expect_in("the error", "exist", c.fails("create", "--bundle", c.bundle, c.id))
    expect("the first one", c.status(), "created")


@case("changes of config.json after create", "runtime.md: have no effect")
def changed_config(c):
    c.script("sleep 1000 & wait")
    c.create()
    c.script("exit 3")
    c.write()
    c.start()
    expect("the status", c.status(), "running")


@case("start twice", "runtime.md: start; an error")
def start_twice(c):
    c.sleeping()
    c.fails("start", c.id)
    expect("the status", c.status(), "running")


@case("kill a stopped one", "runtime.md: kill; an error")
def kill_stopped(c):
    c.script("true")
    c.create()
    c.start()
    c.wait_for("stopped")
    expect_in("the error", "not running", c.fails("kill", c.id, "TERM"))


@case("kill gives the signal", "runtime.md: kill")
def kill_signal(c):
    c.script("trap 'echo got > /mark; exit' USR1; echo up > /mark; while :; do sleep 0.05; done")
    c.create()
    c.start()
    c.wait_for_file(c.root / "mark", "up")
    c.ok("kill", c.id, "SIGUSR1")
    c.wait_for_file(c.root / "mark", "got")
    c.wait_for("stopped")


@case("kill one that is created", "runtime.md: kill; created or running")
def kill_created(c):
    c.script("sleep 1000")
    c.create()
    c.ok("kill", c.id, "KILL")
    c.wait_for("stopped")


@case("delete a running one", "runtime.md: delete; an error")
def delete_running(c):
    c.sleeping()
    c.fails("delete", c.id)
    expect("the status", c.status(), "running")
    c.ok("delete", "--force", c.id)
    c.fails("state", c.id)


@case("verbs of one that is not there", "runtime.md: errors")
def not_there(c):
    for verb in (["state"], ["start"], ["kill"], ["delete"], ["pause"], ["resume"]):
        text = c.fails(*verb, "no-such-container", *(["TERM"] if verb == ["kill"] else []))
        expect_in(f"the error of {verb[0]}", "does not exist", text)


@case("ociVersion of another major", "config.md: ociVersion; an error")
def other_version(c):
    c.config["ociVersion"] = "2.0.0"
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("a bundle without config.json", "bundle.md: an error")
def no_config(c):
    c.fails("create", "--bundle", c.bundle, c.id)
    c.fails("state", c.id)


@case("unknown properties", "config.md: extensibility; unknown properties are ignored")
def unknown_properties(c):
    c.config["org.example.unknown"] = {"a": 1}
    c.script("echo here")
    c.prints("here")


@case("--pid-file", "the host's id of the first process")
def pid_file(c):
    path = c.directory / "pid"
    c.script("sleep 1000 & wait")
    c.create("--pid-file", path)
    expect("the id", int(path.read_text(encoding="utf-8")), c.state()["pid"])


@case("list", "the containers of a root, in two formats")
def listing(c):
    c.sleeping()
    seen = json.loads(c.ok("list", "--format", "json"))
    expect("what is listed", [(one["id"], one["status"]) for one in seen], [(c.id, "running")])
    expect("the ids alone", c.ok("list", "--quiet").split(), [c.id])
    expect_in("the table", "STATUS", c.ok("list").splitlines()[0])


@case("exec", "another process in the container")
def executes(c):
    c.sleeping()
    expect("the output", c.exec("echo", "one", "two"), "one two")
    expect("the namespaces", c.exec("readlink", "/proc/self/ns/pid"), c.exec("readlink", "/proc/1/ns/pid"))


@case("exec answers", "the exit code of the process")
def exec_code(c):
    c.sleeping()
    code, _, _ = c.call("exec", c.id, "sh", "-c", "exit 9")
    expect("the answer", code, 9)


@case("exec --env --cwd --user", "what the process is given")
def exec_options(c):
    c.sleeping()
    options = ["--env", "FOO=bar", "--cwd", "/tmp", "--user", "1000:1000"]
    expect("the output", c.exec("sh", "-c", "echo $FOO $PWD $(id -u) $(id -g)", options=options), "bar /tmp 1000 1000")


@case("exec --process", "the process by a file")
def exec_process(c):
    c.sleeping()
    path = c.directory / "process.json"
    process = dict(c.process, args=["sh", "-c", "echo $FOO; pwd"], env=["PATH=/bin", "FOO=x"], cwd="/tmp")
    path.write_text(json.dumps(process), encoding="utf-8")
    expect("the output", c.ok("exec", "--process", path, c.id), "x\n/tmp\n")


@case("exec --detach --pid-file", "it does not wait")
def exec_detach(c):
    c.sleeping()
    path = c.directory / "pid"
    c.ok("exec", "--detach", "--pid-file", path, c.id, "sleep", "100")
    pid = int(path.read_text(encoding="utf-8"))
    expect("the program", os.path.exists(f"/proc/{pid}"), True)


@case("exec in a stopped one", "an error")
def exec_stopped(c):
    c.script("true")
    c.create()
    c.start()
    c.wait_for("stopped")
    c.fails("exec", c.id, "echo", "x")


@case("exec keeps the seccomp filter", "the profile is of the container")
def exec_seccomp(c):
    c.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }
    c.sleeping()
    _, out, errors = c.call("exec", c.id, "mkdir", "/tmp/x")
    expect_in("the error", "No space left", out + errors)


@case("exec is in the cgroup", "the limits are of the container")
def exec_cgroup(c):
    c.without("cgroup")
    c.sleeping()
    expect("the cgroups", c.exec("cat", "/proc/self/cgroup"), c.exec("cat", "/proc/1/cgroup"))


@case("ps", "the processes of the container")
def processes(c):
    c.sleeping()
    pids = json.loads(c.ok("ps", "--format", "json", c.id))
    expect_in("the first process", c.state()["pid"], pids)
    expect_in("the table", "sleep 1000", c.ok("ps", c.id))


@case("pause, resume", "the processes stand still")
def pause(c):
    c.script("while :; do echo x >> /mark; sleep 0.02; done")
    c.create()
    c.start()
    mark = c.root / "mark"
    c.wait_for_file(mark, "x")
    c.ok("pause", c.id)
    expect("the status", c.status(), "paused")
    size = mark.stat().st_size
    c.fails("exec", c.id, "true")
    expect("what was written meanwhile", mark.stat().st_size - size, 0)
    c.ok("resume", c.id)
    expect("the status", c.status(), "running")


@case("events --stats", "what the container uses")
def events(c):
    c.sleeping()
    seen = json.loads(c.ok("events", "--stats", c.id))
    expect("type and id", (seen["type"], seen["id"]), ("stats", c.id))
    for part in ("cpu", "memory", "pids"):
        expect_in("the data", part, seen["data"])


@case("features", "features.md")
def features(c):
    seen = json.loads(c.ok("features"))
    expect_in("the oldest version", "1.", seen["ociVersionMin"])
    expect_in("hooks", "startContainer", seen["hooks"])
    expect_in("namespaces", "user", seen["linux"]["namespaces"])
    expect_in("actions", "SCMP_ACT_ERRNO", seen["linux"]["seccomp"]["actions"])


@case("spec", "a bundle's configuration to begin with")
def spec(c):
    code, _, errors = c.call("spec", "--bundle", c.bundle)
    expect("the answer", (code, errors), (0, ""))
    written = json.loads((c.bundle / "config.json").read_text(encoding="utf-8"))
    expect("the program", written["process"]["args"], ["sh"])


@case("--log-format json", "errors go to the log")
def log(c):
    path = c.directory / "json.log"
    c.log = path
    c.call("--log-format", "json", "state", "no-such-container")
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise Failed("nothing was logged")
    expect("the level", json.loads(lines[-1])["level"], "error")


# ---- terminals


def console(c, verb):
    """Does what the verb does with a console socket, and gives the terminal that comes through it."""
    path = c.directory / f"console{len(os.listdir(c.directory))}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        verb("--console-socket", path)
        connection, _ = listener.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
    return descriptors[0]


def read_to(terminal, text):
    """What the terminal shows, up to this text."""
    seen = ""
    try:
        while text not in seen:
            seen += os.read(terminal, 4096).decode()
    except OSError:
        # The other end is closed.
        pass
    expect_in("the terminal", text, seen)
    return seen


@case("process.terminal", "config.md: process.terminal, consoleSize; the terminal comes through --console-socket")
def terminal(c):
    c.process.update(terminal=True, consoleSize={"height": 33, "width": 77})
    c.script("tty; stat -Lc %F /dev/console; stty size 2>/dev/null || busybox stty size; echo done")
    descriptor = console(c, c.create)
    try:
        c.start()
        seen = read_to(descriptor, "done")
        expect_in("its name", "/dev/pts/0", seen)
        expect_in("/dev/console", "character special file", seen)
        expect_in("its size", "33 77", seen)
    finally:
        os.close(descriptor)


@case("exec --tty", "another terminal")
def exec_tty(c):
    c.sleeping()
    run = lambda *options: c.ok("exec", "--detach", "--tty", *options, c.id, "sh", "-c", "tty; echo done")
    descriptor = console(c, run)
    try:
        expect_in("its name", "/dev/pts/0", read_to(descriptor, "done"))
    finally:
        os.close(descriptor)


# ---- a pod


@case("a sandbox and one that joins it", "config-linux.md: namespaces.path, as a kubelet asks for it")
def pod(c):
    c.config["hostname"] = "pod"
    c.sleeping()
    first = c.state()["pid"]
    other = c.another()
    try:
        for kind, file in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")]:
            other.join(kind, f"/proc/{first}/ns/{file}")
        other.script("hostname; readlink /proc/self/ns/net; ps | grep -c '[s]leep 1000'")
        out = other.run().splitlines()
        expect("what it shares", out[:2], ["pod", os.readlink(f"/proc/{first}/ns/net")])
        expect("it sees the other's processes", out[2] != "0", True)
        expect("the sandbox", c.status(), "running")
    finally:
        other.clean()


@case("start a stopped one", "runtime.md: start; an error")
def start_stopped(c):
    c.script("true")
    c.create()
    c.start()
    c.wait_for("stopped")
    c.fails("start", c.id)


@case("kill without a signal", "TERM, as other runtimes have it")
def kill_default(c):
    c.script("trap 'echo got > /mark; exit' TERM; echo up > /mark; while :; do sleep 0.05; done")
    c.create()
    c.start()
    c.wait_for_file(c.root / "mark", "up")
    c.ok("kill", c.id)
    c.wait_for_file(c.root / "mark", "got")


@case("state of a stopped one", "runtime.md: state; pid is for those that are created or running")
def state_stopped(c):
    c.script("true")
    c.create()
    c.start()
    c.wait_for("stopped")
    expect("the pid", c.state().get("pid", 0), 0)


@case("ociVersion missing", "config.md: ociVersion is REQUIRED")
def no_version(c):
    del c.config["ociVersion"]
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("--preserve-fds", "descriptors that were asked for, and LISTEN_FDS is the caller's")
def preserved(c):
    path = c.directory / "passed"
    path.write_text("passed", encoding="utf-8")
    c.script("cat <&3; ls /proc/self/fd | wc -l")
    c.write()
    held = os.open(path, os.O_RDONLY)
    try:
        command = [c.runtime, "--root", c.state_root, "--log", c.log, "run", "--preserve-fds", "1", "--bundle", c.bundle, c.id]
        shell = ["sh", "-c", f'exec 3<"{path}"; exec "$@"', "sh", *map(str, command)]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL)
    finally:
        os.close(held)
    expect("what it sees", (done.returncode, done.stdout), (0, "passed5\n"))
