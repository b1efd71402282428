"""Cases about `process`, namespaces and what a process is given."""

import json
import os
import pathlib
import subprocess

from case import Failed, case, expect, expect_in

STATUS = "cat /proc/self/status"


def status_of(text, key):
    for line in text.splitlines():
        if line.startswith(key + ":"):
            return line.split(":", 1)[1].strip()
    raise Failed(f"{key} is not in the status")


@case("process.args", "config.md: process.args")
def args(c):
    c.process["args"] = ["echo", "one two", "three"]
    c.prints("one two three")


@case("process exit code", "runtime.md: lifecycle; run answers what the process answers")
def exit_code(c):
    c.script("echo x; exit 7")
    c.run(expected=7)


@case("process by a signal", "run answers 128 and the signal")
def by_signal(c):
    # The first process of a pid namespace takes no SIGKILL from inside: a child does, and its shell tells.
    c.script("echo x; sh -c 'kill -9 $$'; exit $?")
    c.run(expected=137)


@case("process.args not there", "runtime.md: errors; create or start fails")
def args_missing(c):
    c.process["args"] = ["no-such-program"]
    c.write()
    c.fails("run", "--bundle", c.bundle, c.id)
    c.fails("state", c.id)


@case("process.env", "config.md: process.env")
def env(c):
    c.process["env"] += ["FOO=bar baz", "EMPTY="]
    c.script('echo "$FOO-$EMPTY-${UNSET-unset}"')
    c.prints("bar baz--unset")


@case("process.env is all there is", "config.md: process.env")
def env_alone(c):
    c.script("env | grep -vE '^(PATH|PWD|SHLVL|HOME|_)='; true")
    c.prints("")


@case("process.cwd", "config.md: process.cwd")
def cwd(c):
    c.process["cwd"] = "/tmp"
    c.script("pwd")
    c.prints("/tmp")


@case("process.cwd relative", "config.md: process.cwd MUST be absolute")
def cwd_relative(c):
    c.process["cwd"] = "tmp"
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("process.user", "config.md: user")
def user(c):
    c.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6]}
    c.script("echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ')")
    c.prints("1000 1001 5 6 1001")


@case("process.user.umask", "config.md: user.umask")
def umask(c):
    c.process["user"]["umask"] = 0o027
    c.script("umask")
    c.prints("0027")


@case("process.rlimits", "config.md: rlimits")
def rlimits(c):
    c.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    c.script("echo $(ulimit -Sn) $(ulimit -Hn)")
    c.prints("100 200")


@case("process.rlimits twice", "config.md: rlimits; a duplicated type MUST be an error")
def rlimits_twice(c):
    one = {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}
    c.process["rlimits"] = [one, one]
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("process.noNewPrivileges", "config.md: noNewPrivileges")
def no_new_privileges(c):
    c.process["noNewPrivileges"] = True
    c.script(STATUS)
    expect("NoNewPrivs", status_of(c.run(), "NoNewPrivs"), "1")


@case("process.capabilities", "config.md: capabilities; all five sets")
def capabilities(c):
    c.process["capabilities"] = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_CHROOT"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    c.process["user"] = {"uid": 1000, "gid": 1000}
    c.script(STATUS)
    text = c.run()
    seen = [int(status_of(text, key), 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    # After exec a user has what is ambient.
    expect("the sets", seen, [0x20, 0x20, 0x20, 0x40021, 0x20])


@case("process.capabilities of root", "config.md: capabilities")
def capabilities_root(c):
    c.process["capabilities"] = {kind: ["CAP_CHOWN", "CAP_KILL"] for kind in ("bounding", "permitted", "effective")}
    c.script(STATUS)
    text = c.run()
    seen = [int(status_of(text, key), 16) for key in ("CapPrm", "CapEff", "CapBnd")]
    expect("the sets", seen, [0x21] * 3)


@case("process.capabilities not to be had", "config.md: SHOULD NOT fail")
def capabilities_missing(c):
    c.process["capabilities"]["ambient"] = ["CAP_SYS_ADMIN"]
    c.script("echo here")
    c.prints("here")


@case("process.oomScoreAdj", "config.md: oomScoreAdj")
def oom(c):
    c.process["oomScoreAdj"] = 123
    c.script("cat /proc/self/oom_score_adj")
    c.prints("123")


@case("process.scheduler", "config.md: scheduler")
def scheduler(c):
    c.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    # Fields 19 and 41 of the status: nice and policy.
    c.script("sed 's/.*) //' /proc/self/stat | cut -d' ' -f17,39")
    c.prints("7 3")


@case("process.ioPriority", "config.md: ioPriority")
def io_priority(c):
    c.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    c.script("ionice -p $$")
    expect_in("ionice", "prio 6", c.run())


@case("process.execCPUAffinity", "config-linux.md: execCPUAffinity")
def affinity(c):
    c.process["execCPUAffinity"] = {"final": "0"}
    c.script("sleep 1000 & wait")
    c.create()
    c.start()
    text = c.exec("cat", "/proc/self/status")
    expect("the processors", status_of(text, "Cpus_allowed_list"), "0")


@case("linux.personality", "config-linux.md: personality")
def personality(c):
    c.linux["personality"] = {"domain": "LINUX32"}
    c.script("uname -m")
    seen = c.run()
    expect("the machine is one of 32 bits", seen in ("i686", "armv8l", "armv7l"), True)


@case("hostname, domainname", "config.md: hostname, domainname")
def names(c):
    c.config["hostname"], c.config["domainname"] = "conf-host", "conf.example"
    c.script("hostname; cat /proc/sys/kernel/domainname")
    c.prints("conf-host\nconf.example")


@case("hostname without a uts namespace", "config.md: an error, the host's is not touched")
def hostname_of_host(c):
    before = os.uname().nodename
    c.config["hostname"] = "conf-wrong"
    c.without("uts")
    c.write()
    c.call("run", "--bundle", c.bundle, c.id)
    expect("the host's name", os.uname().nodename, before)


@case("standard streams", "run gives the process its own streams")
def streams(c):
    c.script("echo out; echo error >&2")
    c.write()
    code, out, errors = c.call("run", "--bundle", c.bundle, c.id)
    expect("the answer and streams", (code, out, errors), (0, "out\n", "error\n"))


@case("no descriptor leaks", "only the three streams are open")
def descriptors(c):
    c.script("ls /proc/self/fd | wc -l")
    # The fourth is the directory that ls reads.
    c.prints("4")


# ---- namespaces


def namespace_case(kind, file, spec="new"):
    @case(f"linux.namespaces {kind} {spec}", "config-linux.md: namespaces")
    def check(c):
        have = [n["type"] for n in c.linux["namespaces"]]
        host = os.readlink(f"/proc/self/ns/{file}")
        if spec == "new":
            if kind not in have:
                c.linux["namespaces"].append({"type": kind})
        else:
            c.without(kind)
        c.script(f"readlink /proc/self/ns/{file}")
        seen = c.run()
        expect("it is the host's", seen == host, spec != "new")


for _kind, _file in [("network", "net"), ("uts", "uts"), ("ipc", "ipc"), ("cgroup", "cgroup"), ("time", "time")]:
    namespace_case(_kind, _file)
for _kind, _file in [("uts", "uts"), ("ipc", "ipc"), ("cgroup", "cgroup")]:
    namespace_case(_kind, _file, "not named")


@case("linux.namespaces pid: it is the first", "config-linux.md: namespaces")
def pid_first(c):
    c.script("echo $$")
    c.prints("1")


@case("linux.namespaces by path", "config-linux.md: namespaces.path")
def by_path(c):
    holder = subprocess.Popen(["unshare", "--net", "--uts", "--ipc", "sleep", "60"])
    try:
        host = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/ipc") == os.readlink("/proc/self/ns/ipc"):
            pass
        expected = []
        for kind, file in [("network", "net"), ("uts", "uts"), ("ipc", "ipc")]:
            c.join(kind, f"/proc/{holder.pid}/ns/{file}")
            expected.append(os.readlink(f"/proc/{holder.pid}/ns/{file}"))
        expect("it is new", expected[0] == host, False)
        c.script("for n in net uts ipc; do readlink /proc/self/ns/$n; done")
        c.prints("\n".join(expected))
    finally:
        holder.kill()
        holder.wait()


@case("linux.namespaces by a wrong path", "config-linux.md: a path of another type MUST be an error")
def by_wrong_path(c):
    c.join("network", "/proc/self/ns/uts")
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("linux.namespaces twice", "config-linux.md: duplicated types MUST be an error")
def namespaces_twice(c):
    c.linux["namespaces"].append({"type": "uts"})
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("linux.uidMappings", "config-linux.md: user namespace mappings")
def mappings(c):
    c.in_user_namespace()
    c.script("cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u")
    c.prints("0 100000 65536\n 0 100000 65536\n0")


@case("a user namespace's root owns its root", "config-linux.md: user namespace mappings")
def mapped_files(c):
    c.in_user_namespace()
    c.script("touch /tmp/x && stat -c %u /tmp/x")
    c.prints("0")
    expect("the owner on the host", os.stat(c.root / "tmp/x").st_uid, 100000)


@case("linux.timeOffsets", "config-linux.md: timeOffsets")
def time_offsets(c):
    c.linux["namespaces"].append({"type": "time"})
    c.linux["timeOffsets"] = {"monotonic": {"secs": 172800}, "boottime": {"secs": 604800}}
    c.script("cat /proc/self/timens_offsets | tr -s ' '")
    c.prints("monotonic 172800 0\nboottime 604800 0")


@case("linux.sysctl", "config-linux.md: sysctl")
def sysctl(c):
    c.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"}
    c.script("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax")
    c.prints("1\n4096")


@case("linux.sysctl of the host", "config-linux.md: only what is in a namespace")
def sysctl_host(c):
    path = pathlib.Path("/proc/sys/kernel/panic")
    before = path.read_text(encoding="utf-8")
    c.linux["sysctl"] = {"kernel.panic": "99"}
    c.write()
    code, _, _ = c.call("run", "--bundle", c.bundle, c.id)
    after = path.read_text(encoding="utf-8")
    if after != before:
        path.write_text(before, encoding="utf-8")
    expect("what the host has, and the answer is an error", (after, code != 0), (before, True))


# ---- more of a process


@case("process.args empty", "config.md: process.args; at least one entry")
def args_empty(c):
    c.process["args"] = []
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("process.cwd not there", "runtimes make it")
def cwd_missing(c):
    c.process["cwd"] = "/home/new/one"
    c.script("pwd")
    c.prints("/home/new/one")


@case("process.rlimits, an unknown type", "config.md: rlimits; MUST be an error")
def rlimits_unknown(c):
    c.process["rlimits"] = [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("process.capabilities, an unknown name", "config.md: capabilities; SHOULD NOT fail")
def capabilities_unknown(c):
    c.process["capabilities"]["bounding"] = c.process["capabilities"]["bounding"] + ["CAP_NONE"]
    c.script("echo here")
    c.prints("here")


@case("process.capabilities missing", "config.md: capabilities; a user has none")
def capabilities_none(c):
    del c.process["capabilities"]
    c.process["user"] = {"uid": 1000, "gid": 1000}
    c.script(STATUS)
    text = c.run()
    expect("the sets", [int(status_of(text, key), 16) for key in ("CapPrm", "CapEff", "CapAmb")], [0, 0, 0])


@case("process.oomScoreAdj not set", "config.md: oomScoreAdj MUST NOT be changed")
def oom_unset(c):
    own = pathlib.Path("/proc/self/oom_score_adj").read_text(encoding="utf-8").strip()
    c.script("cat /proc/self/oom_score_adj")
    c.prints(own)


@case("process.scheduler SCHED_FIFO", "config.md: scheduler.priority")
def scheduler_fifo(c):
    c.process["scheduler"] = {"policy": "SCHED_FIFO", "priority": 3}
    # Fields 40 and 41: the priority of real time, and the policy.
    c.script("sed 's/.*) //' /proc/self/stat | cut -d' ' -f38,39")
    c.prints("3 1")


@case("process.scheduler SCHED_IDLE", "config.md: scheduler.policy")
def scheduler_idle(c):
    c.process["scheduler"] = {"policy": "SCHED_IDLE"}
    c.script("sed 's/.*) //' /proc/self/stat | cut -d' ' -f39")
    c.prints("5")


@case("process.scheduler, priority of a policy without", "config.md: scheduler; an error")
def scheduler_wrong(c):
    c.process["scheduler"] = {"policy": "SCHED_OTHER", "priority": 10}
    c.write()
    c.fails("run", "--bundle", c.bundle, c.id)


@case("process.ioPriority IOPRIO_CLASS_IDLE", "config.md: ioPriority.class")
def io_idle(c):
    c.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
    c.script("ionice -p $$")
    expect_in("ionice", "idle", c.run())


@case("process.execCPUAffinity, a process by a file", "config.md: execCPUAffinity")
def affinity_exec(c):
    c.sleeping()
    path = c.directory / "process.json"
    process = dict(c.process, args=["sh", "-c", STATUS], execCPUAffinity={"initial": "0", "final": "0"})
    path.write_text(json.dumps(process), encoding="utf-8")
    expect("the processors", status_of(c.ok("exec", "--process", path, c.id), "Cpus_allowed_list"), "0")


@case("process.consoleSize without a terminal", "config.md: consoleSize MUST be ignored")
def console_ignored(c):
    c.process["consoleSize"] = {"height": 10, "width": 20}
    c.script("echo here")
    c.prints("here")


@case("process.apparmorProfile without AppArmor", "config.md: apparmorProfile; an error")
def no_apparmor(c):
    path = pathlib.Path("/sys/module/apparmor/parameters/enabled")
    if path.exists() and path.read_text(encoding="utf-8").startswith("Y"):
        c.script("echo here")
        c.prints("here")
        return
    c.process["apparmorProfile"] = "no-such-profile"
    c.write()
    c.fails("run", "--bundle", c.bundle, c.id)


# ---- more of namespaces


@case("linux.namespaces, an unknown type", "config-linux.md: namespaces.type")
def namespace_unknown(c):
    c.linux["namespaces"].append({"type": "none"})
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("linux.namespaces.path relative", "config-linux.md: namespaces.path MUST be absolute")
def namespace_relative(c):
    c.join("uts", "proc/self/ns/uts")
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


def joined(kind, file, *unshare):
    @case(f"linux.namespaces {kind} by path", "config-linux.md: namespaces.path")
    def check(c):
        holder = subprocess.Popen(["unshare", *unshare, "sleep", "60"])
        try:
            read = lambda: os.readlink(f"/proc/{holder.pid}/ns/{file}")
            host = os.readlink(f"/proc/self/ns/{file}")
            while read() == host:
                pass
            expected = read()
            c.join(kind, f"/proc/{holder.pid}/ns/{file}")
            c.script(f"readlink /proc/self/ns/{file}")
            c.prints(expected)
        finally:
            holder.kill()
            holder.wait()


joined("cgroup", "cgroup", "--cgroup")
joined("uts", "uts", "--uts")
joined("ipc", "ipc", "--ipc")


@case("linux.namespaces time by path", "config-linux.md: namespaces.path")
def time_by_path(c):
    holder = subprocess.Popen(["unshare", "--time", "--monotonic", "1000", "--fork", "--kill-child", "sleep", "60"])
    try:
        host = os.readlink("/proc/self/ns/time")
        while os.readlink(f"/proc/{holder.pid}/ns/time_for_children") == host:
            pass
        c.join("time", f"/proc/{holder.pid}/ns/time_for_children")
        c.script("readlink /proc/self/ns/time")
        c.prints(os.readlink(f"/proc/{holder.pid}/ns/time_for_children"))
    finally:
        holder.kill()
        holder.wait()


@case("linux.namespaces user by path", "config-linux.md: namespaces.path")
def user_by_path(c):
    first = c.another()
    try:
        first.in_user_namespace()
        first.sleeping()
        pid = first.state()["pid"]
        c.in_user_namespace()
        c.join("user", f"/proc/{pid}/ns/user")
        del c.linux["uidMappings"], c.linux["gidMappings"]
        c.script("readlink /proc/self/ns/user; id -u")
        c.prints(os.readlink(f"/proc/{pid}/ns/user") + "\n0")
    finally:
        first.clean()


@case("linux.uidMappings of several ranges", "config-linux.md: user namespace mappings")
def mappings_several(c):
    c.in_user_namespace()
    ranges = [
        {"containerID": 0, "hostID": 100000, "size": 1000},
        {"containerID": 1000, "hostID": 300000, "size": 10},
    ]
    c.linux["uidMappings"] = ranges
    c.script("tr -s ' ' < /proc/self/uid_map")
    c.prints("0 100000 1000\n 1000 300000 10")


@case("linux.uidMappings without a user namespace", "config-linux.md: user namespace mappings")
def mappings_alone(c):
    before = os.readlink("/proc/self/ns/user")
    c.linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 1}]
    c.script("readlink /proc/self/ns/user")
    c.write()
    code, out, _ = c.call("run", "--bundle", c.bundle, c.id)
    expect("it is refused, or has the host's", code != 0 or out.strip() == before, True)


@case("linux.timeOffsets without a time namespace", "config-linux.md: timeOffsets; an error")
def offsets_alone(c):
    c.linux["timeOffsets"] = {"monotonic": {"secs": 100}}
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("linux.sysctl of another namespace", "config-linux.md: sysctl; net without a network namespace is refused")
def sysctl_net(c):
    path = pathlib.Path("/proc/sys/net/ipv4/ip_default_ttl")
    before = path.read_text(encoding="utf-8")
    c.without("network")
    c.linux["sysctl"] = {"net.ipv4.ip_default_ttl": "33"}
    c.write()
    code, _, _ = c.call("run", "--bundle", c.bundle, c.id)
    after = path.read_text(encoding="utf-8")
    if after != before:
        path.write_text(before, encoding="utf-8")
    expect("what the host has, and the answer is an error", (after, code != 0), (before, True))
