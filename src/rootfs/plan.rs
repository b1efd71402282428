//! What is mounted inside a container, in order. Pure.
//!
//! Nothing comes from the host: every file system is a new one, every bind is of something inside. So a
//! container's mounts mean the same on every host, and CRIU can make them anew at the destination without being
//! told of any; the root is the one mount it is handed.
//!
//! Devices are the exception where the container has a user namespace of its own: nobody in there can make one, and one
//! on a file system that was mounted in there cannot be opened (`fs/super.c`, `SB_I_NODEV`). Those of the host are bound
//! in, which every host has under the same names; CRIU is told of these mounts ([`DEVICES`]).
//!
//! There is only one tmpfs. Each costs CRIU a `tar` in the dump and one in the restore (6-17 ms and 5-10 ms
//! inside the blackout), so `/dev/shm` is a directory of `/dev` with a mount of its own for its flags, and masked
//! directories are covered by an empty one instead of by a tmpfs each.

use nix::mount::MsFlags;

/// One mount, made after the change of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount {
    /// The file system; `None`: a bind of the target onto itself, which gives it flags of its own.
    pub filesystem: Option<&'static str>,
    /// Where, as an absolute path in the container.
    pub target: &'static str,
    /// Its flags.
    pub flags: MsFlags,
    /// Its options.
    pub options: &'static str,
    /// The mode of the directory, where it has to be made.
    pub mode: u32,
}

const fn flags(list: &[MsFlags]) -> MsFlags {
    let mut bits = 0;
    let mut i = 0;
    while i < list.len() {
        bits |= list[i].bits();
        i += 1;
    }
    MsFlags::from_bits_retain(bits)
}

const PLAIN: MsFlags = flags(&[MsFlags::MS_NOSUID, MsFlags::MS_NOEXEC, MsFlags::MS_NODEV]);
const WITH_DEVICES: MsFlags = flags(&[MsFlags::MS_NOSUID, MsFlags::MS_NOEXEC]);
const READ_ONLY: MsFlags = flags(&[PLAIN, MsFlags::MS_RDONLY]);

/// The first mounts: what devices are made in, and what the others stand on.
pub const FIRST: [Mount; 2] = [
    Mount {
        filesystem: Some("proc"),
        target: "/proc",
        flags: PLAIN,
        options: "",
        mode: 0o555,
    },
    Mount {
        filesystem: Some("tmpfs"),
        target: "/dev",
        flags: WITH_DEVICES,
        // Empty files cost the kernel's memory and count as nothing: their number is limited too.
        options: "mode=755,size=65536k,nr_inodes=65536",
        mode: 0o755,
    },
];

/// The mounts that come after the devices.
pub const SECOND: [Mount; 5] = [
    Mount {
        filesystem: Some("devpts"),
        target: "/dev/pts",
        flags: WITH_DEVICES,
        options: "newinstance,ptmxmode=0666,mode=0620,gid=5",
        mode: 0o755,
    },
    Mount {
        filesystem: None,
        target: "/dev/shm",
        flags: PLAIN,
        options: "",
        mode: 0o1777,
    },
    Mount {
        filesystem: Some("mqueue"),
        target: "/dev/mqueue",
        flags: PLAIN,
        options: "",
        mode: 0o1777,
    },
    // It shows the network namespace it is mounted in.
    Mount {
        filesystem: Some("sysfs"),
        target: "/sys",
        flags: READ_ONLY,
        options: "",
        mode: 0o555,
    },
    Mount {
        filesystem: Some("cgroup2"),
        target: "/sys/fs/cgroup",
        flags: READ_ONLY,
        options: "",
        mode: 0o555,
    },
];

/// A character device: path, major, minor. Everyone may read and write all of them.
pub const DEVICES: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Symbolic links: path and content.
pub const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// What covers a masked directory.
pub const EMPTY: &str = "/dev/.empty";

/// What covers a masked file.
pub const NOTHING: &str = "/dev/.nothing";

/// What is covered: a file by [`NOTHING`], a directory by [`EMPTY`]; what this kernel lacks is left out.
///
/// They tell of the host, or reach it, and its root owns them, whose number the container's root has. The list
/// is runc's without `/proc/asound` and the CPUs' `thermal_throttle`: those come and go with the hardware, and a
/// mount whose place does not exist on the destination cannot be restored there.
pub const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What can be read and not written: settings of the host's kernel.
pub const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_mount_stands_on_one_before_it() {
        let mut made = vec!["/"];
        for mount in FIRST.iter().chain(&SECOND) {
            let parent = mount.target.rsplit_once('/').unwrap().0;
            let below = |m: &str| m.len() == 1 || mount.target.starts_with(&format!("{m}/"));
            assert!(made.iter().any(|m| below(m)), "{parent}");
            made.push(mount.target);
        }
    }

    #[test]
    fn only_one_file_system_costs_a_tar() {
        let tmpfs = |m: &&Mount| m.filesystem == Some("tmpfs");
        assert_eq!(FIRST.iter().chain(&SECOND).filter(tmpfs).count(), 1);
    }

    #[test]
    fn nothing_executable_nothing_set_user_id() {
        for mount in FIRST.iter().chain(&SECOND) {
            assert!(mount.flags.contains(WITH_DEVICES), "{}", mount.target);
        }
    }
}
