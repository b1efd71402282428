/*
 * A container of nobody's: a command in pid, mount, uts, ipc and cgroup namespaces of its own and a given network, with
 * a given root. It has the mounts that a container of Godwit has (src/rootfs/plan.rs), or, with --mounts least, /proc
 * alone. Prints the pid of its first process and leaves it running.
 */
#include "tool.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PLAIN (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define EMPTY "/dev/.empty"
#define NOTHING "/dev/.nothing"

static void enter_root(const char *root)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount(root, root, NULL, MS_BIND, NULL) || chdir(root) ||
        mount("proc", "proc", "proc", PLAIN, NULL) ||
        syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        die(root);
}

static void attach(const char *type, const char *at, unsigned long flags, const char *options)
{
    if ((mkdir(at, 0755) && errno != EEXIST) || mount(type, at, type, flags, options))
        die(at);
}

/* Binds one path over another, with flags of its own; a path that this kernel lacks is left out. */
static void cover(const char *with, const char *at, unsigned long flags)
{
    if (access(at, F_OK))
        return;
    if (mount(with, at, NULL, MS_BIND, NULL) || mount(NULL, at, NULL, MS_BIND | MS_REMOUNT | flags, NULL))
        die(at);
}

static void make_devices(void)
{
    static const struct {
        const char *path;
        unsigned major, minor;
    } devices[] = {{"/dev/null", 1, 3},   {"/dev/zero", 1, 5},    {"/dev/full", 1, 7},
                   {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0}};
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                           {"/proc/self/fd/0", "/dev/stdin"},
                                           {"/proc/self/fd/1", "/dev/stdout"},
                                           {"/proc/self/fd/2", "/dev/stderr"},
                                           {"pts/ptmx", "/dev/ptmx"}};

    umask(0);
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (mknod(devices[i].path, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)))
            die(devices[i].path);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]))
            die(links[i][1]);
    if (mknod(NOTHING, S_IFREG | 0444, 0) || mkdir(EMPTY, 0555))
        die("/dev");
    umask(022);
}

static void furnish(void)
{
    static const char *const read_only[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    static const char *const masked[] = {
        "/proc/acpi",        "/proc/interrupts",  "/proc/kcore",      "/proc/keys",
        "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",     "/proc/timer_list",
        "/proc/timer_stats", "/sys/devices/virtual/powercap",         "/sys/firmware"};
    struct stat what;

    attach("tmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=755,size=65536k,nr_inodes=65536");
    make_devices();
    attach("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
    if (mkdir("/dev/shm", 01777))
        die("/dev/shm");
    cover("/dev/shm", "/dev/shm", PLAIN);
    attach("mqueue", "/dev/mqueue", PLAIN, NULL);
    attach("sysfs", "/sys", PLAIN | MS_RDONLY, NULL);
    attach("cgroup2", "/sys/fs/cgroup", PLAIN | MS_RDONLY, NULL);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
        cover(read_only[i], read_only[i], PLAIN | MS_RDONLY);
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
        if (!stat(masked[i], &what))
            cover(S_ISDIR(what.st_mode) ? EMPTY : NOTHING, masked[i], PLAIN | MS_RDONLY);
}

int contain(int argc, char **argv)
{
    const char *root = option(argc, argv, "--root", NULL), *network = option(argc, argv, "--netns", NULL);
    bool whole = strcmp(option(argc, argv, "--mounts", "all"), "least") != 0;
    int fd = open(network, O_RDONLY | O_CLOEXEC), null;
    char **command = argv;
    pid_t child;

    while (*command && strcmp(*command, "--"))
        command++;
    if (!*command || !*++command)
        refuse("the command is missing");
    if (fd < 0 || setns(fd, CLONE_NEWNET))
        die(network);
    if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | (whole ? CLONE_NEWCGROUP : 0)))
        die("unshare");
    child = fork();
    if (child < 0)
        die("fork");
    if (child) {
        printf("%d\n", child);
        return 0;
    }
    enter_root(root);
    if (whole)
        furnish();
    setsid();
    null = open("/dev/null", O_RDWR);
    if (null < 0)
        die("/dev/null");
    for (int i = 0; i < 3; i++)
        dup2(null, i);
    close_range(3, ~0u, 0);
    execv(*command, command);
    die(*command);
}
