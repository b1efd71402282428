/*
 * Lives of a minimal container: create, start, and, when its program has ended, delete. One line for each:
 *
 *   create-ns start-ns delete-ns whole-ns verbs-KiB first-process-KiB
 *
 * This process takes in the container's first process when its creator has ended, as a container engine's monitor
 * does. So it learns when that has ended, and how much memory it has ever had, before its exec as well. `whole`
 * is from the first command to the end of the last one, with the container's own life in between.
 */
#include "tool.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

struct verb {
    uint64_t ns;
    long kib;
};

/* Runs a command that must succeed; what it starts and leaves is not waited for. */
static struct verb run(char **words)
{
    struct verb verb = {now(CLOCK_MONOTONIC), 0};
    struct rusage used;
    int status;
    pid_t pid = fork();

    if (pid < 0)
        die("fork");
    if (!pid) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        execv(words[0], words);
        die(words[0]);
    }
    while (wait4(pid, &status, 0, &used) < 0)
        if (errno != EINTR)
            die("wait4");
    verb.ns = now(CLOCK_MONOTONIC) - verb.ns;
    verb.kib = used.ru_maxrss;
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "bench-tool: %s %s ended with %x\n", words[0], words[1], (unsigned)status);
        exit(1);
    }
    return verb;
}

static long larger(long a, long b)
{
    return a > b ? a : b;
}

static void live(char *runtime, char *root, char *bundle, const char *pid_file, char *id)
{
    char *create[] = {runtime, "--root", root, "create", "--bundle", bundle, "--pid-file", (char *)pid_file, id, NULL};
    char *start[] = {runtime, "--root", root, "start", id, NULL};
    char *delete[] = {runtime, "--root", root, "delete", id, NULL};
    uint64_t began = now(CLOCK_MONOTONIC);
    struct verb created = run(create), started, deleted;
    struct rusage used;
    int pid = 0, status;
    FILE *file = fopen(pid_file, "re");

    if (!file || fscanf(file, "%d", &pid) != 1)
        die(pid_file);
    fclose(file);
    started = run(start);
    while (wait4(pid, &status, 0, &used) < 0)
        if (errno != EINTR)
            die("the container's first process did not become a child of this one");
    if (status)
        refuse("the container's program did not end well");
    deleted = run(delete);
    printf("%llu %llu %llu %llu %ld %ld\n", (unsigned long long)created.ns, (unsigned long long)started.ns,
           (unsigned long long)deleted.ns, (unsigned long long)(now(CLOCK_MONOTONIC) - began),
           larger(created.kib, larger(started.kib, deleted.kib)), used.ru_maxrss);
    fflush(stdout);
}

int lives(int argc, char **argv)
{
    char *root = (char *)option(argc, argv, "--state", NULL), *bundle = (char *)option(argc, argv, "--bundle", NULL);
    const char *pid_file = option(argc, argv, "--pid-file", NULL);
    uint64_t count = number(argc, argv, "--count", "1");
    char *runtime = (char *)option(argc, argv, "--runtime", NULL), id[64];

    if (prctl(PR_SET_CHILD_SUBREAPER, 1))
        die("prctl");
    for (uint64_t i = 0; i < count; i++) {
        snprintf(id, sizeof id, "bench-%d-%llu", getpid(), (unsigned long long)i);
        live(runtime, root, bundle, pid_file, id);
    }
    return 0;
}
