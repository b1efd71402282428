/* Open files: shared, locked, removed, without a name, in memory; and what System V has. */
#include "items.h"
#include <linux/aio_abi.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

/* ---- one open file in two processes, with one position; append; and a path only */

static struct helper sharing;
static int shared_file, appending, path_only;

static long share_answers(long to) { return lseek(shared_file, to, SEEK_CUR); }
static const char *make_open(void) {
    NEED((shared_file = open("/tmp/shared", O_RDWR | O_CREAT, 0600)) >= 0 && writes_pattern(shared_file, 5000, 41));
    NEED(lseek(shared_file, 1000, SEEK_SET) == 1000);
    sharing = start_helper(NULL, share_answers);
    NEED((appending = open("/tmp/appended", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) >= 0);
    NEED((path_only = open("/tmp/shared", O_PATH)) >= 0);
    return NULL;
}
static const char *check_open(void) {
    struct stat before, after;
    NEED(lseek(shared_file, 0, SEEK_CUR) == 1000 && ask(&sharing, 7) == 1007 && lseek(shared_file, 0, SEEK_CUR) == 1007);
    NEED(lseek(shared_file, 0, SEEK_SET) == 0 && reads_pattern(shared_file, 5000, 41));
    NEED(lseek(shared_file, 1000, SEEK_SET) == 1000);
    NEED(!fstat(appending, &before) && lseek(appending, 0, SEEK_SET) == 0 && write(appending, "x", 1) == 1);
    NEED(!fstat(appending, &after) && after.st_size == before.st_size + 1);
    NEED(fcntl(path_only, F_GETFL) & O_PATH && !fstat(path_only, &after) && after.st_size == 5000);
    return NULL;
}
/* ---- removed: a file, one that has another name, one that never had any, and a directory somebody is in */

static int removed, renamed, unnamed;
static struct helper in_nowhere;

static const char *make_removed(void) {
    NEED((removed = open("/tmp/removed", O_RDWR | O_CREAT, 0640)) >= 0 && writes_pattern(removed, 70000, 42));
    NEED(!unlink("/tmp/removed") && lseek(removed, 0, SEEK_SET) == 0);
    NEED((unnamed = open("/tmp", O_RDWR | O_TMPFILE, 0600)) >= 0 && writes_pattern(unnamed, 900, 43));
    NEED(lseek(unnamed, 0, SEEK_SET) == 0);
    return NULL;
}
static const char *check_removed(void) {
    struct stat is;
    NEED(reads_pattern(removed, 70000, 42) && lseek(removed, 0, SEEK_SET) == 0);
    NEED(!fstat(removed, &is) && is.st_nlink == 0 && (is.st_mode & 07777) == 0640 && is.st_size == 70000);
    NEED(access("/tmp/removed", F_OK) == -1 && errno == ENOENT);
    NEED(reads_pattern(unnamed, 900, 43) && lseek(unnamed, 0, SEEK_SET) == 0);
    NEED(!fstat(unnamed, &is) && is.st_nlink == 0);
    return NULL;
}
static const char *make_renamed(void) {
    NEED((renamed = open("/tmp/old name", O_RDWR | O_CREAT, 0600)) >= 0 && writes_pattern(renamed, 800, 44));
    NEED(!link("/tmp/old name", "/tmp/new name") && !unlink("/tmp/old name") && lseek(renamed, 0, SEEK_SET) == 0);
    return NULL;
}
static const char *check_renamed(void) {
    struct stat here, there;
    NEED(reads_pattern(renamed, 800, 44) && lseek(renamed, 0, SEEK_SET) == 0);
    NEED(!fstat(renamed, &here) && !stat("/tmp/new name", &there) && here.st_ino == there.st_ino);
    NEED(here.st_nlink == 1 && access("/tmp/old name", F_OK) == -1);
    return NULL;
}
static void go_nowhere(void) {
    if (mkdir("/tmp/nowhere", 0700) || chdir("/tmp/nowhere") || rmdir("/tmp/nowhere")) _exit(1);
}
static long nowhere_answers(long question) {
    char path[100];
    (void)question;
    return !getcwd(path, sizeof path) && errno == ENOENT && creat("file", 0600) == -1 && errno == ENOENT;
}
static const char *make_nowhere(void) {
    in_nowhere = start_helper(go_nowhere, nowhere_answers);
    NEED(ask(&in_nowhere, 0) == 1);
    return NULL;
}
static const char *check_nowhere(void) {
    NEED(ask(&in_nowhere, 0) == 1);
    return NULL;
}

/* ---- locks: flock, POSIX, of an open file description; and a lease */

static struct helper rival;
static int flocked, posix_locked, ofd_locked, leased;

static struct flock range(short type, off_t start, off_t size) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = size};
}
/* Who locks that, as another process sees it. */
static long rival_answers(long file) {
    struct flock lock = range(F_WRLCK, 0, 1000);
    if (file == 0) {
        int fd = open("/tmp/flocked", O_RDWR), is = flock(fd, LOCK_EX | LOCK_NB) ? errno : 0;
        close(fd);
        return is;
    }
    int fd = open(file == 1 ? "/tmp/posix" : "/tmp/ofd", O_RDWR);
    int is = fcntl(fd, file == 1 ? F_GETLK : F_OFD_GETLK, &lock);
    close(fd);
    return is || lock.l_type == F_UNLCK ? 0 : lock.l_start * 100000 + lock.l_len * 1000 + (file == 1 && lock.l_pid == getppid());
}
static const char *make_locks(void) {
    struct flock posix = range(F_WRLCK, 10, 20), ofd = range(F_RDLCK, 30, 40);
    rival = start_helper(NULL, rival_answers);
    NEED((flocked = open("/tmp/flocked", O_RDWR | O_CREAT, 0600)) >= 0 && !flock(flocked, LOCK_EX));
    NEED((posix_locked = open("/tmp/posix", O_RDWR | O_CREAT, 0600)) >= 0 && !fcntl(posix_locked, F_SETLK, &posix));
    NEED((ofd_locked = open("/tmp/ofd", O_RDWR | O_CREAT, 0600)) >= 0 && !fcntl(ofd_locked, F_OFD_SETLK, &ofd));
    return NULL;
}
static const char *check_flock(void) {
    NEED(ask(&rival, 0) == EWOULDBLOCK);
    return NULL;
}
static const char *check_posix_lock(void) {
    NEED(ask(&rival, 1) == 10 * 100000 + 20 * 1000 + 1);
    return NULL;
}
static const char *check_ofd_lock(void) {
    NEED(ask(&rival, 2) == 30 * 100000 + 40 * 1000);
    return NULL;
}
static const char *make_nothing(void) { return NULL; }
static const char *make_lease(void) {
    NEED((leased = open("/tmp/leased", O_RDONLY | O_CREAT, 0600)) >= 0 && !fcntl(leased, F_SETLEASE, F_RDLCK));
    return NULL;
}
static const char *check_lease(void) {
    NEED(fcntl(leased, F_GETLEASE) == F_RDLCK);
    return NULL;
}

/* ---- memory with a descriptor, and System V */

static int memfd, sysv_memory, semaphores, queue;
static char *mapped, *attached;

static const char *make_memfd(void) {
    NEED((memfd = memfd_create("mine", MFD_ALLOW_SEALING)) >= 0 && writes_pattern(memfd, 9000, 45));
    NEED((mapped = mmap(NULL, 9000, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0)) != MAP_FAILED);
    NEED(!fcntl(memfd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) && lseek(memfd, 0, SEEK_SET) == 0);
    return NULL;
}
static const char *check_memfd(void) {
    NEED(reads_pattern(memfd, 9000, 45) && lseek(memfd, 0, SEEK_SET) == 0);
    NEED(fcntl(memfd, F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SHRINK) && ftruncate(memfd, 1) == -1 && errno == EPERM);
    char was = mapped[8000], is = ~was;
    NEED(pwrite(memfd, &is, 1, 8000) == 1 && mapped[8000] == is && pwrite(memfd, &was, 1, 8000) == 1);
    return NULL;
}
static const char *send_messages(void) {
    struct {
        long type;
        char text[6];
    } message = {3, "three"};
    NEED(!msgsnd(queue, &message, 6, 0));
    message.type = 2, memcpy(message.text, "two..", 6);
    NEED(!msgsnd(queue, &message, 6, 0));
    return NULL;
}
static const char *make_sysv(void) {
    unsigned short values[3] = {5, 0, 7};
    NEED((sysv_memory = shmget(0x4711, 8192, IPC_CREAT | 0600)) >= 0);
    NEED((attached = shmat(sysv_memory, NULL, 0)) != (void *)-1);
    strcpy(attached, "in System V memory");
    NEED((semaphores = semget(0x4712, 3, IPC_CREAT | 0640)) >= 0 && !semctl(semaphores, 0, SETALL, values));
    NEED((queue = msgget(0x4713, IPC_CREAT | 0600)) >= 0);
    return send_messages();
}
static const char *check_sysv(void) {
    unsigned short values[3];
    struct shmid_ds memory;
    struct {
        long type;
        char text[6];
    } message;
    NEED(shmget(0x4711, 8192, 0) == sysv_memory && !strcmp(attached, "in System V memory"));
    /* The owner of the robust mutex was forked with it. */
    NEED(!shmctl(sysv_memory, IPC_STAT, &memory) && memory.shm_nattch == 2);
    NEED(semget(0x4712, 3, 0) == semaphores && !semctl(semaphores, 0, GETALL, values));
    NEED(values[0] == 5 && values[1] == 0 && values[2] == 7);
    NEED(msgget(0x4713, 0) == queue && msgrcv(queue, &message, 6, 2, IPC_NOWAIT) == 6 && !strcmp(message.text, "two.."));
    NEED(msgrcv(queue, &message, 6, 0, IPC_NOWAIT) == 6 && message.type == 3 && !strcmp(message.text, "three"));
    return send_messages();
}

/* ---- the old asynchronous I/O */

static aio_context_t ring;

static const char *make_aio(void) {
    NEED(!syscall(SYS_io_setup, 16, &ring));
    return NULL;
}
static const char *check_aio(void) {
    char buffer[512];
    struct iocb one = {.aio_fildes = removed, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uint64_t)buffer,
                       .aio_nbytes = 512, .aio_data = 88}, *list[] = {&one};
    struct io_event event;
    struct timespec patience = {2, 0};
    NEED(syscall(SYS_io_submit, ring, 1, list) == 1);
    NEED(syscall(SYS_io_getevents, ring, 1, 1, &event, &patience) == 1 && event.data == 88 && event.res == 512);
    return NULL;
}

const struct item files[] = {
    {"open-files", make_open, check_open},
    {"removed-files", make_removed, check_removed},
    {"removed-name", make_renamed, check_renamed},
    {"removed-directory", make_nowhere, check_nowhere},
    {"flock", make_locks, check_flock},
    {"posix-lock", make_nothing, check_posix_lock},
    {"ofd-lock", make_nothing, check_ofd_lock},
    {"lease", make_lease, check_lease},
    {"memfd", make_memfd, check_memfd},
    {"system-v", make_sysv, check_sysv},
    {"aio", make_aio, check_aio},
    {0},
};
