/*
 * The part of the preloaded object that answers "what are this task's mappings, and their flags?", for which CRIU
 * reads /proc/PID/smaps (criu/proc_parse.c, parse_smaps). Of each mapping it looks at two lines: the first one, which
 * is the same in /proc/PID/maps, and the one of the flags. The kernel writes twenty, and walks all page tables for
 * them. Here the lines that CRIU looks at are composed, of the task's maps and the flags in a table;
 * smaps/codec.rs says what is in it.
 *
 * The mappings in the table must be those in maps, every one and no other. If anything is not as it must be, smaps is
 * opened, as if nobody had been here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "preload.h"

#define MAGIC 0x7370616d73776467ull /* "gdwsmaps" */
enum { VERSION = 1, SET = 1, TEXT = 256 };

struct task {
	uint32_t pid, first, count, none;
};

struct mapping {
	uint64_t start, end;
	uint32_t text, none;
};

struct table {
	uint64_t magic;
	uint32_t version, state, tasks, mappings, texts, composed, real, none;
	struct task task[];
};

int smaps_table = -1;

static const struct mapping *mappings_of(const struct table *table)
{
	return (const struct mapping *)&table->task[table->tasks];
}

static const char *text_of(const struct table *table, const struct mapping *mapping)
{
	return (const char *)(mappings_of(table) + table->mappings) + (size_t)mapping->text * TEXT;
}

static int is_whole(const struct table *table, uint64_t size)
{
	uint64_t needed = sizeof(*table) + (uint64_t)table->tasks * sizeof(struct task) +
			  (uint64_t)table->mappings * sizeof(struct mapping) + (uint64_t)table->texts * TEXT;
	uint32_t i;

	if (size < needed)
		return 0;
	for (i = 0; i < table->tasks; i++)
		if ((uint64_t)table->task[i].first + table->task[i].count > table->mappings)
			return 0;
	for (i = 0; i < table->mappings; i++) {
		const struct mapping *mapping = &mappings_of(table)[i];

		if (mapping->text >= table->texts || !memchr(text_of(table, mapping), 0, TEXT))
			return 0;
	}
	return 1;
}

/* The table, mapped when it is set: it may be filled until CRIU asks for its first task. */
static struct table *told(void)
{
	static struct table *table;
	struct table *mapped;
	struct stat stat;

	if (table)
		return table;
	if (fstat(smaps_table, &stat) < 0 || (uint64_t)stat.st_size < sizeof(struct table))
		return NULL;
	mapped = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, smaps_table, 0);
	if (mapped == MAP_FAILED)
		return NULL;
	if (mapped->magic == MAGIC && mapped->version == VERSION && mapped->state == SET && is_whole(mapped, stat.st_size))
		return table = mapped;
	munmap(mapped, stat.st_size);
	return NULL;
}

static const struct task *task_of(const struct table *table, uint32_t pid)
{
	uint32_t i;

	for (i = 0; i < table->tasks; i++)
		if (table->task[i].pid == pid)
			return &table->task[i];
	return NULL;
}

/* The addresses at the begin of a line. */
static int addresses(const char *line, struct mapping *into)
{
	char *end;

	into->start = strtoull(line, &end, 16);
	if (end == line || *end != '-')
		return 0;
	line = end + 1;
	into->end = strtoull(line, &end, 16);
	return end != line && *end == ' ';
}

static int same(const struct mapping *a, const struct mapping *b)
{
	return a->start == b->start && a->end == b->end;
}

/* Writes every line of maps with its flags behind it. */
static int compose(const struct table *table, uint32_t pid, FILE *maps, FILE *out)
{
	const struct task *task = task_of(table, pid), *all = task_of(table, 0);
	const struct mapping *next, *last, *found;
	struct mapping line;
	char *text = NULL;
	size_t size = 0;
	uint32_t i;
	int good = 0;

	if (!task || !task->count)
		return 0;
	next = mappings_of(table) + task->first;
	last = next + task->count;
	while (getline(&text, &size, maps) > 0) {
		found = NULL;
		good = addresses(text, &line);
		if (good && next < last && same(next, &line))
			found = next++;
		for (i = 0; good && !found && all && i < all->count; i++)
			if (same(mappings_of(table) + all->first + i, &line))
				found = mappings_of(table) + all->first + i;
		good = found && fputs(text, out) >= 0 && fprintf(out, "VmFlags: %s\n", text_of(table, found)) >= 0;
		if (!good)
			break;
	}
	free(text);
	return good && next == last && !ferror(maps);
}

/* A file that reads like the task's smaps, as far as CRIU reads it; -1 where there is none. */
static int composed(int (*open_at)(int, const char *, int, ...), int directory)
{
	struct table *table = told();
	long pid = table ? number_in_link(directory, "") : -1;
	FILE *maps = NULL, *out = NULL;
	int in, copy, file, good = 0;

	if (pid <= 0)
		return -1;
	file = memfd_create("smaps", MFD_CLOEXEC);
	copy = file < 0 ? -1 : fcntl(file, F_DUPFD_CLOEXEC, 0);
	in = open_at(directory, "maps", O_RDONLY | O_CLOEXEC);
	if (in >= 0 && copy >= 0) {
		maps = fdopen(in, "r");
		out = fdopen(copy, "w");
	}
	if (maps && out)
		good = compose(table, pid, maps, out);
	if (out)
		good = fclose(out) == 0 && good;
	else if (copy >= 0)
		close(copy);
	if (maps)
		fclose(maps);
	else if (in >= 0)
		close(in);
	if (good && lseek(file, 0, SEEK_SET) == 0) {
		table->composed++;
		return file;
	}
	if (file >= 0)
		close(file);
	table->real++;
	return -1;
}

static int open_instead(int (*next)(int, const char *, int, ...), int directory, const char *path, int flags, mode_t mode)
{
	int file;

	if (smaps_table >= 0 && path && strcmp(path, "smaps") == 0 && (flags & O_ACCMODE) == O_RDONLY) {
		file = composed(next, directory);
		if (file >= 0)
			return file;
	}
	if (path && (flags & O_ACCMODE) == O_RDONLY) {
		int list;

		if (segment_instead(directory, path, &list))
			return list;
	}
	if (path && (flags & O_ACCMODE) != O_RDONLY && is_map_of_ids(path))
		return next(AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
	file = next(directory, path, flags, mode);
	if (file < 0 && errno == EACCES && path && (flags & O_ACCMODE) == O_RDONLY)
		return image_from_outside(directory, path);
	return file;
}

/* The mode is the caller's where there is one, and else of no meaning: then the next one does not read it either. */
#define OPENAT(function)                                                      \
	int function(int directory, const char *path, int flags, ...)         \
	{                                                                     \
		va_list list;                                                 \
		mode_t mode;                                                  \
                                                                              \
		NEXT(function);                                               \
		va_start(list, flags);                                        \
		mode = va_arg(list, mode_t);                                  \
		va_end(list);                                                 \
		return open_instead(next, directory, path, flags, mode);      \
	}

OPENAT(openat)
OPENAT(openat64)

/* As a CRIU calls them that is compiled with checks (_FORTIFY_SOURCE). Those of glibc end the program where a mode is
 * missing, which openat64() does not look at. */
int __openat_2(int directory, const char *path, int flags)
{
	return openat(directory, path, flags, 0);
}

int __openat64_2(int directory, const char *path, int flags)
{
	return openat64(directory, path, flags, 0);
}
