/* Clocks, timers of every kind, and signals that are on their way. */
#include "items.h"
#include <sys/time.h>
#include <sys/timerfd.h>

/* ---- POSIX timers: one that goes on and on, one that is far away */

static timer_t often, far_away;
static int64_t far_begun;
static sigset_t ticked;
static volatile sig_atomic_t ticks, tick_value;
static void tick(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    ticks++, tick_value = info->si_value.sival_int;
}

static const char *make_timers(void) {
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 99};
    struct itimerspec fast = {{0, 20000000}, {0, 20000000}}, slow = {{0, 0}, {5000, 0}};
    /* It would interrupt what others wait in. */
    sigemptyset(&ticked), sigaddset(&ticked, SIGRTMIN + 1);
    NEED(!sigaction(SIGRTMIN + 1, &action, NULL) && !sigprocmask(SIG_BLOCK, &ticked, NULL));
    NEED(!timer_create(CLOCK_MONOTONIC, &event, &often) && !timer_settime(often, 0, &fast, NULL));
    event.sigev_notify = SIGEV_NONE;
    NEED(!timer_create(CLOCK_REALTIME, &event, &far_away) && !timer_settime(far_away, 0, &slow, NULL));
    far_begun = now_ms(CLOCK_REALTIME);
    return NULL;
}
static const char *check_timers(void) {
    struct itimerspec left;
    int before = ticks;
    pthread_sigmask(SIG_UNBLOCK, &ticked, NULL);
    rest(110);
    pthread_sigmask(SIG_BLOCK, &ticked, NULL);
    NEED(ticks >= before + 2 && tick_value == 99);
    NEED(!timer_gettime(often, &left) && left.it_interval.tv_nsec == 20000000);
    NEED(!timer_gettime(far_away, &left) && left.it_interval.tv_sec == 0);
    int64_t gone = now_ms(CLOCK_REALTIME) - far_begun, should = 5000000 - gone;
    int64_t has = (int64_t)left.it_value.tv_sec * 1000 + left.it_value.tv_nsec / 1000000;
    /* What the container stands still is not counted by every timer. */
    NEED(has > should - 100 && has < should + 20000);
    return NULL;
}

/* ---- timerfd */

static int ticking, waiting;

static const char *make_timerfd(void) {
    struct itimerspec fast = {{0, 50000000}, {0, 50000000}}, slow = {{7, 0}, {6000, 0}};
    NEED((ticking = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0 && !timerfd_settime(ticking, 0, &fast, NULL));
    NEED((waiting = timerfd_create(CLOCK_BOOTTIME, 0)) >= 0 && !timerfd_settime(waiting, 0, &slow, NULL));
    return NULL;
}
static const char *check_timerfd(void) {
    uint64_t count;
    struct itimerspec left;
    NEED(readable(ticking) && read(ticking, &count, 8) == 8 && count >= 1);
    NEED(readable(ticking) && read(ticking, &count, 8) == 8 && count >= 1);
    NEED(!timerfd_gettime(waiting, &left) && left.it_interval.tv_sec == 7);
    NEED(left.it_value.tv_sec > 5700 && left.it_value.tv_sec <= 6000);
    return NULL;
}

/* ---- interval timers and alarm */

static struct helper itimers, alarmed;
static volatile sig_atomic_t alarms;
static void note_alarm(int signal) { (void)signal, alarms++; }

static void set_itimers(void) {
    struct sigaction action = {.sa_handler = note_alarm, .sa_flags = SA_RESTART};
    struct itimerval real = {{0, 30000}, {0, 30000}}, processor = {{50, 0}, {5000, 0}};
    sigaction(SIGALRM, &action, NULL);
    if (setitimer(ITIMER_REAL, &real, NULL) || setitimer(ITIMER_VIRTUAL, &processor, NULL) ||
        setitimer(ITIMER_PROF, &processor, NULL))
        _exit(1);
}
static long itimer_answers(long which) {
    struct itimerval left;
    if (which < 0) return alarms;
    if (getitimer((int)which, &left)) return -1;
    return which == ITIMER_REAL ? left.it_interval.tv_usec == 30000
                                : left.it_interval.tv_sec == 50 && left.it_value.tv_sec > 4900;
}
static void set_alarm(void) { alarm(4000); }
static long alarm_answers(long question) {
    (void)question;
    struct itimerval left;
    return getitimer(ITIMER_REAL, &left) ? -1 : left.it_value.tv_sec;
}

static const char *make_itimers(void) {
    itimers = start_helper(set_itimers, itimer_answers);
    return NULL;
}
static const char *check_itimers(void) {
    long before = ask(&itimers, -1);
    rest(150);
    NEED(ask(&itimers, -1) >= before + 2);
    NEED(ask(&itimers, ITIMER_REAL) == 1 && ask(&itimers, ITIMER_VIRTUAL) == 1 && ask(&itimers, ITIMER_PROF) == 1);
    return NULL;
}
static const char *make_alarm(void) {
    alarmed = start_helper(set_alarm, alarm_answers);
    return NULL;
}
static const char *check_alarm(void) {
    long left = ask(&alarmed, 0);
    NEED(left > 3700 && left <= 4000);
    return NULL;
}

/* ---- clocks that never jump */

static int64_t monotonic, boottime, realtime;

static const char *make_clocks(void) {
    monotonic = now_ms(CLOCK_MONOTONIC), boottime = now_ms(CLOCK_BOOTTIME), realtime = now_ms(CLOCK_REALTIME);
    return NULL;
}
static const char *check_clocks(void) {
    int64_t m = now_ms(CLOCK_MONOTONIC) - monotonic, b = now_ms(CLOCK_BOOTTIME) - boottime;
    int64_t r = now_ms(CLOCK_REALTIME) - realtime;
    NEED(m >= 0 && b >= 0 && m < r + 2000 && b < r + 2000 && m > r - 20000 && b > r - 20000);
    return make_clocks();
}

/* ---- signals that wait, and what is to become of signals */

static sigset_t held;

static const char *queue_signals(void) {
    NEED(!kill(getpid(), SIGUSR2));
    for (int n = 0; n < 3; n++) NEED(!sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 300 + n}));
    NEED(!syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGRTMIN + 4));
    return NULL;
}
static const char *make_signals(void) {
    sigemptyset(&held);
    sigaddset(&held, SIGUSR2), sigaddset(&held, SIGRTMIN + 3), sigaddset(&held, SIGRTMIN + 4);
    NEED(!sigprocmask(SIG_BLOCK, &held, NULL));
    return queue_signals();
}
static const char *check_signals(void) {
    struct timespec now = {0, 0};
    sigset_t one;
    siginfo_t info;
    sigemptyset(&one), sigaddset(&one, SIGUSR2);
    NEED(sigtimedwait(&one, &info, &now) == SIGUSR2 && info.si_pid == getpid() && info.si_code == SI_USER);
    sigemptyset(&one), sigaddset(&one, SIGRTMIN + 3);
    for (int n = 0; n < 3; n++)
        NEED(sigtimedwait(&one, &info, &now) == SIGRTMIN + 3 && info.si_value.sival_int == 300 + n);
    sigemptyset(&one), sigaddset(&one, SIGRTMIN + 4);
    NEED(sigtimedwait(&one, &info, &now) == SIGRTMIN + 4 && info.si_pid == getpid());
    NEED(sigtimedwait(&held, &info, &now) == -1 && errno == EAGAIN);
    return queue_signals();
}

static volatile sig_atomic_t on_stack;
static char stack[1 << 16];
static void note_stack(int signal) {
    char here;
    (void)signal;
    on_stack = &here >= stack && &here < stack + sizeof stack;
}
static const char *make_handlers(void) {
    stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = note_stack, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaddset(&action.sa_mask, SIGHUP);
    NEED(!sigaltstack(&other, NULL) && !sigaction(SIGWINCH, &action, NULL) && signal(SIGTTIN, SIG_IGN) != SIG_ERR);
    return NULL;
}
static const char *check_handlers(void) {
    struct sigaction is;
    sigset_t mask;
    on_stack = 0;
    NEED(!raise(SIGWINCH) && on_stack);
    NEED(!sigaction(SIGWINCH, NULL, &is) && sigismember(&is.sa_mask, SIGHUP) && is.sa_flags & SA_RESTART);
    NEED(!sigaction(SIGTTIN, NULL, &is) && is.sa_handler == SIG_IGN);
    NEED(!sigaction(SIGPIPE, NULL, &is) && is.sa_handler == SIG_IGN);
    NEED(!pthread_sigmask(SIG_BLOCK, NULL, &mask) && sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGUSR2));
    NEED(!sigismember(&mask, SIGHUP) && sigismember(&mask, SIGRTMIN + 5));
    return NULL;
}

const struct item times[] = {
    {"posix-timers", make_timers, check_timers},
    {"timerfd", make_timerfd, check_timerfd},
    {"interval-timers", make_itimers, check_itimers},
    {"alarm", make_alarm, check_alarm},
    {"clocks", make_clocks, check_clocks},
    {"pending-signals", make_signals, check_signals},
    {"handlers-and-mask", make_handlers, check_handlers},
    {0},
};
