/*
 * Memory that a hypervisor has taken back from a guest costs whoever touches it next several times what a copy does
 * (free page reporting, mm/page_reporting.c): of two that are compared, the first one would pay. This touches memory
 * and frees it again but for a page of each MiB, until its input ends: blocks that small are not reported.
 */
#include "tool.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK (1ull << 20)

int warm(int argc, char **argv)
{
    uint64_t length = number(argc, argv, "--mib", NULL) * BLOCK;
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), end;

    if (memory == MAP_FAILED || madvise(memory, length, MADV_NOHUGEPAGE))
        die("mmap");
    for (uint64_t at = 0; at < length; at += PAGE)
        memory[at] = 1;
    for (uint64_t at = 0; at < length; at += BLOCK)
        if (madvise(memory + at + PAGE, BLOCK - PAGE, MADV_DONTNEED))
            die("madvise");
    printf("ready\n");
    fflush(stdout);
    while (read(0, &end, 1) > 0)
        ;
    return 0;
}
