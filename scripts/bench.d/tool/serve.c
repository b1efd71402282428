/*
 * The workload. One thread, so that what is measured is the move of its memory and nothing else:
 *
 *   every --every ms    an entry in the tick log, and as many pages rewritten as are due
 *   on a ping           one byte back
 *   on `verify`         every page compared with what it must hold
 *
 * Pages are rewritten in an order that is a permutation of all of them, again and again; so a page's generation
 * follows from the number of writes alone, and a page that was lost, doubled or left at an older state is seen
 * without a table that would itself be dirtied.
 */
#include "tool.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#define CONNECTIONS 8
#define TICKS 131072 /* two minutes of milliseconds */
/* After a pause it does not catch up on more ticks than this. */
#define CATCH_UP 10

struct memory {
    unsigned char *at;
    uint64_t pages, stride, writes;
    bool random;
};

static volatile sig_atomic_t ended;

static void end(int signal)
{
    (void)signal;
    ended = 1;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Of every 64 words 20 are random where the page is to compress 3:1, and all where it is not to compress. */
static void fill(unsigned char *into, uint64_t page, uint64_t generation, bool random)
{
    uint64_t *word = (uint64_t *)into, state = mix(page ^ (generation << 40)), same = mix(page);

    for (unsigned i = 0; i < PAGE / sizeof *word; i++) {
        if (!random && i % 64 >= 20) {
            word[i] = same;
            continue;
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word[i] = state;
    }
}

static uint64_t divisor(uint64_t a, uint64_t b)
{
    return b ? divisor(b, a % b) : a;
}

static struct memory allocate(uint64_t mib, bool random)
{
    struct memory memory = {.pages = mib * 256, .random = random};

    if (!mib)
        return memory;
    memory.at = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory.at == MAP_FAILED)
        die("mmap");
    memory.stride = memory.pages * 618 / 1000 | 1;
    while (divisor(memory.stride, memory.pages) != 1)
        memory.stride += 2;
    for (uint64_t page = 0; page < memory.pages; page++)
        fill(memory.at + page * PAGE, page, 0, random);
    return memory;
}

static void rewrite(struct memory *memory, uint64_t count)
{
    for (; memory->pages && count; count--, memory->writes++) {
        uint64_t page = memory->writes % memory->pages * memory->stride % memory->pages;
        fill(memory->at + page * PAGE, page, memory->writes / memory->pages + 1, memory->random);
    }
}

static uint64_t wrong_pages(const struct memory *memory)
{
    static unsigned char expected[PAGE] __attribute__((aligned(8)));
    uint64_t wrong = 0;

    for (uint64_t k = 0; k < memory->pages; k++) {
        uint64_t page = k * memory->stride % memory->pages;
        uint64_t generation = memory->writes / memory->pages + (k < memory->writes % memory->pages);
        fill(expected, page, generation, memory->random);
        wrong += memcmp(expected, memory->at + page * PAGE, PAGE) != 0;
    }
    return wrong;
}

/* The answer to one command; its connection is blocking for the time of a long one. */
static void answer(int fd, char command, struct tick *log, uint64_t *ticks, uint64_t *pings, const struct memory *memory)
{
    char text[128];

    switch (command) {
    case 'p':
        if (write(fd, "p", 1) == 1)
            ++*pings;
        break;
    case 'r':
        *ticks = 0;
        write_all(fd, "r", 1);
        break;
    case 'l': {
        uint64_t count = *ticks < TICKS ? *ticks : TICKS, first = *ticks < TICKS ? 0 : *ticks % TICKS;
        write_all(fd, &count, sizeof count);
        write_all(fd, log + first, (count - first) * sizeof *log);
        write_all(fd, log, first * sizeof *log);
        break;
    }
    case 'v': {
        int length = snprintf(text, sizeof text, "%llu pages, %llu wrong\n", (unsigned long long)memory->pages,
                              (unsigned long long)wrong_pages(memory));
        write_all(fd, text, (size_t)length);
        break;
    }
    default:
        break;
    }
}

int serve(int argc, char **argv)
{
    uint64_t rate = number(argc, argv, "--rate", "0"), port = number(argc, argv, "--port", NULL);
    uint64_t tick = number(argc, argv, "--every", "1") * NS_PER_MS;
    const char *data = option(argc, argv, "--data", "3:1");
    struct memory memory = allocate(number(argc, argv, "--mib", "0"), !strcmp(data, "random"));
    struct tick *log = calloc(TICKS, sizeof *log);
    struct pollfd polled[1 + CONNECTIONS] = {{.fd = listen_on((uint16_t)port), .events = POLLIN}};
    uint64_t ticks = 0, pings = 0, next, last, owed = 0;

    if (!log)
        die("calloc");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, end); /* the first process of a pid namespace has no default for it */
    signal(SIGINT, end);
    for (int i = 1; i <= CONNECTIONS; i++)
        polled[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    next = last = now(CLOCK_REALTIME);
    while (!ended) {
        uint64_t at = now(CLOCK_REALTIME);
        if (at >= next) {
            uint64_t span = at - last < CATCH_UP * tick ? at - last : CATCH_UP * tick;
            log[ticks++ % TICKS] =
                (struct tick){.real = at, .cpu = now(CLOCK_PROCESS_CPUTIME_ID), .writes = memory.writes, .pings = pings};
            owed += span * rate;
            rewrite(&memory, owed / NS_PER_S);
            owed %= NS_PER_S;
            last = at;
            next = next + tick > at ? next + tick : at + tick;
            continue;
        }
        struct timespec wait = {.tv_nsec = (long)(next - at < tick ? next - at : tick)};
        if (ppoll(polled, 1 + CONNECTIONS, &wait, NULL) <= 0)
            continue;
        for (int i = 1; i <= CONNECTIONS; i++) {
            char commands[64];
            if (polled[i].fd < 0 || !polled[i].revents)
                continue;
            ssize_t n = read(polled[i].fd, commands, sizeof commands);
            if (n <= 0) {
                close(polled[i].fd);
                polled[i].fd = -1;
            }
            for (ssize_t c = 0; c < n; c++)
                answer(polled[i].fd, commands[c], log, &ticks, &pings, &memory);
        }
        if (polled[0].revents) {
            int fd = accept4(polled[0].fd, NULL, NULL, SOCK_CLOEXEC), yes = 1, slot = 1;
            while (slot <= CONNECTIONS && polled[slot].fd >= 0)
                slot++;
            if (fd >= 0 && slot <= CONNECTIONS) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                polled[slot].fd = fd;
            } else if (fd >= 0) {
                close(fd);
            }
        }
    }
    return 0;
}
