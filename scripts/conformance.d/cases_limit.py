"""Cases about seccomp and resources."""

import fcntl
import json
import pathlib
import socket
import struct
import threading

from case import PATIENCE, Failed, Refused, case, expect

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


def refuse(c, names, action=ERRNO, default=ALLOW, **more):
    c.linux["seccomp"] = {"defaultAction": default, "syscalls": [{"names": names, "action": action, **more}]}


@case("seccomp errno", "config-linux.md: seccomp; EPERM unless errnoRet says otherwise")
def errno(c):
    refuse(c, ["mkdir", "mkdirat"])
    c.script("mkdir /tmp/x 2>&1")
    c.write()
    _, out, errors = c.call("run", "--bundle", c.bundle, c.id)
    expect("the error", "Operation not permitted" in out + errors, True)


@case("seccomp errnoRet", "config-linux.md: seccomp.syscalls.errnoRet")
def errno_ret(c):
    refuse(c, ["mkdir", "mkdirat"], errnoRet=28)
    c.script("mkdir /tmp/x 2>&1; true")
    expect("the error", "No space left" in c.run(), True)


@case("seccomp several actions", "config-linux.md: seccomp.syscalls.action")
def several(c):
    c.linux["seccomp"] = {
        "defaultAction": ALLOW,
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": ERRNO, "errnoRet": 28},
            {"names": ["rmdir", "unlink", "unlinkat"], "action": ERRNO, "errnoRet": 13},
            {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }
    c.script("mkdir /tmp/x 2>&1; rm /etc/passwd 2>&1; sh -c 'exec sync'; echo $?")
    out = c.run()
    expect("the three", ["No space left" in out, "Permission denied" in out, out.endswith("159")], [True] * 3)


@case("seccomp kills", "config-linux.md: SCMP_ACT_KILL")
def kills(c):
    refuse(c, ["sync"], "SCMP_ACT_KILL")
    c.script("sh -c 'exec sync'; echo $?")
    out = c.run()
    expect("the answer", out.splitlines()[-1], "159")


@case("seccomp args", "config-linux.md: seccomp.syscalls.args")
def args(c):
    # The upper half of the argument is nobody's, and the lower one is compared: kill with signal 10 alone.
    refuse(c, ["kill"], args=[{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}])
    c.script("trap 'echo usr2' USR2; kill -12 $$; kill -10 $$ 2>/dev/null || echo refused")
    c.prints("usr2\nrefused")


@case("seccomp args masked", "config-linux.md: SCMP_CMP_MASKED_EQ")
def masked(c):
    refuse(c, ["kill"], args=[{"index": 1, "value": 2, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}])
    c.script("trap 'echo usr2' USR2; kill -12 $$; kill -10 $$ 2>/dev/null || echo refused")
    c.prints("usr2\nrefused")


@case("seccomp two conditions", "config-linux.md: seccomp.syscalls.args; all of one entry must be met")
def two(c):
    refuse(
        c,
        ["kill"],
        args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}],
    )
    c.script("sleep 100 & kill -10 $! && echo other; kill -10 1 2>/dev/null || echo refused")
    c.prints("other\nrefused")


@case("seccomp unknown names", "runtimes leave out calls they do not know")
def unknown(c):
    refuse(c, ["no_such_call", "mkdir", "mkdirat"], errnoRet=28)
    c.script("mkdir /tmp/x 2>&1; true")
    expect("the error", "No space left" in c.run(), True)


@case("seccomp errnoRet of another action", "config-linux.md: MUST fail")
def errno_of_allow(c):
    refuse(c, ["mkdir"], "SCMP_ACT_KILL", errnoRet=3)
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("seccomp of an engine", "a profile of 300 calls with conditions")
def engine(c):
    path = pathlib.Path(__file__).parents[2] / "tests/seccomp/docker.json"
    template = json.loads(path.read_text(encoding="utf-8"))
    calls = [call for call in template["syscalls"] if not call["includes"].get("caps") and not call["includes"].get("arches")]
    keep = ("names", "action", "errnoRet", "args")
    calls = [{k: call[k] for k in keep if call.get(k) is not None} for call in calls]
    c.linux["seccomp"] = {"defaultAction": ERRNO, "architectures": ["SCMP_ARCH_NATIVE"], "syscalls": calls}
    c.linux["seccomp"]["syscalls"].append({"names": ["arch_prctl"], "action": ALLOW})
    del c.linux["seccomp"]["architectures"]
    c.process["noNewPrivileges"] = True
    c.script("echo works; unshare -u true 2>&1 | grep -c permitted; mount -t tmpfs none /mnt 2>&1 | grep -ci 'permi.*denied\\|permitted'")
    c.prints("works\n1\n1")


@case("seccomp with privileges", "a filter without noNewPrivileges is loaded while it may be")
def privileges(c):
    refuse(c, ["mkdir", "mkdirat"], errnoRet=28)
    c.process["noNewPrivileges"] = False
    c.process["user"] = {"uid": 1000, "gid": 1000}
    c.script("mkdir /tmp/x 2>&1; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t\\n'")
    out = c.run()
    expect("the filter holds", ["No space left" in out, "NoNewPrivs:0Seccomp:2" in out], [True, True])


@case("seccomp flags", "config-linux.md: seccomp.flags")
def flags(c):
    refuse(c, ["mkdir", "mkdirat"], errnoRet=28)
    c.linux["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    c.script("mkdir /tmp/x 2>&1; true")
    expect("the error", "No space left" in c.run(), True)


NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
NO_SPACE = 28


class Agent(threading.Thread):
    """Answers the first call that it is notified of with an error, and keeps what it was told."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(PATIENCE)
        self.told, self.error = None, None
        self.start()

    def run(self):
        try:
            connection, _ = self.listener.accept()
            message, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
            self.told = json.loads(message)
            call = bytearray(80)
            fcntl.ioctl(descriptors[0], NOTIF_RECV, call)
            (cookie,) = struct.unpack_from("Q", call)
            fcntl.ioctl(descriptors[0], NOTIF_SEND, struct.pack("QqiI", cookie, 0, -NO_SPACE, 0))
        except (OSError, ValueError) as error:
            self.error = error


@case("seccomp notify", "config-linux.md: SCMP_ACT_NOTIFY, listenerPath, listenerMetadata")
def notify(c):
    path = c.directory / "agent.sock"
    refuse(c, ["mkdir", "mkdirat"], "SCMP_ACT_NOTIFY")
    c.linux["seccomp"].update(listenerPath=str(path), listenerMetadata="words for the agent")
    agent = Agent(path)
    c.script("mkdir /tmp/x 2>&1; true")
    out = c.run()
    agent.join(PATIENCE)
    if agent.told is None:
        raise Failed(f"the agent was told nothing: {agent.error}")
    expect("the error", "No space left" in out, True)
    expect("what comes along", agent.told["fds"], ["seccompFd"])
    expect("the metadata", agent.told["metadata"], "words for the agent")
    expect("the state", (agent.told["state"]["id"], agent.told["pid"] > 1), (c.id, True))


@case("seccomp notify without a listener", "config-linux.md: an error, for nobody would answer")
def notify_nobody(c):
    refuse(c, ["mkdir", "mkdirat"], "SCMP_ACT_NOTIFY")
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


# ---- resources: what the kernel says of the container's cgroup


def in_cgroup(c, *files):
    """The first of these files that the container's cgroup has, in whatever hierarchy."""
    for mount in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        place, kind = mount.split(" - ")
        if kind.startswith("cgroup"):
            for file in files:
                path = pathlib.Path(place.split()[4] + c.cgroup) / file
                if path.exists():
                    return path.read_text(encoding="utf-8").strip()
    raise Refused(f"no hierarchy here has {files[0]}")


def limit(name, resources, files, expected, update=None):
    @case(f"resources {name}", "config-linux.md: resources")
    def check(c):
        c.linux["resources"].update(resources)
        c.script("sleep 1000 & wait")
        c.create()
        expect(files[0], in_cgroup(c, *files) in expected, True)
        if update:
            change, after = update
            path = c.directory / "update.json"
            path.write_text(json.dumps(change), encoding="utf-8")
            c.ok("update", "--resources", path, c.id)
            expect(files[0], in_cgroup(c, *files) in after, True)


limit("memory.limit", {"memory": {"limit": 67108864}}, ["memory.max", "memory.limit_in_bytes"], ["67108864"],
      ({"memory": {"limit": 134217728}}, ["134217728"]))  # fmt: skip
limit("memory.reservation", {"memory": {"reservation": 33554432}}, ["memory.low", "memory.soft_limit_in_bytes"], ["33554432"])
limit("pids.limit", {"pids": {"limit": 50}}, ["pids.max"], ["50"], ({"pids": {"limit": -1}}, ["max"]))
limit("cpu.shares", {"cpu": {"shares": 512}}, ["cpu.weight", "cpu.shares"], ["59", "20", "512"])
limit("cpu.quota", {"cpu": {"quota": 50000, "period": 100000}}, ["cpu.max", "cpu.cfs_quota_us"], ["50000 100000", "50000"])
limit("cpu.cpus", {"cpu": {"cpus": "0", "mems": "0"}}, ["cpuset.cpus"], ["0"])
limit("hugepageLimits", {"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]},
      ["hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"], ["4194304"])  # fmt: skip
limit("unified", {"unified": {"cgroup.max.depth": "7"}}, ["cgroup.max.depth"], ["7"])


@case("resources that limit nothing", "0 and -1 where there is no limit, as engines send them")
def nothing(c):
    c.linux["resources"].update(
        {
            "memory": {"limit": 0, "swap": 0, "disableOOMKiller": False},
            "cpu": {"shares": 0, "quota": 0, "period": 0},
            "pids": {"limit": -1},
            "blockIO": {"weight": 0},
        }
    )
    c.script("echo here")
    c.prints("here")


@case("resources unified, no such file", "config-linux.md: unified; an error")
def unified_missing(c):
    c.linux["resources"]["unified"] = {"nothing.max": "1"}
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
    c.fails("state", c.id)


@case("cgroupsPath", "config-linux.md: cgroupsPath")
def cgroups_path(c):
    c.without("cgroup")
    c.script("cat /proc/self/cgroup")
    expect("it is in it", c.cgroup in c.run(), True)


@case("cgroups are gone with the container", "runtime.md: delete")
def cgroups_gone(c):
    c.script("echo x")
    c.run()
    left = [str(path) for path in pathlib.Path("/sys/fs/cgroup").rglob(c.id)]
    expect("what is left", left, [])


@case("cgroupsPath relative", "config-linux.md: cgroupsPath; the same value is the same place")
def cgroups_relative(c):
    c.without("cgroup")
    c.linux["cgroupsPath"] = f"relative-{c.id}"
    c.script("grep ^0:: /proc/self/cgroup")
    first = c.run()
    expect("it is in one of its own", f"relative-{c.id}" in first, True)
    expect("the second time", c.run(), first)


@case("cgroups in a user namespace", "config-linux.md: cgroup ownership; root inside may divide its cgroup")
def cgroups_owned(c):
    c.in_user_namespace()
    c.config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]})
    c.script("mkdir /sys/fs/cgroup/inner && echo $$ > /sys/fs/cgroup/inner/cgroup.procs && echo moved")
    c.prints("moved")


@case("linux.intelRdt without resctrl", "config-linux.md: intelRdt; where resctrl is not mounted, an error")
def no_resctrl(c):
    if "resctrl" in pathlib.Path("/proc/mounts").read_text(encoding="utf-8"):
        raise Refused("resctrl is mounted here")
    c.linux["intelRdt"] = {"closID": "conf"}
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
    c.fails("state", c.id)


# ---- memory nodes


@case("linux.memoryPolicy", "config-linux.md: memoryPolicy")
def memory_policy(c):
    c.linux["memoryPolicy"] = {"mode": "MPOL_INTERLEAVE", "nodes": "0"}
    c.script("head -n 1 /proc/self/numa_maps")
    expect("the policy", "interleave:0" in c.run(), True)


@case("linux.memoryPolicy.flags", "config-linux.md: memoryPolicy.flags")
def memory_flags(c):
    c.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    c.script("head -n 1 /proc/self/numa_maps")
    expect("the policy", "bind=static:0" in c.run(), True)


@case("linux.memoryPolicy that is none", "config-linux.md: memoryPolicy; an unknown mode is an error")
def memory_unknown(c):
    c.linux["memoryPolicy"] = {"mode": "MPOL_NONE", "nodes": "0"}
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
