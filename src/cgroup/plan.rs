//! Limits as values for cgroup files. Pure.

use crate::model::Limits;

/// One file to write, and the controller that must be there for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The controller the file belongs to.
    pub controller: &'static str,
    /// The file's name.
    pub file: &'static str,
    /// What is written to it.
    pub value: String,
    /// Whether a limit was asked for: without the controller this setting is then an error, not nothing.
    pub wanted: bool,
}

/// CPU time is given out in slices of this many microseconds, the kernel's default.
const PERIOD: u64 = 100_000;

/// The settings for these limits. A limit that is absent is lifted where it was set before, so that a plan
/// describes the whole state and not a change.
pub fn settings(limits: &Limits) -> Vec<Setting> {
    let or_max = |limit: Option<u64>| limit.map_or_else(|| "max".to_owned(), |n| n.to_string());
    let setting = |controller, file, value, wanted| Setting {
        controller,
        file,
        value,
        wanted,
    };
    let memory = limits.memory.map(|bytes| bytes.0);
    // Swapped pages would be outside the limit, and reading them back costs a migration its pace.
    let swap = if memory.is_some() { "0" } else { "max" };
    vec![
        setting("memory", "memory.max", or_max(memory), memory.is_some()),
        setting("memory", "memory.swap.max", swap.to_owned(), false),
        setting("cpu", CPU_MAX, cpu_max(limits), limits.cpu_millis.is_some()),
        setting(
            "pids",
            "pids.max",
            or_max(limits.pids),
            limits.pids.is_some(),
        ),
    ]
}

/// The file that limits processor time.
pub const CPU_MAX: &str = "cpu.max";

/// What [`CPU_MAX`] holds for these limits.
pub fn cpu_max(limits: &Limits) -> String {
    match limits.cpu_millis {
        Some(millis) => format!("{} {PERIOD}", millis.saturating_mul(PERIOD / 1000)),
        None => format!("max {PERIOD}"),
    }
}

/// The slices in which a throttled container is given its time, in microseconds: shorter than usual, so that it is
/// slow and not stopped for long.
const THROTTLED_PERIOD: u64 = 20_000;
/// The kernel takes no quota below this, in microseconds.
const LEAST_QUOTA: u64 = 1000;

/// What [`CPU_MAX`] holds for a container that has used `usage` microseconds of processor time per second and is to
/// have `percent` of that. Never more than its limits allow.
pub fn throttled(limits: &Limits, usage: u64, percent: u32) -> String {
    let allowed = limits.cpu_millis.map(|millis| millis.saturating_mul(1000));
    let usage = usage.min(allowed.unwrap_or(u64::MAX));
    let per_period = usage.saturating_mul(THROTTLED_PERIOD) / 1_000_000;
    let quota = per_period.saturating_mul(u64::from(percent)) / 100;
    format!("{} {THROTTLED_PERIOD}", quota.max(LEAST_QUOTA))
}

/// The processor time in a `cpu.stat`, in microseconds.
pub fn cpu_used(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?
        .trim()
        .parse()
        .ok()
}

/// The controllers containers use, where the kernel has them.
pub const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// Where the cgroup v2 hierarchy is mounted, by the text of `/proc/self/mountinfo`.
pub fn mount_point(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        // A mount of something below the root shows a part of the tree only.
        (fields.next() == Some("/")).then(|| fields.next().map(str::to_owned))?
    })
}

/// Whether a text is the name of one cgroup, or a path of such names.
pub fn is_path(text: &str) -> bool {
    let component = |c: &str| {
        !c.is_empty()
            && !c.starts_with('.')
            && c.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.@:".contains(&b))
    };
    text.split('/').all(component)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::Bytes;

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            memory: Some(Bytes(64 << 20)),
            cpu_millis: Some(1500),
            pids: None,
        };
        let text: Vec<String> = settings(&limits)
            .iter()
            .map(|s| format!("{}={} {}", s.file, s.value, s.wanted))
            .collect();
        assert_eq!(
            text,
            [
                "memory.max=67108864 true",
                "memory.swap.max=0 false",
                "cpu.max=150000 100000 true",
                "pids.max=max false",
            ]
        );
        assert!(settings(&Limits::default()).iter().all(|s| !s.wanted));
    }

    #[test]
    fn a_throttled_container_has_a_share_of_what_it_used() {
        let limits = |cpu_millis| Limits {
            cpu_millis,
            ..Limits::default()
        };
        // Two cores of 20 ms each per slice, 80 % of them.
        assert_eq!(throttled(&limits(None), 2_000_000, 80), "32000 20000");
        // Half a core is all it may have.
        assert_eq!(throttled(&limits(Some(500)), 2_000_000, 80), "8000 20000");
        assert_eq!(throttled(&limits(None), 0, 20), "1000 20000");
        assert_eq!(throttled(&limits(None), u64::MAX, 80).split(' ').count(), 2);
        assert_eq!(cpu_max(&limits(None)), "max 100000");
        assert_eq!(cpu_max(&limits(Some(500))), "50000 100000");
        assert_eq!(cpu_used("usage_usec 42\nuser_usec 1\n"), Some(42));
        assert_eq!(cpu_used("nr_periods 0\n"), None);
    }

    #[test]
    fn the_unified_mount_is_found_among_others() {
        let text = "30 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
            42 31 0:38 /part /elsewhere rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text).as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point("nonsense\n1 2 - cgroup2"), None);
    }

    #[test]
    fn a_path_stays_below_its_root() {
        for good in ["godwit", "a.slice/b.service", "x-1_2"] {
            assert!(is_path(good), "{good}");
        }
        for bad in [
            "", "/", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "a b", "a\n",
        ] {
            assert!(!is_path(bad), "{bad:?}");
        }
    }
}
