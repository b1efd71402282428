/* A process in a container that has something which cannot be moved, put there as nothing inside could.
 *
 *     refused PID CGROUP KIND
 *
 * It joins the namespaces of process PID and its cgroup, but not its filter of system calls; its own parent leaves, so
 * that it belongs to the container's first process. Where KIND has another end outside, a process stays there and
 * keeps it: its number is printed (or 0) when all is there. Status 77: this kernel does not have it, for the reason
 * told.
 *
 *     cc -O1 -static -pthread -o refused refused.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* As of the kernel's linux/io_uring.h, for headers that are older. */
struct ring_parameters {
    unsigned entries, completions, flags, cpu, idle, features, queue, reserved[3];
    unsigned submission[10], completion[10];
};

static void need(int that, const char *what) {
    if (that) return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* What is made outside, before anything is joined: one end for the inside, one for who stays. */
static int inner = -1, outer = -1;

static void make_outside(int pid, const char *kind) {
    int ends[2];
    char path[40];
    if (!strcmp(kind, "stream") || !strcmp(kind, "datagram")) {
        /* In the container's network, with which it has nothing to do. */
        snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
        int net = open(path, O_RDONLY);
        need(net >= 0 && !setns(net, CLONE_NEWNET) && !close(net), path);
        need(!socketpair(AF_UNIX, kind[0] == 's' ? SOCK_STREAM : SOCK_DGRAM, 0, ends), "socketpair");
        inner = ends[0], outer = ends[1];
    } else if (!strcmp(kind, "pipe")) {
        need(!pipe(ends), "pipe");
        inner = ends[0], outer = ends[1];
    } else if (!strcmp(kind, "file")) {
        need((inner = open("/etc/hostname", O_RDONLY)) >= 0, "open");
    } else if (!strcmp(kind, "terminal")) {
        need((outer = posix_openpt(O_RDWR | O_NOCTTY)) >= 0 && !grantpt(outer) && !unlockpt(outer), "openpt");
        need((inner = open(ptsname(outer), O_RDWR | O_NOCTTY)) >= 0, "open");
    } else if (!strcmp(kind, "pidfd")) {
        need((inner = (int)syscall(SYS_pidfd_open, 1, 0)) >= 0, "pidfd_open");
    } else if (!strcmp(kind, "namespace")) {
        need((inner = open("/proc/self/ns/net", O_RDONLY)) >= 0, "open");
    } else if (!strcmp(kind, "socket")) {
        need((inner = socket(AF_INET, SOCK_DGRAM, 0)) >= 0, "socket");
    }
}

static void join(int pid, const char *cgroup) {
    static const char *const kinds[] = {"time", "cgroup", "uts", "ipc", "net", "pid", "mnt"};
    int namespaces[7];
    char path[4096];
    for (int n = 0; n < 7; n++) {
        snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, kinds[n]);
        need((namespaces[n] = open(path, O_RDONLY)) >= 0, path);
    }
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
    int procs = open(path, O_WRONLY);
    need(procs >= 0 && write(procs, "0", 1) == 1, path);
    close(procs);
    for (int n = 0; n < 7; n++) need(!setns(namespaces[n], 0), kinds[n]);
    for (int n = 0; n < 7; n++) close(namespaces[n]);
    need(!chdir("/"), "chdir");
}

static int spare(void *none) {
    for (;;) pause();
    return none != NULL;
}
static void *go_on(void *none) {
    for (;;) pause();
    return none;
}
static char stack[1 << 16];

/* What is made inside. */
static void make_inside(const char *kind) {
    int fd = 0;
    if (!strcmp(kind, "io_uring") || !strcmp(kind, "io_uring-mapping")) {
        struct ring_parameters parameters = {0};
        need((fd = (int)syscall(SYS_io_uring_setup, 4, &parameters)) >= 0, "io_uring_setup");
        if (!strcmp(kind, "io_uring")) return;
        need(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0) != MAP_FAILED, "mmap");
        close(fd);
    } else if (!strcmp(kind, "userfaultfd")) {
        need(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY) >= 0, "userfaultfd");
    } else if (!strcmp(kind, "perf")) {
        struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes};
        attributes.config = PERF_COUNT_SW_TASK_CLOCK;
        need(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0) >= 0, "perf_event_open");
    } else if (!strcmp(kind, "bpf")) {
        union bpf_attr attributes = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
        need(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes) >= 0, "bpf");
    } else if (!strcmp(kind, "fanotify")) {
        need(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY) >= 0, "fanotify_init");
    } else if (!strcmp(kind, "secret")) {
        need((fd = (int)syscall(SYS_memfd_secret, 0)) >= 0 && !ftruncate(fd, 4096), "memfd_secret");
        need(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
        close(fd);
    } else if (!strcmp(kind, "listener")) {
        struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
        struct sock_fprog program = {1, code};
        need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl");
        need(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) >= 0, "seccomp");
    } else if (!strcmp(kind, "device")) {
        need(!mknod("/dev/device", S_IFCHR | 0600, makedev(10, 200)) && (fd = open("/dev/device", O_RDWR)) >= 0, "device");
        unlink("/dev/device");
    } else if (!strcmp(kind, "device-mapping")) {
        need(!mknod("/dev/device", S_IFCHR | 0600, makedev(1, 1)) && (fd = open("/dev/device", O_RDONLY)) >= 0, "device");
        unlink("/dev/device");
        need(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
        close(fd);
    } else if (!strcmp(kind, "nested-pid") || !strcmp(kind, "nested-user") || !strcmp(kind, "nested-net") ||
               !strcmp(kind, "nested-mnt") || !strcmp(kind, "nested-uts")) {
        const char *which = kind + 7;
        int flag = which[0] == 'p' ? CLONE_NEWPID : which[0] == 'm' ? CLONE_NEWNS : which[0] == 'n' ? CLONE_NEWNET
                 : which[1] == 't' ? CLONE_NEWUTS : CLONE_NEWUSER;
        need(!unshare(flag), "unshare");
        if (flag != CLONE_NEWPID) return;
        pid_t child = fork();
        need(child >= 0, "fork");
        if (child == 0) spare(NULL);
    } else if (!strcmp(kind, "shared-memory")) {
        need(clone(spare, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL) > 0, "clone");
    } else if (!strcmp(kind, "traced")) {
        pid_t child = fork();
        if (child == 0) {
            ptrace(PTRACE_TRACEME, 0, NULL, NULL);
            spare(NULL);
        }
        need(child > 0 && !usleep(50000), "fork");
    } else if (!strcmp(kind, "semaphore")) {
        need(eventfd(1, EFD_SEMAPHORE) >= 0, "eventfd");
    } else if (!strcmp(kind, "packets")) {
        int ends[2];
        need(!pipe2(ends, O_DIRECT), "pipe2");
    } else if (!strcmp(kind, "removed")) {
        need((fd = open("/tmp/big", O_RDWR | O_CREAT, 0600)) >= 0 && !unlink("/tmp/big"), "open");
        need(!posix_fallocate(fd, 0, 257 << 20), "fallocate");
    } else if (!strcmp(kind, "inotify")) {
        need((fd = inotify_init()) >= 0 && open("/tmp/watched", O_RDWR | O_CREAT, 0600) >= 0, "open");
        need(inotify_add_watch(fd, "/tmp/watched", IN_ATTRIB) >= 0 && !unlink("/tmp/watched"), "watch");
    } else if (!strcmp(kind, "backlog")) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(7070), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        fd = socket(AF_INET, SOCK_STREAM, 0);
        need(!bind(fd, (void *)&at, sizeof at) && !listen(fd, 5), "listen");
        need(!connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&at, sizeof at), "connect");
    } else if (!strcmp(kind, "mptcp")) {
        need(socket(AF_INET, SOCK_STREAM, 262) >= 0, "socket");
    } else if (!strcmp(kind, "vsock")) {
        need(socket(AF_VSOCK, SOCK_STREAM, 0) >= 0, "socket");
    } else if (!strcmp(kind, "affinity")) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(0, &one);
        need(!sched_setaffinity(0, sizeof one, &one), "sched_setaffinity");
    } else if (!strcmp(kind, "slack")) {
        need(!prctl(PR_SET_TIMERSLACK, 77777), "prctl");
    } else if (!strcmp(kind, "leader")) {
        pthread_t thread;
        need(!pthread_create(&thread, NULL, go_on, NULL), "pthread_create");
    }
}

int main(int count, char **arguments) {
    int told[2];
    if (count != 4) return 2;
    const char *kind = arguments[3];
    /* What whoever called has left open is not for the container. */
    need(!syscall(SYS_close_range, 3, ~0u, 0), "close_range");
    need(!pipe2(told, O_CLOEXEC), "pipe");
    pid_t joiner = fork();
    if (joiner == 0) {
        make_outside(atoi(arguments[1]), kind);
        pid_t stays = 0;
        if (outer >= 0 && (stays = fork()) == 0) {
            close(told[0]), close(told[1]), close(inner), close(0), close(1);
            for (;;) pause();
        }
        close(outer);
        need(dprintf(told[1], "%d ", stays) > 0, "write");
        join(atoi(arguments[1]), arguments[2]);
        pid_t between = fork();
        if (between == 0) {
            setsid();
            pid_t inside = fork();
            if (inside == 0) {
                for (int n = 0; n < 3; n++) close(n);
                /* What goes wrong is told there, too. */
                dup2(told[1], 2);
                close(told[0]);
                make_inside(kind);
                need(write(told[1], "ready", 5) == 5, "write");
                close(told[1]), close(2);
                if (!strcmp(kind, "leader")) pthread_exit(NULL);
                for (;;) pause();
            }
            _exit(0);
        }
        int status;
        waitpid(between, &status, 0);
        exit(0);
    }
    close(told[1]);
    char text[100] = "";
    size_t has = 0;
    for (ssize_t n; !strstr(text, "ready") && has < sizeof text - 1 && (n = read(told[0], text + has, sizeof text - 1 - has)) > 0;) has += n;
    int status;
    waitpid(joiner, &status, 0);
    int stays = atoi(text);
    if (!strstr(text, "ready")) {
        if (stays > 0) kill(stays, SIGKILL);
        fprintf(stderr, "%s\n", text);
        return 77;
    }
    printf("%d\n", stays);
    return 0;
}
