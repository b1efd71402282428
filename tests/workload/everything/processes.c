/* Processes: who is whose child, leader and group, with which rights, limits and filters; and a terminal. */
#include "items.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <termios.h>
#include <sys/ioctl.h>
#include <grp.h>

/* ---- a session, a group in it, and an orphan */

static pid_t in_group, orphan;
static struct helper leader;
static int group_wire[2];

static void lead(void) {
    setsid();
    pid_t group = fork();
    if (group == 0) {
        setpgid(0, 0);
        pid_t lost = fork();
        if (lost == 0)
            for (;;) pause();
        pid_t both[2] = {getpid(), lost};
        if (write(group_wire[1], both, sizeof both) != sizeof both) _exit(1);
        for (;;) pause();
    }
}
static long lead_answers(long question) { return question == 0 ? getsid(0) : getppid(); }

static const char *make_sessions(void) {
    pid_t both[2];
    NEED(!pipe(group_wire));
    leader = start_helper(lead, lead_answers);
    NEED(read(group_wire[0], both, sizeof both) == sizeof both);
    in_group = both[0], orphan = both[1];
    return NULL;
}
static const char *check_sessions(void) {
    NEED(getsid(leader.pid) == leader.pid && getpgid(leader.pid) == leader.pid);
    NEED(getsid(in_group) == leader.pid && getpgid(in_group) == in_group);
    NEED(getsid(orphan) == leader.pid && getpgid(orphan) == in_group);
    NEED(ask(&leader, 0) == leader.pid && ask(&leader, 1) == getpid());
    return NULL;
}

/* ---- zombies: one that has exited, one that was killed; and one that is stopped */

static pid_t exited, killed, stopped;

static const char *make_zombies(void) {
    if ((exited = fork()) == 0) _exit(42);
    if ((killed = fork()) == 0)
        for (;;) pause();
    NEED(exited > 0 && killed > 0 && !kill(killed, SIGKILL));
    for (int n = 0; n < 100 && (state_of(exited) != 'Z' || state_of(killed) != 'Z'); n++) rest(10);
    return NULL;
}
static const char *check_zombies(void) {
    siginfo_t info = {0};
    NEED(state_of(exited) == 'Z' && state_of(killed) == 'Z');
    NEED(!waitid(P_PID, exited, &info, WEXITED | WNOHANG | WNOWAIT));
    NEED(info.si_pid == exited && info.si_code == CLD_EXITED && info.si_status == 42);
    NEED(!waitid(P_PID, killed, &info, WEXITED | WNOHANG | WNOWAIT));
    NEED(info.si_pid == killed && info.si_code == CLD_KILLED && info.si_status == SIGKILL);
    return NULL;
}

static const char *make_stopped(void) {
    if ((stopped = fork()) == 0)
        for (;;) pause();
    NEED(stopped > 0 && !kill(stopped, SIGSTOP));
    for (int n = 0; n < 100 && state_of(stopped) != 'T'; n++) rest(10);
    return NULL;
}
static const char *check_stopped(void) {
    NEED(state_of(stopped) == 'T');
    NEED(!kill(stopped, SIGCONT));
    for (int n = 0; n < 100 && state_of(stopped) != 'S'; n++) rest(10);
    NEED(state_of(stopped) == 'S');
    NEED(!kill(stopped, SIGSTOP));
    for (int n = 0; n < 100 && state_of(stopped) != 'T'; n++) rest(10);
    NEED(state_of(stopped) == 'T');
    return NULL;
}

/* ---- identity, capabilities and the switches of prctl */

static struct helper nobody;

static void become_nobody(void) {
    gid_t groups[] = {5, 6, 700};
    prctl(PR_SET_NAME, "nobody here");
    if (setgroups(3, groups) || setresgid(65534, 65533, 65532) || setresuid(65534, 65533, 65532)) _exit(1);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGUSR2);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_DUMPABLE, 0);
}
static long nobody_answers(long question) {
    if (question == 0) {
        uid_t u[3];
        gid_t g[3], groups[8];
        getresuid(u, u + 1, u + 2), getresgid(g, g + 1, g + 2);
        return u[0] == 65534 && u[1] == 65533 && u[2] == 65532 && g[0] == 65534 && g[1] == 65533 && g[2] == 65532 &&
               getgroups(8, groups) == 3 && groups[0] == 5 && groups[1] == 6 && groups[2] == 700;
    }
    char name[17] = "";
    int death = 0, reaper = 0;
    prctl(PR_GET_NAME, name), prctl(PR_GET_PDEATHSIG, &death), prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    return (strcmp(name, "nobody here") == 0) | (death == SIGUSR2) << 1 | (reaper == 1) << 2 |
           (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1) << 3 | (prctl(PR_GET_DUMPABLE) == 0) << 4;
}
static const char *make_identity(void) {
    nobody = start_helper(become_nobody, nobody_answers);
    return NULL;
}
static const char *check_identity(void) {
    NEED(ask(&nobody, 0) == 1);
    return NULL;
}
static const char *make_nothing(void) { return NULL; }
static const char *check_prctl(void) {
    NEED(ask(&nobody, 1) == 31);
    return NULL;
}

/* ---- a user namespace: root in here is nobody out there, and owners are who they were */

static const char *make_users(void) {
    int file = open("/tmp/of somebody", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0640);
    NEED(file >= 0);
    NEED(fchown(file, 33, 44) == 0 && close(file) == 0);
    return NULL;
}
static const char *check_users(void) {
    unsigned inside = 1, outside = 0, count = 0;
    FILE *map = fopen("/proc/self/uid_map", "re");
    struct stat somebody, nobodys;
    NEED(map && fscanf(map, "%u %u %u", &inside, &outside, &count) == 3 && fclose(map) == 0);
    NEED(inside == 0 && outside >= 524288 && outside % 65536 == 0 && count == 65536);
    NEED(getuid() == 0 && getgid() == 0);
    NEED(stat("/tmp/of somebody", &somebody) == 0 && somebody.st_uid == 33 && somebody.st_gid == 44);
    NEED(stat("/proc/self/exe", &somebody) == 0 && stat("/bin/busybox", &somebody) == 0 && somebody.st_uid == 0);
    /* What is root's of the host is nobody's. */
    NEED(stat("/dev/null", &nobodys) == 0 && nobodys.st_uid == 65534);
    NEED(chmod("/dev/null", 0600) == -1 && errno == EPERM);
    NEED(chown("/tmp/of somebody", 33, 44) == 0);
    return NULL;
}

/* ---- limits, niceness, scheduling, umask, directory */

static struct helper limited;
static char wished_dir[] = "/tmp/a directory of its own";

static void limit(void) {
    struct rlimit files = {123, 456}, locked = {4096, 8192};
    struct sched_param none = {0};
    umask(027);
    if (setrlimit(RLIMIT_NOFILE, &files) || setrlimit(RLIMIT_MEMLOCK, &locked)) _exit(1);
    if (setpriority(PRIO_PROCESS, 0, 7) || sched_setscheduler(0, SCHED_BATCH, &none)) _exit(1);
    mkdir(wished_dir, 0755);
    if (chdir(wished_dir)) _exit(1);
}
static long limited_answers(long question) {
    struct rlimit l;
    char dir[100];
    mode_t mask;
    switch (question) {
    case 0: return !getrlimit(RLIMIT_NOFILE, &l) && l.rlim_cur == 123 && l.rlim_max == 456 &&
                   !getrlimit(RLIMIT_MEMLOCK, &l) && l.rlim_cur == 4096 && l.rlim_max == 8192;
    case 1: return getpriority(PRIO_PROCESS, 0);
    case 2: return sched_getscheduler(0);
    case 3: return umask(mask = umask(0)), mask;
    default: return getcwd(dir, sizeof dir) && !strcmp(dir, wished_dir);
    }
}
static const char *make_limits(void) {
    limited = start_helper(limit, limited_answers);
    return NULL;
}
static const char *check_limits(void) {
    NEED(ask(&limited, 0) == 1);
    return NULL;
}
static const char *check_scheduling(void) {
    NEED(ask(&limited, 1) == 7);
    NEED(ask(&limited, 2) == SCHED_BATCH);
    return NULL;
}
static const char *check_place(void) {
    NEED(ask(&limited, 3) == 027);
    NEED(ask(&limited, 4) == 1);
    return NULL;
}

/* ---- filters of system calls: the container's, and one of a process's own that looks at arguments */

static struct helper filtered;

static void filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 4711, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) _exit(1);
}
static long filtered_answers(long who) { return syscall(SYS_getpriority, PRIO_PROCESS, who) < 0 ? errno : 0; }

static const char *make_filters(void) {
    filtered = start_helper(filter, filtered_answers);
    return NULL;
}
static const char *check_filters(void) {
    NEED(socket(AF_ALG, SOCK_SEQPACKET, 0) == -1 && errno == EPERM);
    NEED(personality(PER_BSD) == -1 && errno == EPERM);
    NEED(personality(0xffffffff) == PER_LINUX);
    NEED(ask(&filtered, 4711) == 77 && ask(&filtered, 0) == 0);
    NEED(filtered_answers(4711) == ESRCH);
    return NULL;
}

/* ---- a terminal: this process has its master, a session of its own its other end */

static struct helper typist;
static int master;
static volatile sig_atomic_t resized;
static void note_resize(int signal) { (void)signal, resized++; }

static void sit_down(void) {
    struct termios t;
    char name[40];
    struct sigaction action = {.sa_handler = note_resize, .sa_flags = SA_RESTART};
    if (ptsname_r(master, name, sizeof name) || setsid() < 0) _exit(1);
    close(master);
    int terminal = open(name, O_RDWR);
    sigaction(SIGWINCH, &action, NULL);
    if (terminal < 0 || tcgetattr(terminal, &t)) _exit(1);
    t.c_lflag &= ~(ECHO | ICANON), t.c_cc[VINTR] = 7;
    if (tcsetattr(terminal, TCSANOW, &t)) _exit(1);
    dup2(terminal, 0), close(terminal);
}
static long typist_answers(long question) {
    struct winsize size;
    struct termios t;
    char text[6] = "";
    switch (question) {
    case 0: return read(0, text, 5) == 5 && !strcmp(text, "typed") && write(0, "shown", 5) == 5;
    case 1: return !ioctl(0, TIOCGWINSZ, &size) && size.ws_row == 33 && size.ws_col == 77;
    case 2: return !tcgetattr(0, &t) && !(t.c_lflag & (ECHO | ICANON)) && t.c_cc[VINTR] == 7;
    case 3: return tcgetpgrp(0) == getpid() && tcgetsid(0) == getpid();
    default: return resized;
    }
}
static const char *make_pty(void) {
    struct winsize size = {33, 77, 0, 0};
    NEED((master = posix_openpt(O_RDWR | O_NOCTTY)) >= 0 && !grantpt(master) && !unlockpt(master));
    NEED(!ioctl(master, TIOCSWINSZ, &size));
    typist = start_helper(sit_down, typist_answers);
    return NULL;
}
static const char *check_pty(void) {
    struct winsize size = {33, 77, 0, 0}, other = {10, 10, 0, 0};
    long before = ask(&typist, 4);
    NEED(write(master, "typed", 5) == 5 && ask(&typist, 0) == 1 && reads(master, "shown", 5));
    NEED(ask(&typist, 1) == 1);
    NEED(ask(&typist, 2) == 1);
    NEED(ask(&typist, 3) == 1);
    NEED(!ioctl(master, TIOCSWINSZ, &other) && !ioctl(master, TIOCSWINSZ, &size));
    rest(20);
    NEED(ask(&typist, 4) > before);
    return NULL;
}

const struct item processes[] = {
    {"sessions-and-groups", make_sessions, check_sessions},
    {"zombies", make_zombies, check_zombies},
    {"stopped-process", make_stopped, check_stopped},
    {"identity", make_identity, check_identity},
    {"prctl", make_nothing, check_prctl},
    {"user-namespace", make_users, check_users},
    {"limits", make_limits, check_limits},
    {"nice-and-scheduler", make_nothing, check_scheduling},
    {"umask-and-directory", make_nothing, check_place},
    {"seccomp-with-arguments", make_filters, check_filters},
    {"pty", make_pty, check_pty},
    {0},
};
