/*
 * Preloaded into a CRIU. It answers four questions that CRIU asks the kernel (the fourth: preload_smaps.c), does
 * the work of one program that CRIU starts (preload_tar.c), hands it shared memory (preload_segments.c) and a user
 * namespace (preload_userns.c), each only when an environment variable says so; every other call goes through unchanged.
 *
 * GODWIT_CRIU_LIMITS: "what are this task's limits?", prlimit(2), which the kernel refuses without
 * CAP_SYS_RESOURCE for a task of another user (kernel/sys.c, check_prlimit_permission), although it shows the same
 * limits to everybody in /proc/PID/limits. Some sandboxes take that capability away.
 *
 * GODWIT_CRIU_HIDE: "which pages does this task have?", ioctl(PAGEMAP_SCAN). What a table says is hidden is not
 * there, guard pages excepted, and is not even looked at: a dump costs nothing for memory that was sent before. The
 * variable is the number of the table's file; hide/codec.rs says what is in it. Whatever is not as it must be fails
 * the call, and so the dump: CRIU never dumps something else than its caller thinks. The pages of shared memory it
 * finds in another way, by lseek(SEEK_DATA) (criu/shmem.c, next_data_segment): a file in the table has none.
 *
 * GODWIT_CRIU_CONNTRACK: "which connections are tracked in this network namespace?", for which the kernel walks
 * every bucket of the one table that all namespaces share, twice, 12 ms each. Where the namespace's own counter says
 * that there is none, the answer is known.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

static int answer_limits, answer_conntrack, replace_tar, hide_table = -1;

/* Programs that CRIU starts in their turn are none of our business. */
static const char *take(const char *name)
{
	const char *value = getenv(name);

	unsetenv(name);
	return value;
}

static int take_table(const char *name)
{
	const char *number = take(name);
	int table = number ? atoi(number) : -1;

	if (table >= 0)
		fcntl(table, F_SETFD, FD_CLOEXEC);
	return table;
}

__attribute__((constructor)) static void begin(void)
{
	hide_table = take_table("GODWIT_CRIU_HIDE");
	smaps_table = take_table("GODWIT_CRIU_SMAPS");
	answer_limits = take("GODWIT_CRIU_LIMITS") != NULL;
	answer_conntrack = take("GODWIT_CRIU_CONNTRACK") != NULL;
	replace_tar = take("GODWIT_CRIU_TAR") != NULL;
	answer_segments = take("GODWIT_CRIU_SEGMENTS") != NULL;
	user_namespace = take_table("GODWIT_CRIU_USERNS");
	unsetenv("LD_PRELOAD");
}

/* Limits. The lines of /proc/PID/limits are in the order of the resources' numbers, after one headline
 * (fs/proc/base.c, lnames); the soft limit begins in column 26, the hard one in column 47. */

enum { SOFT = 26, HARD = 47 };

static rlim64_t limit(const char *text)
{
	while (*text == ' ')
		text++;
	return strncmp(text, "unlimited", 9) == 0 ? RLIM64_INFINITY : strtoull(text, NULL, 10);
}

static int shown_limits(long pid, long resource, struct rlimit64 *into)
{
	char path[64], line[256];
	FILE *file;
	long at = -1;
	int found = -1;

	snprintf(path, sizeof(path), "/proc/%ld/limits", pid);
	file = fopen(path, "re");
	if (!file)
		return -1;
	while (found && fgets(line, sizeof(line), file))
		if (at++ == resource && strlen(line) > HARD) {
			into->rlim_cur = limit(line + SOFT);
			into->rlim_max = limit(line + HARD);
			found = 0;
		}
	fclose(file);
	return found;
}

long syscall(long number, ...)
{
	long a[6], result;
	va_list list;
	int i;

	NEXT(syscall);
	va_start(list, number);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_clone3 && user_namespace >= 0 && (((struct clone_args *)a[0])->flags & CLONE_NEWUSER))
		return born_in_namespace(next, (struct clone_args *)a[0], a[1]);
	result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_userfaultfd && result == -1 && errno == EPERM)
		return userfaultfd_by_device(a[0]);
	if (answer_limits && result == -1 && errno == EPERM && number == SYS_prlimit64 && !a[2] && a[3]) {
		if (shown_limits(a[0], a[1], (struct rlimit64 *)a[3]) == 0)
			return 0;
		errno = EPERM;
	}
	return result;
}

/* Hidden memory. */

#define MAGIC 0x6564696874776467ull /* "gdwthide" */
enum { VERSION = 2, SET = 1, GUARDS = 1, PAGE = 4096 };

struct entry {
	uint32_t pid, flags;
	uint64_t start, end;
};

struct hidden_file {
	uint64_t device, inode;
};

/* The files come behind the entries. */
struct table {
	uint64_t magic;
	uint32_t version, state;
	uint64_t count, files;
	struct entry entries[];
};

/* struct pm_scan_arg, struct page_region and what belongs to them, of a linux/fs.h that may be newer than the one
 * here. */
struct scan {
	uint64_t size, flags, start, end, walk_end, regions, length, max_pages;
	uint64_t inverted, all_of, any_of, reported;
};

struct region {
	uint64_t start, end, categories;
};

#define SCAN _IOWR('f', 16, struct scan)
#define IS_GUARD ((uint64_t)1 << 8)

/* Our caller tells what CRIU leaves on its standard error. */
static int fail(int error, const char *what)
{
	dprintf(STDERR_FILENO, "Error (preload): cannot hide memory from CRIU: %s\n", what);
	errno = error;
	return -1;
}

static int in_order(const struct table *table)
{
	uint64_t i;

	for (i = 0; i < table->count; i++) {
		const struct entry *e = &table->entries[i];

		if (e->start >= e->end || e->start % PAGE || e->end % PAGE)
			return 0;
		if (i && (e[-1].pid > e->pid || (e[-1].pid == e->pid && e[-1].end > e->start)))
			return 0;
	}
	return 1;
}

static int is_whole(const struct table *table, uint64_t size)
{
	uint64_t left = size - sizeof(*table);

	if (left / sizeof(struct entry) < table->count)
		return 0;
	left -= table->count * sizeof(struct entry);
	return left / sizeof(struct hidden_file) >= table->files;
}

/* The table, mapped when it is needed for the first time: it may be filled until then. */
static const struct table *hidden(void)
{
	static const struct table *table;
	const struct table *mapped;
	struct stat stat;

	if (table)
		return table;
	if (fstat(hide_table, &stat) < 0)
		return fail(errno, "its table was closed"), NULL;
	if ((uint64_t)stat.st_size < sizeof(struct table))
		return fail(EBADMSG, "its table is too short"), NULL;
	mapped = mmap(NULL, stat.st_size, PROT_READ, MAP_SHARED, hide_table, 0);
	if (mapped == MAP_FAILED)
		return fail(errno, "its table cannot be mapped"), NULL;
	if (mapped->magic != MAGIC || mapped->version != VERSION)
		fail(EBADMSG, "its table is none, or another version's");
	else if (mapped->state != SET)
		fail(ENODATA, "its table was never set");
	else if (!is_whole(mapped, stat.st_size))
		fail(EBADMSG, "its table is shorter than it says");
	else if (!in_order(mapped))
		fail(EBADMSG, "its table is not in order");
	else
		return table = mapped;
	munmap((void *)mapped, stat.st_size);
	return NULL;
}

long number_in_link(int fd, const char *name)
{
	char path[64], link[256], *end, *digits;
	ssize_t length;
	long number;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	length = readlink(path, link, sizeof(link) - 1);
	if (length < 0)
		return -1;
	link[length] = 0;
	end = link + length - strlen(name);
	if (end <= link || strcmp(end, name) != 0)
		return -1;
	*end = 0;
	digits = strrchr(link, '/');
	digits = digits ? digits + 1 : link;
	number = strtol(digits, &end, 10);
	return *end || end == digits ? -1 : number;
}

/* Whose page map this is. */
static long owner(int fd)
{
	long pid = number_in_link(fd, "/pagemap");

	return pid > 0 ? pid : fail(EBADF, "it scans what is no task's page map");
}

/* The first entry of a task that ends behind an address, or the one after all of them. */
static const struct entry *first_behind(const struct table *table, uint32_t pid, uint64_t address)
{
	uint64_t low = 0, high = table->count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;
		const struct entry *e = &table->entries[middle];

		if (e->pid < pid || (e->pid == pid && e->end <= address))
			low = middle + 1;
		else
			high = middle;
	}
	return &table->entries[low];
}

/* Scans as the kernel would if nothing were hidden, by scanning what is between the hidden ranges. Of a range with
 * guard pages a scan for those is done; any other scan has no use for them, as they have no content. */
static int scan_the_rest(int (*next)(int, unsigned long, ...), int fd, struct scan *whole, const struct entry *entry,
			 const struct entry *last)
{
	int for_guards = (whole->all_of & IS_GUARD) && !(whole->inverted & IS_GUARD);
	struct region *regions = (struct region *)(uintptr_t)whole->regions;
	uint64_t at = whole->start, found = 0, pages = 0;

	while (at < whole->end) {
		int inside = entry < last && entry->start <= at;
		uint64_t to = whole->end;
		struct scan part = *whole;
		int got;

		if (entry < last && (inside ? entry->end : entry->start) < to)
			to = inside ? entry->end : entry->start;
		if (inside && !(for_guards && (entry->flags & GUARDS))) {
			at = to;
			entry++;
			continue;
		}
		if (regions && (found == whole->length || (whole->max_pages && pages == whole->max_pages)))
			break;
		part.start = at;
		part.end = to;
		part.regions = (uintptr_t)(regions ? regions + found : NULL);
		part.length = whole->length - found;
		part.max_pages = whole->max_pages ? whole->max_pages - pages : 0;
		got = next(fd, SCAN, &part);
		if (got < 0) {
			whole->walk_end = part.walk_end;
			return -1;
		}
		for (; regions && got; got--, found++)
			pages += (regions[found].end - regions[found].start) / PAGE;
		at = part.walk_end;
		if (at < to)
			break;
		entry += inside;
	}
	whole->walk_end = at;
	return found;
}

static int scan(int (*next)(int, unsigned long, ...), int fd, struct scan *whole)
{
	const struct table *table;
	const struct entry *first, *last;
	long pid = owner(fd);

	if (pid < 0)
		return -1;
	/* It asks about itself to learn what this kernel can do, perhaps before the table is set. */
	if (pid == getpid())
		return next(fd, SCAN, whole);
	table = hidden();
	if (!table)
		return -1;
	first = first_behind(table, pid, whole->start);
	last = first_behind(table, pid, whole->end);
	if (last < table->entries + table->count && last->pid == (uint32_t)pid && last->start < whole->end)
		last++;
	if (first == last)
		return next(fd, SCAN, whole);
	if (whole->size != sizeof(*whole) || whole->start % PAGE || whole->end % PAGE || !whole->regions != !whole->length ||
	    (whole->max_pages && !whole->regions))
		return fail(EINVAL, "it scans in a way that is not known");
	return scan_the_rest(next, fd, whole, first, last);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	void *argument;

	NEXT(ioctl);
	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (request == SCAN && hide_table >= 0 && argument)
		return scan(next, fd, argument);
	return next(fd, request, argument);
}

/* Whether it is a file whose pages are hidden; -1 where that is not known. */
static int is_hidden_file(int fd)
{
	const struct table *table = hidden();
	const struct hidden_file *file;
	struct stat stat;
	uint64_t i;

	if (!table || fstat(fd, &stat) < 0)
		return -1;
	file = (const struct hidden_file *)(table->entries + table->count);
	for (i = 0; i < table->files; i++)
		if (file[i].device == stat.st_dev && file[i].inode == stat.st_ino)
			return 1;
	return 0;
}

off64_t lseek64(int fd, off64_t offset, int whence)
{
	NEXT(lseek64);
	if (whence == SEEK_DATA && hide_table >= 0) {
		int is_hidden = is_hidden_file(fd);

		if (is_hidden)
			errno = is_hidden > 0 ? ENXIO : EIO;
		if (is_hidden)
			return -1;
	}
	return next(fd, offset, whence);
}

/* Tracked connections. CRIU asks by one sendmsg() and reads the answer by recvmsg() (criu/libnetlink.c, do_rtnl_req),
 * the second time in the belief to ask for expected connections; those do not exist without tracked ones either. */

struct question {
	struct nlmsghdr head;
	struct nfgenmsg which;
};

struct answer {
	struct nlmsghdr head;
	int error;
};

/* The socket whose question was not passed on, and the question's number. */
static int unanswered = -1;
static uint32_t its_number;

static int asks_for_connections(int fd, const struct msghdr *message)
{
	const struct question *asked;
	int family = 0, protocol = 0, subsystem;
	socklen_t length = sizeof(int);

	if (message->msg_iovlen != 1 || message->msg_iov->iov_len != sizeof(*asked))
		return 0;
	asked = message->msg_iov->iov_base;
	subsystem = asked->head.nlmsg_type >> 8;
	if (asked->head.nlmsg_len != sizeof(*asked) || (asked->head.nlmsg_type & 0xff) != IPCTNL_MSG_CT_GET ||
	    (subsystem != NFNL_SUBSYS_CTNETLINK && subsystem != NFNL_SUBSYS_CTNETLINK_EXP) ||
	    (asked->head.nlmsg_flags & NLM_F_DUMP) != NLM_F_DUMP)
		return 0;
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) < 0 || family != AF_NETLINK)
		return 0;
	length = sizeof(int);
	return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 && protocol == NETLINK_NETFILTER;
}

/* The counter shows the network namespace of whoever opens it. Without connection tracking there is none. */
static int no_connections(void)
{
	char text[16];
	ssize_t length;
	int fd = open("/proc/sys/net/netfilter/nf_conntrack_count", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT;
	length = read(fd, text, sizeof(text));
	close(fd);
	return length == 2 && memcmp(text, "0\n", 2) == 0;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	NEXT(sendmsg);
	if (fd == unanswered)
		unanswered = -1;
	if (answer_conntrack && asks_for_connections(fd, message) && no_connections()) {
		unanswered = fd;
		its_number = ((const struct question *)message->msg_iov->iov_base)->head.nlmsg_seq;
		return message->msg_iov->iov_len;
	}
	return next(fd, message, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	struct answer done = {
		.head = {
			.nlmsg_len = sizeof(done),
			.nlmsg_type = NLMSG_DONE,
			.nlmsg_flags = NLM_F_MULTI,
			.nlmsg_seq = its_number,
		},
	};

	NEXT(recvmsg);
	if (fd != unanswered || !message->msg_iovlen || message->msg_iov->iov_len < sizeof(done))
		return next(fd, message, flags);
	unanswered = -1;
	memcpy(message->msg_iov->iov_base, &done, sizeof(done));
	message->msg_controllen = 0;
	message->msg_flags = 0;
	return sizeof(done);
}

int execvp(const char *file, char *const argv[])
{
	NEXT(execvp);
	if (replace_tar && strcmp(file, "tar") == 0)
		instead_of_tar(argv);
	return next(file, argv);
}
