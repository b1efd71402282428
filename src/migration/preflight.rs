//! Whether a container can live on another host: facts of both in, reasons out.

use crate::model::kernel_flags::is_for_programs;
use crate::model::{Bytes, CriuVersion, Finding, HostFacts, RestoreChoice, Userns};

/// What the destination knows of itself when it is asked.
#[derive(Debug, Clone)]
pub struct Here<'a> {
    /// Its facts, the memory as of now.
    pub facts: &'a HostFacts,
    /// A container of that name is here already.
    pub name_taken: bool,
    /// Who holds that address here, if somebody else does.
    pub address_holder: Option<String>,
    /// Whether the address lies in this host's container network.
    pub address_fits: bool,
    /// Room for files.
    pub disk_available: Bytes,
}

/// What arrives.
#[derive(Debug, Clone)]
pub struct Coming<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address.
    pub address: String,
    /// The source's facts.
    pub facts: &'a HostFacts,
    /// Its resident memory.
    pub memory: Bytes,
    /// The size of its own files.
    pub files: Bytes,
    /// How its memory shall come back.
    pub restore: RestoreChoice,
    /// Whether it has a user namespace of its own.
    pub userns: Userns,
    /// Whether a part of it may be left behind.
    pub post_copy: bool,
}

/// What a restore needs besides the container's memory: images, page tables, CRIU itself.
const MEMORY_MARGIN: Bytes = Bytes(64 << 20);
/// Disk that a host keeps for itself.
const DISK_MARGIN: Bytes = Bytes(64 << 20);

/// Every reason against it, not only the first.
pub fn preflight(coming: &Coming<'_>, here: &Here<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(identity(coming, here));
    findings.extend(users(coming, here));
    findings.extend(laziness(coming, here));
    findings.extend(memory(coming, here));
    findings.extend(disk(coming, here));
    findings.extend(processor(coming.facts, here.facts));
    findings.extend(criu(coming.facts, here.facts));
    findings
}

fn identity(coming: &Coming<'_>, here: &Here<'_>) -> Vec<Finding> {
    let mut out = Vec::new();
    let host = &here.facts.name;
    if here.name_taken {
        let text = format!(
            "{host} has a container named {} already; delete it there or create this one under another name",
            coming.name
        );
        out.push(Finding::blocking("name-in-use", text));
    }
    if let Some(holder) = &here.address_holder {
        let text = format!(
            "the address {} is held by {holder} on {host}; free it there",
            coming.address
        );
        out.push(Finding::blocking("address-in-use", text));
    }
    if !here.address_fits {
        let text = format!(
            "the address {} is outside the container network of {host}; both hosts must share one network",
            coming.address
        );
        out.push(Finding::blocking("address-outside", text));
    }
    out
}

/// Whether its memory is filled in behind it here.
fn lazily(coming: &Coming<'_>, here: &Here<'_>) -> bool {
    match coming.restore {
        RestoreChoice::Auto | RestoreChoice::Lazy => here.facts.lazy(coming.userns).usable,
        RestoreChoice::Eager => false,
    }
}

fn users(coming: &Coming<'_>, here: &Here<'_>) -> Option<Finding> {
    let ability = &here.facts.userns;
    if coming.userns.is_host() || ability.usable {
        return None;
    }
    let text = format!(
        "{} has a user namespace, which {} cannot give it: {}",
        coming.name, here.facts.name, ability.why
    );
    Some(Finding::blocking("no-user-namespace", text))
}

fn laziness(coming: &Coming<'_>, here: &Here<'_>) -> Option<Finding> {
    let ability = here.facts.lazy(coming.userns);
    if ability.usable {
        return None;
    }
    if coming.post_copy {
        let text = format!(
            "post-copy needs a lazy restore, and {} cannot restore lazily: {}; choose --on-no-convergence throttle, stop-copy or abort",
            here.facts.name, ability.why
        );
        return Some(Finding::blocking("no-post-copy", text));
    }
    if coming.restore != RestoreChoice::Lazy {
        return None;
    }
    let text = format!(
        "{} cannot restore lazily: {}; migrate with --restore auto or --restore eager",
        here.facts.name, ability.why
    );
    Some(Finding::blocking("no-lazy-restore", text))
}

/// The memory a container needs here until it runs and its images are freed.
///
/// An eager restore has it here twice: in the page store, from which it can be restored again, and in the restored
/// container. A lazy one frees the store as the container fills; what overlaps, and the page tables, is the rest.
fn demand(memory: Bytes, lazily: bool) -> Bytes {
    let percent = if lazily { 115 } else { 200 };
    Bytes(memory.0.saturating_mul(percent) / 100) + MEMORY_MARGIN
}

fn memory(coming: &Coming<'_>, here: &Here<'_>) -> Option<Finding> {
    let (host, facts) = (&here.facts.name, here.facts);
    let lazily = lazily(coming, here);
    let needed = demand(coming.memory, lazily);
    if facts.memory_available >= needed {
        return None;
    }
    let less = demand(coming.memory, true);
    let remedy = if !lazily && facts.lazy(coming.userns).usable && facts.memory_available >= less {
        format!("restore it lazily (--restore lazy), which takes {less}")
    } else {
        "move other containers away first".to_owned()
    };
    let text = format!(
        "{host} has {} of memory available and {needed} are needed for the container's {}; {remedy}",
        facts.memory_available, coming.memory
    );
    Some(Finding::blocking("no-room", text))
}

fn disk(coming: &Coming<'_>, here: &Here<'_>) -> Option<Finding> {
    let needed = coming.files + DISK_MARGIN;
    if here.disk_available >= needed {
        return None;
    }
    let text = format!(
        "{} has {} of disk available and {needed} are needed; free some there",
        here.facts.name, here.disk_available
    );
    Some(Finding::blocking("no-disk", text))
}

fn processor(from: &HostFacts, to: &HostFacts) -> Option<Finding> {
    if from.cpu.arch != to.cpu.arch {
        let text = format!(
            "{} is {} and {} is {}",
            from.name, from.cpu.arch, to.name, to.cpu.arch
        );
        return Some(Finding::blocking("cpu-incompatible", text));
    }
    let missing: Vec<&str> = from
        .cpu
        .flags
        .difference(&to.cpu.flags)
        .map(String::as_str)
        .filter(|flag| is_for_programs(flag))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let shown = missing[..missing.len().min(10)].join(" ");
    let more = if missing.len() > 10 {
        format!(" and {} more", missing.len() - 10)
    } else {
        String::new()
    };
    let text = format!(
        "the processor of {} lacks what a program may have found on {}: {shown}{more}; choose a host with at least the same features",
        to.name, from.name
    );
    Some(Finding::blocking("cpu-incompatible", text))
}

fn criu(from: &HostFacts, to: &HostFacts) -> Option<Finding> {
    let unusable = |host: &HostFacts| {
        let why = host.criu_problem.as_deref().unwrap_or("CRIU was not found");
        let text = format!(
            "{} cannot use CRIU: {why}; run scripts/setup there",
            host.name
        );
        Finding::blocking("criu-incompatible", text)
    };
    let Some(source) = from.criu else {
        return Some(unusable(from));
    };
    let Some(destination) = to.criu else {
        return Some(unusable(to));
    };
    let text = if destination < CriuVersion::OLDEST {
        format!(
            "{} has CRIU {destination}, {} or newer is needed",
            to.name,
            CriuVersion::OLDEST
        )
    } else if !destination.reads_images_of(source) {
        format!(
            "{} has CRIU {destination}, which may not read the images of {source} on {}; install {source} or newer there",
            to.name, from.name
        )
    } else {
        return None;
    };
    Some(Finding::blocking("criu-incompatible", text))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Ability, CpuFacts};

    fn host(name: &str) -> HostFacts {
        HostFacts {
            name: name.parse().unwrap(),
            godwit: "0.1.0".into(),
            kernel: "6.18".into(),
            cpu: CpuFacts {
                arch: "x86_64".into(),
                vendor: "GenuineIntel".into(),
                flags: ["sse2", "avx"].map(String::from).into(),
            },
            criu: Some("4.2.1".parse().unwrap()),
            criu_problem: None,
            soft_dirty: false,
            memory_available: Bytes(1 << 30),
            trackers: Vec::new(),
            lazy_restore: Ability::default(),
            userns: Ability {
                usable: true,
                ..Ability::default()
            },
            lazy_userns: Ability::default(),
            hides_pages: Ability::default(),
            spares_smaps: Ability::default(),
            throttle: Ability::default(),
        }
    }

    fn codes(
        from: &HostFacts,
        to: &HostFacts,
        change: impl FnOnce(&mut Coming<'_>, &mut Here<'_>),
    ) -> Vec<String> {
        let mut coming = Coming {
            name: "web",
            address: "10.88.0.10".into(),
            facts: from,
            memory: Bytes(256 << 20),
            files: Bytes(1 << 20),
            restore: RestoreChoice::Auto,
            userns: Userns::Auto,
            post_copy: false,
        };
        let mut here = Here {
            facts: to,
            name_taken: false,
            address_holder: None,
            address_fits: true,
            disk_available: Bytes(1 << 30),
        };
        change(&mut coming, &mut here);
        let findings = preflight(&coming, &here);
        assert!(findings.iter().all(|f| f.blocking && f.text.len() > 20));
        findings.into_iter().map(|f| f.code).collect()
    }

    #[test]
    fn two_equal_hosts_have_no_objection() {
        assert_eq!(
            codes(&host("alpha"), &host("beta"), |_, _| ()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn every_reason_is_named_at_once() {
        let found = codes(&host("alpha"), &host("beta"), |coming, here| {
            here.name_taken = true;
            here.address_holder = Some("db".into());
            here.address_fits = false;
            here.disk_available = Bytes(0);
            coming.memory = Bytes(1 << 30);
        });
        assert_eq!(
            found,
            [
                "name-in-use",
                "address-in-use",
                "address-outside",
                "no-room",
                "no-disk"
            ]
        );
    }

    #[test]
    fn users_of_its_own_are_possible_or_named_and_cost_the_laziness_where_they_must() {
        let (from, mut to) = (host("alpha"), host("beta"));
        to.lazy_restore.usable = true;
        let lazily =
            |coming: &mut Coming<'_>, _: &mut Here<'_>| coming.restore = RestoreChoice::Lazy;
        assert_eq!(codes(&from, &to, lazily), ["no-lazy-restore"]);
        to.lazy_userns.usable = true;
        assert_eq!(codes(&from, &to, lazily), [""; 0]);
        to.userns.usable = false;
        assert_eq!(codes(&from, &to, lazily), ["no-user-namespace"]);
        let without = |coming: &mut Coming<'_>, _: &mut Here<'_>| coming.userns = Userns::Host;
        assert_eq!(codes(&from, &to, without), [""; 0]);
    }

    #[test]
    fn a_lazy_restore_needs_little_more_than_the_container_and_an_eager_one_twice_it() {
        let text = |lazy: bool, restore: RestoreChoice, available: u64| {
            let mut to = host("beta");
            to.lazy_restore.usable = lazy;
            to.memory_available = Bytes(available << 20);
            let from = host("alpha");
            let coming = Coming {
                name: "web",
                address: "10.88.0.10".into(),
                facts: &from,
                memory: Bytes(1000 << 20),
                files: Bytes(0),
                restore,
                userns: Userns::Host,
                post_copy: false,
            };
            let here = Here {
                facts: &to,
                name_taken: false,
                address_holder: None,
                address_fits: true,
                disk_available: Bytes(1 << 30),
            };
            let found = preflight(&coming, &here);
            found.into_iter().map(|f| f.text).collect::<String>()
        };
        use RestoreChoice::{Auto, Eager, Lazy};
        for restore in [Auto, Lazy] {
            assert_eq!(text(true, restore, 1214), "");
            assert!(text(true, restore, 1213).contains("1.18 GiB"));
        }
        for (lazy, restore) in [(true, Eager), (false, Auto), (false, Eager)] {
            assert_eq!(text(lazy, restore, 2064), "");
            assert!(text(lazy, restore, 2063).contains("2.02 GiB"));
        }
        let remedy = "restore it lazily (--restore lazy), which takes 1.19 GiB";
        assert!(text(true, Eager, 2063).contains(remedy));
        let refused = text(false, Lazy, 9000);
        assert!(refused.contains("it was not tried") && refused.contains("--restore auto"));
    }

    #[test]
    fn memory_is_left_behind_only_where_it_can_be_filled_in() {
        let mut to = host("beta");
        let wish = |coming: &mut Coming<'_>, _: &mut Here<'_>| {
            coming.post_copy = true;
            coming.userns = Userns::Host;
        };
        assert_eq!(codes(&host("alpha"), &to, wish), ["no-post-copy"]);
        to.lazy_restore.usable = true;
        assert_eq!(codes(&host("alpha"), &to, wish), Vec::<String>::new());
    }

    #[test]
    fn a_processor_must_have_every_feature_of_the_source() {
        let mut poorer = host("beta");
        poorer.cpu.flags.remove("avx");
        assert_eq!(
            codes(&host("alpha"), &poorer, |_, _| ()),
            ["cpu-incompatible"]
        );
        assert_eq!(
            codes(&poorer, &host("alpha"), |_, _| ()),
            Vec::<String>::new()
        );
        let mut other_kernel = host("alpha");
        other_kernel.cpu.flags.insert("xtopology".into());
        assert_eq!(
            codes(&other_kernel, &host("beta"), |_, _| ()),
            Vec::<String>::new()
        );
        let mut other = host("beta");
        other.cpu.arch = "aarch64".into();
        assert_eq!(
            codes(&host("alpha"), &other, |_, _| ()),
            ["cpu-incompatible"]
        );
    }

    #[test]
    fn a_criu_that_may_not_read_the_images_is_refused() {
        let with = |v: Option<&str>| HostFacts {
            criu: v.map(|v| v.parse().unwrap()),
            ..host("beta")
        };
        for (source, destination, fine) in [
            ("4.2.1", Some("4.2"), true),
            ("4.2.1", Some("4.3"), true),
            ("4.2.1", Some("4.1.1"), true),
            ("4.3", Some("4.2.1"), false),
            ("4.1.1", Some("3.19"), false),
            ("4.2.1", None, false),
        ] {
            assert_eq!(
                codes(&with(Some(source)), &with(destination), |_, _| ()).is_empty(),
                fine,
                "{source} to {destination:?}"
            );
        }
    }
}
