/* A workload of several processes that knows what every page of its memory is, and is asked after every move.
 *
 *     soak SEED PROCESSES THREADS MIB RATE [steady]
 *
 * Each thread has regions of its own, to which it does what `fill.c` does, and beside them pages of a private mapping
 * of a file and its share of three segments that all processes have: anonymous memory, a memfd and a SysV segment. On
 * SIGUSR1 every thread checks every page it has, and sees whether the segments are still the same memory in every
 * process; then the first process prints one line, and all go on with another size and another rate, at random, but
 * never beyond MIB in all and RATE pages per second; steady: always at that.
 *
 *     cc -O1 -static -pthread -o soak soak.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
/* A system call has not done what it should: that is said, too, wherever the process is by then. */
#define abort() \
    (snprintf(state->first, sizeof state->first, "%s:%d: %s", __func__, __LINE__, strerror(errno)), (abort)())

static void *patient_mremap(void *at, size_t old, size_t new, int flags, ...);
#define mremap patient_mremap
#define main fill_main
#include "fill.c"
#undef main
#undef mremap
#include <sys/ipc.h>
#include <sys/shm.h>

#define SEGMENTS 3
#define MOST_WORKERS 64
#define TICKS_PER_SECOND 200
#define FILE_PAGES 96

struct control {
    _Atomic uint64_t generation, workers, pages, rate, verified, seen_pages, split;
};

/* What one thread has of memory that `fill.c` does not know. A page's version 0 is what the file has, or zero. */
struct area {
    struct region pages;
    int file;
};

static struct control *control;

/* While a migration copies memory, a mapping that grows may be two for a moment, until its tracker has found the rest;
 * the kernel moves only one at a time. That passes, and is counted. */
static void *patient_mremap(void *at, size_t old, size_t new, int flags, ...) {
    va_list more;
    va_start(more, flags);
    void *to = flags & MREMAP_FIXED ? va_arg(more, void *) : NULL;
    va_end(more);
    struct timespec t = {0, 20000000};
    for (int n = 0;; n++) {
        void *moved = mremap(at, old, new, flags, to);
        if (moved != MAP_FAILED || errno != EFAULT || n == 250) return moved;
        atomic_fetch_add(&control->split, n == 0);
        nanosleep(&t, NULL);
    }
}
static char *segments[SEGMENTS];
static const char *segment_names[SEGMENTS] = {"shared anonymous memory", "a memfd", "a SysV segment"};
static size_t segment_pages;
static unsigned workers;
static pid_t pids[MOST_WORKERS];

/* In the segments: the first page has the generation, the others belong to the workers one after the other. */
static char *segment_page(int segment, unsigned worker, size_t n) {
    return segments[segment] + (1 + worker + n * workers) * PAGE;
}

static size_t share(void) { return (segment_pages - 1) / workers; }

struct mine {
    struct worker *w;
    unsigned number;
    struct area file;
    struct region shared[SEGMENTS]; /* `at` is not used: the pages are apart */
};

static uint64_t file_word(size_t page, size_t n) { return (page * WORDS + n) * 0x2545f4914f6cdd1dull + 7; }

static char *page_of(struct mine *m, int segment, size_t page) {
    return segment < 0 ? m->file.pages.at + page * PAGE : segment_page(segment, m->number, page);
}

static struct region *region_of(struct mine *m, int segment) {
    return segment < 0 ? &m->file.pages : &m->shared[segment];
}

static void write_extra(struct mine *m, int segment, size_t page) {
    struct region *r = region_of(m, segment);
    uint64_t *at = (uint64_t *)page_of(m, segment, page);
    uint32_t version = m->w->version++ & ~PERHAPS;
    r->versions[page] = version;
    for (size_t n = 0; n < WORDS; n++) at[n] = version ? word(r->tag, version, page, n) : segment < 0 ? file_word(page, n) : 0;
}

static void check_extra(struct mine *m, int segment, size_t page) {
    struct region *r = region_of(m, segment);
    volatile uint64_t *at = (volatile uint64_t *)page_of(m, segment, page);
    uint32_t version = r->versions[page];
    for (size_t n = 0; n < WORDS; n++) {
        uint64_t expected = version ? word(r->tag, version, page, n) : segment < 0 ? file_word(page, n) : 0;
        if (at[n] == expected) continue;
        r->at = (char *)at - page * PAGE; /* what say_bad shows */
        say_bad(m->w, segment < 0 ? "a private mapping of a file" : segment_names[segment], r, page, at[n]);
        if (segment < 0) r->at = m->file.pages.at;
        break;
    }
    atomic_fetch_add(&state->checks, 1);
}

/* Given up: a private mapping of a file shows the file again. */
static void give_up_extra(struct mine *m) {
    struct region *r = &m->file.pages;
    size_t page = below(m->w, r->pages);
    if (madvise(r->at + page * PAGE, PAGE, MADV_DONTNEED)) abort();
    r->versions[page] = 0;
}

static void make_extras(struct mine *m) {
    char name[] = "/tmp/soak-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);
    if (fd < 0) abort();
    if (m->number % 2) unlink(name); /* the others keep their name */
    for (size_t page = 0; page < FILE_PAGES; page++) {
        uint64_t words[WORDS];
        for (size_t n = 0; n < WORDS; n++) words[n] = file_word(page, n);
        if (write(fd, words, PAGE) != (ssize_t)PAGE) abort();
    }
    struct region *file = &m->file.pages;
    file->pages = FILE_PAGES;
    file->at = mmap(NULL, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (file->at == MAP_FAILED) abort();
    close(fd);
    for (int segment = -1; segment < SEGMENTS; segment++) {
        struct region *r = region_of(m, segment);
        if (segment >= 0) r->pages = share();
        r->tag = (uint32_t)next(m->w);
        r->versions = calloc(r->pages, sizeof *r->versions);
        if (!r->versions) abort();
    }
}

/* Every page of this thread, and that all processes have the same segments: their first page has the generation. */
static void verify(struct mine *m, uint64_t generation) {
    for (int segment = 0; segment < SEGMENTS; segment++) {
        uint64_t found = *(volatile uint64_t *)segments[segment];
        if (found != generation) say_bad(m->w, segment_names[segment], &m->shared[segment], 0, found);
    }
    check_all(m->w, "after the move");
    for (int segment = -1; segment < SEGMENTS; segment++)
        for (size_t page = 0; page < region_of(m, segment)->pages; page++) check_extra(m, segment, page);
    atomic_fetch_add(&control->seen_pages, m->w->pages);
    atomic_fetch_add(&control->verified, 1);
}

/* To about the size that is wished. */
static void resize_all(struct worker *w) {
    w->most = atomic_load(&control->pages);
    for (int i = 0; i < REGIONS && w->pages > w->most; i++)
        if (w->regions[i].pages) drop_region(w, &w->regions[i]);
    for (int i = 0; i < REGIONS; i++)
        if (!w->regions[i].pages) new_region(w, &w->regions[i]);
}

static void dirty(struct mine *m, size_t pages) {
    struct worker *w = m->w;
    while (pages--) {
        if (below(w, 16) == 0) {
            int segment = (int)below(w, SEGMENTS + 1) - 1;
            write_extra(m, segment, below(w, region_of(m, segment)->pages));
            continue;
        }
        struct region *r = &w->regions[below(w, REGIONS)];
        if (r->pages) write_page(w, r, below(w, r->pages));
    }
}

static void tick(void) {
    struct timespec t = {0, 1000000000 / TICKS_PER_SECOND};
    nanosleep(&t, NULL);
}

static void *work(void *given) {
    struct mine *m = given;
    struct worker *w = m->w;
    make_extras(m);
    resize_all(w);
    uint64_t generation = 0;
    atomic_fetch_add(&control->workers, 1);
    for (;;) {
        uint64_t now = atomic_load(&control->generation);
        if (now != generation) {
            verify(m, now);
            generation = now;
            resize_all(w);
        }
        for (int n = 0; n < 4; n++) step(w);
        if (below(w, 8) == 0) give_up_extra(m);
        check_extra(m, -1, below(w, FILE_PAGES));
        /* What is less than a page in this tick is now and then one. */
        uint64_t rate = atomic_load(&control->rate);
        dirty(m, rate / TICKS_PER_SECOND + (below(w, TICKS_PER_SECOND) < rate % TICKS_PER_SECOND));
        tick();
    }
    return NULL;
}

static void process(uint64_t seed, unsigned first, unsigned threads) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGCHLD, SIG_IGN);
    for (unsigned n = first; n < first + threads; n++) {
        struct mine *m = calloc(1, sizeof *m);
        m->w = calloc(1, sizeof *m->w);
        m->number = n;
        m->w->random = (seed * 100 + n + 1) * 0x9e3779b97f4a7c15ull + 1;
        m->w->version = 1;
        for (int i = 0; i < 8; i++) next(m->w);
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, m)) _exit(3);
    }
    for (;;) pause();
}

static volatile sig_atomic_t asked;
static void ask(int signal) { (void)signal; asked = 1; }

static void *shared(int flags, int fd, size_t pages) {
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
    if (at == MAP_FAILED) abort();
    return at;
}

static void make_segments(void) {
    int memfd = memfd_create("soak", MFD_CLOEXEC);
    int sysv = shmget(IPC_PRIVATE, segment_pages * PAGE, IPC_CREAT | 0600);
    if (memfd < 0 || sysv < 0 || ftruncate(memfd, segment_pages * PAGE)) abort();
    segments[0] = shared(MAP_ANONYMOUS, -1, segment_pages);
    segments[1] = shared(0, memfd, segment_pages);
    segments[2] = shmat(sysv, NULL, 0);
    if (segments[2] == (void *)-1) abort();
    shmctl(sysv, IPC_RMID, NULL);
    close(memfd);
}

static int steady;

/* Another size and another rate: nothing at all as often as everything. */
static void wish(struct worker *w, uint64_t most_pages, uint64_t most_rate) {
    uint64_t sixteenths = below(w, 17);
    uint64_t pages = most_pages * (1 + below(w, 16)) / 16;
    if (steady) pages = most_pages, sixteenths = 16;
    atomic_store(&control->pages, pages / workers < 32 ? 32 : pages / workers);
    atomic_store(&control->rate, most_rate * sixteenths / 16 / workers);
}

/* One of the processes that should not end, and has; orphans of their children come to the first process, too. */
static pid_t ended(int *status) {
    pid_t pid;
    while ((pid = waitpid(-1, status, WNOHANG)) > 0)
        for (unsigned n = 0; n < MOST_WORKERS; n++)
            if (pids[n] == pid) return pid;
    return 0;
}

/* Waits until all have checked everything; says who is gone. */
static void answer(uint64_t generation) {
    for (int segment = 0; segment < SEGMENTS; segment++) *(volatile uint64_t *)segments[segment] = generation;
    atomic_store(&control->verified, 0);
    atomic_store(&control->seen_pages, 0);
    uint64_t before = atomic_load(&state->checks);
    atomic_store(&control->generation, generation);
    int status;
    pid_t gone = 0;
    for (int n = 0; n < 60 * TICKS_PER_SECOND && atomic_load(&control->verified) < workers; n++) {
        if ((gone = ended(&status))) break;
        tick();
    }
    printf("verified %llu: %llu of %u threads, %llu pages of their own, %llu checks, %llu split, %llu bad\n",
           (unsigned long long)generation, (unsigned long long)atomic_load(&control->verified), workers,
           (unsigned long long)atomic_load(&control->seen_pages),
           (unsigned long long)(atomic_load(&state->checks) - before), (unsigned long long)atomic_load(&control->split),
           (unsigned long long)atomic_load(&state->bad));
    if (gone > 0) printf("first: process %d ended with %#x\n", gone, status);
    if (state->first[0]) printf("first: %s\n", state->first);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    steady = argc > 6;
    uint64_t seed = strtoull(argv[1], NULL, 10);
    unsigned processes = (unsigned)atoi(argv[2]), threads = (unsigned)atoi(argv[3]);
    uint64_t most_pages = strtoull(argv[4], NULL, 10) * 256, most_rate = strtoull(argv[5], NULL, 10);
    workers = processes * threads;
    if (!workers || workers > MOST_WORKERS) return 2;
    segment_pages = 1 + 24 * workers;
    state = shared(MAP_ANONYMOUS, -1, 1);
    control = shared(MAP_ANONYMOUS, -1, 1);
    make_segments();
    static struct worker w;
    w.random = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < 8; i++) next(&w);
    wish(&w, most_pages, most_rate);
    for (unsigned n = 0; n < processes; n++) {
        pids[n] = fork();
        if (pids[n] < 0) return 3;
        if (pids[n] == 0) process(seed, n * threads, threads);
    }
    sigset_t usr1, none;
    sigemptyset(&none);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    signal(SIGUSR1, ask);
    while (atomic_load(&control->workers) < workers) tick();
    puts("ready");
    fflush(stdout);
    for (uint64_t generation = 1;; generation++) {
        while (!asked) sigsuspend(&none);
        asked = 0;
        answer(generation);
        wish(&w, most_pages, most_rate);
    }
}
