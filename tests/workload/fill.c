/* A workload that knows what every page of its memory is, does to it whatever a program can do to it, and says so
 * when it finds another.
 *
 *     fill STATE SEED MIB THREADS      STATE: a file with the counters below, made by the test
 *
 * Each thread has regions of its own and a table that says which version each page has; a page of the version 0 is
 * zero. Threads move, cut, grow, unmap, map, give up and write their regions, and fork: children check what they
 * have inherited, go on for a while like their parents, fork again, and end.
 *
 *     cc -O1 -pthread -o fill fill.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define REGIONS 12
/* Versions beyond this mark are: the page's content is this version or zero. */
#define PERHAPS 0x80000000u

/* What the test reads. */
struct state {
    _Atomic uint64_t ready, checks, bad, forks, moves, children;
    char first[256];
    _Atomic uint64_t hurry; /* set by the test: 1: no pauses any more; 2: nor anything but moves */
};

struct region {
    char *at;
    size_t pages;
    uint32_t *versions;
    int cut;      /* it may be several mappings, which only new kernels move, and perhaps in part */
    uint32_t tag; /* with the version, what a page's content is made of; pages keep their tag when they move */
};

struct worker {
    uint64_t random;
    size_t most;   /* pages in all */
    size_t pages;  /* pages now */
    uint32_t version;
    int depth;
    struct region regions[REGIONS];
};

static struct state *state;

static uint64_t next(struct worker *w) {
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random * 2685821657736338717ull;
}

static size_t below(struct worker *w, size_t end) { return end ? (next(w) >> 20) % end : 0; }

static uint64_t word(uint32_t tag, uint32_t version, size_t page, size_t n) {
    uint64_t x = ((uint64_t)tag << 32 | version) * 0x9e3779b97f4a7c15ull + page * WORDS + n + 1;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9ull;
}

static void say_bad(struct worker *w, const char *what, struct region *r, size_t page, uint64_t found) {
    if (atomic_fetch_add(&state->bad, 1) == 0)
        snprintf(state->first, sizeof state->first, "%s: pid %d depth %d page %zu of %zu at %p tag %u version %#x: %#llx",
                 what, getpid(), w->depth, page, r->pages, (void *)(r->at + page * PAGE), r->tag, r->versions[page],
                 (unsigned long long)found);
}

static void write_page(struct worker *w, struct region *r, size_t page) {
    uint64_t *at = (uint64_t *)(r->at + page * PAGE);
    uint32_t version = w->version++ & ~PERHAPS;
    if (!version) version = w->version++;
    r->versions[page] = version;
    for (size_t n = 0; n < WORDS; n++) at[n] = word(r->tag, version, page, n);
}

static void check_page(struct worker *w, struct region *r, size_t page, const char *what) {
    volatile uint64_t *at = (volatile uint64_t *)(r->at + page * PAGE);
    uint32_t version = r->versions[page] & ~PERHAPS;
    int perhaps = r->versions[page] != version;
    if (perhaps && at[0] == 0) version = 0;
    for (size_t n = 0; n < WORDS; n++) {
        uint64_t expected = version ? word(r->tag, version, page, n) : 0;
        if (at[n] != expected) {
            say_bad(w, what, r, page, at[n]);
            break;
        }
    }
    atomic_fetch_add(&state->checks, 1);
    if (perhaps) write_page(w, r, page);
}

static void check_all(struct worker *w, const char *what) {
    for (int i = 0; i < REGIONS; i++)
        for (size_t page = 0; page < w->regions[i].pages; page++) check_page(w, &w->regions[i], page, what);
}

static void new_region(struct worker *w, struct region *r) {
    size_t left = w->most - w->pages;
    r->pages = left < 16 ? 0 : 1 + below(w, left < w->most / 4 ? left : w->most / 4);
    if (!r->pages) return;
    r->at = mmap(NULL, r->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    r->versions = calloc(r->pages, sizeof *r->versions);
    if (r->at == MAP_FAILED || !r->versions) abort();
    r->tag = (uint32_t)next(w);
    r->cut = 0;
    w->pages += r->pages;
    /* Some pages are never touched, some are only read. */
    for (size_t page = 0; page < r->pages; page++)
        if (below(w, 16)) write_page(w, r, page);
        else if (below(w, 2)) check_page(w, r, page, "new");
}

static void drop_region(struct worker *w, struct region *r) {
    if (munmap(r->at, r->pages * PAGE)) abort();
    free(r->versions);
    w->pages -= r->pages;
    r->pages = 0;
}

static void resize(struct worker *w, struct region *r, size_t pages, char *at) {
    r->versions = realloc(r->versions, pages * sizeof *r->versions);
    if (!r->versions) abort();
    for (size_t page = r->pages; page < pages; page++) r->versions[page] = 0;
    w->pages += pages - r->pages;
    r->pages = pages;
    r->at = at;
}

static char *somewhere(size_t pages) {
    char *at = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) abort();
    return at;
}

static void moved(struct worker *w, struct region *r, size_t pages, int flags, char *to) {
    char *at = mremap(r->at, r->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | flags, to);
    if (at == MAP_FAILED) abort();
    resize(w, r, pages, at);
}

static void move(struct worker *w, struct region *r) {
    size_t old = r->pages;
    if (r->cut) return;
    atomic_fetch_add(&state->moves, 1);
    switch (below(w, 5)) {
    case 0: /* to a certain place */
        moved(w, r, old, MREMAP_FIXED, somewhere(old));
        break;
    case 1: { /* the old place stays, empty */
        char *was = r->at;
        moved(w, r, old, 4 /* MREMAP_DONTUNMAP */, NULL);
        for (size_t n = below(w, 64) * PAGE; n < old * PAGE; n += 64 * PAGE)
            if (was[n]) say_bad(w, "left behind", r, n / PAGE, was[n]);
        munmap(was, old * PAGE);
        break;
    }
    case 2: /* shorter; below, perhaps, longer again: what was cut off is zero */
        moved(w, r, 1 + below(w, old), 0, NULL);
        break;
    case 3: { /* shorter and elsewhere in one step */
        size_t pages = 1 + below(w, old);
        moved(w, r, pages, MREMAP_FIXED, somewhere(pages));
        break;
    }
    default: { /* into the place of another region */
        struct region *other = &w->regions[below(w, REGIONS)];
        if (other == r || other->pages < old) break;
        char *to = other->at + below(w, other->pages - old + 1) * PAGE;
        char *first = other->at, *end = other->at + other->pages * PAGE;
        moved(w, r, old, MREMAP_FIXED, to);
        /* What is left of the other on either side is dropped. */
        if (to > first) munmap(first, to - first);
        if (end > to + old * PAGE) munmap(to + old * PAGE, end - (to + old * PAGE));
        free(other->versions);
        w->pages -= other->pages;
        other->pages = 0;
        break;
    }
    }
    if (below(w, 2) && r->pages < old) {
        char *at = mremap(r->at, r->pages * PAGE, old * PAGE, MREMAP_MAYMOVE);
        if (at != MAP_FAILED) resize(w, r, old, at);
    }
}

static void pause_a_little(void) {
    if (atomic_load(&state->hurry)) return;
    struct timespec t = {0, 2000000};
    nanosleep(&t, NULL);
}

static void step(struct worker *w);

static void child(struct worker *w) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    w->depth++;
    w->random ^= (uint64_t)getpid() * 0x9e3779b97f4a7c15ull;
    for (int i = 0; i < 5; i++) next(w);
    if (below(w, 4)) {
        for (int n = 0; n < 2000; n++) {
            struct region *r = &w->regions[below(w, REGIONS)];
            if (r->pages) check_page(w, r, below(w, r->pages), "inherited");
        }
    } else {
        check_all(w, "all inherited");
    }
    for (size_t n = below(w, 400); n; n--) step(w);
    _exit(0);
}

static void step(struct worker *w) {
    struct region *r = &w->regions[below(w, REGIONS)];
    if (!r->pages) {
        if (below(w, 4) == 0) new_region(w, r);
        return;
    }
    if (atomic_load(&state->hurry) == 2 && r->cut) return;
    if (atomic_load(&state->hurry) == 2) { /* to where another thread's has perhaps just been */
        atomic_fetch_add(&state->moves, 1);
        moved(w, r, r->pages, MREMAP_FIXED, somewhere(r->pages));
        if (below(w, 256) == 0) check_page(w, r, below(w, r->pages), "moved");
        return;
    }
    size_t first = below(w, r->pages), pages = 1 + below(w, r->pages - first);
    if (pages > 256) pages = 256;
    switch (below(w, 64)) {
    case 0: if (r->cut || below(w, 4) == 0) drop_region(w, r); break;
    case 1: case 2: case 3: move(w, r); break;
    case 4: case 5: /* given up */
        if (madvise(r->at + first * PAGE, pages * PAGE, MADV_DONTNEED)) abort();
        memset(r->versions + first, 0, pages * sizeof *r->versions);
        break;
    case 6: /* given up, some time */
        if (madvise(r->at + first * PAGE, pages * PAGE, MADV_FREE)) abort();
        for (size_t page = first; page < first + pages; page++)
            if (r->versions[page]) r->versions[page] |= PERHAPS;
        break;
    case 7: /* mapped over */
        if (mmap(r->at + first * PAGE, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                 -1, 0) == MAP_FAILED)
            abort();
        memset(r->versions + first, 0, pages * sizeof *r->versions);
        r->cut = 1;
        break;
    case 8: /* a child */
        if (w->depth > 2 || below(w, 4) || atomic_load(&state->children) > 12) break;
        atomic_fetch_add(&state->forks, 1);
        atomic_fetch_add(&state->children, 1);
        switch (fork()) {
        case -1: break;
        case 0: child(w); break;
        default: atomic_fetch_sub(&state->children, 1);
        }
        break;
    case 9: mprotect(r->at + first * PAGE, pages * PAGE, PROT_READ);
        if (!(r->versions[first] & PERHAPS)) check_page(w, r, first, "protected");
        mprotect(r->at, r->pages * PAGE, PROT_READ | PROT_WRITE);
        r->cut = 1;
        break;
    default:
        for (size_t n = 0; n < 8; n++) {
            size_t page = below(w, r->pages);
            check_page(w, r, page, "random");
            if (below(w, 3) == 0) write_page(w, r, page);
        }
    }
}

struct start {
    uint64_t seed;
    size_t pages;
};

static void *run(void *given) {
    struct start *start = given;
    struct worker *w = calloc(1, sizeof *w);
    w->random = start->seed * 0x9e3779b97f4a7c15ull + 1;
    w->most = start->pages;
    w->version = 1;
    for (int i = 0; i < 8; i++) next(w);
    for (int i = 0; i < REGIONS; i++) new_region(w, &w->regions[i]);
    atomic_fetch_add(&state->ready, 1);
    for (unsigned n = 1;; n++) {
        step(w);
        if (n % 4 == 0) pause_a_little();
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int fd = open(argv[1], O_RDWR | O_CLOEXEC);
    state = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || state == MAP_FAILED) return 1;
    close(fd);
    signal(SIGCHLD, SIG_IGN);
    int threads = atoi(argv[4]);
    for (int n = 0; n < threads; n++) {
        struct start *start = malloc(sizeof *start);
        start->seed = strtoull(argv[2], NULL, 10) * 100 + n;
        start->pages = (size_t)atoi(argv[3]) * 256 / threads;
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, start)) return 1;
    }
    for (;;) pause();
}
