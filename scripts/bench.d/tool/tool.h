/* The bench's one program: what is measured, and what measures it. Built by scripts/bench with cc -static. */
#ifndef TOOL_H
#define TOOL_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <time.h>

#define PAGE 4096
#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

/* One entry of the tick log; little-endian on the wire, as it lies in memory. */
struct tick {
    uint64_t real;   /* CLOCK_REALTIME: CRIU restores into a time namespace, where MONOTONIC hides part of the outage */
    uint64_t cpu;    /* CPU time of this process so far; a restored process starts anew */
    uint64_t writes; /* pages written so far */
    uint64_t pings;  /* pings answered so far */
};

int serve(int argc, char **argv);
int ping(int argc, char **argv);
int ask(int argc, char **argv);
int announce(int argc, char **argv);
int copy(int argc, char **argv);
int sink(int argc, char **argv);
int contain(int argc, char **argv);
int lives(int argc, char **argv);
int warm(int argc, char **argv);

/* Ends the program with what failed and why. */
void die(const char *what) __attribute__((noreturn));
/* `die` without errno. */
void refuse(const char *what) __attribute__((noreturn));

/* The value after `--name`; `otherwise` when it is not given, and an end of the program when that is NULL. */
const char *option(int argc, char **argv, const char *name, const char *otherwise);
uint64_t number(int argc, char **argv, const char *name, const char *otherwise);

uint64_t now(clockid_t clock);
/* A connection to `ADDRESS:PORT`, without Nagle. */
int dial(const char *where);
int listen_on(uint16_t port);
void write_all(int fd, const void *data, size_t length);

#endif
