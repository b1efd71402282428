/* A workload that does to shared memory whatever programs do to it, and knows what every page of it is.
 *
 *     shared SEED MIB RATE
 *
 * Two processes that stay, and now and then one that does not, write to segments of every kind: by the mappings they
 * have, by new ones, by descriptors. Segments are cut, grown and punched. The first process keeps a list of what
 * every page is; on SIGUSR1 all of it is checked, in both processes, and one line is printed. The first segment has
 * MIB MiB, RATE is how many things are done per second.
 *
 *     cc -O1 -static -o shared shared.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define SMALL 64

enum kind { ANONYMOUS, MEMFD, UNMAPPED, SEALED, ONLY_MAPPED, SYSV, DETACHED, HUGE_PAGES, COPIED, ODD };

struct segment {
    const char *name;
    enum kind kind;
    size_t pages, most; /* now, and as many as there may be */
    int fd;             /* -1 where there is none */
    int id;             /* of a SysV segment */
    char *at;           /* a mapping that can be written, of `most` pages; NULL where there is none */
    const char *seen;   /* another one, which can be read */
    char *copy;         /* a private one, whose first page is another */
    uint32_t *versions; /* 0: a page of zeros */
};

static struct segment segments[] = {
    {.name = "anonymous memory", .kind = ANONYMOUS},
    {.name = "another", .kind = ANONYMOUS, .most = SMALL},
    {.name = "a memfd", .kind = MEMFD, .most = SMALL},
    {.name = "an unmapped memfd", .kind = UNMAPPED, .most = SMALL},
    {.name = "a sealed memfd", .kind = SEALED, .most = SMALL},
    {.name = "a memfd that is closed", .kind = ONLY_MAPPED, .most = SMALL},
    {.name = "a SysV segment", .kind = SYSV, .most = SMALL},
    {.name = "a detached SysV segment", .kind = DETACHED, .most = SMALL},
    {.name = "huge pages", .kind = HUGE_PAGES, .most = 1024},
    {.name = "a memfd with a private mapping", .kind = COPIED, .most = SMALL},
    {.name = "a memfd that ends within a page", .kind = ODD, .most = 3},
};
#define COUNT (sizeof segments / sizeof *segments)

/* What the other process is asked. */
struct wish {
    enum { WRITE, CHECK, REMAP } what;
    uint32_t segment, version;
    uint64_t page;
};

static uint64_t state;
static uint32_t last_version;
static int other;
static uint64_t checks, bad;
static char first_bad[200] = "";
static volatile sig_atomic_t asked;

static void die(const char *what) {
    printf("first: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 2685821657736338717ull;
}

static uint64_t below(uint64_t end) { return (next() >> 11) % end; }

static uint64_t word(size_t segment, size_t page, uint32_t version, size_t n) {
    if (!version) return 0;
    /* Half of it compresses. */
    return n % 2 ? version : ((segment << 40 ^ page << 8 ^ n) * 0x9e3779b97f4a7c15ull) ^ version;
}

static void fill(void *to, size_t segment, size_t page, uint32_t version) {
    uint64_t *words = to;
    for (size_t n = 0; n < WORDS; n++) words[n] = word(segment, page, version, n);
}

/* Whether a page is what it should be. */
static int same(const volatile void *from, size_t segment, size_t page, uint32_t version) {
    const volatile uint64_t *words = from;
    for (size_t n = 0; n < WORDS; n++)
        if (words[n] != word(segment, page, version, n)) return 0;
    return 1;
}

static void expect(int right, const char *what, size_t segment, size_t page) {
    checks++;
    if (right) return;
    if (!bad++)
        snprintf(first_bad, sizeof first_bad, "%s, page %zu: %s", segments[segment].name, page, what);
}

static void *map(size_t pages, int protection, int flags, int fd) {
    void *at = mmap(NULL, pages * PAGE, protection, flags, fd, 0);
    if (at == MAP_FAILED) die("mmap");
    return at;
}

static void create(size_t number, struct segment *s) {
    size_t length = s->most * PAGE;
    s->pages = s->most;
    s->fd = s->id = -1;
    s->versions = calloc(s->most, sizeof *s->versions);
    if (!s->versions) die("calloc");
    switch (s->kind) {
    case ANONYMOUS: s->at = map(s->most, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1); break;
    case SYSV:
    case DETACHED:
        s->id = shmget(IPC_PRIVATE, length, IPC_CREAT | 0600);
        if (s->id < 0) die("shmget");
        s->at = shmat(s->id, NULL, 0);
        if (s->at == (void *)-1) die("shmat");
        break;
    default: {
        char name[16];
        snprintf(name, sizeof name, "kind-%d", s->kind);
        s->fd = memfd_create(name, MFD_ALLOW_SEALING | MFD_CLOEXEC);
        if (s->fd < 0 || ftruncate(s->fd, s->kind == ODD ? length - 1000 : length)) die("memfd_create");
        if (s->kind != UNMAPPED) s->at = map(s->most, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd);
    }
    }
    if (s->kind == HUGE_PAGES) madvise(s->at, length, MADV_HUGEPAGE);
    for (size_t page = 0; page < s->most; page++) {
        char content[PAGE];
        if (page % 7 == 6) continue; /* holes */
        s->versions[page] = ++last_version;
        fill(content, number, page, s->versions[page]);
        size_t size = s->kind == ODD && page == s->most - 1 ? PAGE - 1000 : PAGE;
        if (s->at) memcpy(s->at + page * PAGE, content, size);
        else if (pwrite(s->fd, content, size, page * PAGE) != (ssize_t)size) die("pwrite");
    }
    if (s->kind == HUGE_PAGES) madvise(s->at, length, 25 /* MADV_COLLAPSE */);
    if (s->kind == DETACHED && shmdt(s->at)) die("shmdt");
    if (s->kind == DETACHED) s->at = NULL;
    if (s->kind == SEALED) {
        munmap(s->at, length);
        s->at = NULL;
        if (fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) die("seal");
    }
    if (s->kind == COPIED) {
        s->copy = map(s->most, PROT_READ | PROT_WRITE, MAP_PRIVATE, s->fd);
        memset(s->copy, 'c', PAGE);
    }
    if (s->kind == MEMFD) s->seen = map(s->most / 2, PROT_READ, MAP_SHARED, s->fd);
    if (s->kind == MEMFD && lseek(s->fd, 4321, SEEK_SET) != 4321) die("lseek");
    if (s->kind == ONLY_MAPPED) {
        close(s->fd);
        s->fd = -1;
    }
}

static void ask(struct wish wish) {
    char answer;
    if (write(other, &wish, sizeof wish) != sizeof wish || read(other, &answer, 1) != 1) die("the other process");
    if (wish.what == CHECK) expect(answer == 'y', "the other process sees something else", wish.segment, wish.page);
}

/* The process beside the first: it has the mappings that it was born with. */
static void serve(int fd) {
    struct wish wish;
    while (read(fd, &wish, sizeof wish) == sizeof wish) {
        struct segment *s = &segments[wish.segment];
        char answer = 'y';
        if (wish.what == WRITE) fill(s->at + wish.page * PAGE, wish.segment, wish.page, wish.version);
        if (wish.what == CHECK && !same(s->at + wish.page * PAGE, wish.segment, wish.page, wish.version)) answer = 'n';
        if (wish.what == REMAP) {
            char *to = mmap(NULL, s->most * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            void *moved = mremap(s->at, s->most * PAGE, s->most * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
            if (moved != MAP_FAILED) s->at = moved;
        }
        if (write(fd, &answer, 1) != 1) break;
    }
    _exit(0);
}

/* Writes a page in one of the ways there are. */
static void write_page(size_t number, size_t page, uint32_t version) {
    struct segment *s = &segments[number];
    char content[PAGE];
    fill(content, number, page, version);
    for (;;) switch (below(6)) {
        case 0:
        case 1:
            if (!s->at) continue;
            memcpy(s->at + page * PAGE, content, PAGE);
            return;
        case 2:
            if (!s->at) continue;
            ask((struct wish){WRITE, number, version, page});
            return;
        case 3:
            if (s->fd < 0) continue;
            if (pwrite(s->fd, content, PAGE, page * PAGE) != (ssize_t)PAGE) die("pwrite");
            return;
        case 4: { /* by a mapping that comes and goes */
            char *at;
            if (s->fd < 0 && s->id < 0) continue;
            at = s->fd >= 0 ? mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, s->fd, page * PAGE) : shmat(s->id, NULL, 0);
            if (at == MAP_FAILED) die("a mapping that comes and goes");
            memcpy(s->fd >= 0 ? at : at + page * PAGE, content, PAGE);
            if (s->fd >= 0 ? munmap(at, PAGE) : shmdt(at)) die("munmap");
            return;
        }
        default: { /* by a process that comes and goes */
            pid_t child;
            if (!s->at || below(8)) continue;
            child = fork();
            if (child < 0) die("fork");
            if (!child) {
                memcpy(s->at + page * PAGE, content, PAGE);
                madvise(s->at, s->pages * PAGE, MADV_DONTNEED);
                _exit(0);
            }
            if (waitpid(child, NULL, 0) != child) die("waitpid");
            return;
        }
        }
}

static void punch(size_t number, size_t page) {
    struct segment *s = &segments[number];
    int failed = s->fd >= 0 ? fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE)
                 : s->at    ? madvise(s->at + page * PAGE, PAGE, MADV_REMOVE)
                            : 1;
    if (!failed) s->versions[page] = 0;
}

/* What is cut off and grown again is zero. */
static void cut(size_t number) {
    struct segment *s = &segments[number];
    if (s->kind != MEMFD && s->kind != UNMAPPED) return;
    size_t pages = 1 + below(s->most);
    if (ftruncate(s->fd, pages * PAGE)) die("ftruncate");
    for (size_t page = pages; page < s->most; page++) s->versions[page] = 0;
    s->pages = pages;
}

static void move(size_t number) {
    struct segment *s = &segments[number];
    if (s->kind != ANONYMOUS && s->kind != ONLY_MAPPED) return;
    if (below(2)) return ask((struct wish){REMAP, number, 0, 0});
    /* While its memory is copied a mapping may be several for a moment, of which the kernel moves none. */
    void *to = mmap(NULL, s->most * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *moved = mremap(s->at, s->most * PAGE, s->most * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    if (moved != MAP_FAILED) s->at = moved;
}

static void step(void) {
    size_t number = below(COUNT);
    struct segment *s = &segments[number];
    size_t page = below(s->pages);
    if (s->kind == SEALED || s->kind == ODD) return;
    switch (below(40)) {
    case 0: return punch(number, page);
    case 1: return cut(number);
    case 2: return move(number);
    default:
        s->versions[page] = ++last_version;
        return write_page(number, page, last_version);
    }
}

static void check_segment(size_t number) {
    struct segment *s = &segments[number];
    char content[PAGE];
    char *attached = s->kind == DETACHED ? shmat(s->id, NULL, SHM_RDONLY) : NULL;
    if (attached == (void *)-1) die("shmat");
    off_t length = s->fd < 0 ? 0 : lseek(s->fd, 0, SEEK_END);
    for (size_t page = 0; page < s->pages; page++) {
        uint32_t version = s->versions[page];
        if (s->kind == ODD && page == s->most - 1) {
            fill(content, number, page, version);
            expect(!memcmp(s->at + page * PAGE, content, PAGE - 1000), "its end", number, page);
            expect(length == (off_t)(s->most * PAGE - 1000), "its length", number, page);
            continue;
        }
        if (s->at || attached)
            expect(same((attached ? attached : s->at) + page * PAGE, number, page, version), "mapped", number, page);
        if (s->at) ask((struct wish){CHECK, number, version, page});
        if (s->fd >= 0) {
            if (pread(s->fd, content, PAGE, page * PAGE) != (ssize_t)PAGE) memset(content, 'x', PAGE);
            expect(same(content, number, page, version), "read", number, page);
        }
        if (s->seen && page < s->most / 2)
            expect(same(s->seen + page * PAGE, number, page, version), "read-only", number, page);
        if (s->copy && page) expect(same(s->copy + page * PAGE, number, page, version), "private", number, page);
    }
    if (attached) shmdt(attached);
    if (s->copy) expect(s->copy[0] == 'c' && s->copy[PAGE - 1] == 'c', "its private page", number, 0);
    if (s->fd >= 0) {
        char link[64], name[64] = "", right[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", s->fd);
        snprintf(right, sizeof right, "/memfd:kind-%d (deleted)", s->kind);
        ssize_t got = readlink(link, name, sizeof name - 1);
        expect(got > 0 && !strcmp(name, right), "its name", number, 0);
        int seals = s->kind == SEALED ? F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE : 0;
        expect(fcntl(s->fd, F_GET_SEALS) == seals, "its seals", number, 0);
        if (s->kind != ODD) expect(length == (off_t)(s->pages * PAGE), "its length", number, 0);
    }
    if (s->kind == MEMFD) lseek(s->fd, 4321, SEEK_SET);
}

static void verify(unsigned long round) {
    for (size_t n = 0; n < COUNT; n++)
        if (segments[n].kind == MEMFD) expect(lseek(segments[n].fd, 0, SEEK_CUR) == 4321, "its position", n, 0);
    for (size_t n = 0; n < COUNT; n++) check_segment(n);
    printf("verified %lu: %lu checks, %lu bad\n", round, (unsigned long)checks, (unsigned long)bad);
    if (bad) printf("first: %s\n", first_bad);
    fflush(stdout);
}

static void ask_for_it(int signal) {
    (void)signal;
    asked = 1;
}

int main(int argc, char **argv) {
    int ends[2];
    unsigned long round = 0;
    if (argc != 4) return 2;
    state = strtoull(argv[1], NULL, 10) * 2 + 1;
    for (int i = 0; i < 8; i++) next();
    segments[0].most = strtoull(argv[2], NULL, 10) * 256;
    if (!segments[0].most) segments[0].most = 1;
    unsigned long rate = strtoul(argv[3], NULL, 10);
    for (size_t n = 0; n < COUNT; n++) create(n, &segments[n]);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("socketpair");
    switch (fork()) {
    case -1: die("fork"); break;
    case 0: close(ends[0]); serve(ends[1]);
    }
    close(ends[1]);
    other = ends[0];
    signal(SIGUSR1, ask_for_it);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct timespec t = {0, 5000000};
        nanosleep(&t, NULL);
        for (unsigned long i = 0; i < rate / 200; i++) step();
        if (asked) {
            asked = 0;
            verify(++round);
        }
    }
}
