/* A workload that does to its memory whatever a program can do to it, at random, until it is killed.
 *
 *     memory SEED [PROCESSES]      at most so many processes at once (default 4)
 *
 * Two threads per process, each with a table of regions of its own: they are mapped, written, moved, cut, unmapped,
 * mapped over, given up, locked, protected, guarded. Processes fork, and now and then become a new program. What a
 * page should be is not remembered here: the test stops everything and compares what is there with what was sent.
 *
 *     cc -O1 -pthread -o memory memory.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define REGIONS 24
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

struct region {
    char *at;
    size_t pages;
    int shared; /* no part of it becomes private by itself */
    int file;   /* it ends where its file does */
    int hidden; /* some of it must not be touched; 2: there may be guards */
};

struct worker {
    uint64_t random;
    struct region regions[REGIONS];
};

static _Atomic int *processes; /* shared by all */
static int most = 4;
static char *shared_anonymous, *shared_memfd, *shared_sysv;
static int is_child;
static const size_t SHARED = 32;

static uint64_t next(struct worker *w) {
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random * 2685821657736338717ull;
}

static size_t below(struct worker *w, size_t end) { return end ? (next(w) >> 20) % end : 0; }

/* A new content for a page: all of it, a word of it, or zeros. */
static void fill(struct worker *w, char *page) {
    switch (below(w, 8)) {
    case 0: memset(page, 0, PAGE); break;
    case 1: case 2:
        for (size_t i = 0; i < PAGE; i += 8) *(uint64_t *)(page + i) = next(w);
        break;
    default: *(uint64_t *)(page + below(w, PAGE / 8) * 8) = next(w);
    }
}

static void write_some(struct worker *w, struct region *r, size_t count) {
    while (count-- && r->pages) fill(w, r->at + below(w, r->pages) * PAGE);
}

static char *map(size_t pages, int flags, int fd) {
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* A private mapping of a file with content. */
static char *map_file(struct worker *w, size_t pages) {
    char name[] = "/tmp/workload-XXXXXX";
    int fd = below(w, 2) ? memfd_create("private", MFD_CLOEXEC) : mkostemp(name, O_CLOEXEC);
    if (fd < 0) return NULL;
    unlink(name);
    char page[PAGE];
    for (size_t i = 0; i < pages; i++) {
        memset(page, 'a' + i % 26, PAGE);
        if (write(fd, page, PAGE) != (ssize_t)PAGE) break;
    }
    char *at = map(pages, MAP_PRIVATE, fd);
    close(fd);
    return at;
}

static void new_region(struct worker *w, struct region *r) {
    r->shared = r->file = r->hidden = 0;
    r->pages = 1 + below(w, 64);
    switch (below(w, 8)) {
    case 0:
        r->file = 1;
        r->at = map_file(w, r->pages);
        break;
    case 1: /* room for huge pages */
        r->pages = 1024;
        if ((r->at = map(r->pages, MAP_PRIVATE | MAP_ANONYMOUS, -1))) madvise(r->at, r->pages * PAGE, MADV_HUGEPAGE);
        break;
    case 2:
        r->shared = r->file = 1;
        r->at = map(r->pages, MAP_SHARED | MAP_ANONYMOUS, -1);
        break;
    default: r->at = map(r->pages, MAP_PRIVATE | MAP_ANONYMOUS | (below(w, 2) ? MAP_NORESERVE : 0), -1);
    }
    if (!r->at) r->pages = 0;
    write_some(w, r, below(w, 2 * r->pages + 1));
}

static void drop_region(struct region *r) {
    if (r->pages) munmap(r->at, r->pages * PAGE);
    r->pages = 0;
    r->hidden = 0;
}

static void move_region(struct worker *w, struct region *r) {
    size_t pages = r->pages;
    int flags = MREMAP_MAYMOVE;
    void *to = NULL;
    switch (below(w, 4)) {
    case 0: pages = 1 + below(w, r->file ? pages : 2 * pages); break;
    case 1: /* to where something else was, perhaps beside a neighbour */
        flags |= MREMAP_FIXED;
        to = map(pages + below(w, 3), MAP_PRIVATE | MAP_ANONYMOUS, -1);
        if (!to) return;
        break;
    case 2:
        if (r->shared) return;
#ifdef MREMAP_DONTUNMAP
        flags |= MREMAP_DONTUNMAP;
#endif
        break;
    default: pages = pages > 1 ? pages / 2 : 1;
    }
    char *at = mremap(r->at, r->pages * PAGE, pages * PAGE, flags, to);
    if (at == MAP_FAILED) {
        /* Over several mappings the kernel may have moved some of them (6.17: mremap(2), "partial"): what is left at
         * the old place is not known. That a tracker has registered some and not yet the others keeps neighbours
         * from becoming one mapping. */
        drop_region(r);
        return;
    }
    if (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED)) munmap(r->at, r->pages * PAGE);
    r->at = at;
    r->pages = pages;
}

/* Some of a region's pages. */
static char *part(struct worker *w, struct region *r, size_t *length) {
    size_t first = below(w, r->pages);
    *length = (1 + below(w, r->pages - first)) * PAGE;
    return r->at + first * PAGE;
}

static void step(struct worker *w) {
    struct region *r = &w->regions[below(w, REGIONS)];
    if (!r->pages) {
        new_region(w, r);
        return;
    }
    if (r->hidden) {
        if (below(w, 2)) {
            drop_region(r);
        } else {
            if (mprotect(r->at, r->pages * PAGE, PROT_READ | PROT_WRITE) ||
                (r->hidden > 1 && madvise(r->at, r->pages * PAGE, GUARD_REMOVE)))
                drop_region(r);
            r->hidden = 0;
        }
        return;
    }
    size_t length;
    char *at = part(w, r, &length);
    switch (below(w, 24)) {
    case 0: drop_region(r); break;
    case 1: case 2: move_region(w, r); break;
    case 3: /* a hole, filled again */
        munmap(at, length);
        if (mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
            r->pages = 0; /* somebody else has it now: forget the region */
        break;
    case 4: /* mapped over */
        mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
    case 5: case 6: madvise(at, length, MADV_DONTNEED); break;
    case 7: if (!r->shared) madvise(at, length, MADV_FREE); break;
    case 8: /* out of reach, with its content */
        mprotect(at, length, PROT_NONE);
        r->hidden = 1;
        break;
    case 9: mprotect(at, length, PROT_READ); mprotect(r->at, r->pages * PAGE, PROT_READ | PROT_WRITE); break;
    case 10: mlock(at, length); break;
    case 11: munlock(at, length); break;
    case 12:
        if (r->shared) break;
        madvise(at, length, GUARD_INSTALL); /* perhaps of some of them only */
        r->hidden = 2;
        break;
    case 13: madvise(at, length, MADV_PAGEOUT); break;
    case 14: madvise(at, length, MADV_COLLAPSE); break;
    case 15: { /* only read: the kernel's page of zeros */
        volatile char sum = 0;
        for (size_t i = 0; i < length; i += PAGE) sum += at[i];
        (void)sum;
        break;
    }
    case 16: {
        char *segment = below(w, 2) ? shared_anonymous : below(w, 2) ? shared_memfd : shared_sysv;
        fill(w, segment + below(w, SHARED) * PAGE);
        break;
    }
    case 17: free(malloc(1 + below(w, 1 << 20))); break;
    case 18: { /* a deep stack */
        char *deep = __builtin_alloca(1 + below(w, 40) * PAGE);
        memset(deep, (int)next(w), 64);
        break;
    }
    default: write_some(w, r, 1 + below(w, 16));
    }
}

static void settle(void) {
    struct timespec t = {0, 200000};
    nanosleep(&t, NULL);
}

static void *second(void *start) {
    static _Thread_local struct worker w;
    w.random = (uint64_t)(uintptr_t)start;
    for (unsigned n = 0;; n++) {
        step(&w);
        if (n % 8 == 0) settle();
    }
    return NULL;
}

static void start_second(struct worker *w) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_create(&thread, &attributes, second, (void *)(uintptr_t)(next(w) | 1));
}

int main(int argc, char **argv) {
    static struct worker w;
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    if (argc > 2) most = atoi(argv[2]);
    w.random = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < 8; i++) next(&w);
    signal(SIGCHLD, SIG_IGN);
    /* A program that this one has become knows the counter by its descriptor. */
    int counter = argc > 3 ? atoi(argv[3]) : memfd_create("counter", 0);
    if (argc <= 3 && ftruncate(counter, PAGE)) return 1;
    processes = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, counter, 0);
    if (argc <= 3) *processes = 1;
    int memfd = memfd_create("shared", MFD_CLOEXEC);
    int segment = shmget(IPC_PRIVATE, SHARED * PAGE, IPC_CREAT | 0600);
    if (memfd < 0 || segment < 0 || ftruncate(memfd, SHARED * PAGE)) return 1;
    shared_anonymous = map(SHARED, MAP_SHARED | MAP_ANONYMOUS, -1);
    shared_memfd = map(SHARED, MAP_SHARED, memfd);
    shared_sysv = shmat(segment, NULL, 0);
    shmctl(segment, IPC_RMID, NULL);
    close(memfd);
    for (int i = 0; i < REGIONS; i++) new_region(&w, &w.regions[i]);
    start_second(&w);
    if (argc <= 3) {
        puts("ready");
        fflush(stdout);
    }
    for (unsigned n = 0;; n++) {
        step(&w);
        if (n % 8 == 0) settle();
        if (below(&w, 500)) continue;
        switch (below(&w, 8)) {
        default: /* another process */
            if (*processes >= most) break;
            ++*processes;
            switch (fork()) {
            case -1: --*processes; break;
            case 0:
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                is_child = 1;
                for (int i = 0; i < 5; i++) next(&w);
                w.random ^= (uint64_t)getpid() << 32;
                start_second(&w);
            }
            break;
        case 0: /* one less, if it is not the first */
            if (is_child && n > 1000) {
                --*processes;
                _exit(0);
            }
            break;
        case 1: { /* another program */
            char number[24], limit[8], fd[8];
            snprintf(number, sizeof number, "%llu", (unsigned long long)(next(&w) >> 32 | 1));
            snprintf(limit, sizeof limit, "%d", most);
            snprintf(fd, sizeof fd, "%d", counter);
            execl("/proc/self/exe", argv[0], number, limit, fd, (char *)NULL);
        }
        }
    }
}
