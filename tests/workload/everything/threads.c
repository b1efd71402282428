/* Threads, what the kernel keeps for each, and calls that are waited in. The last to be made. */
#include "items.h"
#include <linux/futex.h>
#include <linux/rseq.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define THREADS 60

void start_serving(void);

/* ---- sixty of them, each with a name, a number, a mask and memory of its own */

struct one {
    pthread_t thread;
    pid_t tid;
    atomic_ulong count;
    atomic_int wrong;
};
static struct one crowd[THREADS];
static __thread unsigned long own;

static void *run(void *given) {
    struct one *me = given;
    int number = (int)(me - crowd);
    char name[16], is[16];
    sigset_t mask, has;
    snprintf(name, sizeof name, "thread-%d", number);
    prctl(PR_SET_NAME, name);
    sigfillset(&mask);
    if (number % 2) sigdelset(&mask, SIGRTMIN + 10 + number % 5);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    me->tid = (pid_t)syscall(SYS_gettid);
    own = 1000 * number;
    for (;;) {
        own++;
        atomic_store(&me->count, own - 1000 * number);
        prctl(PR_GET_NAME, is);
        pthread_sigmask(SIG_BLOCK, NULL, &has);
        int same = !strcmp(name, is) && syscall(SYS_gettid) == me->tid &&
                   sigismember(&has, SIGRTMIN + 10 + number % 5) == !(number % 2);
        if (!same) atomic_store(&me->wrong, 1);
        rest(10 + number % 7);
    }
    return NULL;
}
static const char *make_threads(void) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    start_serving();
    for (int n = 0; n < THREADS; n++) NEED(!pthread_create(&crowd[n].thread, NULL, run, &crowd[n]));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return NULL;
}
static const char *check_threads(void) {
    unsigned long before[THREADS];
    for (int n = 0; n < THREADS; n++) before[n] = atomic_load(&crowd[n].count);
    rest(300);
    for (int n = 0; n < THREADS; n++) {
        NEED(atomic_load(&crowd[n].count) > before[n]);
        NEED(!atomic_load(&crowd[n].wrong));
        NEED(!syscall(SYS_tgkill, getpid(), crowd[n].tid, 0));
    }
    return NULL;
}

/* ---- a robust mutex between processes: its owner's death is noticed */

static pthread_mutex_t *robust;
static struct helper owner;

static void take_robust(void) {
    if (pthread_mutex_lock(robust)) _exit(1);
}
static long owner_answers(long question) {
    if (question == 1) _exit(0);
    return 1;
}
static const char *own_robust(void) {
    pthread_mutexattr_t how;
    NEED(!pthread_mutexattr_init(&how) && !pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED));
    NEED(!pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST) && !pthread_mutex_init(robust, &how));
    owner = start_helper(take_robust, owner_answers);
    NEED(ask(&owner, 0) == 1);
    return NULL;
}
static const char *make_robust(void) {
    robust = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(robust != MAP_FAILED);
    return own_robust();
}
static const char *check_robust(void) {
    struct timespec until;
    NEED(pthread_mutex_trylock(robust) == EBUSY);
    ask(&owner, 1);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 2;
    NEED(pthread_mutex_timedlock(robust, &until) == EOWNERDEAD);
    pthread_mutex_consistent(robust), pthread_mutex_unlock(robust), pthread_mutex_destroy(robust);
    close(owner.wire), waitpid(owner.pid, NULL, 0);
    return own_robust();
}

/* ---- restartable sequences: registered by libc, and kept up to date by the kernel */

static const char *make_rseq(void) { return NULL; }
static const char *check_rseq(void) {
    extern const ptrdiff_t __rseq_offset;
    extern const unsigned int __rseq_size;
    if (!__rseq_size) return NULL;
    struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    cpu_set_t was, one;
    NEED(!sched_getaffinity(0, sizeof was, &was));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &was)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        NEED(!sched_setaffinity(0, sizeof one, &one) && *(volatile unsigned *)&area->cpu_id == (unsigned)cpu);
    }
    NEED(!sched_setaffinity(0, sizeof was, &was));
    return NULL;
}

/* ---- calls that are waited in go on; those without a time limit are not even interrupted */

static int dull[2];
static atomic_int word, woken;

static void *in_read(void *none) {
    char c;
    if (read(dull[0], &c, 1) != 1 || c != 'r') abort();
    atomic_fetch_add(&woken, 1);
    return none;
}
static void *in_futex(void *none) {
    if (syscall(SYS_futex, &word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, NULL)) abort();
    atomic_fetch_add(&woken, 1);
    return none;
}
/* What has a time limit may end early, as after a signal: the kernel alone knows what is left of it. */
static void *in_sleep(void *none) {
    struct timespec long_time = {100000, 0};
    while (nanosleep(&long_time, &long_time) && errno == EINTR) continue;
    abort();
    return none;
}
static void *in_poll(void *none) {
    while (poll(NULL, 0, 100000000) < 0 && errno == EINTR) continue;
    abort();
    return none;
}
static const char *wait_again(void) {
    pthread_t reader, sleeper;
    sigset_t all, before;
    sigfillset(&all);
    atomic_store(&word, 0), atomic_store(&woken, 0);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    NEED(!pthread_create(&reader, NULL, in_read, NULL) && !pthread_create(&sleeper, NULL, in_futex, NULL));
    pthread_detach(reader), pthread_detach(sleeper);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return NULL;
}
static const char *make_waiting(void) {
    pthread_t thread;
    sigset_t all, before;
    NEED(!pipe(dull));
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    NEED(!pthread_create(&thread, NULL, in_sleep, NULL) && !pthread_create(&thread, NULL, in_poll, NULL));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return wait_again();
}
static const char *check_waiting(void) {
    rest(50);
    NEED(atomic_load(&woken) == 0);
    atomic_store(&word, 1);
    NEED(syscall(SYS_futex, &word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1) == 1 && write(dull[1], "r", 1) == 1);
    for (int n = 0; n < 100 && atomic_load(&woken) < 2; n++) rest(10);
    NEED(atomic_load(&woken) == 2);
    return wait_again();
}

const struct item threads[] = {
    {"robust-mutex", make_robust, check_robust},
    {"sixty-threads", make_threads, check_threads},
    {"rseq", make_rseq, check_rseq},
    {"waited-in-calls", make_waiting, check_waiting},
    {0},
};
