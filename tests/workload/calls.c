/* Threads that wait in all kinds of calls, and say what is wrong with what they return. Whoever stops one of them for
 * a moment must not be noticed.
 *
 *     calls MODE            quiet:    no signals; a call that fails is wrong
 *                           signals:  signals with SA_RESTART all the time, each of which must arrive once
 *                           seccomp:  as quiet, behind a filter that kills whoever makes a userfaultfd
 *                           fork:     as quiet, and children are forked all the time that look at their descriptors
 *                           stopped:  as quiet, but everything is stopped now and then: some calls fail then
 *                           blocked:  as quiet, with all signals blocked, SIGTRAP ignored
 *
 * Says "ready", then what is wrong, until its standard input ends; then "end" and how many calls were made.
 *
 *     cc -O1 -pthread -o calls calls.c
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int signals, forks;
static _Atomic long calls;
static _Atomic long sent, handled;

static void wrong(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[256];
    int length = vsnprintf(text, sizeof text - 1, format, arguments);
    va_end(arguments);
    text[length++] = '\n';
    if (write(1, text, length) < 0) _exit(2);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* With signals some calls may fail as they do when a handler has run, whoever stops them. */
static void check(const char *call, long result, long expected) {
    calls++;
    if (result == expected) return;
    if (result < 0 && errno == EINTR && signals) return;
    wrong("%s returned %ld (%s), not %ld", call, result, result < 0 ? strerror(errno) : "no error", expected);
}

/* Calls that begin anew behind a handler with SA_RESTART may never fail. */
static void check_restarted(const char *call, long result, long expected) {
    calls++;
    if (result != expected) wrong("%s returned %ld (%s), not %ld", call, result, strerror(errno), expected);
}

/* It waited as long as it should: not less, and not for ever. */
static void check_time(const char *call, double from, double least) {
    double took = now() - from;
    if (took < least - 0.001) wrong("%s waited %.4f s, not %.4f", call, took, least);
    if (took > least + 5) wrong("%s waited %.4f s", call, took);
}

#define FOREVER(...) for (;;) __VA_ARGS__

static void *sleeper(void *unused) {
    FOREVER({
        struct timespec t = {0, 3000000}, left = {0, 0};
        double from = now();
        int result = nanosleep(&t, &left);
        check("nanosleep", result, 0);
        if (!result) check_time("nanosleep", from, 0.003);
    })
    return unused;
}

static void *poller(void *unused) {
    int pipes[2];
    if (pipe(pipes)) abort();
    FOREVER({
        struct pollfd p = {pipes[0], POLLIN, 0};
        double from = now();
        int result = poll(&p, 1, 4);
        check("poll", result, 0);
        if (!result) check_time("poll", from, 0.004);
        sigset_t none;
        sigemptyset(&none);
        struct timespec t = {0, 2000000};
        check("ppoll", ppoll(&p, 1, &t, signals ? NULL : &none), 0);
    })
    return unused;
}

static void *epoller(void *unused) {
    int epoll = epoll_create1(0), pipes[2];
    if (pipe(pipes)) abort();
    struct epoll_event event = {EPOLLIN, {.fd = pipes[0]}};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event)) abort();
    FOREVER({
        double from = now();
        int result = epoll_wait(epoll, &event, 1, 4);
        check("epoll_wait", result, 0);
        if (!result) check_time("epoll_wait", from, 0.004);
    })
    return unused;
}

static int numbers[2];

static void *writer(void *unused) {
    uint32_t number = 0;
    FOREVER({
        struct timespec t = {0, 1000000};
        nanosleep(&t, NULL);
        check_restarted("write", write(numbers[1], &number, 4), 4);
        number++;
    })
    return unused;
}

static void *reader(void *unused) {
    uint32_t expected = 0;
    FOREVER({
        uint32_t number = 0;
        check_restarted("read", read(numbers[0], &number, 4), 4);
        if (number != expected++) wrong("read %u, not %u", number, expected - 1);
    })
    return unused;
}

static void *futexes(void *unused) {
    static int word;
    FOREVER({
        struct timespec t = {0, 3000000};
        double from = now();
        long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
        if (result == -1 && errno == ETIMEDOUT) {
            check_time("futex", from, 0.003);
            calls++;
        } else {
            check("futex", result, -2);
        }
    })
    return unused;
}

static int semaphore;
static _Atomic int ending;

static void *semaphores(void *unused) {
    struct sembuf down = {0, -1, 0};
    FOREVER({
        struct timespec t = {0, 3000000};
        long result = semtimedop(semaphore, &down, 1, &t);
        if (result == -1 && (errno == EAGAIN || ending)) calls++;
        else check("semtimedop", result, -2);
    })
    return unused;
}

/* Not in a call at all: registers, flags and floating point must stay. */
static void *computer(void *unused) {
    FOREVER({
        uint64_t a = 1, b = 2, c = 3, d = 4;
        double x = 1.5, y = 2.25;
        for (int i = 0; i < 1 << 20; i++) {
            a = a * 6364136223846793005ull + b;
            b ^= a >> 7;
            c += b * d;
            d = (d << 5 | d >> 59) ^ c;
            x = x * 1.0000001 + y;
            y = y * 0.9999999 + 0.25;
        }
        static _Atomic uint64_t before;
        uint64_t bits, sum = a ^ b ^ c ^ d;
        double z = x + y;
        memcpy(&bits, &z, 8);
        sum ^= bits;
        uint64_t expected = 0;
        if (!atomic_compare_exchange_strong(&before, &expected, sum) && expected != sum) wrong("a sum is another");
        calls++;
        struct timespec t = {0, 1000000};
        nanosleep(&t, NULL);
    })
    return unused;
}

/* Its value says which signal is missing or comes twice. */
static void handler(int signal, siginfo_t *info, void *context) {
    static int expected;
    (void)signal;
    (void)context;
    if (info->si_value.sival_int != expected) wrong("signal %d, not %d", info->si_value.sival_int, expected);
    expected = info->si_value.sival_int + 1;
    handled++;
}

static void *signaller(void *thread) {
    union sigval value = {0};
    FOREVER({
        /* The real-time signal is queued: each arrives, in order. The other threads get one without a number. */
        while (pthread_sigqueue(*(pthread_t *)thread, SIGRTMIN + 1, value)) usleep(100);
        value.sival_int++;
        sent++;
        kill(getpid(), SIGUSR1);
        usleep(200);
    })
    return NULL;
}

static void nothing(int signal) { (void)signal; }

static int has_userfaultfd(void) {
    DIR *directory = opendir("/proc/self/fd");
    int found = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char path[300], file[64] = {0};
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        if (readlink(path, file, sizeof file - 1) > 0 && strstr(file, "userfaultfd")) found = 1;
    }
    if (directory) closedir(directory);
    return found;
}

/* A child that has a descriptor which its parent never opened keeps it. */
static void *forker(void *unused) {
    FOREVER({
        pid_t child = fork();
        if (child == 0) {
            usleep(20000);
            /* Whoever takes it away may be waiting for its turn on a busy machine. */
            for (int n = 0; n < 250 && has_userfaultfd(); n++) usleep(20000);
            _exit(has_userfaultfd());
        }
        int status = 0;
        if (waitpid(child, &status, 0) != child) wrong("waitpid: %s", strerror(errno));
        if (status) wrong("a child has inherited a userfaultfd");
        calls++;
    })
    return unused;
}

static void filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) abort();
}

static pthread_t start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, argument)) abort();
    return thread;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "quiet";
    int noisy = !strcmp(mode, "signals");
    signals = noisy || !strcmp(mode, "stopped");
    forks = !strcmp(mode, "fork");
    if (!strcmp(mode, "seccomp")) filter();
    if (!strcmp(mode, "blocked")) {
        sigset_t all;
        sigfillset(&all);
        signal(SIGTRAP, SIG_IGN);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
    }
    semaphore = semget(IPC_PRIVATE, 1, 0600);
    if (semaphore < 0 || pipe(numbers)) return 1;
    static pthread_t threads[16];
    int count = 0;
    struct sigaction restart = {.sa_sigaction = handler, .sa_flags = SA_RESTART | SA_SIGINFO};
    sigaction(SIGRTMIN + 1, &restart, NULL);
    struct sigaction plain = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &plain, NULL);
    threads[count++] = start(reader, NULL);
    threads[count++] = start(writer, NULL);
    threads[count++] = start(sleeper, NULL);
    threads[count++] = start(poller, NULL);
    threads[count++] = start(epoller, NULL);
    threads[count++] = start(futexes, NULL);
    threads[count++] = start(semaphores, NULL);
    threads[count++] = start(computer, NULL);
    if (noisy) start(signaller, &threads[0]);
    if (forks) start(forker, NULL);
    puts("ready");
    fflush(stdout);
    /* The main thread waits in a read too. */
    char byte;
    long result = read(0, &byte, 1);
    if (result) wrong("the last read returned %ld: %s", result, strerror(errno));
    usleep(100000);
    /* On a busy machine some wait to be delivered; the handler says if one is missing. */
    for (int n = 0; n < 50 && sent != handled && sent != handled + 1; n++) usleep(100000);
    if (sent != handled && sent != handled + 1) wrong("%ld signals were sent, %ld came", sent, handled);
    if (has_userfaultfd()) wrong("there is a userfaultfd");
    struct sigaction trap;
    sigaction(SIGTRAP, NULL, &trap);
    if (!strcmp(mode, "blocked") && trap.sa_handler != SIG_IGN) wrong("SIGTRAP is not ignored any more");
    ending = 1;
    semctl(semaphore, 0, IPC_RMID);
    char text[64];
    int length = snprintf(text, sizeof text, "end %ld\n", (long)calls);
    if (write(1, text, length) != length) return 1;
    _exit(0);
}
