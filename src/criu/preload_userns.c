/*
 * The part of the preloaded object that restores a container into a user namespace that is there already.
 *
 * CRIU makes the user namespace itself, as its first process is born, and nothing that was prepared for the container
 * can belong to it then: its network namespace above all, which a process must have the capability to enter
 * (kernel/nsproxy.c, net/core/net_namespace.c, netns_install). Here the process is born by a helper that has entered the
 * user namespace before, so that all its other new namespaces belong to that one:
 *
 *   CRIU ──fork──▶ helper   enters the user namespace, makes a cgroup namespace
 *                     └──clone3──▶ the first process, which passes to the nearest subreaper as the helper ends
 *
 * From there on it does what CRIU would have it do. Three more things differ in a user namespace of somebody else:
 *
 * - its maps are written already, and once only: what CRIU writes goes to /dev/null. The maps of the images are those of
 *   the host the container comes from; the ids in them are the container's own (criu/namespaces.c, userns_uid);
 * - userfaultfd(2) that also sees the kernel's own accesses wants CAP_SYS_PTRACE of the host (fs/userfaultfd.c,
 *   userfaultfd_syscall_allowed). /dev/userfaultfd gives one to whoever has it open, for his own memory: CRIU has a
 *   process that stays outside and opens files for those inside (__userns_call), and opens it;
 * - the images, and who listens beside them, are root's of the host and nobody else's: the same process opens them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "preload.h"

int user_namespace = -1;

/* Whether this process is one that was born in it, or comes from one. */
static int inside;

/* CRIU's, which exports everything to its plugins (criu/include/namespaces.h). With UNS_FDOUT the answer is the
 * descriptor that the call has returned outside. */
enum { UNS_FDOUT = 2 };

extern int __userns_call(const char *name, int (*call)(void *, int, pid_t), int flags, void *argument, size_t size,
			 int fd) __attribute__((weak));

static void complain(const char *what)
{
	int error = errno;

	dprintf(STDERR_FILENO, "Error (preload): cannot %s: %s\n", what, strerror(error));
	errno = error;
}

/* What the helper does; returns in the first process alone. */
static void give_birth(long (*next)(long, ...), struct clone_args *how, size_t size, volatile long *born)
{
	long pid;

	*born = -EIO;
	if (setns(user_namespace, CLONE_NEWUSER) < 0) {
		*born = -errno;
		complain("enter the container's user namespace");
	} else if (unshare(CLONE_NEWCGROUP) < 0) {
		*born = -errno;
		complain("make a cgroup namespace in the container's user namespace");
	} else {
		pid = next(SYS_clone3, how, size);
		if (pid == 0)
			return;
		*born = pid < 0 ? -errno : pid;
	}
	_exit(0);
}

long born_in_namespace(long (*next)(long, ...), const struct clone_args *asked, size_t size)
{
	struct clone_args how = *asked;
	volatile long *born;
	long helper, result;

	/* Who is born by a helper can be nobody's sibling. */
	how.flags &= ~(uint64_t)(CLONE_NEWUSER | CLONE_PARENT);
	how.exit_signal = SIGCHLD;
	born = mmap(NULL, sizeof(*born), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (born == MAP_FAILED)
		return -1;
	/* Without a signal at its end: CRIU takes every child that ends for one of those it restores. */
	helper = next(SYS_clone, 0L, 0L, 0L, 0L, 0L, 0L);
	if (helper == 0) {
		give_birth(next, &how, size, born);
		close(user_namespace);
		user_namespace = -1;
		munmap((void *)born, sizeof(*born));
		inside = 1;
		return 0;
	}
	if (helper < 0) {
		result = -errno;
	} else {
		while (waitpid(helper, NULL, __WCLONE) < 0 && errno == EINTR)
			;
		result = *born;
	}
	munmap((void *)born, sizeof(*born));
	if (result >= 0)
		return result;
	errno = -result;
	return -1;
}

/* Has something opened by the process that stays outside; -1 and why not. The answer of that is a descriptor alone:
 * where there is none, it is asked a second time, for the number of the error. `call` returns that, negative. */
static int opened_outside(const char *name, int (*call)(void *, int, pid_t), void *argument, size_t size, int fd)
{
	int result = -1;

	if (__userns_call)
		result = __userns_call(name, call, UNS_FDOUT, argument, size, fd);
	if (result >= 0)
		return result;
	if (__userns_call)
		result = __userns_call(name, call, 0, argument, size, fd);
	errno = result < -1 ? -result : result == -1 ? EPERM : EAGAIN;
	return -1;
}

static int open_device(void *argument, int fd, pid_t pid)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	(void)argument, (void)fd, (void)pid;
	return device < 0 ? -errno : device;
}

long userfaultfd_by_device(long flags)
{
	int made, device;

	if (!inside)
		return -1;
	device = opened_outside("open_device", open_device, NULL, 0, -1);
	if (device < 0) {
		complain("have /dev/userfaultfd opened");
		return -1;
	}
	made = ioctl(device, USERFAULTFD_IOC_NEW, flags);
	if (made < 0)
		complain("make a userfaultfd by /dev/userfaultfd");
	close(device);
	return made;
}

static int open_image(void *name, int directory, pid_t pid)
{
	int image = openat(directory, name, O_RDONLY | O_CLOEXEC);

	(void)pid;
	return image < 0 ? -errno : image;
}

int image_from_outside(int directory, const char *path)
{
	static const char suffix[] = ".img";
	char name[128] = "";
	size_t length = strlen(path);

	if (!inside || directory < 0 || length < strlen(suffix) || length >= sizeof(name) || strchr(path, '/') ||
	    strcmp(path + length - strlen(suffix), suffix) != 0) {
		errno = EACCES;
		return -1;
	}
	memcpy(name, path, length);
	return opened_outside("open_image", open_image, name, sizeof(name), directory);
}

static int dial_for(void *dial, int directory, pid_t pid)
{
	int connection = (*(int (**)(int))dial)(directory);

	(void)pid;
	return connection < 0 ? -errno : connection;
}

int dialled_outside(int (*dial)(int), int directory)
{
	if (!inside)
		return dial(directory);
	return opened_outside("dial", dial_for, &dial, sizeof(dial), directory);
}

int is_map_of_ids(const char *path)
{
	return user_namespace >= 0 && (strcmp(path, "uid_map") == 0 || strcmp(path, "gid_map") == 0);
}
