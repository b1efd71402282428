/* What a hostile program tries: each attempt in a process of its own, and what came of it as a line of JSON.
 *
 *     attack list                  the names of the attempts
 *     attack try [KEY=VALUE]...    all of them; the same binary runs in a container, and on a host as root
 *     attack one NAME [KEY=...]    one of them, by itself
 *     attack wait                  nothing, for ever: a container's command
 *     attack cat FILE...           prints what can be read; succeeds if anything can
 *     attack connect HOST PORT     succeeds if somebody answers
 *     attack become-root           by the set-user-id program /root-shell; succeeds if it works
 *     attack whoami                succeeds for root
 *     attack busy SECONDS          keeps the kernel as busy as one may: processors, calls, files, pipes, sockets
 *     attack watch SECONDS         takes all instances of inotify that its user may have, and holds them
 *     attack bomb fork|memory [S]  as many processes, as much memory as there is; bounded by what kills it; for S
 *                                  seconds again and again, and how often
 *
 * The keys: pid (of a process outside), file (a path outside), abstract (the name of a socket outside), shm (the key of
 * a segment outside), exe (how a program of the runtime is called).
 *
 * No attempt does harm where it is granted: it opens without writing, sets a clock to what it says already, or
 * asks for what is refused only after the permission has been looked at.
 *
 *     cc -O1 -static -pthread -o attack attack.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_alg.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif

static char reason[256];
static char **keys;

/* Says why, and that it did not work. */
static int no(const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(reason, sizeof reason, format, list);
  va_end(list);
  return 0;
}

static int yes(const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(reason, sizeof reason, format, list);
  va_end(list);
  return 1;
}

/* The outcome of a call that returns -1 when it is refused. */
static int call(const char *what, long result) {
  if (result == -1) return no("%s: %s", what, strerror(errno));
  return yes("%s is granted", what);
}

static const char *key(const char *name) {
  size_t length = strlen(name);
  for (char **each = keys; each && *each; each++)
    if (!strncmp(*each, name, length) && (*each)[length] == '=') return *each + length + 1;
  return NULL;
}

static int opened(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC);
  if (fd < 0) return no("%s: %s", path, strerror(errno));
  struct stat file;
  struct statfs system;
  fstat(fd, &file);
  fstatfs(fd, &system);
  if (S_ISREG(file.st_mode) && file.st_size == 0 && system.f_type == 0x1021994) {
    close(fd);
    return no("%s is covered by an empty file", path);
  }
  /* Something of this name in the container's own files is not what it looks like. */
  if (!strncmp(path, "/proc/", 6) && system.f_type != 0x9fa0) return no("%s is not the kernel's", path);
  close(fd);
  return yes("%s can be opened", path);
}

/* ---- the kernel by way of its files */

static int sysrq(void) { return opened("/proc/sysrq-trigger", O_WRONLY); }
static int core_pattern(void) { return opened("/proc/sys/kernel/core_pattern", O_WRONLY); }
static int modprobe(void) { return opened("/proc/sys/kernel/modprobe", O_WRONLY); }
static int sysctl_vm(void) { return opened("/proc/sys/vm/panic_on_oom", O_WRONLY); }
static int sysctl_net(void) { return opened("/proc/sys/net/ipv4/ip_forward", O_WRONLY); }
static int irq(void) { return opened("/proc/irq/default_smp_affinity", O_WRONLY); }
static int kcore(void) { return opened("/proc/kcore", O_RDONLY); }
static int keys_file(void) { return opened("/proc/keys", O_RDONLY); }
static int timers(void) { return opened("/proc/timer_list", O_RDONLY); }
static int power(void) { return opened("/sys/power/state", O_WRONLY); }
static int uevent_helper(void) { return opened("/sys/kernel/uevent_helper", O_WRONLY); }
static int uevent(void) { return opened("/sys/class/net/lo/uevent", O_WRONLY); }
static int hugepages(void) { return opened("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY); }
static int device_memory(void) { return opened("/dev/mem", O_RDONLY); }
static int kmsg(void) { return opened("/dev/kmsg", O_WRONLY); }
static int console(void) { return opened("/dev/console", O_WRONLY | O_NOCTTY); }

static int release_agent(void) {
  static const char *const paths[] = {"/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent",
                                      "/sys/fs/cgroup/devices/release_agent", NULL};
  for (int i = 0; paths[i]; i++)
    if (opened(paths[i], O_WRONLY)) return 1;
  return 0;
}

static int cgroup_write(void) { return opened("/sys/fs/cgroup/cgroup.procs", O_WRONLY); }
static int cgroup_make(void) {
  int result = mkdir("/sys/fs/cgroup/attack", 0755);
  if (!result) rmdir("/sys/fs/cgroup/attack");
  return call("mkdir in the cgroup", result);
}
static int cgroup_leave(void) {
  /* The root of what is mounted must be the container's own cgroup. */
  FILE *file = fopen("/proc/self/cgroup", "re");
  char line[512];
  while (file && fgets(line, sizeof line, file))
    if (!strncmp(line, "0::", 3)) {
      line[strcspn(line, "\n")] = 0;
      if (strstr(line, "/..")) return yes("a cgroup outside is seen: %s", line);
      return opened("/sys/fs/cgroup/../cgroup/cgroup.freeze", O_WRONLY);
    }
  return no("/proc/self/cgroup has no cgroup v2");
}
static int mask_fallback(void) {
  /* Masked and read-only paths reached by another name. */
  static const char *const paths[] = {"/proc/self/root/proc/sysrq-trigger", "/proc/1/root/proc/sysrq-trigger",
                                      "/proc/self/task/../../sysrq-trigger", "/proc/thread-self/../../../sysrq-trigger",
                                      "/proc/1/cwd/../../../proc/sys/kernel/core_pattern", NULL};
  for (int i = 0; paths[i]; i++)
    if (opened(paths[i], O_WRONLY)) return 1;
  return 0;
}

/* ---- devices */

static int node(const char *path, mode_t kind, dev_t device) {
  unlink(path);
  if (mknod(path, kind | 0600, device)) return no("mknod: %s", strerror(errno));
  int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  int wrong = errno;
  if (fd >= 0) close(fd);
  unlink(path);
  return fd < 0 && wrong != ENXIO && wrong != ENODEV ? no("open: %s", strerror(wrong)) : yes("the device is reached");
}
static int mknod_disk(void) { return node("/tmp/.disk", S_IFBLK, makedev(254, 0)); }
static int mknod_kmsg(void) { return node("/tmp/.kmsg", S_IFCHR, makedev(1, 11)); }
static int mknod_dev(void) { return node("/dev/.kmsg", S_IFCHR, makedev(1, 11)); }
static int mknod_loop(void) { return node("/tmp/.loop", S_IFCHR, makedev(10, 237)); }

/* ---- processes outside */

static pid_t outside(void) { return key("pid") ? atoi(key("pid")) : -1; }
static int signal_outside(void) { return call("kill", kill(outside(), 0)); }
static int ptrace_outside(void) {
  long result = ptrace(PTRACE_SEIZE, outside(), 0, 0);
  if (!result) ptrace(PTRACE_DETACH, outside(), 0, 0);
  return call("ptrace", result);
}
static int ptrace_init(void) {
  long result = ptrace(PTRACE_SEIZE, getppid(), 0, 0);
  return call("ptrace", result);
}
static int read_outside(void) {
  char byte;
  struct iovec here = {&byte, 1}, there = {(void *)0x1000, 1};
  long result = process_vm_readv(outside(), &here, 1, &there, 1, 0);
  /* The address is wrong; that is looked at after the permission. */
  if (result == -1 && errno == EFAULT) return yes("process_vm_readv is granted");
  return call("process_vm_readv", result);
}
static int pidfd_outside(void) { return call("pidfd_open", syscall(SYS_pidfd_open, outside(), 0)); }
static int seen_outside(void) {
  DIR *proc = opendir("/proc");
  struct dirent *entry;
  while (proc && (entry = readdir(proc))) {
    char path[300], name[64] = "";
    snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
    FILE *file = fopen(path, "re");
    if (!file) continue;
    if (fgets(name, sizeof name, file)) name[strcspn(name, "\n")] = 0;
    fclose(file);
    if (!strcmp(name, "godwit") && atoi(entry->d_name) != getpid()) return yes("process %s is %s", entry->d_name, name);
  }
  return no("/proc shows the container's own processes only");
}

/* ---- namespaces and mounts */

static int setns_own(void) {
  int fd = open("/proc/1/ns/net", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return no("/proc/1/ns/net: %s", strerror(errno));
  return call("setns", setns(fd, 0));
}
static int unshare_user(void) { return call("unshare(CLONE_NEWUSER)", unshare(CLONE_NEWUSER)); }
static int unshare_mount(void) { return call("unshare(CLONE_NEWNS)", unshare(CLONE_NEWNS)); }
static int clone_user(void) {
  long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
  if (!child) _exit(0);
  if (child > 0) waitpid(child, NULL, 0);
  return call("clone(CLONE_NEWUSER)", child);
}
static int clone3_user(void) {
  struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
  long child = syscall(SYS_clone3, &arguments, sizeof arguments);
  if (!child) _exit(0);
  if (child > 0) waitpid(child, NULL, 0);
  return call("clone3(CLONE_NEWUSER)", child);
}
static int mount_tmpfs(void) {
  int result = mount("none", "/tmp", "tmpfs", 0, "");
  if (!result) umount2("/tmp", MNT_DETACH);
  return call("mount", result);
}
static int mount_proc(void) {
  int result = mount("proc", "/tmp", "proc", 0, "");
  if (!result) umount2("/tmp", MNT_DETACH);
  return call("mount", result);
}
static int umount_mask(void) {
  /* Of a container the mask; elsewhere nothing is there, which is found out with the permission only. */
  int result = umount2("/proc/kcore", MNT_DETACH | UMOUNT_NOFOLLOW);
  if (result && errno == EINVAL) return yes("umount is granted");
  return call("umount", result);
}
static int remount(void) {
  int result = mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL);
  if (result && errno == EINVAL) return yes("remount is granted");
  return call("remount", result);
}
static int new_mount_calls(void) {
  long fd = syscall(SYS_fsopen, "tmpfs", 0);
  if (fd >= 0) return yes("fsopen is granted");
  int first = errno;
  fd = syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */);
  if (fd >= 0) return yes("open_tree is granted");
  return no("fsopen: %s, open_tree: %s", strerror(first), strerror(errno));
}
static int pivot(void) {
  long result = syscall(SYS_pivot_root, "/tmp", "/tmp");
  if (result && (errno == EINVAL || errno == EBUSY)) return yes("pivot_root is granted");
  return call("pivot_root", result);
}
static int file_handle(void) {
  /* "shocker": the root directory of whatever file system this is, by its inode number. */
  struct {
    struct file_handle head;
    unsigned char bytes[8];
  } handle = {{8, 1, {}}, {2}};
  int at = open("/", O_RDONLY | O_CLOEXEC);
  long result = syscall(SYS_open_by_handle_at, at, &handle, O_RDONLY);
  if (result == -1 && (errno == ESTALE || errno == EOPNOTSUPP)) return yes("open_by_handle_at is granted");
  return call("open_by_handle_at", result);
}
static int chroot_break(void) {
  const char *file = key("file");
  if (!file) return no("no file is given");
  mkdir("/tmp/.jail", 0755);
  if (chroot("/tmp/.jail")) return no("chroot: %s", strerror(errno));
  for (int i = 0; i < 64; i++)
    if (chdir("..")) break;
  if (chroot(".")) return no("chroot: %s", strerror(errno));
  int fd = open(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return no("out of a chroot, %s: %s", file, strerror(errno));
  return yes("%s is reached", file);
}
static int file_outside(void) {
  const char *file = key("file");
  char path[512];
  static const char *const ways[] = {"%s", "/proc/1/root%s", "/proc/self/root/../../..%s", "/proc/1/cwd/../../..%s", NULL};
  for (int i = 0; file && ways[i]; i++) {
    snprintf(path, sizeof path, ways[i], file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) return yes("%s is reached", path);
  }
  return no("%s: %s", file ? file : "no file is given", strerror(errno));
}
static int directory_descriptors(void) {
  /* CVE-2024-21626: a descriptor, or a directory, that somebody forgot to close on the way in. */
  char path[64], to[300];
  for (int fd = 0; fd < 256; fd++) {
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, to, sizeof to - 1);
    if (length < 0) continue;
    to[length] = 0;
    struct stat file;
    if (fstat(fd, &file)) continue;
    if (fd > 2) return yes("descriptor %d is open: %s", fd, to);
    if (S_ISDIR(file.st_mode)) return yes("descriptor %d is a directory: %s", fd, to);
  }
  if (!getcwd(to, sizeof to) || to[0] != '/') return yes("the working directory is outside: %s", to);
  return no("three descriptors, no directory");
}
static int first_descriptors(void) {
  DIR *list = opendir("/proc/1/fd");
  if (!list) return no("/proc/1/fd: %s", strerror(errno));
  struct dirent *entry;
  while ((entry = readdir(list))) {
    char path[300], to[300];
    snprintf(path, sizeof path, "/proc/1/fd/%s", entry->d_name);
    ssize_t length = readlink(path, to, sizeof to - 1);
    if (length < 0) continue;
    to[length] = 0;
    struct stat file;
    if (stat(path, &file)) continue;
    if (atoi(entry->d_name) > 2 && S_ISDIR(file.st_mode)) return yes("the first process holds %s", to);
  }
  return no("no directory among the first process's descriptors");
}

/* The program of the runtime, as it comes in for a moment: held open, and opened again for writing when it is gone. */
static int overwrite_exe(void) {
  const char *exe = key("exe");
  int seconds = key("seconds") ? atoi(key("seconds")) : 0, held[64], count = 0, seen = 0, hidden = 0;
  if (!exe || !seconds) return no("not asked for");
  time_t end = time(NULL) + seconds;
  while (time(NULL) < end) {
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
      char path[300], to[300];
      if (entry->d_name[0] < '1' || entry->d_name[0] > '9' || atoi(entry->d_name) == getpid()) continue;
      snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
      ssize_t length = readlink(path, to, sizeof to - 1);
      if (length < 0) {
        hidden += errno == EACCES || errno == EPERM;
        continue;
      }
      to[length] = 0;
      if (!strstr(to, exe)) continue;
      seen++;
      int fd = open(path, O_RDONLY | O_CLOEXEC);
      if (fd >= 0 && count < 64) held[count++] = fd;
      else if (fd >= 0) close(fd);
    }
    if (proc) closedir(proc);
    for (int i = 0; i < count; i++) {
      char path[64];
      snprintf(path, sizeof path, "/proc/self/fd/%d", held[i]);
      int fd = open(path, O_WRONLY | O_CLOEXEC);
      if (fd >= 0) return yes("%s can be opened for writing", exe);
    }
  }
  if (count) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", held[0]);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) return yes("%s can be opened for writing", exe);
    return no("seen %d times, held %d times, for writing: %s", seen, count, strerror(errno));
  }
  if (!seen) return no("%d times there was a process whose program is not told", hidden);
  return no("seen %d times, never to be opened", seen);
}

/* ---- the kernel by its calls */

static int keyring(void) {
  long serial = syscall(SYS_add_key, "user", "attack", "x", 1, -3 /* the session's */);
  if (serial == -1) return no("add_key: %s", strerror(errno));
  syscall(SYS_keyctl, 3 /* KEYCTL_REVOKE */, serial);
  return yes("add_key is granted");
}
static int keyring_read(void) { return call("keyctl", syscall(SYS_keyctl, 0, -4 /* the user's keyring */, 0)); }
static int keyring_request(void) {
  long result = syscall(SYS_request_key, "user", "no such key", NULL, 0);
  if (result == -1 && errno == ENOKEY) return yes("request_key is granted");
  return call("request_key", result);
}
static int dmesg(void) { return call("syslog", syscall(SYS_syslog, 10 /* the size of the log */, NULL, 0)); }
static int dmesg_read(void) {
  char byte;
  return call("syslog", syscall(SYS_syslog, 3, &byte, 1));
}
static int perf(void) {
  struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .config = PERF_COUNT_SW_CPU_CLOCK};
  return call("perf_event_open", syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
}
static int bpf(void) {
  union bpf_attr attributes = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
  return call("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes));
}
static int userfaultfd(void) { return call("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC)); }
static int io_uring(void) {
  char parameters[256] = {0};
  return call("io_uring_setup", syscall(SYS_io_uring_setup, 4, parameters));
}
static int kexec(void) {
  long result = syscall(SYS_kexec_load, 0, 0, NULL, 0);
  return call("kexec_load", result);
}
static int module(void) {
  long result = syscall(SYS_init_module, "not a module", 12, "");
  if (result == -1 && errno == ENOEXEC) return yes("init_module is granted");
  return call("init_module", result);
}
static int module_file(void) {
  long result = syscall(SYS_finit_module, 0, "", 0);
  if (result == -1 && (errno == ENOEXEC || errno == EBADF || errno == EINVAL)) return yes("finit_module is granted");
  return call("finit_module", result);
}
static int restart(void) {
  /* That Ctrl-Alt-Delete is a signal: as it is wherever init has set it so, and harmless elsewhere. */
  long result = syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, NULL);
  if (result == -1 && errno == EINVAL) return yes("reboot is granted");
  return call("reboot", result);
}
static int clock_set(void) {
  struct timeval now;
  gettimeofday(&now, NULL);
  return call("settimeofday", syscall(SYS_settimeofday, &now, NULL));
}
static int clock_adjust(void) {
  struct timex change = {.modes = ADJ_TICK, .tick = 1000000 / sysconf(_SC_CLK_TCK)};
  return call("adjtimex", adjtimex(&change));
}
static int host_name(void) {
  char name[65] = "";
  gethostname(name, sizeof name - 1);
  return call("sethostname", syscall(SYS_sethostname, name, strlen(name)));
}
static int swap(void) {
  long result = syscall(SYS_swapon, "/nowhere", 0);
  if (result == -1 && errno == ENOENT) return yes("swapon is granted");
  return call("swapon", result);
}
static int accounting(void) { return call("acct", syscall(SYS_acct, NULL)); }
static int quota(void) {
  long result = syscall(SYS_quotactl, 0x80000100 /* Q_SYNC */, NULL, 0, NULL);
  return call("quotactl", result);
}
static int ports_of_hardware(void) { return call("iopl", syscall(SYS_iopl, 3)); }
static int nested_ptrace(void) { return call("ptrace(PTRACE_TRACEME)", ptrace(PTRACE_TRACEME, 0, 0, 0)); }
static int randomisation_off(void) {
  long before = syscall(SYS_personality, 0xffffffff);
  return call("personality", syscall(SYS_personality, before | 0x0040000));
}
static int typed_input(void) {
  int master = posix_openpt(O_RDWR | O_NOCTTY), slave;
  if (master < 0 || grantpt(master) || unlockpt(master)) return no("no terminal: %s", strerror(errno));
  setsid();
  if ((slave = open(ptsname(master), O_RDWR)) < 0) return no("no terminal: %s", strerror(errno));
  return call("TIOCSTI", ioctl(slave, TIOCSTI, "x"));
}
static int typed_input_wide(void) {
  /* CVE-2023-1523 and its like: the upper half of the request is nothing to the kernel, and may be to a filter. */
  int master = posix_openpt(O_RDWR | O_NOCTTY), slave;
  if (master < 0 || grantpt(master) || unlockpt(master)) return no("no terminal: %s", strerror(errno));
  setsid();
  if ((slave = open(ptsname(master), O_RDWR)) < 0) return no("no terminal: %s", strerror(errno));
  return call("TIOCSTI", syscall(SYS_ioctl, slave, (unsigned long)TIOCSTI | 1ul << 32, "x"));
}
static int calls_of_32_bits(void) {
#ifdef __x86_64__
  /* mount(2) by its old number and the old way in, past a filter that looks at the new numbers only. */
  pid_t child = fork();
  if (!child) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20 /* getpid */) : "memory", "r8", "r9", "r10", "r11");
    _exit(result > 0 ? 0 : 1);
  }
  int status;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) return no("killed by signal %d", WTERMSIG(status));
  return WEXITSTATUS(status) ? no("not there") : yes("calls of 32-bit programs are made");
#else
  return no("no such calls on this architecture");
#endif
}
static int set_user_id(void) {
  int privileges = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
  struct statfs root;
  statfs("/", &root);
  if (privileges == 1) return no("no_new_privs is set");
  if (root.f_flags & 2 /* ST_NOSUID */) return no("the root is mounted nosuid");
  return yes("set-user-id programs get privileges");
}
static int capabilities(void) {
  FILE *file = fopen("/proc/self/status", "re");
  char line[256];
  unsigned long long bounding = 0;
  while (file && fgets(line, sizeof line, file)) sscanf(line, "CapBnd: %llx", &bounding);
  /* SYS_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_BOOT, SYS_TIME, NET_ADMIN, NET_RAW, MKNOD, DAC_READ_SEARCH */
  static const int dangerous[] = {21, 16, 17, 19, 22, 25, 12, 13, 27, 2};
  for (unsigned i = 0; i < sizeof dangerous / sizeof *dangerous; i++)
    if (bounding >> dangerous[i] & 1) return yes("capability %d is in the bounding set", dangerous[i]);
  return no("the bounding set is %llx", bounding);
}

/* ---- sockets */

static int raw_socket(void) { return call("a raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)); }
static int packet_socket(void) { return call("a packet socket", socket(AF_PACKET, SOCK_RAW, 0)); }
static int vsock(void) { return call("a vsock", socket(AF_VSOCK, SOCK_STREAM, 0)); }
static int crypto_socket(void) { return call("a crypto socket", socket(AF_ALG, SOCK_SEQPACKET, 0)); }
static int network_change(void) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct {
    char name[16];
    short flags;
    char rest[32];
  } request = {"lo", 0x41, {0}};
  return call("a change of the network", ioctl(fd, 0x8914 /* SIOCSIFFLAGS */, &request));
}
static int abstract_socket(void) {
  const char *name = key("abstract");
  if (!name) return no("no name is given");
  struct sockaddr_un address = {AF_UNIX, {0}};
  strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  return call("the socket outside", connect(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)));
}
static int api_socket(void) {
  struct sockaddr_un address = {AF_UNIX, "/run/godwit/api.sock"};
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  return call("the daemon's socket", connect(fd, (struct sockaddr *)&address, sizeof address));
}
static int shared_segment(void) {
  if (!key("shm")) return no("no key is given");
  int id = shmget(strtol(key("shm"), NULL, 0), 0, 0);
  return call("the segment outside", id);
}

/* ---- too much of everything, within bounds */

static int descriptors(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max == RLIM_INFINITY || limit.rlim_max > 1 << 20) return yes("one process may have %llu", (unsigned long long)limit.rlim_max);
  limit.rlim_cur = limit.rlim_max + 1;
  struct rlimit more = {limit.rlim_max + 1, limit.rlim_max + 1};
  if (!setrlimit(RLIMIT_NOFILE, &more)) return yes("the limit can be raised");
  return no("one process has %llu at most; raising it: %s", (unsigned long long)limit.rlim_max, strerror(errno));
}
static int inodes(void) {
  /* The container's own tmpfs: memory of the kernel that no limit on its size counts. */
  struct statfs before;
  if (statfs("/dev", &before) || before.f_type != 0x01021994) return no("/dev is no tmpfs");
  if (before.f_files == 0 || before.f_files > 100000) return yes("/dev takes %llu files", (unsigned long long)before.f_files);
  long made = 0, wrong = 0;
  char path[64];
  for (; made < 200000; made++) {
    snprintf(path, sizeof path, "/dev/shm/.bomb%ld", made);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
      wrong = errno;
      break;
    }
    close(fd);
  }
  for (long i = 0; i < made; i++) {
    snprintf(path, sizeof path, "/dev/shm/.bomb%ld", i);
    unlink(path);
  }
  return wrong ? no("after %ld files: %s", made, strerror(wrong)) : yes("%ld files could be made", made);
}
static int shared_memory(void) {
  struct statfs shm;
  if (statfs("/dev/shm", &shm)) return no("/dev/shm: %s", strerror(errno));
  unsigned long long bytes = (unsigned long long)shm.f_blocks * shm.f_bsize;
  if (bytes == 0 || bytes > 256ull << 20) return yes("/dev/shm takes %llu bytes", bytes);
  return no("/dev/shm takes %llu bytes", bytes);
}
static int core_files(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_CORE, &limit);
  return limit.rlim_max ? yes("core files are written") : no("the limit is 0");
}
static int priority(void) {
  errno = 0;
  return call("a higher priority", setpriority(PRIO_PROCESS, 0, -20));
}
static int real_time(void) {
  struct sched_param parameters = {.sched_priority = 99};
  return call("real-time scheduling", sched_setscheduler(0, SCHED_FIFO, &parameters));
}
static int oom_protection(void) {
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return no("oom_score_adj: %s", strerror(errno));
  return call("a lower oom_score_adj", write(fd, "-1000", 5));
}
static int locked_memory(void) {
  struct rlimit limit, more = {RLIM_INFINITY, RLIM_INFINITY};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  if (limit.rlim_max == RLIM_INFINITY || !setrlimit(RLIMIT_MEMLOCK, &more)) return yes("memory can be locked without a limit");
  return no("%llu bytes at most; raising it: %s", (unsigned long long)limit.rlim_max, strerror(errno));
}

static const struct attempt {
  const char *name;
  int (*try)(void);
} attempts[] = {
#define ATTEMPT(name, function) {name, function}
    ATTEMPT("proc: sysrq", sysrq),
    ATTEMPT("proc: core pattern", core_pattern),
    ATTEMPT("proc: module loader", modprobe),
    ATTEMPT("proc: memory settings", sysctl_vm),
    ATTEMPT("proc: network settings", sysctl_net),
    ATTEMPT("proc: interrupts", irq),
    ATTEMPT("proc: kernel memory", kcore),
    ATTEMPT("proc: keys", keys_file),
    ATTEMPT("proc: timers", timers),
    ATTEMPT("proc: masks by another name", mask_fallback),
    ATTEMPT("sys: power", power),
    ATTEMPT("sys: uevent helper", uevent_helper),
    ATTEMPT("sys: uevents", uevent),
    ATTEMPT("sys: huge pages", hugepages),
    ATTEMPT("cgroup: release agent", release_agent),
    ATTEMPT("cgroup: write", cgroup_write),
    ATTEMPT("cgroup: make", cgroup_make),
    ATTEMPT("cgroup: leave", cgroup_leave),
    ATTEMPT("device: memory", device_memory),
    ATTEMPT("device: kernel log", kmsg),
    ATTEMPT("device: console", console),
    ATTEMPT("device: make a disk", mknod_disk),
    ATTEMPT("device: make a kernel log", mknod_kmsg),
    ATTEMPT("device: make one in /dev", mknod_dev),
    ATTEMPT("device: make a loop control", mknod_loop),
    ATTEMPT("process: see the runtime", seen_outside),
    ATTEMPT("process: signal outside", signal_outside),
    ATTEMPT("process: trace outside", ptrace_outside),
    ATTEMPT("process: trace the first", ptrace_init),
    ATTEMPT("process: be traced", nested_ptrace),
    ATTEMPT("process: read outside", read_outside),
    ATTEMPT("process: pidfd outside", pidfd_outside),
    ATTEMPT("namespace: enter", setns_own),
    ATTEMPT("namespace: new user", unshare_user),
    ATTEMPT("namespace: new mount", unshare_mount),
    ATTEMPT("namespace: clone user", clone_user),
    ATTEMPT("namespace: clone3 user", clone3_user),
    ATTEMPT("mount: tmpfs", mount_tmpfs),
    ATTEMPT("mount: proc", mount_proc),
    ATTEMPT("mount: take a mask off", umount_mask),
    ATTEMPT("mount: make writable", remount),
    ATTEMPT("mount: the new calls", new_mount_calls),
    ATTEMPT("mount: change the root", pivot),
    ATTEMPT("file: by its handle", file_handle),
    ATTEMPT("file: out of a chroot", chroot_break),
    ATTEMPT("file: of a neighbour", file_outside),
    ATTEMPT("file: forgotten descriptors", directory_descriptors),
    ATTEMPT("file: descriptors of the first", first_descriptors),
    ATTEMPT("runtime: overwrite its program", overwrite_exe),
    ATTEMPT("key: add", keyring),
    ATTEMPT("key: read", keyring_read),
    ATTEMPT("key: request", keyring_request),
    ATTEMPT("kernel: size of its log", dmesg),
    ATTEMPT("kernel: read its log", dmesg_read),
    ATTEMPT("kernel: perf events", perf),
    ATTEMPT("kernel: bpf", bpf),
    ATTEMPT("kernel: userfaultfd", userfaultfd),
    ATTEMPT("kernel: io_uring", io_uring),
    ATTEMPT("kernel: kexec", kexec),
    ATTEMPT("kernel: module", module),
    ATTEMPT("kernel: module file", module_file),
    ATTEMPT("kernel: reboot", restart),
    ATTEMPT("kernel: set the clock", clock_set),
    ATTEMPT("kernel: adjust the clock", clock_adjust),
    ATTEMPT("kernel: host name", host_name),
    ATTEMPT("kernel: swap", swap),
    ATTEMPT("kernel: accounting", accounting),
    ATTEMPT("kernel: quota", quota),
    ATTEMPT("kernel: hardware ports", ports_of_hardware),
    ATTEMPT("kernel: randomisation off", randomisation_off),
    ATTEMPT("kernel: 32-bit calls", calls_of_32_bits),
    ATTEMPT("terminal: typed input", typed_input),
    ATTEMPT("terminal: typed input, wide", typed_input_wide),
    ATTEMPT("privilege: set-user-id", set_user_id),
    ATTEMPT("privilege: capabilities", capabilities),
    ATTEMPT("socket: raw", raw_socket),
    ATTEMPT("socket: packet", packet_socket),
    ATTEMPT("socket: vsock", vsock),
    ATTEMPT("socket: crypto", crypto_socket),
    ATTEMPT("socket: change the network", network_change),
    ATTEMPT("socket: abstract, outside", abstract_socket),
    ATTEMPT("socket: the API", api_socket),
    ATTEMPT("ipc: segment outside", shared_segment),
    ATTEMPT("bomb: descriptors", descriptors),
    ATTEMPT("bomb: inodes of /dev", inodes),
    ATTEMPT("bomb: shared memory", shared_memory),
    ATTEMPT("bomb: locked memory", locked_memory),
    ATTEMPT("bomb: core files", core_files),
    ATTEMPT("bomb: priority", priority),
    ATTEMPT("bomb: real time", real_time),
    ATTEMPT("bomb: not to be killed", oom_protection),
};
enum { ATTEMPTS = sizeof attempts / sizeof *attempts };

static void tell(const struct attempt *attempt) {
  int result[2], status;
  char text[300] = "";
  if (pipe(result)) exit(1);
  fflush(stdout);
  pid_t child = fork();
  if (!child) {
    /* Its own descriptors are not what is looked for. */
    int out = fcntl(result[1], F_DUPFD_CLOEXEC, 300);
    close(result[0]);
    close(result[1]);
    int works = attempt->try();
    dprintf(out, "%d%s", works, reason);
    _exit(0);
  }
  close(result[1]);
  ssize_t length = read(result[0], text, sizeof text - 1);
  close(result[0]);
  waitpid(child, &status, 0);
  int works = length > 0 && text[0] == '1';
  if (length <= 0) snprintf(text, sizeof text, "0killed by signal %d", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
  for (char *c = text; *c; c++)
    if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = '\'';
  printf("{\"case\": \"%s\", \"works\": %s, \"reason\": \"%s\"}\n", attempt->name, works ? "true" : "false", text + 1);
  fflush(stdout);
}

static int cat(char **files) {
  int found = 0;
  for (; *files; files++) {
    char text[128];
    int fd = open(*files, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (length <= 0) {
      printf("%s: %s\n", *files, length ? strerror(errno) : "empty");
      continue;
    }
    text[length] = 0;
    printf("%s", text);
    found = 1;
  }
  return !found;
}

static int reach(const char *host, const char *port) {
  struct sockaddr_in address = {AF_INET, htons(atoi(port)), {0}, {0}};
  inet_pton(AF_INET, host, &address.sin_addr);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct timeval patience = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  int result = connect(fd, (struct sockaddr *)&address, sizeof address);
  if (result && errno == EINPROGRESS) errno = ETIMEDOUT;
  printf("%s\n", result ? strerror(errno) : "connected");
  return result != 0;
}

static int become_root(void) {
  pid_t child = fork();
  if (!child) {
    execl("/root-shell", "root-shell", "whoami", NULL);
    printf("/root-shell: %s\n", strerror(errno));
    fflush(stdout);
    _exit(127);
  }
  int status;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status);
}

/* What can be had without a limit, again and again, by a few processes; each frees what it took. */
static int busy(int seconds) {
  time_t end = time(NULL) + seconds;
  for (int worker = 0; worker < 6; worker++) {
    if (fork()) continue;
    char path[64];
    snprintf(path, sizeof path, "/tmp/.busy%d", worker);
    while (time(NULL) < end) {
      if (worker < 2) {
        for (volatile int i = 0; i < 1000000; i++) {}
      } else if (worker == 2) {
        pid_t child = fork();
        if (!child) _exit(0);
        if (child > 0) waitpid(child, NULL, 0);
      } else if (worker == 3) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        static char zeros[1 << 20];
        if (fd >= 0 && write(fd, zeros, sizeof zeros) < 0) usleep(1000);
        unlink(path);
        close(fd);
      } else if (worker == 4) {
        int list[512], count = 0;
        for (; count < 256 && !pipe(list + 2 * count); count++) {}
        while (count--) close(list[2 * count]), close(list[2 * count + 1]);
      } else {
        struct sockaddr_in address = {AF_INET, htons(9), {htonl(0xffffffff)}, {0}};
        int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
        setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on);
        for (int i = 0; i < 200; i++) sendto(fd, "x", 1, 0, (struct sockaddr *)&address, sizeof address);
        close(fd);
      }
    }
    _exit(0);
  }
  while (wait(NULL) > 0) {}
  return 0;
}

static int take_watches(int seconds) {
  int count = 0;
  while (inotify_init1(IN_CLOEXEC) >= 0) count++;
  printf("%d instances, then: %s\n", count, strerror(errno));
  fflush(stdout);
  sleep(seconds);
  return 0;
}

/* Ends with its parent, also where that has ended before it came to this. */
static void end_with(pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0);
}

static int bomb(const char *kind) {
  if (!strcmp(kind, "fork")) {
    long made = 0;
    pid_t parent = getpid();
    for (; made < 100000; made++) {
      pid_t child = fork();
      if (child < 0) break;
      if (!child) {
        end_with(parent);
        pause();
        _exit(0);
      }
    }
    printf("%ld processes, then: %s\n", made, strerror(errno));
    fflush(stdout);
    signal(SIGTERM, SIG_IGN);
    return made < 100000;
  }
  size_t step = 16 << 20;
  for (size_t all = 0; all < (size_t)64 << 30; all += step) {
    char *memory = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    memset(memory, 1, step);
  }
  return 0;
}

static int bombs(const char *kind, int seconds) {
  time_t end = time(NULL) + seconds;
  int times = 0;
  pid_t parent = getpid();
  for (; time(NULL) < end; times++) {
    pid_t child = fork();
    if (!child) {
      end_with(parent);
      close(1);
      _exit(bomb(kind));
    }
    /* Those of the last time still die. */
    if (child < 0) times--, usleep(1000);
    while (wait(NULL) > 0) {}
  }
  printf("%d times\n", times);
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "wait")) {
    /* As an init does: whose parent has died is waited for here, or counts against the limit for ever. */
    signal(SIGCHLD, SIG_IGN);
    for (;;) pause();
  }
  if (argc > 2 && !strcmp(argv[1], "cat")) return cat(argv + 2);
  if (argc > 3 && !strcmp(argv[1], "connect")) return reach(argv[2], argv[3]);
  if (argc > 1 && !strcmp(argv[1], "become-root")) return become_root();
  if (argc > 1 && !strcmp(argv[1], "whoami")) return printf("user %d\n", geteuid()) < 0 || geteuid();
  if (argc > 2 && !strcmp(argv[1], "busy")) return busy(atoi(argv[2]));
  if (argc > 2 && !strcmp(argv[1], "watch")) return take_watches(atoi(argv[2]));
  if (argc > 3 && !strcmp(argv[1], "bomb")) return bombs(argv[2], atoi(argv[3]));
  if (argc > 2 && !strcmp(argv[1], "bomb")) return bomb(argv[2]);
  int one = argc > 2 && !strcmp(argv[1], "one");
  keys = argv + (argc < 2 ? argc : one ? 3 : 2);
  for (int i = 0; i < ATTEMPTS; i++) {
    if (argc > 1 && !strcmp(argv[1], "list")) puts(attempts[i].name);
    else if (argc > 1 && !strcmp(argv[1], "try")) tell(&attempts[i]);
    else if (one && !strcmp(argv[2], attempts[i].name)) tell(&attempts[i]);
  }
  return argc < 2;
}
