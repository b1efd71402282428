/* Two buffers that change places, as whole page tables: mremap moves 2 MiB at once where it can.
 *
 *     moved          "ready"; then for each line that it is told, a turn, and "moved"
 *
 * Nothing is written after the first line, so only who knows that memory was moved finds that its pages are others.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TABLE (2ul << 20)
#define LENGTH (2 * TABLE)
#define PAGE 4096ul

static char *place(char *wanted) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (wanted ? MAP_FIXED : 0);
    char *at = mmap(wanted, LENGTH, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED || madvise(at, LENGTH, MADV_NOHUGEPAGE)) _exit(2);
    return at;
}

static void move(char *from, char *to) {
    if (mremap(from, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) _exit(3);
}

int main(void) {
    size_t length = 5 * LENGTH;
    char *room = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) return 1;
    char *base = (char *)(((uintptr_t)room + TABLE - 1) & ~(TABLE - 1));
    /* Not beside each other, or they would be one mapping. */
    char *one = place(base), *other = place(base + LENGTH + TABLE), *between = base + 2 * LENGTH + 2 * TABLE;
    for (size_t at = 0; at < LENGTH; at += PAGE) {
        memset(one + at, 1, PAGE);
        memset(other + at, 2, PAGE);
        *(size_t *)(one + at) = *(size_t *)(other + at) = at;
    }
    char line[16];
    write(1, "ready\n", 6);
    while (read(0, line, sizeof line) > 0) {
        move(one, between);
        move(other, one);
        move(between, other);
        write(1, "moved\n", 6);
    }
    for (;;) pause();
}
