#include "tool.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void die(const char *what)
{
    fprintf(stderr, "bench-tool: %s: %s\n", what, strerror(errno));
    exit(1);
}

void refuse(const char *what)
{
    fprintf(stderr, "bench-tool: %s\n", what);
    exit(2);
}

const char *option(int argc, char **argv, const char *name, const char *otherwise)
{
    for (int i = 0; i + 1 < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], name))
            return argv[i + 1];
    if (!otherwise) {
        fprintf(stderr, "bench-tool: %s is missing\n", name);
        exit(2);
    }
    return otherwise;
}

uint64_t number(int argc, char **argv, const char *name, const char *otherwise)
{
    char *end;
    const char *text = option(argc, argv, name, otherwise);
    uint64_t value = strtoull(text, &end, 10);
    if (!*text || *end)
        refuse("a number is expected");
    return value;
}

uint64_t now(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return (uint64_t)at.tv_sec * NS_PER_S + (uint64_t)at.tv_nsec;
}

int dial(const char *where)
{
    char host[64];
    const char *colon = strrchr(where, ':');
    struct sockaddr_in to = {.sin_family = AF_INET};
    int fd, yes = 1;

    if (!colon || (size_t)(colon - where) >= sizeof host)
        refuse("an ADDRESS:PORT is expected");
    memcpy(host, where, (size_t)(colon - where));
    host[colon - where] = 0;
    to.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1)
        refuse("an ADDRESS:PORT is expected");
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
        die(where);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

int listen_on(uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) ||
        bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 16))
        die("listen");
    return fd;
}

void write_all(int fd, const void *data, size_t length)
{
    for (const char *at = data; length;) {
        ssize_t n = write(fd, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            die("write");
        at += n;
        length -= (size_t)n;
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int, char **);
    } modes[] = {{"serve", serve}, {"ping", ping}, {"ask", ask}, {"announce", announce},
                 {"copy", copy},   {"sink", sink}, {"contain", contain}, {"lives", lives}, {"warm", warm}};

    for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(argv[1], modes[i].name))
            return modes[i].run(argc - 2, argv + 2);
    fprintf(stderr,
            "usage: bench-tool serve --port P [--mib N] [--rate PAGES/S] [--data 3:1|random] [--every MS]\n"
            "       bench-tool ping --to ADDRESS:PORT [--every MS]  until its input ends; a JSON object then\n"
            "       bench-tool ask --to ADDRESS:PORT COMMAND  reset, log or verify\n"
            "       bench-tool announce --to BROADCAST-ADDRESS\n"
            "       bench-tool copy --pid P (--write FILE | --map FILE | --to ADDRESS:PORT)\n"
            "       bench-tool sink --port P --write FILE\n"
            "       bench-tool contain --root DIR --netns FILE [--mounts all|least] -- COMMAND...\n"
            "       bench-tool lives --runtime PROGRAM --state DIR --bundle DIR --pid-file FILE [--count N]\n"
            "       bench-tool warm --mib N  until its input ends\n");
    return 2;
}
