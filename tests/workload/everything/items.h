/* What every file of the workload knows: an item is made once and checked again and again, and tells why it is bad. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A check leaves its item as it found it, so that it can be repeated after the next move. It returns what is wrong. */
struct item {
    const char *name;
    const char *(*make)(void);
    const char *(*check)(void);
};

/* Each file's items; the last has no name. */
extern const struct item processes[], streams[], sockets[], times[], files[], threads[];

const char *bad(const char *file, int line, const char *what);
/* What is expected, or else the item is bad. */
#define NEED(that) \
    do { \
        errno = 0; \
        if (!(that)) return bad(__FILE__, __LINE__, #that); \
    } while (0)

/* A process of the workload that does what it is asked to. */
struct helper {
    pid_t pid;
    int wire;
};
typedef long (*answer)(long question);
/* Starts one, before there are threads. It runs `first` before it answers; none: nothing. */
struct helper start_helper(void (*first)(void), answer answers);
long ask(struct helper *of, long question);

/* All of these bytes, and no others, can be read. */
int reads(int fd, const void *expected, size_t size);
/* The same, with the pattern of that seed; and all of them can be written. */
int reads_pattern(int fd, size_t size, unsigned seed);
int writes_pattern(int fd, size_t size, unsigned seed);
/* Something can be read within two seconds; and nothing can be read now. */
int readable(int fd);
int silent(int fd);
/* The state letter of a process; 0 when there is none. */
char state_of(pid_t pid);
void rest(long ms);
int64_t now_ms(clockid_t clock);
