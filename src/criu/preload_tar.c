/*
 * GODWIT_CRIU_TAR: CRIU takes the content of a tmpfs into its images by starting `tar`, which starts `gzip`, and
 * back out of them the same way: 6 to 12 ms each, with the tasks stopped, for the few names in a container's /dev.
 * This does the same without starting anything, in the process that CRIU has forked for it.
 *
 * What it writes is what `tar --extract --gzip` reads: ustar records in gzip blocks that are stored and not
 * compressed. It reads back only such archives. Whatever is large or unusual (hard links, long names, another file
 * system inside) is left to tar itself, before a byte is written, or after a failure, which tar then meets and tells.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "preload.h"

/* As much is packed here as costs no more than starting the programs would. */
enum { MOST = 1 << 20, DEPTH = 16, BLOCK = 512, STORED = 65535 };

/* ustar: every number is octal text. */
struct record {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100], magic[6], version[2];
	char user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct record) == BLOCK, "a record is a block");

static unsigned char *archive;
static size_t length;

static uint32_t crc(const unsigned char *bytes, size_t count)
{
	static uint32_t table[256];
	uint32_t value = 0xffffffff;
	size_t i;

	if (!table[1])
		for (uint32_t n = 0; n < 256; n++) {
			table[n] = n;
			for (int bit = 0; bit < 8; bit++)
				table[n] = table[n] & 1 ? 0xedb88320 ^ table[n] >> 1 : table[n] >> 1;
		}
	for (i = 0; i < count; i++)
		value = table[(value ^ bytes[i]) & 0xff] ^ value >> 8;
	return ~value;
}

/* Packing. */

static int number(char *field, size_t size, uint64_t value)
{
	char text[24];

	if ((size_t)snprintf(text, sizeof(text), "%0*llo", (int)size - 1, (unsigned long long)value) >= size)
		return -1;
	memcpy(field, text, size);
	return 0;
}

static unsigned checksum(const struct record *record)
{
	const unsigned char *byte = (const unsigned char *)record;
	unsigned sum = 0;
	size_t i;

	for (i = 0; i < sizeof(*record); i++)
		sum += i >= offsetof(struct record, sum) && i < offsetof(struct record, type) ? ' ' : byte[i];
	return sum;
}

/* Appends a record, and room for the content: where that is. */
static unsigned char *append(const char *name, char type, const struct stat *stat, const char *link)
{
	size_t size = type == '0' ? stat->st_size : 0, room = (size + BLOCK - 1) / BLOCK * BLOCK;
	struct record *record = (struct record *)(archive + length);

	if (size > MOST || length + BLOCK + room + 2 * BLOCK > MOST || stat->st_mtime < 0)
		return NULL;
	if (strlen(name) >= sizeof(record->name) || strlen(link) >= sizeof(record->link))
		return NULL;
	strcpy(record->name, name);
	strcpy(record->link, link);
	memcpy(record->magic, "ustar", 6);
	memcpy(record->version, "00", 2);
	record->type = type;
	if (number(record->mode, sizeof(record->mode), stat->st_mode & 07777) ||
	    number(record->uid, sizeof(record->uid), stat->st_uid) ||
	    number(record->gid, sizeof(record->gid), stat->st_gid) ||
	    number(record->size, sizeof(record->size), size) ||
	    number(record->mtime, sizeof(record->mtime), stat->st_mtime) ||
	    number(record->major, sizeof(record->major), type == '3' || type == '4' ? major(stat->st_rdev) : 0) ||
	    number(record->minor, sizeof(record->minor), type == '3' || type == '4' ? minor(stat->st_rdev) : 0))
		return NULL;
	number(record->sum, sizeof(record->sum), checksum(record));
	length += BLOCK + room;
	return archive + length - room;
}

static int pack_file(int directory, const char *name, const char *path, const struct stat *stat)
{
	int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	unsigned char *content;
	struct stat opened;
	ssize_t got = -1;

	if (fd < 0)
		return -1;
	if (fstat(fd, &opened) == 0 && opened.st_ino == stat->st_ino && opened.st_size == stat->st_size) {
		content = append(path, '0', stat, "");
		if (content)
			got = pread(fd, content, stat->st_size, 0);
	}
	close(fd);
	return got == stat->st_size ? 0 : -1;
}

static int pack_directory(int fd, const char *path, dev_t device, int depth);

static int pack_entry(int directory, const char *name, const char *path, dev_t device, int depth)
{
	char link[100] = "";
	struct stat stat;
	int fd;

	if (fstatat(directory, name, &stat, AT_SYMLINK_NOFOLLOW) < 0 || stat.st_dev != device)
		return -1;
	if (!S_ISDIR(stat.st_mode) && stat.st_nlink != 1)
		return -1;
	switch (stat.st_mode & S_IFMT) {
	case S_IFDIR:
		fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		return fd < 0 ? -1 : pack_directory(fd, path, device, depth + 1);
	case S_IFREG:
		return pack_file(directory, name, path, &stat);
	case S_IFLNK:
		if (readlinkat(directory, name, link, sizeof(link)) != stat.st_size || link[sizeof(link) - 1])
			return -1;
		return append(path, '2', &stat, link) ? 0 : -1;
	case S_IFCHR:
		return append(path, '3', &stat, "") ? 0 : -1;
	case S_IFBLK:
		return append(path, '4', &stat, "") ? 0 : -1;
	case S_IFIFO:
		return append(path, '6', &stat, "") ? 0 : -1;
	case S_IFSOCK:
		/* tar leaves them out, and CRIU makes them by binding them. */
		return 0;
	}
	return -1;
}

/* Packs a directory, whose path ends in a slash there, and all that is in it. Closes it. */
static int pack_directory(int fd, const char *path, dev_t device, int depth)
{
	char inner[sizeof(((struct record *)0)->name) + 1];
	struct dirent *entry;
	struct stat stat;
	int result = -1;
	DIR *directory = fdopendir(fd);

	if (!directory) {
		close(fd);
		return -1;
	}
	if ((size_t)snprintf(inner, sizeof(inner), "%s/", path) >= sizeof(inner) || depth > DEPTH)
		goto out;
	if (fstat(fd, &stat) < 0 || !append(inner, '5', &stat, ""))
		goto out;
	while ((entry = readdir(directory))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if ((size_t)snprintf(inner, sizeof(inner), "%s/%s", path, entry->d_name) >= sizeof(inner))
			goto out;
		if (pack_entry(fd, entry->d_name, inner, device, depth) < 0)
			goto out;
	}
	result = 0;
out:
	closedir(directory);
	return result;
}

static const unsigned char gzip[10] = { 0x1f, 0x8b, 8, [9] = 3 };

/* Writes the archive in stored blocks. A failure in the middle cannot be left to tar. */
static void write_archive(int fd)
{
	uint32_t tail[2] = { crc(archive, length), length };
	size_t at = 0, count;

	if (write(fd, gzip, sizeof(gzip)) != sizeof(gzip))
		_exit(1);
	while (at < length) {
		unsigned char head[5];
		struct iovec parts[2];

		count = length - at < STORED ? length - at : STORED;
		head[0] = at + count == length;
		head[1] = count & 0xff, head[2] = count >> 8, head[3] = ~head[1], head[4] = ~head[2];
		parts[0] = (struct iovec){ head, sizeof(head) };
		parts[1] = (struct iovec){ archive + at, count };
		if (writev(fd, parts, 2) != (ssize_t)(sizeof(head) + count))
			_exit(1);
		at += count;
	}
	if (write(fd, tail, sizeof(tail)) != sizeof(tail))
		_exit(1);
	_exit(0);
}

static void pack(int from, int to)
{
	struct stat stat;
	int fd = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	archive = calloc(1, MOST);
	if (!archive || fd < 0 || fstat(fd, &stat) < 0)
		return;
	if (pack_directory(fd, ".", stat.st_dev, 0) < 0)
		return;
	/* Two empty records are the end. */
	length += 2 * BLOCK;
	write_archive(to);
}

/* Unpacking. The archive came over the wire: nothing in it is believed. */

/* Makes an archive of the stored blocks of a file, whose position stays where it is. */
static int read_archive(int fd)
{
	off_t start = lseek(fd, 0, SEEK_CUR), end = lseek(fd, 0, SEEK_END);
	size_t size, at = sizeof(gzip), count;
	unsigned char *packed;
	uint32_t tail[2];
	int last = 0;

	if (start < 0 || end < start || lseek(fd, start, SEEK_SET) < 0)
		return -1;
	size = end - start;
	if (size < sizeof(gzip) + sizeof(tail) || size > 2 * MOST)
		return -1;
	packed = malloc(size);
	archive = malloc(size);
	if (!packed || !archive || pread(fd, packed, size, start) != (ssize_t)size)
		return -1;
	if (memcmp(packed, gzip, sizeof(gzip)) != 0)
		return -1;
	size -= sizeof(tail);
	while (!last) {
		const unsigned char *head = packed + at;

		if (size - at < 5 || head[0] > 1 || (head[1] ^ head[3]) != 0xff || (head[2] ^ head[4]) != 0xff)
			return -1;
		last = head[0];
		count = head[1] | head[2] << 8;
		at += 5;
		if (size - at < count)
			return -1;
		memcpy(archive + length, packed + at, count);
		length += count;
		at += count;
	}
	memcpy(tail, packed + size, sizeof(tail));
	free(packed);
	return at == size && tail[0] == crc(archive, length) && tail[1] == length ? 0 : -1;
}

static uint64_t value(const char *field, size_t size)
{
	char text[16] = "";

	memcpy(text, field, size < sizeof(text) ? size : sizeof(text) - 1);
	return strtoull(text, NULL, 8);
}

/* Opens the directory that `path` is in, by names and through no link; what is left is its last name. */
static int parent(int root, char *path, char **name)
{
	int fd = dup(root), next;
	char *slash;

	while (fd >= 0 && (slash = strchr(path, '/'))) {
		*slash = 0;
		if (strcmp(path, "..") == 0 || !*path) {
			close(fd);
			return -1;
		}
		next = openat(fd, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		close(fd);
		fd = next;
		path = slash + 1;
	}
	*name = path;
	return fd;
}

static int make_file(int directory, const char *name, const unsigned char *content, size_t size)
{
	int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	int result = fd >= 0 && write(fd, content, size) == (ssize_t)size ? 0 : -1;

	if (fd >= 0)
		close(fd);
	return result;
}

static int make(int directory, const char *name, const struct record *record, size_t size)
{
	dev_t device = makedev(value(record->major, 8), value(record->minor, 8));
	char link[sizeof(record->link) + 1] = "";

	switch (record->type) {
	case '0':
		return make_file(directory, name, (const unsigned char *)record + BLOCK, size);
	case '2':
		memcpy(link, record->link, sizeof(record->link));
		return symlinkat(link, directory, name);
	case '3':
		return mknodat(directory, name, S_IFCHR | 0600, device);
	case '4':
		return mknodat(directory, name, S_IFBLK | 0600, device);
	case '5':
		return strcmp(name, ".") == 0 ? 0 : mkdirat(directory, name, 0700);
	case '6':
		return mknodat(directory, name, S_IFIFO | 0600, 0);
	}
	return -1;
}

/* Owner, mode and time. The time of a directory is changed by what is made in it, and so set in a second pass. */
static int dress(int directory, const char *name, const struct record *record)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, { .tv_sec = value(record->mtime, 12) } };

	if (fchownat(directory, name, value(record->uid, 8), value(record->gid, 8), AT_SYMLINK_NOFOLLOW) < 0)
		return -1;
	if (record->type != '2' && fchmodat(directory, name, value(record->mode, 8) & 07777, 0) < 0)
		return -1;
	return utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW);
}

/* Makes what a record says, or, the second time, finishes it if it is a directory. */
static int unpack_record(int root, const struct record *record, size_t size, int finish)
{
	char path[sizeof(record->name) + 1] = "", *name;
	size_t end;
	int directory, result;

	memcpy(path, record->name, sizeof(record->name));
	end = strlen(path);
	if (record->type == '5' && end && path[end - 1] == '/')
		path[end - 1] = 0;
	if (strcmp(path, ".") != 0 && strncmp(path, "./", 2) != 0)
		return -1;
	directory = parent(root, path, &name);
	if (directory < 0)
		return -1;
	if (!*name || strcmp(name, "..") == 0 || (strcmp(name, ".") == 0 && record->type != '5'))
		result = -1;
	else
		result = finish ? 0 : make(directory, name, record, size);
	if (result == 0 && finish == (record->type == '5'))
		result = dress(directory, name, record);
	close(directory);
	return result;
}

static int unpack_all(int root, int finish)
{
	static const struct record none;
	size_t at = 0;

	while (at + BLOCK <= length) {
		const struct record *record = (const struct record *)(archive + at);
		uint64_t size = value(record->size, 12);

		if (memcmp(record, &none, BLOCK) == 0)
			return 0;
		if (memcmp(record->magic, "ustar", 6) != 0 || value(record->sum, 8) != checksum(record))
			return -1;
		at += BLOCK;
		if (size > length - at || (size && record->type != '0') || *record->prefix)
			return -1;
		if (unpack_record(root, record, size, finish) < 0)
			return -1;
		at += (size + BLOCK - 1) / BLOCK * BLOCK;
	}
	return -1;
}

static void unpack(int from, const char *to)
{
	int root;

	if (read_archive(from) < 0)
		return;
	root = open(to, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root >= 0 && unpack_all(root, 0) == 0 && unpack_all(root, 1) == 0)
		_exit(0);
}

/* Whether the arguments are these, `""` standing for any one. */
static int same(char *const argv[], const char *const wanted[])
{
	for (; *argv && *wanted; argv++, wanted++)
		if (**wanted && strcmp(*argv, *wanted) != 0)
			return 0;
	return !*argv && !*wanted;
}

/* What CRIU calls tar for (criu/filesystems.c, tmpfs_dump and tmpfs_restore); returns what is to be left to tar. */
void instead_of_tar(char *const argv[])
{
	static const char *const create[] = { "tar", "--create", "--gzip", "--no-unquote", "--no-wildcards",
					      "--one-file-system", "--check-links", "--preserve-permissions", "--sparse",
					      "--numeric-owner", "--directory", "/proc/self/fd/0", ".", NULL };
	static const char *const extract[] = { "tar", "--extract", "--gzip", "--no-unquote", "--no-wildcards",
					       "--directory", "", NULL };

	if (same(argv, create))
		pack(STDIN_FILENO, STDOUT_FILENO);
	else if (same(argv, extract))
		unpack(STDIN_FILENO, argv[6]);
}
