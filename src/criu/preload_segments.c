/*
 * The part of the preloaded object that gives a CRIU which restores the memory of a segment, instead of letting it
 * read that, page by page, while everything waits.
 *
 * CRIU makes a memfd, gives it its length, maps it, opens the segment's list of pages and reads what that names
 * (criu/shmem.c, restore_memfd_shmem_content). Whoever has called this CRIU may have the segment in a memfd of his own:
 * he listens at a socket beside the images, is told the segment's number when the list is opened, and answers with the
 * memfd, which takes the place of CRIU's, and a list that names nothing. There is no other list of such a segment: a
 * restore that gets no answer fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "preload.h"

int answer_segments;

/* What was given its length last. */
static int resized = -1;

int ftruncate64(int fd, off64_t length)
{
	NEXT(ftruncate64);
	resized = fd;
	return next(fd, length);
}

static int fail(const char *what)
{
	dprintf(STDERR_FILENO, "Error (preload): cannot hand a segment of shared memory to CRIU: %s: %s\n", what,
		strerror(errno));
	/* Not ENOENT, which is no error to CRIU. */
	errno = EIO;
	return -1;
}

/* Connects to the socket in a directory; -1 where there is none. Its path may be too long for an address, and lead
 * nowhere in the root that the task has by now. */
static int dial(int directory)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "segments" };
	int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int error = 0;

	if (here < 0 || connection < 0 || fchdir(directory) < 0)
		error = errno;
	else {
		if (connect(connection, (struct sockaddr *)&address, sizeof(address)) < 0)
			error = errno;
		if (fchdir(here) < 0)
			error = errno == ENOENT ? EIO : errno;
	}
	if (here >= 0)
		close(here);
	if (error && connection >= 0)
		close(connection);
	errno = error;
	return error ? -1 : connection;
}

/* Asks for a segment: 1 with the memfd and the list, 0 where nobody has it, -1 where that is not known. */
static int receive(int connection, uint64_t segment, int files[2])
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control;
	char answer = 0;
	struct iovec part = { .iov_base = &answer, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *head;

	if (send(connection, &segment, sizeof(segment), MSG_NOSIGNAL) != sizeof(segment) ||
	    recvmsg(connection, &message, MSG_CMSG_CLOEXEC) != 1)
		return -1;
	head = CMSG_FIRSTHDR(&message);
	if (!head)
		return answer == 'n' ? 0 : -1;
	if (head->cmsg_type != SCM_RIGHTS || head->cmsg_len != CMSG_LEN(2 * sizeof(int)))
		return -1;
	memcpy(files, CMSG_DATA(head), 2 * sizeof(int));
	return 1;
}

/* Puts a memfd in the place of the one that CRIU has just made. */
static int replace(int file)
{
	struct stat theirs, ours;
	int seals = fcntl(resized, F_GET_SEALS);
	int flags = fcntl(resized, F_GETFD);

	if (seals < 0 || flags < 0 || fstat(resized, &theirs) < 0 || fstat(file, &ours) < 0)
		return -1;
	if (theirs.st_dev != ours.st_dev || theirs.st_size != ours.st_size) {
		errno = EBADMSG;
		return -1;
	}
	/* One that was made without the wish for seals has this one. */
	if ((seals & F_SEAL_SEAL) && !(fcntl(file, F_GET_SEALS) & F_SEAL_SEAL) &&
	    fcntl(file, F_ADD_SEALS, F_SEAL_SEAL) < 0)
		return -1;
	return dup3(file, resized, flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0 ? -1 : 0;
}

int segment_instead(int directory, const char *path, int *list)
{
	static const char before[] = "pagemap-shmem-";
	int connection, found, files[2];
	unsigned long long segment;
	char *end;

	if (!answer_segments || strncmp(path, before, strlen(before)) != 0)
		return 0;
	segment = strtoull(path + strlen(before), &end, 10);
	if (strcmp(end, ".img") != 0)
		return 0;
	*list = -1;
	connection = dialled_outside(dial, directory);
	if (connection < 0)
		return errno == ENOENT ? 0 : (fail("nobody answers"), 1);
	found = receive(connection, segment, files);
	close(connection);
	if (found < 0)
		fail("there is no good answer");
	if (found <= 0)
		return found < 0;
	if (replace(files[0]) < 0) {
		fail("it is none that CRIU has made");
		close(files[1]);
	} else
		*list = files[1];
	close(files[0]);
	return 1;
}
