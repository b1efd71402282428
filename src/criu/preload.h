/* What the parts of the preloaded object have of each other. */
#ifndef PRELOAD_H
#define PRELOAD_H

/* Does the work of a tar that CRIU is about to become, and ends the process; returns where it cannot. */
void instead_of_tar(char *const argv[]) __attribute__((visibility("hidden")));

#endif
