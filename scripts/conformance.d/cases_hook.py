"""Cases about hooks."""

import json
import os

from case import Failed, case, expect, expect_in

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


@case("hooks, all six, in their order", "config.md: hooks")
def hooks(c):
    mark = c.directory / "hooks"
    mark.mkdir()
    os.chmod(mark, 0o777)
    c.config["mounts"].append({"destination": "/hooks", "type": "bind", "source": str(mark), "options": ["bind"]})
    hook_list = {}
    for kind in KINDS:
        inside = kind in ("startContainer",)
        path = "/hooks/log" if inside else str(mark / "log")
        script = f"echo {kind} $FOO $1 >> {path}; cat > {path}.{kind}"
        shell = "/bin/sh"
        hook_list[kind] = [{"path": shell, "args": ["sh", "-c", script, "sh", "arg"], "env": ["FOO=bar"]}]
    c.config["hooks"] = hook_list
    c.script("echo program >> /hooks/log")
    c.run()
    seen = (mark / "log").read_text(encoding="utf-8").split("\n")
    # The program and what runs after its start have no order among them.
    order = [line for line in seen if line and line not in ("program", "poststart bar arg")]
    expect("the order", order, [f"{kind} bar arg" for kind in KINDS if kind != "poststart"])
    expect("the others", sorted(line for line in seen if line in ("program", "poststart bar arg")), ["poststart bar arg", "program"])
    for kind in KINDS:
        state = json.loads((mark / f"log.{kind}").read_text(encoding="utf-8"))
        expect(f"the id that {kind} is told", state["id"], c.id)


@case("hooks that fail end it", "config.md: hooks; createRuntime and others")
def hooks_fail(c):
    for kind in ("prestart", "createRuntime", "createContainer"):
        c.config["hooks"] = {kind: [{"path": "/bin/false"}]}
        c.write()
        c.fails("create", "--bundle", c.bundle, c.id)
        c.fails("state", c.id)


@case("hooks.timeout", "config.md: hooks.timeout")
def hooks_timeout(c):
    c.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("hooks.poststop that fails", "config.md: the delete goes on")
def poststop(c):
    mark = c.directory / "mark"
    c.config["hooks"] = {
        "poststop": [{"path": "/bin/false"}, {"path": "/bin/sh", "args": ["sh", "-c", f"echo second > {mark}"]}]
    }
    c.script("true")
    c.create()
    c.start()
    c.wait_for("stopped")
    c.call("delete", c.id)
    c.wait_for_file(mark, "second")
    c.fails("state", c.id)


@case("hooks of one kind, in their order", "config.md: hooks MUST be called in the listed order")
def hooks_order(c):
    mark = c.directory / "log"
    c.config["hooks"] = {
        "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {n} >> {mark}"]} for n in ("one", "two", "three")]
    }
    c.script("echo here")
    c.prints("here")
    expect("the order", mark.read_text(encoding="utf-8").split(), ["one", "two", "three"])


@case("hooks.path relative", "config.md: hooks.path MUST be absolute")
def hooks_relative(c):
    c.config["hooks"] = {"createRuntime": [{"path": "bin/true"}]}
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("hooks.env", "config.md: hooks.env is all there is")
def hooks_env(c):
    mark = c.directory / "env"
    c.config["hooks"] = {
        "createRuntime": [{"path": "/usr/bin/env", "args": ["env"], "env": ["A=b"]}, {"path": "/bin/sh", "args": ["sh", "-c", f"tr '\\0' '\\n' < /proc/self/environ > {mark}"], "env": ["A=b", "PATH=/bin:/usr/bin"]}]
    }
    c.script("echo here")
    c.prints("here")
    seen = [line for line in mark.read_text(encoding="utf-8").split("\n") if line]
    expect("the environment", sorted(seen), ["A=b", "PATH=/bin:/usr/bin"])


@case("hooks, the state that they are told", "runtime.md: lifecycle; config.md: the state is on their standard input")
def hooks_state(c):
    kinds = ("createRuntime", "poststart", "poststop")
    told = {kind: c.directory / f"state.{kind}" for kind in kinds}
    c.config["annotations"] = {"org.example.key": "value"}
    c.config["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {path}"]}] for kind, path in told.items()}
    c.sleeping()
    pid = c.state()["pid"]
    c.ok("kill", c.id, "KILL")
    c.wait_for("stopped")
    c.ok("delete", c.id)
    states = {kind: json.loads(path.read_text(encoding="utf-8")) for kind, path in told.items()}
    expect("what poststart and poststop are told", (states["poststart"]["status"], states["poststop"]["status"]), ("running", "stopped"))
    expect("the process", (states["createRuntime"]["pid"], states["poststart"]["pid"]), (pid, pid))
    for kind in kinds:
        expect(f"the bundle that {kind} is told", states[kind]["bundle"], str(c.bundle))
        expect(f"the annotations that {kind} is told", states[kind]["annotations"]["org.example.key"], "value")


@case("hooks, whose namespaces", "config.md: createContainer and startContainer are executed in the container's")
def hooks_namespaces(c):
    mark = c.directory / "hooks"
    mark.mkdir()
    c.config["mounts"].append({"destination": "/hooks", "type": "bind", "source": str(mark), "options": ["bind"]})
    report = lambda kind, path: {"path": "/bin/sh", "args": ["sh", "-c", f"readlink /proc/self/ns/net > {path}/{kind}"], "env": ["PATH=/bin:/usr/bin"]}
    kinds = ("createRuntime", "createContainer", "startContainer", "poststart")
    c.config["hooks"] = {kind: [report(kind, "/hooks" if kind == "startContainer" else mark)] for kind in kinds}
    c.script("readlink /proc/self/ns/net")
    inside = c.run()
    host = os.readlink("/proc/self/ns/net")
    seen = {kind: (mark / kind).read_text(encoding="utf-8").strip() for kind in kinds}
    expect("the network of each", seen, {kind: inside if "Container" in kind else host for kind in kinds})


@case("hooks.startContainer that fails", "config.md: the program is not run")
def start_container(c):
    mark = c.root / "mark"
    c.config["hooks"] = {"startContainer": [{"path": "/bin/false"}]}
    c.script("echo ran > /mark")
    c.create()
    c.fails("start", c.id)
    expect("it ran", mark.exists(), False)
