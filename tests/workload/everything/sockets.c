/* Sockets: of this host's kind with data and descriptors on their way, and of the network. */
#include "items.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

static struct sockaddr_un unix_name(const char *name) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    memcpy(at.sun_path, name, strlen(name));
    if (name[0] == '@') at.sun_path[0] = 0;
    return at;
}
static socklen_t unix_size(const char *name) { return offsetof(struct sockaddr_un, sun_path) + strlen(name); }
static int bound(int type, const char *name) {
    struct sockaddr_un at = unix_name(name);
    int fd = socket(AF_UNIX, type, 0);
    return !bind(fd, (struct sockaddr *)&at, unix_size(name)) && (type == SOCK_DGRAM || !listen(fd, 8)) ? fd : -1;
}
static int joined(int type, const char *name) {
    struct sockaddr_un at = unix_name(name);
    int fd = socket(AF_UNIX, type, 0);
    return connect(fd, (struct sockaddr *)&at, unix_size(name)) ? -1 : fd;
}

/* ---- streams: a pair with data both ways, a name with somebody who waits, a name that is no file */

static int pair[2], path_listener, path_caller, abstract_listener, abstract[2];

static const char *make_unix_streams(void) {
    NEED(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    NEED(writes_pattern(pair[0], 20000, 21) && writes_pattern(pair[1], 10000, 22));
    NEED((path_listener = bound(SOCK_STREAM, "/tmp/listener")) >= 0);
    NEED((path_caller = joined(SOCK_STREAM, "/tmp/listener")) >= 0);
    return NULL;
}
static const char *check_unix_streams(void) {
    int taken;
    NEED(reads_pattern(pair[1], 20000, 21) && reads_pattern(pair[0], 10000, 22) && silent(pair[0]));
    NEED(writes_pattern(pair[0], 20000, 21) && writes_pattern(pair[1], 10000, 22));
    NEED(readable(path_listener) && (taken = accept(path_listener, NULL, NULL)) >= 0);
    NEED(writes_pattern(path_caller, 100, 23) && reads_pattern(taken, 100, 23));
    NEED(writes_pattern(taken, 10, 24) && reads_pattern(path_caller, 10, 24));
    close(taken), close(path_caller);
    NEED((path_caller = joined(SOCK_STREAM, "/tmp/listener")) >= 0);
    return NULL;
}

static const char *make_abstract(void) {
    NEED((abstract_listener = bound(SOCK_STREAM, "@everything")) >= 0);
    NEED((abstract[0] = joined(SOCK_STREAM, "@everything")) >= 0);
    NEED((abstract[1] = accept(abstract_listener, NULL, NULL)) >= 0 && writes_pattern(abstract[0], 50, 25));
    return NULL;
}
static const char *check_abstract(void) {
    int again;
    NEED(reads_pattern(abstract[1], 50, 25) && writes_pattern(abstract[0], 50, 25));
    NEED((again = joined(SOCK_STREAM, "@everything")) >= 0);
    close(again), close(accept(abstract_listener, NULL, NULL));
    return NULL;
}

/* ---- datagrams and packets: each by itself */

static int datagrams, sender, packets[2];

static const char *fill_datagrams(void) {
    NEED(send(sender, "one", 3, 0) == 3 && send(sender, "three", 5, 0) == 5);
    return NULL;
}
static const char *make_datagrams(void) {
    NEED((datagrams = bound(SOCK_DGRAM, "/tmp/datagrams")) >= 0 && (sender = joined(SOCK_DGRAM, "/tmp/datagrams")) >= 0);
    return fill_datagrams();
}
static const char *check_datagrams(void) {
    char text[10];
    NEED(recv(datagrams, text, 10, MSG_DONTWAIT) == 3 && !memcmp(text, "one", 3));
    NEED(recv(datagrams, text, 10, MSG_DONTWAIT) == 5 && !memcmp(text, "three", 5));
    NEED(recv(datagrams, text, 10, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    return fill_datagrams();
}
static const char *make_packets(void) {
    NEED(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
    NEED(send(packets[0], "four", 4, 0) == 4 && send(packets[0], "seven..", 7, 0) == 7);
    return NULL;
}
static const char *check_packets(void) {
    char text[10];
    NEED(recv(packets[1], text, 10, MSG_DONTWAIT) == 4 && recv(packets[1], text, 10, MSG_DONTWAIT) == 7);
    NEED(send(packets[0], "four", 4, 0) == 4 && send(packets[0], "seven..", 7, 0) == 7);
    return NULL;
}

/* ---- a descriptor that nobody has but a message on its way */

static int carrier[2];

static const char *send_descriptor(void) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec data = {"fd", 2};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int ends[2];
    NEED(!pipe(ends) && write(ends[1], "carried", 7) == 7);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &ends[0], sizeof(int));
    NEED(sendmsg(carrier[0], &message, 0) == 2);
    close(ends[0]), close(ends[1]);
    return NULL;
}
static const char *make_passed(void) {
    NEED(!socketpair(AF_UNIX, SOCK_STREAM, 0, carrier));
    return send_descriptor();
}
static const char *check_passed(void) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char text[2];
    struct iovec data = {text, 2};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int fd;
    NEED(recvmsg(carrier[1], &message, MSG_DONTWAIT) == 2);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    NEED(head && head->cmsg_type == SCM_RIGHTS);
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
    NEED(reads(fd, "carried", 7));
    close(fd);
    return send_descriptor();
}

/* ---- TCP: a connection from outside, and one within with data both ways and one half closed */

static int tcp_listener, near_listener, near[2], half[2];
static atomic_long echoed;

static void *serve(void *given) {
    int fd = (int)(intptr_t)given;
    char line[200];
    for (ssize_t n; (n = read(fd, line, sizeof line)) > 0; atomic_fetch_add(&echoed, 1))
        if (write(fd, line, n) != n) break;
    close(fd);
    return NULL;
}
static void *take_clients(void *none) {
    for (;;) {
        pthread_t thread;
        int fd = accept(tcp_listener, NULL, NULL), yes = 1;
        if (fd < 0) continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        if (!pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd)) pthread_detach(thread);
    }
    return none;
}
static int at_port(int type, uint32_t address, int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
    int fd = socket(AF_INET, type, 0), yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    return !bind(fd, (struct sockaddr *)&at, sizeof at) ? fd : -1;
}
static int to_port(int type, int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, type, 0);
    return !connect(fd, (struct sockaddr *)&at, sizeof at) ? fd : -1;
}
static const char *near_pair(int ends[2]) {
    NEED((ends[0] = to_port(SOCK_STREAM, 7001)) >= 0 && (ends[1] = accept(near_listener, NULL, NULL)) >= 0);
    return NULL;
}

static const char *make_listening(void) {
    NEED((tcp_listener = at_port(SOCK_STREAM, INADDR_ANY, 7000)) >= 0 && !listen(tcp_listener, 33));
    return NULL;
}
static const char *check_listening(void) {
    int fd;
    NEED((fd = to_port(SOCK_STREAM, 7000)) >= 0 && write(fd, "hello", 5) == 5 && reads(fd, "hello", 5));
    close(fd);
    return NULL;
}
static const char *make_tcp(void) {
    int idle = 77, size = 100000;
    NEED((near_listener = at_port(SOCK_STREAM, INADDR_LOOPBACK, 7001)) >= 0 && !listen(near_listener, 5));
    NEED(!near_pair(near) && !near_pair(half));
    NEED(!setsockopt(near[0], IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle));
    NEED(!setsockopt(near[0], SOL_SOCKET, SO_KEEPALIVE, &idle, sizeof idle));
    NEED(!setsockopt(near[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    NEED(writes_pattern(near[0], 30000, 31) && writes_pattern(near[1], 9000, 32));
    NEED(!shutdown(half[0], SHUT_WR) && writes_pattern(half[1], 500, 33));
    return NULL;
}
static const char *check_tcp(void) {
    int idle = 0, size = 0;
    socklen_t length = sizeof idle;
    char end;
    NEED(reads_pattern(near[1], 30000, 31) && reads_pattern(near[0], 9000, 32));
    NEED(writes_pattern(near[0], 30000, 31) && writes_pattern(near[1], 9000, 32));
    NEED(!getsockopt(near[0], IPPROTO_TCP, TCP_KEEPIDLE, &idle, &length) && idle == 77);
    NEED(!getsockopt(near[0], SOL_SOCKET, SO_SNDBUF, &size, &length) && size == 200000);
    NEED(reads_pattern(half[0], 500, 33) && read(half[1], &end, 1) == 0 && writes_pattern(half[1], 500, 33));
    return NULL;
}
/* Somebody outside has talked since this was asked last. */
static const char *make_outside(void) { return NULL; }
static const char *check_outside(void) {
    long before = atomic_load(&echoed);
    for (int n = 0; n < 50 && atomic_load(&echoed) < before + 3; n++) rest(20);
    NEED(atomic_load(&echoed) >= before + 3);
    return NULL;
}

/* ---- UDP, connected and not */

static int udp, udp_peer;

static const char *make_udp(void) {
    int yes = 1;
    NEED((udp = at_port(SOCK_DGRAM, INADDR_ANY, 7002)) >= 0 && (udp_peer = to_port(SOCK_DGRAM, 7002)) >= 0);
    NEED(!setsockopt(udp, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes));
    NEED(!setsockopt(udp, IPPROTO_IP, IP_PKTINFO, &yes, sizeof yes));
    return NULL;
}
static const char *check_udp(void) {
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    int is = 0;
    char text[10];
    NEED(send(udp_peer, "there", 5, 0) == 5 && readable(udp));
    NEED(recvfrom(udp, text, 10, 0, (struct sockaddr *)&from, &size) == 5);
    NEED(sendto(udp, "back", 4, 0, (struct sockaddr *)&from, size) == 4 && reads(udp_peer, "back", 4));
    size = sizeof is;
    NEED(!getsockopt(udp, SOL_SOCKET, SO_BROADCAST, &is, &size) && is == 1);
    NEED(!getsockopt(udp, IPPROTO_IP, IP_PKTINFO, &is, &size) && is == 1);
    return NULL;
}

/* ---- netlink: bound, in a group, and answered */

static int netlink;
static struct sockaddr_nl netlink_name;

static const char *make_netlink(void) {
    struct sockaddr_nl at = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR};
    socklen_t size = sizeof netlink_name;
    NEED((netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)) >= 0);
    NEED(!bind(netlink, (struct sockaddr *)&at, sizeof at));
    NEED(!getsockname(netlink, (struct sockaddr *)&netlink_name, &size));
    return NULL;
}
static const char *check_netlink(void) {
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } ask = {{sizeof ask, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0}, {AF_UNSPEC}};
    struct sockaddr_nl at;
    socklen_t size = sizeof at;
    char answer[16384] __attribute__((aligned(8)));
    NEED(!getsockname(netlink, (struct sockaddr *)&at, &size) && !memcmp(&at, &netlink_name, sizeof at));
    NEED(send(netlink, &ask, sizeof ask, 0) == sizeof ask && readable(netlink));
    NEED(recv(netlink, answer, sizeof answer, 0) > 0 && ((struct nlmsghdr *)answer)->nlmsg_type == RTM_NEWLINK);
    while (!silent(netlink)) NEED(recv(netlink, answer, sizeof answer, 0) > 0);
    return NULL;
}

/* Called when threads may be made. */
void start_serving(void);
void start_serving(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, take_clients, NULL)) abort();
}

const struct item sockets[] = {
    {"unix-streams-with-data", make_unix_streams, check_unix_streams},
    {"unix-abstract", make_abstract, check_abstract},
    {"unix-datagrams-with-data", make_datagrams, check_datagrams},
    {"unix-packets-with-data", make_packets, check_packets},
    {"unix-passed-descriptor", make_passed, check_passed},
    {"tcp-listening", make_listening, check_listening},
    {"tcp-with-data", make_tcp, check_tcp},
    {"tcp-from-outside", make_outside, check_outside},
    {"udp", make_udp, check_udp},
    {"netlink", make_netlink, check_netlink},
    {0},
};
