/* Pipes and what is like them: with something in them, and with somebody at the other end. */
#include "items.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>

/* ---- pipes between processes, each end another's, with data in them */

static struct helper piped;
static int to_us[2], idle[2];

static long piped_answers(long seed) { return writes_pattern(to_us[1], 3000, (unsigned)seed); }
static const char *make_pipes(void) {
    NEED(!pipe(to_us) && fcntl(to_us[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
    piped = start_helper(NULL, piped_answers);
    close(to_us[1]), to_us[1] = -1;
    NEED(ask(&piped, 1) == 1 && !pipe2(idle, O_NONBLOCK | O_CLOEXEC));
    NEED(writes_pattern(idle[1], 60000, 2));
    return NULL;
}
static const char *check_pipes(void) {
    NEED(reads_pattern(to_us[0], 3000, 1) && silent(to_us[0]));
    NEED(ask(&piped, 5) == 1 && reads_pattern(to_us[0], 3000, 5));
    NEED(ask(&piped, 1) == 1);
    NEED(fcntl(to_us[0], F_GETPIPE_SZ) == 1 << 17);
    NEED(fcntl(idle[0], F_GETFL) & O_NONBLOCK && fcntl(idle[0], F_GETFD) == FD_CLOEXEC);
    NEED(reads_pattern(idle[0], 60000, 2) && silent(idle[0]));
    NEED(writes_pattern(idle[1], 60000, 2));
    return NULL;
}

/* ---- a FIFO with a name, and one whose name is gone */

static struct helper at_fifo;
static int fifo, nameless;

static void open_fifo(void) { fifo = open("/tmp/fifo", O_WRONLY); }
static long fifo_answers(long seed) { return writes_pattern(fifo, 2000, (unsigned)seed); }
static const char *make_fifos(void) {
    NEED(!mkfifo("/tmp/fifo", 0600) && !mkfifo("/tmp/nameless", 0600));
    NEED((fifo = open("/tmp/fifo", O_RDONLY | O_NONBLOCK)) >= 0);
    at_fifo = start_helper(open_fifo, fifo_answers);
    NEED(ask(&at_fifo, 11) == 1);
    NEED((nameless = open("/tmp/nameless", O_RDWR)) >= 0 && !unlink("/tmp/nameless"));
    NEED(writes_pattern(nameless, 700, 12));
    return NULL;
}
static const char *check_fifos(void) {
    NEED(reads_pattern(fifo, 2000, 11) && silent(fifo));
    NEED(ask(&at_fifo, 11) == 1);
    NEED(reads_pattern(nameless, 700, 12) && silent(nameless));
    NEED(writes_pattern(nameless, 700, 12));
    return NULL;
}

/* ---- eventfd, signalfd */

static int counter, signals;

static const char *make_eventfd(void) {
    NEED((counter = eventfd(42, EFD_NONBLOCK)) >= 0);
    return NULL;
}
static const char *check_eventfd(void) {
    uint64_t value = 42, one;
    NEED(read(counter, &one, 8) == 8 && one == 42);
    NEED(read(counter, &one, 8) == -1 && errno == EAGAIN);
    NEED(write(counter, &value, 8) == 8);
    return NULL;
}

static const char *make_signalfd(void) {
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGRTMIN + 5);
    NEED(!sigprocmask(SIG_BLOCK, &set, NULL) && (signals = signalfd(-1, &set, SFD_CLOEXEC)) >= 0);
    NEED(!sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 55}));
    return NULL;
}
static const char *check_signalfd(void) {
    struct signalfd_siginfo info;
    NEED(readable(signals) && read(signals, &info, sizeof info) == sizeof info);
    NEED(info.ssi_signo == (unsigned)SIGRTMIN + 5 && info.ssi_int == 55);
    NEED(!sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 55}));
    return NULL;
}

/* ---- epoll: level, edge and one-shot, with another epoll among what is watched */

static int outer, inner, level[2], edge[2], once[2];

static int watch(int in, int fd, unsigned events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(in, EPOLL_CTL_ADD, fd, &event);
}
static const char *make_epoll(void) {
    NEED(!pipe(level) && !pipe(edge) && !pipe(once));
    NEED((outer = epoll_create1(EPOLL_CLOEXEC)) >= 0 && (inner = epoll_create1(0)) >= 0);
    NEED(!watch(outer, level[0], EPOLLIN, 0x1111222233334444) && !watch(outer, once[0], EPOLLIN | EPOLLONESHOT, 3));
    NEED(!watch(inner, edge[0], EPOLLIN | EPOLLET, 2) && !watch(outer, inner, EPOLLIN, 4));
    NEED(write(level[1], "l", 1) == 1);
    return NULL;
}
static const char *check_epoll(void) {
    struct epoll_event events[8], again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 3};
    NEED(epoll_wait(outer, events, 8, 1000) == 1 && events[0].data.u64 == 0x1111222233334444);
    NEED(write(edge[1], "e", 1) == 1 && epoll_wait(outer, events, 8, 1000) == 2);
    NEED(epoll_wait(inner, events, 8, 1000) == 1 && events[0].data.u64 == 2 && events[0].events == EPOLLIN);
    NEED(epoll_wait(inner, events, 8, 0) == 0 && reads(edge[0], "e", 1));
    NEED(write(once[1], "o", 1) == 1 && epoll_wait(outer, events, 8, 1000) == 2);
    NEED(epoll_wait(outer, events, 8, 1000) == 1 && reads(once[0], "o", 1));
    NEED(!epoll_ctl(outer, EPOLL_CTL_MOD, once[0], &again));
    return NULL;
}

/* ---- inotify: a directory, a file in it, and one that is only asked for its end */

static int inotify, dir_watch, file_watch;

static const char *make_inotify(void) {
    NEED(!mkdir("/tmp/watched", 0755) && (inotify = inotify_init1(IN_NONBLOCK)) >= 0);
    close(open("/tmp/watched/file", O_CREAT | O_WRONLY, 0644));
    NEED((dir_watch = inotify_add_watch(inotify, "/tmp/watched", IN_CREATE | IN_DELETE)) >= 0);
    NEED((file_watch = inotify_add_watch(inotify, "/tmp/watched/file", IN_ATTRIB)) >= 0);
    return NULL;
}
/* The next event, of those that are asked for: while files are opened for a restore there may be others. */
static int event(int watch, unsigned mask, const char *name) {
    static char buffer[4096] __attribute__((aligned(8)));
    static ssize_t at, size;
    for (;;) {
        if (at >= size) {
            if (!readable(inotify)) return 0;
            at = 0, size = read(inotify, buffer, sizeof buffer);
            if (size <= 0) return size = 0;
        }
        struct inotify_event *e = (void *)(buffer + at);
        at += sizeof *e + e->len;
        if (e->wd == watch && e->mask == mask && !strcmp(e->len ? e->name : "", name)) return 1;
    }
}
static const char *check_inotify(void) {
    close(open("/tmp/watched/new", O_CREAT | O_WRONLY, 0644));
    NEED(event(dir_watch, IN_CREATE, "new"));
    NEED(!chmod("/tmp/watched/file", 0640) && event(file_watch, IN_ATTRIB, ""));
    NEED(!unlink("/tmp/watched/new") && event(dir_watch, IN_DELETE, "new"));
    return NULL;
}

const struct item streams[] = {
    {"pipes", make_pipes, check_pipes},
    {"fifos", make_fifos, check_fifos},
    {"eventfd", make_eventfd, check_eventfd},
    {"signalfd", make_signalfd, check_signalfd},
    {"epoll", make_epoll, check_epoll},
    {"inotify", make_inotify, check_inotify},
    {0},
};
