"""More cases about seccomp: each operator, each action."""

import json
import pathlib

from case import case, expect, expect_in
from cases_limit import ALLOW, ERRNO, refuse

# `kill` with a signal that its sender has a trap for; what is refused prints so.
TRY = "trap 'echo {0}' USR1; trap 'echo {1}' USR2; kill -10 $$ 2>/dev/null || echo no; kill -12 $$ 2>/dev/null || echo no"
USR1, USR2 = 10, 12


def operator(name, value, refused):
    @case(f"seccomp {name}", "config-linux.md: seccomp.syscalls.args.op")
    def check(c):
        refuse(c, ["kill"], args=[{"index": 1, "value": value, "op": name}])
        c.script(TRY.format(USR1, USR2))
        c.prints("\n".join("no" if signal in refused else str(signal) for signal in (USR1, USR2)))


operator("SCMP_CMP_NE", USR1, [USR2])
operator("SCMP_CMP_LT", USR2, [USR1])
operator("SCMP_CMP_LE", USR1, [USR1])
operator("SCMP_CMP_GE", USR2, [USR2])
operator("SCMP_CMP_GT", USR1, [USR2])


@case("seccomp conditions of several entries", "config-linux.md: seccomp.syscalls; any of several entries")
def any_of(c):
    equal = lambda value: [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}]
    calls = [{"names": ["kill"], "action": ERRNO, "args": equal(value)} for value in (USR1, USR2)]
    c.linux["seccomp"] = {"defaultAction": ALLOW, "syscalls": calls}
    c.script(TRY.format(USR1, USR2) + "; trap 'echo term' TERM; kill -15 $$")
    c.prints("no\nno\nterm")


@case("seccomp defaultErrnoRet", "config-linux.md: seccomp.defaultErrnoRet")
def default_errno(c):
    # All calls that busybox makes here, but those that make a directory.
    c.linux["seccomp"] = {"defaultAction": ERRNO, "defaultErrnoRet": 28, "syscalls": [{"names": everything(), "action": ALLOW}]}
    c.script("mkdir /tmp/x 2>&1; true")
    expect_in("the error", "No space left", c.run())


def everything():
    """The names of the calls that the profile of an engine allows without conditions, but for mkdir."""
    path = pathlib.Path(__file__).parents[2] / "tests/seccomp/docker.json"
    template = json.loads(path.read_text(encoding="utf-8"))
    calls = [call for call in template["syscalls"] if not call.get("args") and call["action"] == ALLOW]
    names = {name for call in calls for name in call["names"]} | {"arch_prctl"}
    return sorted(names - {"mkdir", "mkdirat"})


@case("seccomp architectures", "config-linux.md: seccomp.architectures")
def architectures(c):
    refuse(c, ["mkdir", "mkdirat"], errnoRet=28)
    c.linux["seccomp"]["architectures"] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    c.script("mkdir /tmp/x 2>&1; true")
    expect_in("the error", "No space left", c.run())


@case("seccomp SCMP_ACT_TRAP", "config-linux.md: seccomp.syscalls.action")
def trap(c):
    refuse(c, ["sync"], "SCMP_ACT_TRAP")
    # 128 and SIGSYS.
    c.script("sh -c 'exec sync'; echo $?")
    expect("the answer", c.run().splitlines()[-1], "159")


@case("seccomp SCMP_ACT_TRACE", "config-linux.md: seccomp.syscalls.action; nobody traces, so there is no such call")
def trace(c):
    refuse(c, ["mkdir", "mkdirat"], "SCMP_ACT_TRACE", errnoRet=1)
    c.script("mkdir /tmp/x 2>&1; true")
    expect_in("the error", "not implemented", c.run())


@case("seccomp SCMP_ACT_LOG", "config-linux.md: seccomp.syscalls.action; it is done")
def log(c):
    refuse(c, ["mkdir", "mkdirat"], "SCMP_ACT_LOG")
    c.script("mkdir /tmp/x && echo made")
    c.prints("made")


@case("seccomp, an unknown action", "config-linux.md: seccomp; an error")
def unknown_action(c):
    refuse(c, ["mkdir"], "SCMP_ACT_NONE")
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)


@case("seccomp, names empty", "config-linux.md: names MUST contain at least one entry")
def no_names(c):
    refuse(c, [])
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
