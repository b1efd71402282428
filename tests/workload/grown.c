/* A mapping that grows where it is, above a large one, and is then moved as a whole.
 *
 *     grown          "ready"; for the first line that it is told it grows, "grown"; for the second it moves, "moved",
 *                    or "refused" where the kernel takes it for several mappings
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1ul << 20)

int main(void) {
    char *room = mmap(NULL, 80 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return 1;
    char *large = room, *small = room + 40 * MIB;
    if (mprotect(large, 32 * MIB, PROT_READ | PROT_WRITE) || mprotect(small, 2 * MIB, PROT_READ | PROT_WRITE)) return 1;
    /* Room to grow. */
    if (munmap(small + 2 * MIB, 8 * MIB)) return 1;
    for (unsigned *at = (unsigned *)large; (char *)at < large + 32 * MIB; at++) *at = (unsigned)((char *)at - large) * 2654435761u;
    memset(small, 1, 2 * MIB);
    char line[16];
    write(1, "ready\n", 6);
    if (read(0, line, sizeof line) <= 0) return 1;
    if (mremap(small, 2 * MIB, 4 * MIB, 0) != small) return 2;
    memset(small + 2 * MIB, 2, 2 * MIB);
    write(1, "grown\n", 6);
    if (read(0, line, sizeof line) <= 0) return 1;
    if (mremap(small, 4 * MIB, 16 * MIB, MREMAP_MAYMOVE) == MAP_FAILED) write(1, "refused\n", 8);
    else write(1, "moved\n", 6);
    for (;;) pause();
}
