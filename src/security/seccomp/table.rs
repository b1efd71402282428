//! The numbers of system calls, by name, on the architectures that the processors we run on can execute. Pure.
//!
//! A 64-bit x86 kernel lets a process in by three doors, a 64-bit Arm one by two. Each has a table of its own, and a
//! filter that forgets one of them is no filter: what it does not name is refused whole.

use std::collections::HashMap;

/// A way into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 32-bit pointers in 64-bit mode: the numbers of 64-bit x86 with a bit set, and some of its own.
    X32,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit Arm.
    Arm,
}

/// The bit by which a call is one of [`Architecture::X32`].
pub const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// The one of this program; none: nobody has written down the tables of this processor.
    pub fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// The ways into a kernel of this architecture.
    pub fn doors(self) -> &'static [Self] {
        match self {
            Self::X86_64 | Self::X86 | Self::X32 => &[Self::X86_64, Self::X86, Self::X32],
            Self::Aarch64 | Self::Arm => &[Self::Aarch64, Self::Arm],
        }
    }

    /// `AUDIT_ARCH_…`, as the kernel tells it to a filter. Two have the same: see [`X32_BIT`].
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether an argument has 64 bits. Of a narrow one the kernel looks at the lower 32 only, and so must a filter.
    pub fn is_wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }
}

/// The names and numbers of one architecture.
#[derive(Debug)]
pub struct Table(HashMap<&'static str, u32>);

impl Table {
    /// The table.
    pub fn of(architecture: Architecture) -> Self {
        // The iteration ends before the last one.
        macro_rules! all {
            ($of:ident) => {
                syscalls::$of::Sysno::iter()
                    .chain([syscalls::$of::Sysno::last()])
                    .map(|call| (call.name(), call.id().cast_unsigned()))
                    .collect()
            };
        }
        let mut numbers: HashMap<&'static str, u32> = match architecture {
            Architecture::X86_64 | Architecture::X32 => all!(x86_64),
            Architecture::X86 => all!(x86),
            Architecture::Aarch64 => all!(aarch64),
            Architecture::Arm => all!(arm),
        };
        if architecture == Architecture::X32 {
            numbers.retain(|name, _| !X32_NOT.contains(name));
            numbers.values_mut().for_each(|number| *number |= X32_BIT);
            numbers.extend(
                X32_OWN
                    .iter()
                    .map(|(name, number)| (*name, number | X32_BIT)),
            );
        }
        Self(numbers)
    }

    /// The number of a call; none where this architecture does not have it, or we do not know it yet.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied()
    }
}

/// What X32 does not have.
const X32_NOT: [&str; 11] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
];

/// What X32 does not share with 64-bit x86: calls whose structures are laid out differently.
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// Calls of 32-bit x86 that are many: the first argument says which.
const MANY: [(&str, &str, u32); 32] = [
    ("socket", "socketcall", 1),
    ("bind", "socketcall", 2),
    ("connect", "socketcall", 3),
    ("listen", "socketcall", 4),
    ("accept", "socketcall", 5),
    ("getsockname", "socketcall", 6),
    ("getpeername", "socketcall", 7),
    ("socketpair", "socketcall", 8),
    ("send", "socketcall", 9),
    ("recv", "socketcall", 10),
    ("sendto", "socketcall", 11),
    ("recvfrom", "socketcall", 12),
    ("shutdown", "socketcall", 13),
    ("setsockopt", "socketcall", 14),
    ("getsockopt", "socketcall", 15),
    ("sendmsg", "socketcall", 16),
    ("recvmsg", "socketcall", 17),
    ("accept4", "socketcall", 18),
    ("recvmmsg", "socketcall", 19),
    ("sendmmsg", "socketcall", 20),
    ("semop", "ipc", 1),
    ("semget", "ipc", 2),
    ("semctl", "ipc", 3),
    ("semtimedop", "ipc", 4),
    ("msgsnd", "ipc", 11),
    ("msgrcv", "ipc", 12),
    ("msgget", "ipc", 13),
    ("msgctl", "ipc", 14),
    ("shmat", "ipc", 21),
    ("shmdt", "ipc", 22),
    ("shmget", "ipc", 23),
    ("shmctl", "ipc", 24),
];

/// The call by which 32-bit x86 can make this one as well, and what its first argument then is, in the lower 16 bits
/// (above them `ipc` has a version).
pub fn also_by(architecture: Architecture, name: &str) -> Option<(&'static str, u32)> {
    if architecture != Architecture::X86 {
        return None;
    }
    let (_, by, number) = MANY.iter().find(|(call, _, _)| *call == name)?;
    Some((by, *number))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn each_architecture_has_its_own_numbers() {
        let number = |of, name| Table::of(of).number(name);
        assert_eq!(number(Architecture::X86_64, "read"), Some(0));
        assert_eq!(number(Architecture::X86, "read"), Some(3));
        assert_eq!(number(Architecture::X32, "read"), Some(0x4000_0000));
        assert_eq!(number(Architecture::X32, "ioctl"), Some(0x4000_0202));
        assert_eq!(number(Architecture::Aarch64, "read"), Some(63));
        assert_eq!(number(Architecture::Arm, "read"), Some(3));
        for of in Architecture::X86_64.doors() {
            assert_eq!(number(*of, "clone3").unwrap() & 0xfff, 435);
            assert_eq!(number(*of, "file_setattr").unwrap() & 0xfff, 469);
        }
        assert_eq!(number(Architecture::Aarch64, "open"), None);
        assert_eq!(number(Architecture::X32, "uselib"), None);
        assert_eq!(number(Architecture::X86, "recv"), None);
        assert_eq!(number(Architecture::X86_64, "no_such_call"), None);
        assert_eq!(also_by(Architecture::X86, "recv"), Some(("socketcall", 10)));
        assert_eq!(also_by(Architecture::X86_64, "recv"), None);
    }

    #[test]
    fn the_numbers_are_those_that_libc_has() {
        let native = Table::of(Architecture::native().unwrap());
        for (name, number) in [
            ("openat2", libc::SYS_openat2),
            ("execveat", libc::SYS_execveat),
            ("seccomp", libc::SYS_seccomp),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("bpf", libc::SYS_bpf),
        ] {
            assert_eq!(native.number(name).map(i64::from), Some(number), "{name}");
        }
    }
}
