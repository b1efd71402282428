/* What the parts of the preloaded object have of each other. */
#ifndef PRELOAD_H
#define PRELOAD_H

#include <dlfcn.h>
#include <stddef.h>

#define HIDDEN __attribute__((visibility("hidden")))

/* The function that would have been called without us. */
#define NEXT(function)                                                        \
	static typeof(&function) next;                                        \
	if (!next)                                                            \
	*(void **)&next = dlsym(RTLD_NEXT, #function)

/* Does the work of a tar that CRIU is about to become, and ends the process; returns where it cannot. */
HIDDEN void instead_of_tar(char *const argv[]);

/* The table of mappings and their flags; -1 where there is none. */
HIDDEN extern int smaps_table;

/* Whether segments of shared memory are asked for beside the images. */
HIDDEN extern int answer_segments;

/* Gives CRIU the segment whose list of pages it opens, and a list that names none; -1 where that fails. 0 where this
 * is the list of no such segment. */
HIDDEN int segment_instead(int directory, const char *path, int *list);

/* The number that the file behind a descriptor is named by, or the directory that it is in as `name`, which begins
 * with a slash: a process's, in /proc. -1 where it has none. */
HIDDEN long number_in_link(int fd, const char *name);

/* The user namespace into which the first process is restored; -1 where CRIU makes it. */
HIDDEN extern int user_namespace;

struct clone_args;

/* Has the first process born in that user namespace: what clone3(2) would return, in both. */
HIDDEN long born_in_namespace(long (*next)(long, ...), const struct clone_args *asked, size_t size);

/* A userfaultfd for a process in it, to which userfaultfd(2) was refused; else -1, as before. */
HIDDEN long userfaultfd_by_device(long flags);

/* An image that this process may not open, opened by one that may; -1 and why not, EACCES where this is no image. */
HIDDEN int image_from_outside(int directory, const char *path);

/* What `dial` returns for the directory, where this process may not enter that. */
HIDDEN int dialled_outside(int (*dial)(int), int directory);

/* Whether it is one of the two files of ids that CRIU must not write. */
HIDDEN int is_map_of_ids(const char *path);

#endif
