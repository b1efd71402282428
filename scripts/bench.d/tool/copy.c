/*
 * What a plain program would do: one thread reads another process's memory with process_vm_readv and puts it into
 * a file on tmpfs, on this host or at the end of a connection.
 */
#include "tool.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHUNK (1u << 20)

struct range {
    uint64_t start, end;
};

/* The largest private anonymous mapping: the workload's memory. */
static struct range largest(uint64_t pid)
{
    char path[64], line[512], mode[8];
    struct range best = {0, 0};
    FILE *maps;

    snprintf(path, sizeof path, "/proc/%llu/maps", (unsigned long long)pid);
    maps = fopen(path, "re");
    if (!maps)
        die(path);
    while (fgets(line, sizeof line, maps)) {
        unsigned long long start, end, offset, inode;
        char device[16];
        if (sscanf(line, "%llx-%llx %7s %llx %15s %llu", &start, &end, mode, &offset, device, &inode) == 6 &&
            !strcmp(mode, "rw-p") && !inode && end - start > best.end - best.start)
            best = (struct range){start, end};
    }
    fclose(maps);
    if (best.end == best.start)
        refuse("the process has no memory to copy");
    return best;
}

static void fetch(uint64_t pid, void *into, uint64_t from, size_t length)
{
    struct iovec local = {into, length}, remote = {(void *)(uintptr_t)from, length};

    if (process_vm_readv((pid_t)pid, &local, 1, &remote, 1, 0) != (ssize_t)length)
        die("process_vm_readv");
}

static int fresh(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0)
        die(path);
    return fd;
}

static void tell(uint64_t length, uint64_t begin)
{
    double seconds = (double)(now(CLOCK_MONOTONIC) - begin) / 1e9;

    printf("{\"bytes\": %llu, \"seconds\": %.6f}\n", (unsigned long long)length, seconds);
}

int copy(int argc, char **argv)
{
    uint64_t pid = number(argc, argv, "--pid", NULL), begin;
    struct range range = largest(pid);
    const char *written = option(argc, argv, "--write", ""), *mapped = option(argc, argv, "--map", "");
    const char *to = option(argc, argv, "--to", "");
    uint64_t length = range.end - range.start;

    if (*mapped) {
        int fd = fresh(mapped);
        begin = now(CLOCK_MONOTONIC);
        char *into = ftruncate(fd, (off_t)length) ? MAP_FAILED
                                                  : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (into == MAP_FAILED)
            die(mapped);
        for (uint64_t at = 0; at < length; at += CHUNK)
            fetch(pid, into + at, range.start + at, length - at < CHUNK ? length - at : CHUNK);
        tell(length, begin);
        return 0;
    }
    int fd = *to ? dial(to) : fresh(written);
    char *buffer = aligned_alloc(PAGE, CHUNK), done;
    if (!buffer)
        die("aligned_alloc");
    memset(buffer, 0, CHUNK);
    begin = now(CLOCK_MONOTONIC);
    for (uint64_t at = 0; at < length; at += CHUNK) {
        size_t part = length - at < CHUNK ? length - at : CHUNK;
        fetch(pid, buffer, range.start + at, part);
        write_all(fd, buffer, part);
    }
    if (*to && (shutdown(fd, SHUT_WR) || read(fd, &done, 1) != 1))
        refuse("the other end has not taken all");
    tell(length, begin);
    return 0;
}

int sink(int argc, char **argv)
{
    int listener = listen_on((uint16_t)number(argc, argv, "--port", NULL)), from, fd;
    char *buffer = aligned_alloc(PAGE, CHUNK);
    ssize_t n;

    if (!buffer)
        die("aligned_alloc");
    printf("ready\n");
    fflush(stdout);
    from = accept(listener, NULL, NULL);
    if (from < 0)
        die("accept");
    fd = fresh(option(argc, argv, "--write", NULL));
    while ((n = read(from, buffer, CHUNK)) > 0)
        write_all(fd, buffer, (size_t)n);
    if (n < 0)
        die("read");
    write_all(from, "d", 1);
    return 0;
}
