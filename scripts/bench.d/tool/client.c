/* The client: one connection that asks every millisecond or so, single questions, and an announcement for peers that make none. */
#include "tool.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A wait between two answers that is by so much longer than it has to be is told. */
#define TOLD (3 * NS_PER_MS)
#define GAPS 256
/* After the end of its input it waits this long for the last answer. */
#define PATIENCE (20 * NS_PER_S)

static unsigned retransmissions(int fd)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof info;

    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) ? 0 : info.tcpi_total_retrans;
}

int ping(int argc, char **argv)
{
    static struct { uint64_t from, to; } gaps[GAPS];
    int fd = dial(option(argc, argv, "--to", NULL)), count = 0;
    struct pollfd polled[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    uint64_t every = number(argc, argv, "--every", "1") * NS_PER_MS, told = every + TOLD;
    uint64_t answers = 0, longest = 0, longest_from = 0, last = now(CLOCK_REALTIME), next = last;
    bool waiting = false, broken = false;
    uint64_t deadline = 0; /* once the input has ended */

    printf("ready\n");
    fflush(stdout);
    for (;;) {
        uint64_t at = now(CLOCK_REALTIME);
        if (!waiting && at >= next && !deadline) {
            if (write(fd, "p", 1) != 1) {
                broken = true;
                break;
            }
            waiting = true;
            next = next + every > at ? next + every : at + every;
        }
        if (deadline && at > deadline) {
            broken = true;
            break;
        }
        struct timespec wait = {.tv_nsec = (long)(waiting ? 100 * NS_PER_MS : next > at ? next - at : 0)};
        if (ppoll(polled, 2, &wait, NULL) <= 0)
            continue;
        if (polled[0].revents) {
            char byte;
            if (read(fd, &byte, 1) != 1) {
                broken = true;
                break;
            }
            at = now(CLOCK_REALTIME);
            waiting = false;
            answers++;
            if (at - last > longest) {
                longest = at - last;
                longest_from = last;
            }
            if (at - last > told && count < GAPS) {
                gaps[count].from = last;
                gaps[count++].to = at;
            }
            last = at;
        }
        if (polled[1].revents) {
            deadline = now(CLOCK_REALTIME) + PATIENCE;
            polled[1].fd = -1;
        }
        if (deadline && !waiting)
            break;
    }
    printf("{\"answers\": %llu, \"longest_ms\": %.3f, \"longest_from\": %.6f, \"retransmissions\": %u, \"broken\": %s, "
           "\"gaps\": [",
           (unsigned long long)answers, (double)longest / 1e6, (double)longest_from / 1e9, retransmissions(fd),
           broken ? "true" : "false");
    for (int i = 0; i < count; i++)
        printf("%s[%.6f, %.6f]", i ? ", " : "", (double)gaps[i].from / 1e9, (double)gaps[i].to / 1e9);
    printf("]}\n");
    return 0;
}

static void read_all(int fd, void *into, size_t length)
{
    for (char *at = into; length;) {
        ssize_t n = read(fd, at, length);
        if (n <= 0)
            refuse("the workload has closed the connection");
        at += n;
        length -= (size_t)n;
    }
}

int ask(int argc, char **argv)
{
    int fd = dial(option(argc, argv, "--to", NULL));
    const char *question = argc ? argv[argc - 1] : "";
    char byte;

    write_all(fd, question, 1);
    switch (*question) {
    case 'r':
        read_all(fd, &byte, 1);
        return 0;
    case 'v':
        do {
            read_all(fd, &byte, 1);
            putchar(byte);
        } while (byte != '\n');
        return 0;
    case 'l': {
        uint64_t count;
        struct tick tick;
        read_all(fd, &count, sizeof count);
        for (; count; count--) {
            read_all(fd, &tick, sizeof tick);
            printf("%llu %llu %llu %llu\n", (unsigned long long)tick.real, (unsigned long long)tick.cpu,
                   (unsigned long long)tick.writes, (unsigned long long)tick.pings);
        }
        return 0;
    }
    default:
        refuse("a question is reset, log or verify");
    }
}

/* A broadcast, from which every bridge on the way learns where this Ethernet address is now. */
int announce(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), yes = 1;

    if (inet_pton(AF_INET, option(argc, argv, "--to", NULL), &to.sin_addr) != 1)
        refuse("an address is expected");
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes) ||
        sendto(fd, "", 1, 0, (struct sockaddr *)&to, sizeof to) != 1)
        die("announce");
    return 0;
}
