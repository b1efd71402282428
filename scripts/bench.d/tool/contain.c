/*
 * The emptiest container: a command in pid, mount, uts and ipc namespaces of its own and a given network, with a
 * given root and /proc, and nothing else. Prints the pid of its first process and leaves it running.
 */
#include "tool.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static void enter_root(const char *root)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount(root, root, NULL, MS_BIND, NULL) || chdir(root) ||
        mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ||
        syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        die(root);
}

int contain(int argc, char **argv)
{
    const char *root = option(argc, argv, "--root", NULL), *network = option(argc, argv, "--netns", NULL);
    int fd = open(network, O_RDONLY | O_CLOEXEC), null;
    char **command = argv;
    pid_t child;

    while (*command && strcmp(*command, "--"))
        command++;
    if (!*command || !*++command)
        refuse("the command is missing");
    if (fd < 0 || setns(fd, CLONE_NEWNET))
        die(network);
    if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID))
        die("unshare");
    child = fork();
    if (child < 0)
        die("fork");
    if (child) {
        printf("%d\n", child);
        return 0;
    }
    enter_root(root);
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
