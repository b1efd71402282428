"""What stands against each attack: the kernel's feature, the rule of Godwit that uses it, and where that rule is.

A key is a case, or the words that several begin with; the longest that fits counts.
"""

# Each: what the kernel has for it, what Godwit makes of that, and the file that says so.
MASKS = ("mounts, read-only or on top", "settings are read-only, what tells of the host is covered", "src/rootfs/plan.rs")
NO_DEVICE = ("user namespaces; capabilities; nodev mounts", "no CAP_MKNOD, none in a user namespace, layers are nodev",
             "src/rootfs/overlay.rs")
PID = ("pid namespaces", "a container sees its own processes only", "src/namespace/mod.rs")
TRACE = ("user namespaces; seccomp", "no ptrace and no look into other processes", "src/security/profile.rs")
NEW_NAMESPACE = ("seccomp; capabilities", "no new namespaces, no mounts, no setns", "src/security/profile.rs")
CAPABILITY = ("capabilities; user namespaces", "eleven capabilities, which count in the container's namespaces only",
              "src/security/capability.rs")
SECCOMP = ("seccomp", "a list of allowed system calls", "src/security/profile.rs")
LIMIT = ("resource limits", "limits of files, locked memory and core files", "src/security/limit.rs")
PORT = ("BPF at tc ingress and egress", "the port's filter judges every frame", "src/net/filter")
CLOSED = ("BPF at tc ingress", "nothing but answers and ARP reaches the host's own addresses", "src/net/filter")
BENEATH = ("openat2(RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS)", "paths of an image are opened beneath it, following no link",
           "src/sys/beneath.rs")
CGROUP = ("cgroup v2 controllers", "limits of the container's cgroup", "src/cgroup/plan.rs")
USERS = ("user namespaces", "what is counted by user is counted for each container by itself", "src/namespace/ids.rs")

DEFENCES = {
    "proc:": MASKS,
    "sys:": MASKS,
    "cgroup:": ("cgroup namespaces; read-only mounts", "its own cgroup is the root of what it sees, read-only",
                "src/rootfs/plan.rs"),
    "device:": NO_DEVICE,
    "process:": TRACE,
    "process: see the runtime": PID,
    "process: signal outside": PID,
    "process: pidfd outside": PID,
    "namespace:": NEW_NAMESPACE,
    "mount:": NEW_NAMESPACE,
    "file: by its handle": CAPABILITY,
    "file: out of a chroot": ("pivot_root; mount namespaces", "nothing of the host's tree is mounted", "src/rootfs/pivot.rs"),
    "file: of a neighbour": ("mount namespaces", "nothing of the host's tree is mounted", "src/rootfs/pivot.rs"),
    "file:": ("close-on-exec", "no descriptor but three is passed on", "src/container/init/steps.rs"),
    "key:": SECCOMP,
    "kernel:": SECCOMP,
    "kernel: host name": CAPABILITY,
    "terminal:": ("seccomp; sessions", "no TIOCSTI, a session of its own", "src/security/profile.rs"),
    "privilege:": ("no_new_privs", "a program's mode bits and capabilities count for nothing", "src/security/mod.rs"),
    "socket:": ("seccomp; network namespaces", "families that containers need, in a network of its own",
                "src/security/profile.rs"),
    "socket: abstract, outside": ("network namespaces", "abstract sockets of the host are not in there", "src/namespace/mod.rs"),
    "socket: the API": ("mount namespaces; file modes", "the socket is root's, and not in the container's tree",
                        "src/api/server.rs"),
    "ipc:": ("IPC namespaces", "segments of the host are not in there", "src/namespace/mod.rs"),
    "bomb:": LIMIT,
    "bomb: inodes of /dev": ("tmpfs, nr_inodes and size", "/dev and /dev/shm are bounded", "src/rootfs/plan.rs"),
    "bomb: shared memory": ("tmpfs, nr_inodes and size", "/dev and /dev/shm are bounded", "src/rootfs/plan.rs"),
    "bomb: priority": CAPABILITY,
    "bomb: real time": CAPABILITY,
    "bomb: not to be killed": ("oom_score_adj", "a container is as killable as others", "src/container/init/mod.rs"),
    "bomb: fork": CGROUP,
    "bomb: memory": CGROUP,
    "bomb: root's inotify instances": USERS,
    "runtime:": ("read-only mounts of one file; PR_SET_DUMPABLE", "the program is executed through a mount of its own",
                 "src/sys/mount.rs"),
    "frame:": PORT,
    "network:": CLOSED,
    "image:": BENEATH,
    "image: device nodes": NO_DEVICE,
    "image: set-user-id": ("no_new_privs", "a program's mode bits count for nothing", "src/security/mod.rs"),
    "peer port:": ("TLS 1.3, both sides", "who does not prove who he is gets no answer", "src/peer"),
    "neighbour:": CGROUP,
}


def of(case):
    """Kernel feature, rule and file for a case; a case without is an error of this table."""
    fitting = [key for key in DEFENCES if case == key or (key.endswith(":") and case.startswith(key))]
    if not fitting:
        raise SystemExit(f"tests/attack/defences.py says nothing about {case!r}")
    return DEFENCES[max(fitting, key=len)]
