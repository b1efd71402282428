/* A workload that has one of everything the kernel offers to an ordinary program, and checks each by itself.
 *
 *     everything [NAME…]
 *
 * Without the names of items it has all of them. It says `ready`, and on each SIGUSR1 prints a line for every item, `check N NAME ok` or `check N NAME BAD why`, and
 * at last `checked N: GOOD of ALL`. Port 7000 is for a client outside: it sends lines, and gets them back.
 *
 *     cc -O1 -static -pthread -o everything everything/(all).c
 */
#include "items.h"

static const struct item *const all[] = {processes, streams, sockets, times, files, threads};
static char reason[400];

const char *bad(const char *file, int line, const char *what) {
    const char *name = strrchr(file, '/');
    snprintf(reason, sizeof reason, "%s:%d: %s (%s)", name ? name + 1 : file, line, what, strerror(errno));
    return reason;
}

struct helper start_helper(void (*first)(void), answer answers) {
    int wire[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, wire)) abort();
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0) abort();
    if (pid > 0) {
        close(wire[1]);
        return (struct helper){pid, wire[0]};
    }
    close(wire[0]);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (first) first();
    long question;
    while (read(wire[1], &question, sizeof question) == sizeof question) {
        long is = answers(question);
        if (write(wire[1], &is, sizeof is) != sizeof is) break;
    }
    _exit(0);
}

long ask(struct helper *of, long question) {
    long is = -1;
    if (write(of->wire, &question, sizeof question) != sizeof question || !readable(of->wire)) return -1000;
    return read(of->wire, &is, sizeof is) == sizeof is ? is : -1001;
}

int reads(int fd, const void *expected, size_t size) {
    char *got = malloc(size);
    size_t has = 0;
    while (has < size && readable(fd)) {
        ssize_t n = read(fd, got + has, size - has);
        if (n <= 0) break;
        has += n;
    }
    int same = has == size && !memcmp(got, expected, size);
    free(got);
    return same;
}

static char *pattern(size_t size, unsigned seed) {
    char *bytes = malloc(size);
    for (size_t n = 0; n < size; n++) bytes[n] = (char)((seed = seed * 1103515245 + 12345) >> 16);
    return bytes;
}

int reads_pattern(int fd, size_t size, unsigned seed) {
    char *bytes = pattern(size, seed);
    int same = reads(fd, bytes, size);
    free(bytes);
    return same;
}

int writes_pattern(int fd, size_t size, unsigned seed) {
    char *bytes = pattern(size, seed);
    size_t done = 0;
    while (done < size) {
        ssize_t n = write(fd, bytes + done, size - done);
        if (n <= 0) break;
        done += n;
    }
    free(bytes);
    return done == size;
}

static int has_input(int fd, int ms) {
    struct pollfd p = {fd, POLLIN, 0};
    int is;
    while ((is = poll(&p, 1, ms)) < 0 && errno == EINTR) continue;
    return is == 1 && p.revents & POLLIN;
}

int readable(int fd) { return has_input(fd, 2000); }
int silent(int fd) { return !has_input(fd, 0); }

char state_of(pid_t pid) {
    char path[40], text[300] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (!fgets(text, sizeof text, file)) text[0] = 0;
    fclose(file);
    char *after = strrchr(text, ')');
    return after && after[1] ? after[2] : 0;
}

void rest(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) && errno == EINTR);
}

int64_t now_ms(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static char **wanted;
static int wants(const struct item *item) {
    for (char **name = wanted; *name; name++)
        if (!strcmp(*name, item->name)) return 1;
    return !*wanted;
}

static void make_all(void) {
    for (size_t group = 0; group < sizeof all / sizeof *all; group++)
        for (const struct item *item = all[group]; item->name; item++) {
            const char *why = wants(item) ? item->make() : NULL;
            if (!why) continue;
            printf("cannot make %s: %s\n", item->name, why);
            fflush(stdout);
            exit(2);
        }
}

static void check_all(int number) {
    int good = 0, count = 0;
    for (size_t group = 0; group < sizeof all / sizeof *all; group++)
        for (const struct item *item = all[group]; item->name; item++) {
            if (!wants(item)) continue;
            const char *why = item->check();
            count++;
            good += !why;
            printf("check %d %s %s%s\n", number, item->name, why ? "BAD " : "ok", why ? why : "");
        }
    printf("checked %d: %d of %d\n", number, good, count);
    fflush(stdout);
}

int main(int count, char **arguments) {
    (void)count;
    wanted = arguments + 1;
    sigset_t asked;
    sigemptyset(&asked);
    sigaddset(&asked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &asked, NULL);
    signal(SIGPIPE, SIG_IGN);
    make_all();
    puts("ready");
    fflush(stdout);
    for (int number = 0;;) {
        int signal;
        if (sigwait(&asked, &signal) == 0) check_all(number++);
    }
}
