//! The seccomp profile every container gets: which system calls, and why. Pure.
//!
//! It is a list of what is allowed. A call that is in no list answers ENOSYS, as on a kernel that does not have
//! it, because that is the answer programs know how to live with: what a kernel of next year adds is thus
//! closed until it is looked at here. Calls that are refused on purpose and have existed for long answer EPERM.
//!
//! Two filters are stacked, since one filter knows two answers and we need three: [`ALLOWED`] against ENOSYS,
//! then [`REFUSED`] and [`CONDITIONS`] against EPERM. Of two errors the kernel takes the one of the filter
//! loaded last. Calls of other architectures (32-bit programs, x32) kill the caller or answer ENOSYS.
//!
//! A second purpose is that containers can be moved: what CRIU cannot dump must not be there in the first
//! place, so that programs take the other way they have.

/// System calls with the reason why they are where they are.
pub struct Group {
    /// Why.
    pub reason: &'static str,
    /// Their numbers.
    pub calls: &'static [i64],
}

/// One call that is refused for some arguments only.
pub struct Condition {
    /// Why.
    pub reason: &'static str,
    /// The call.
    pub call: i64,
    /// It is refused when all of these hold.
    pub when: &'static [Test],
}

/// A test of one argument.
pub struct Test {
    /// Which argument, from 0.
    pub argument: u8,
    /// Whether only its lower 32 bits count, as they do for an `int`.
    pub narrow: bool,
    /// The comparison.
    pub is: Is,
}

/// A comparison.
pub enum Is {
    /// Equal.
    Equal(u64),
    /// Not equal.
    Not(u64),
    /// All of these bits set.
    Has(u64),
}

use libc::*;

/// Ordinary execution, as personality(2) knows it; and what 32-bit programs see.
const PER_LINUX: u64 = 0;
const PER_LINUX32: u64 = 8;
const KERNEL_2_6: u64 = UNAME26 as u64;

/// Numbers that `libc` does not name yet; from 424 on they are the same on every architecture.
mod newer {
    #[cfg(target_arch = "x86_64")]
    pub const IO_PGETEVENTS: i64 = 333;
    #[cfg(not(target_arch = "x86_64"))]
    pub const IO_PGETEVENTS: i64 = 292;
    pub const CACHESTAT: i64 = 451;
    pub const FCHMODAT2: i64 = 452;
    pub const MAP_SHADOW_STACK: i64 = 453;
    pub const FUTEX_WAKE: i64 = 454;
    pub const FUTEX_WAIT: i64 = 455;
    pub const FUTEX_REQUEUE: i64 = 456;
    pub const SETXATTRAT: i64 = 463;
    pub const GETXATTRAT: i64 = 464;
    pub const LISTXATTRAT: i64 = 465;
    pub const REMOVEXATTRAT: i64 = 466;
}

/// What a container may call.
#[rustfmt::skip]
pub const ALLOWED: &[Group] = &[
    Group {
        reason: "files: open, read, write, look at; bounded by the mount namespace and by permissions",
        calls: &[
            SYS_read, SYS_write, SYS_close, SYS_close_range, SYS_fstat, SYS_newfstatat, SYS_statx,
            SYS_lseek, SYS_pread64, SYS_pwrite64, SYS_readv, SYS_writev, SYS_preadv, SYS_pwritev,
            SYS_preadv2, SYS_pwritev2, SYS_openat, SYS_openat2, SYS_faccessat, SYS_faccessat2,
            SYS_fcntl, SYS_flock, SYS_fsync, SYS_fdatasync, SYS_truncate, SYS_ftruncate,
            SYS_getdents64, SYS_getcwd, SYS_chdir, SYS_fchdir, SYS_renameat, SYS_renameat2,
            SYS_mkdirat, SYS_mknodat, SYS_linkat, SYS_unlinkat, SYS_symlinkat, SYS_readlinkat,
            SYS_fchmod, SYS_fchmodat, newer::FCHMODAT2, SYS_fchown, SYS_fchownat, SYS_umask,
            SYS_utimensat, SYS_statfs, SYS_fstatfs, SYS_sync, SYS_syncfs, SYS_sync_file_range,
            SYS_fallocate, SYS_fadvise64, SYS_readahead, SYS_copy_file_range, SYS_sendfile,
            SYS_splice, SYS_tee, SYS_vmsplice, SYS_dup, SYS_dup3, SYS_pipe2, SYS_ioctl,
            SYS_name_to_handle_at, SYS_setxattr, SYS_lsetxattr, SYS_fsetxattr, SYS_getxattr,
            SYS_lgetxattr, SYS_fgetxattr, SYS_listxattr, SYS_llistxattr, SYS_flistxattr,
            SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr, newer::CACHESTAT, newer::SETXATTRAT,
            newer::GETXATTRAT, newer::LISTXATTRAT, newer::REMOVEXATTRAT,
        ],
    },
    Group {
        reason: "waiting for events; all of it can be dumped",
        calls: &[
            SYS_ppoll, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
            SYS_epoll_pwait2, SYS_eventfd2, SYS_signalfd4, SYS_timerfd_create,
            SYS_timerfd_settime, SYS_timerfd_gettime, SYS_inotify_init1, SYS_inotify_add_watch,
            SYS_inotify_rm_watch, SYS_fanotify_mark,
        ],
    },
    Group {
        reason: "memory of one's own",
        calls: &[
            SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_mincore,
            SYS_msync, SYS_mlock, SYS_mlock2, SYS_munlock, SYS_mlockall, SYS_munlockall,
            SYS_memfd_create, SYS_remap_file_pages, SYS_pkey_alloc, SYS_pkey_free,
            SYS_pkey_mprotect, SYS_membarrier, newer::MAP_SHADOW_STACK, SYS_process_mrelease,
        ],
    },
    Group {
        reason: "processes, threads and signals; bounded by the pid namespace. clone: see the conditions",
        calls: &[
            SYS_clone, SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group, SYS_wait4, SYS_waitid,
            SYS_kill, SYS_tkill, SYS_tgkill, SYS_getpid, SYS_getppid, SYS_gettid, SYS_getpgid,
            SYS_setpgid, SYS_getsid, SYS_setsid, SYS_rt_sigaction, SYS_rt_sigprocmask,
            SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigqueueinfo, SYS_rt_sigsuspend,
            SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo, SYS_sigaltstack, SYS_restart_syscall,
            SYS_futex, SYS_futex_waitv, newer::FUTEX_WAKE, newer::FUTEX_WAIT,
            newer::FUTEX_REQUEUE, SYS_set_robust_list, SYS_get_robust_list, SYS_set_tid_address,
            SYS_rseq, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_prctl, SYS_personality,
            SYS_seccomp,
        ],
    },
    Group {
        reason: "identities; the capabilities that are left say which",
        calls: &[
            SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid,
            SYS_getgroups, SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid,
            SYS_setresgid, SYS_setfsuid, SYS_setfsgid, SYS_setgroups, SYS_capget, SYS_capset,
            SYS_chroot,
        ],
    },
    Group {
        reason: "scheduling and limits of one's own; never above what the container has",
        calls: &[
            SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_sched_getparam,
            SYS_sched_setparam, SYS_sched_getscheduler, SYS_sched_setscheduler, SYS_sched_getattr,
            SYS_sched_setattr, SYS_sched_get_priority_max, SYS_sched_get_priority_min,
            SYS_sched_rr_get_interval, SYS_getpriority, SYS_setpriority, SYS_ioprio_get,
            SYS_ioprio_set, SYS_getrlimit, SYS_setrlimit, SYS_prlimit64, SYS_getrusage,
            SYS_getcpu,
        ],
    },
    Group {
        reason: "clocks and timers; setting a clock needs a capability that is gone",
        calls: &[
            SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_clock_adjtime,
            SYS_adjtimex, SYS_gettimeofday, SYS_nanosleep, SYS_getitimer, SYS_setitimer,
            SYS_timer_create, SYS_timer_settime, SYS_timer_gettime, SYS_timer_getoverrun,
            SYS_timer_delete, SYS_times,
        ],
    },
    Group {
        reason: "sockets; bounded by the network namespace. socket: see the conditions",
        calls: &[
            SYS_socket, SYS_socketpair, SYS_bind, SYS_listen, SYS_accept, SYS_accept4,
            SYS_connect, SYS_getsockname, SYS_getpeername, SYS_getsockopt, SYS_setsockopt,
            SYS_sendto, SYS_sendmsg, SYS_sendmmsg, SYS_recvfrom, SYS_recvmsg, SYS_recvmmsg,
            SYS_shutdown,
        ],
    },
    Group {
        reason: "System V and POSIX communication; bounded by the ipc namespace",
        calls: &[
            SYS_semget, SYS_semctl, SYS_semop, SYS_semtimedop, SYS_msgget, SYS_msgctl, SYS_msgsnd,
            SYS_msgrcv, SYS_shmget, SYS_shmctl, SYS_shmat, SYS_shmdt, SYS_mq_open, SYS_mq_unlink,
            SYS_mq_timedsend, SYS_mq_timedreceive, SYS_mq_notify, SYS_mq_getsetattr,
        ],
    },
    Group {
        reason: "the old asynchronous I/O: databases use it, CRIU dumps it",
        calls: &[
            SYS_io_setup, SYS_io_destroy, SYS_io_submit, SYS_io_cancel, SYS_io_getevents,
            newer::IO_PGETEVENTS,
        ],
    },
    Group {
        reason: "harmless questions",
        calls: &[SYS_uname, SYS_sysinfo, SYS_getrandom],
    },
    #[cfg(target_arch = "x86_64")]
    Group {
        reason: "older spellings of the above, which other architectures do not have",
        calls: &[
            SYS_open, SYS_creat, SYS_stat, SYS_lstat, SYS_access, SYS_pipe, SYS_dup2, SYS_poll,
            SYS_select, SYS_getdents, SYS_rename, SYS_mkdir, SYS_rmdir, SYS_mknod, SYS_link,
            SYS_unlink, SYS_symlink, SYS_readlink, SYS_chmod, SYS_chown, SYS_lchown, SYS_utime,
            SYS_utimes, SYS_futimesat, SYS_epoll_create, SYS_epoll_wait, SYS_epoll_ctl_old,
            SYS_epoll_wait_old, SYS_eventfd, SYS_signalfd, SYS_inotify_init, SYS_fork, SYS_vfork,
            SYS_getpgrp, SYS_pause, SYS_alarm, SYS_time, SYS_arch_prctl, SYS_get_thread_area,
            SYS_set_thread_area, SYS_modify_ldt,
        ],
    },
];

/// What a container may not call, by intent. Everything else that is not allowed is simply not there (ENOSYS);
/// that is also the way of `io_uring_setup`, `clone3` (whose flags a filter cannot see: libc then uses clone),
/// `memfd_secret`, `mseal` and `landlock_*`, none of which CRIU can dump or would bring back.
#[rustfmt::skip]
pub const REFUSED: &[Group] = &[
    Group {
        reason: "the file tree of a container is made before it starts, and by nobody else",
        calls: &[
            SYS_mount, SYS_umount2, SYS_pivot_root, SYS_open_tree, SYS_move_mount, SYS_fsopen,
            SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_open_by_handle_at,
            SYS_quotactl, SYS_swapon, SYS_swapoff,
        ],
    },
    Group {
        reason: "its namespaces too; nested ones could not be moved",
        calls: &[SYS_unshare, SYS_setns],
    },
    Group {
        reason: "the kernel itself: its modules, its clock, its power, its log",
        calls: &[
            SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load,
            SYS_kexec_file_load, SYS_reboot, SYS_syslog, SYS_acct, SYS_settimeofday,
            SYS_clock_settime, SYS_sethostname, SYS_setdomainname, SYS_vhangup, SYS_lookup_dcookie,
            SYS_nfsservctl,
        ],
    },
    Group {
        reason: "a large attack surface with a history, and nothing a service needs",
        calls: &[SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_fanotify_init],
    },
    Group {
        reason: "keys are not namespaced: they would be those of the host",
        calls: &[SYS_add_key, SYS_request_key, SYS_keyctl],
    },
    Group {
        reason: "looking into other processes; a traced task cannot be dumped, for it has a tracer already",
        calls: &[
            SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_process_madvise,
            SYS_kcmp, SYS_pidfd_getfd,
        ],
    },
    Group {
        reason: "the placement of memory on the nodes of this machine, which the next one does not have",
        calls: &[
            SYS_mbind, SYS_set_mempolicy, SYS_get_mempolicy, SYS_migrate_pages, SYS_move_pages,
        ],
    },
    #[cfg(target_arch = "x86_64")]
    Group {
        reason: "ports of the hardware, and calls that have long been dead",
        calls: &[
            SYS_iopl, SYS_ioperm, SYS__sysctl, SYS_uselib, SYS_ustat, SYS_sysfs,
        ],
    },
];

/// `clone` with one flag that makes a namespace.
const fn clone_with(flag: &'static [Test]) -> Condition {
    Condition {
        reason: "a new namespace could not be moved, and is a way to privileges",
        call: SYS_clone,
        when: flag,
    }
}

const fn has(argument: u8, bits: i32) -> Test {
    Test {
        argument,
        narrow: false,
        is: Is::Has(bits as u64),
    }
}

const fn equal(argument: u8, value: u64) -> Test {
    Test {
        argument,
        narrow: true,
        is: Is::Equal(value),
    }
}

const fn not(argument: u8, value: u64) -> Test {
    Test {
        argument,
        narrow: true,
        is: Is::Not(value),
    }
}

/// What is refused for some arguments.
pub const CONDITIONS: &[Condition] = &[
    clone_with(&[has(0, CLONE_NEWNS)]),
    clone_with(&[has(0, CLONE_NEWCGROUP)]),
    clone_with(&[has(0, CLONE_NEWUTS)]),
    clone_with(&[has(0, CLONE_NEWIPC)]),
    clone_with(&[has(0, CLONE_NEWUSER)]),
    clone_with(&[has(0, CLONE_NEWPID)]),
    clone_with(&[has(0, CLONE_NEWNET)]),
    Condition {
        reason: "vsock is not namespaced: it reaches the hypervisor past every firewall",
        call: SYS_socket,
        when: &[equal(0, AF_VSOCK as u64)],
    },
    Condition {
        reason: "the kernel's crypto sockets: rarely used, often broken, never dumpable",
        call: SYS_socket,
        when: &[equal(0, AF_ALG as u64)],
    },
    Condition {
        reason: "typing into a terminal that somebody else reads",
        call: SYS_ioctl,
        when: &[equal(1, TIOCSTI)],
    },
    Condition {
        reason: "the same, and more, on a console",
        call: SYS_ioctl,
        when: &[equal(1, TIOCLINUX)],
    },
    Condition {
        reason: "a filter with a listener outside of it could not be moved",
        call: SYS_seccomp,
        when: &[
            equal(0, SECCOMP_SET_MODE_FILTER as u64),
            has(1, SECCOMP_FILTER_FLAG_NEW_LISTENER as i32),
        ],
    },
    Condition {
        reason: "personalities other than Linux, with or without its 32-bit or kernel-2.6 looks, and the question",
        call: SYS_personality,
        when: &[
            not(0, PER_LINUX),
            not(0, PER_LINUX32),
            not(0, KERNEL_2_6),
            not(0, PER_LINUX32 | KERNEL_2_6),
            not(0, 0xffff_ffff),
        ],
    },
];

#[cfg(test)]
mod test {
    use super::*;
    use std::collections::BTreeSet;

    fn all(groups: &[Group]) -> BTreeSet<i64> {
        groups
            .iter()
            .flat_map(|g| g.calls.iter().copied())
            .collect()
    }

    #[test]
    fn no_call_is_listed_twice() {
        let count = |groups: &[Group]| groups.iter().map(|g| g.calls.len()).sum::<usize>();
        assert_eq!(all(ALLOWED).len(), count(ALLOWED));
        assert_eq!(all(REFUSED).len(), count(REFUSED));
        assert!(all(ALLOWED).is_disjoint(&all(REFUSED)));
    }

    #[test]
    fn what_cannot_be_moved_is_not_there() {
        let (allowed, refused) = (all(ALLOWED), all(REFUSED));
        for call in [
            SYS_io_uring_setup,
            SYS_clone3,
            SYS_memfd_secret,
            SYS_landlock_restrict_self,
        ] {
            assert!(
                !allowed.contains(&call) && !refused.contains(&call),
                "{call}"
            );
        }
    }

    #[test]
    fn a_condition_is_about_an_allowed_call() {
        let allowed = all(ALLOWED);
        assert!(CONDITIONS.iter().all(|c| allowed.contains(&c.call)));
        assert!(CONDITIONS.iter().all(|c| !c.when.is_empty()));
    }

    #[test]
    fn every_entry_has_a_reason() {
        let groups = ALLOWED.iter().chain(REFUSED).map(|g| g.reason);
        assert!(
            groups
                .chain(CONDITIONS.iter().map(|c| c.reason))
                .all(|r| r.len() > 10)
        );
    }
}
