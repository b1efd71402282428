//! What this host is: read from uname(2), /proc/cpuinfo and /proc/meminfo.

use std::collections::BTreeSet;
use std::path::Path;

use super::DaemonError;
use crate::cgroup::CgroupRoot;
use crate::memory::tracker;
use crate::model::{Ability, Bytes, CpuFacts, CriuVersion, HostFacts, Name, TrackerOffer};
use crate::rootfs::overlay;
use crate::sys::userfaultfd;

/// What was found out about CRIU when the daemon started.
#[derive(Debug, Clone, Default)]
pub struct CriuFacts {
    /// Its version, where it works.
    pub version: Option<CriuVersion>,
    /// Why it does not, where it does not.
    pub problem: Option<String>,
    /// Whether the kernel tracks soft-dirty pages.
    pub soft_dirty: bool,
    /// Whether it can be kept from reading memory that was copied before.
    pub hides_pages: Ability,
    /// Whether it can be told the flags of mappings.
    pub spares_smaps: Ability,
}

/// What was found out about this kernel's ways with memory when the daemon started.
#[derive(Debug, Clone, Default)]
pub struct MemoryFacts {
    /// How changed pages can be found, the best first.
    pub trackers: Vec<TrackerOffer>,
    /// Whether memory can be filled in behind a running container.
    pub lazy_restore: Ability,
    /// Whether that works in a user namespace, too.
    pub lazy_userns: Ability,
    /// Whether a container can be slowed down while its memory is copied.
    pub throttle: Ability,
}

/// Gathers the facts of the host named `name`.
pub fn gather(
    name: &Name,
    criu: CriuFacts,
    memory: MemoryFacts,
    userns: Ability,
) -> Result<HostFacts, DaemonError> {
    let uname = nix::sys::utsname::uname().map_err(|e| DaemonError::Io {
        what: "ask the kernel for its release".to_owned(),
        source: e.into(),
    })?;
    let arch = uname.machine().to_string_lossy().into_owned();
    Ok(HostFacts {
        name: name.clone(),
        godwit: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        cpu: cpu_facts(&arch, &read(Path::new("/proc/cpuinfo"))?),
        criu: criu.version,
        criu_problem: criu.problem,
        soft_dirty: criu.soft_dirty,
        memory_available: memory_available()?,
        trackers: memory.trackers,
        lazy_restore: memory.lazy_restore,
        userns,
        lazy_userns: memory.lazy_userns,
        hides_pages: criu.hides_pages,
        spares_smaps: criu.spares_smaps,
        throttle: memory.throttle,
    })
}

/// Finds out how memory can be copied out of running tasks here, and back into them.
pub fn memory(cgroups: &CgroupRoot) -> MemoryFacts {
    MemoryFacts {
        trackers: tracker::offered(),
        lazy_restore: lazy_restore(),
        lazy_userns: lazy_userns(),
        throttle: throttle(cgroups),
    }
}

fn throttle(cgroups: &CgroupRoot) -> Ability {
    let at = cgroups.path().display();
    if cgroups.can_throttle() {
        Ability {
            usable: true,
            why: format!("the cpu controller is in {at}"),
        }
    } else {
        Ability {
            usable: false,
            why: format!(
                "no cpu controller in {at}: boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)"
            ),
        }
    }
}

/// Whether this kernel tells enough of an address space whose pages come later.
fn lazy_restore() -> Ability {
    let features = userfaultfd::FEATURE_EVENT_FORK
        | userfaultfd::FEATURE_EVENT_REMAP
        | userfaultfd::FEATURE_EVENT_REMOVE
        | userfaultfd::FEATURE_EVENT_UNMAP;
    let tried = userfaultfd::create(0).and_then(|uffd| uffd.handshake(features));
    match tried {
        Ok(_) => Ability {
            usable: true,
            why: "this kernel has userfaultfds that tell of forks and of moved memory".to_owned(),
        },
        Err(error) => Ability {
            usable: false,
            why: format!(
                "this kernel has no userfaultfds that tell of forks and of moved memory: {error}"
            ),
        },
    }
}

/// Whether tasks can have such userfaultfds that may not ask for one themselves.
fn lazy_userns() -> Ability {
    Ability::shown(
        userfaultfd::create_by_device(0).map(drop),
        "/dev/userfaultfd gives userfaultfds to tasks in a user namespace",
    )
}

/// Whether a container can have a user namespace: files in the state directory can be shown as its users'.
pub fn userns(state_dir: &Path) -> Ability {
    let proof = format!(
        "files in {} can be shown as its users'",
        state_dir.display()
    );
    let tried = overlay::try_shown(&state_dir.join("containers"));
    Ability::shown(
        tried.map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        proof,
    )
}

/// Memory that a container could still get here, now.
pub fn memory_available() -> Result<Bytes, DaemonError> {
    Ok(available_in(&read(Path::new("/proc/meminfo"))?))
}

fn read(path: &Path) -> Result<String, DaemonError> {
    std::fs::read_to_string(path).map_err(|source| DaemonError::Io {
        what: format!("read {}", path.display()),
        source,
    })
}

/// The first processor's vendor and flags (`flags` on x86, `Features` on arm64).
fn cpu_facts(arch: &str, cpuinfo: &str) -> CpuFacts {
    let first = |wanted: &[&str]| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| wanted.contains(&key.trim()))
            .map_or("", |(_, value)| value.trim())
    };
    CpuFacts {
        arch: arch.to_owned(),
        vendor: first(&["vendor_id", "CPU implementer"]).to_owned(),
        flags: first(&["flags", "Features"])
            .split_whitespace()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>(),
    }
}

/// `MemAvailable:   123 kB` of /proc/meminfo; nothing where it is not told.
fn available_in(meminfo: &str) -> Bytes {
    let kilobytes = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    Bytes(kilobytes.unwrap_or(0).saturating_mul(1024))
}

#[cfg(test)]
mod test {
    use super::*;

    const X86: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse avx2\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\nflags\t\t: fpu\n";
    const ARM: &str = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n";

    #[test]
    fn the_first_processor_speaks_for_all() {
        let facts = cpu_facts("x86_64", X86);
        assert_eq!(facts.vendor, "GenuineIntel");
        assert_eq!(
            facts.flags.iter().map(String::as_str).collect::<Vec<_>>(),
            ["avx2", "fpu", "sse"]
        );
        let facts = cpu_facts("aarch64", ARM);
        assert_eq!((facts.vendor.as_str(), facts.flags.len()), ("0x41", 2));
        assert_eq!(cpu_facts("riscv64", "").flags.len(), 0);
    }

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(
            available_in("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"),
            Bytes(2 << 20)
        );
        assert_eq!(available_in("MemTotal: 9 kB\n"), Bytes(0));
    }

    #[test]
    fn this_host_has_facts() {
        let facts = gather(
            &"alpha".parse().unwrap(),
            CriuFacts::default(),
            MemoryFacts::default(),
            Ability::default(),
        )
        .unwrap();
        assert!(!facts.kernel.is_empty() && !facts.cpu.arch.is_empty());
        assert!(facts.memory_available > Bytes(0));
    }
}
