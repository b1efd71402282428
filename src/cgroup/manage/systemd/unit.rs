//! Which unit of systemd a cgroup is, and what the unit has to know of its limits. Pure.
//!
//! With systemd's driver `linux.cgroupsPath` is `slice:prefix:name`, as engines write it, and the cgroup that of the
//! scope `prefix-name.scope`. A slice's name tells where it is: `a-b.slice` is in `a.slice` (systemd.slice(5)).

use std::path::Path;

use crate::cgroup::CgroupError;
use crate::cgroup::manage::plan::Setting;

/// The slice of containers that name none.
const SLICE: &str = "system.slice";
/// The prefix of the scopes of containers whose bundle says nothing about cgroups.
const PREFIX: &str = "godwit";
/// The length of the longest name of a unit (`UNIT_NAME_MAX` in systemd's unit-name.h), with its NUL.
const LONGEST: usize = 256;
const SUFFIX: &str = ".slice";
const ROOT: &str = "-.slice";

/// A scope that will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The slice it is in.
    pub slice: String,
    /// Its name, with `.scope`.
    pub name: String,
}

/// A property of a unit that bounds what it uses; see systemd.resource-control(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// A number; `u64::MAX` for no limit.
    Number(&'static str, u64),
    /// A set of processors or memory nodes: a bit each, the first in the lowest bit of the first byte.
    Set(&'static str, Vec<u8>),
}

impl Unit {
    /// The unit that a bundle asks for by `linux.cgroupsPath`, of the container `id`.
    pub fn of(id: &str, path: Option<&Path>) -> Result<Self, CgroupError> {
        let text = path.map(|path| path.to_str().unwrap_or("\0"));
        let text = text.unwrap_or_default();
        let refused = |reason| CgroupError::Place {
            path: text.to_owned(),
            reason,
        };
        let (slice, prefix, name) = if text.is_empty() {
            ("", PREFIX, id)
        } else {
            let mut parts = text.split(':');
            match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some(slice), Some(prefix), Some(name), None) if !name.is_empty() => {
                    (slice, prefix, name)
                }
                _ => return Err(refused("systemd's driver wants `slice:prefix:name`")),
            }
        };
        if name.ends_with(SUFFIX) {
            return Err(refused(
                "a container is in a scope, not a slice; give a name without `.slice`",
            ));
        }
        let slice = if slice.is_empty() { SLICE } else { slice };
        let name = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || ":_.-\\@".contains(c);
        if !name.chars().all(plain) || name.len() >= LONGEST {
            return Err(refused(
                "the name is none of a unit; use letters, digits, `:`, `_`, `.` and `-`",
            ));
        }
        let unit = Self {
            slice: slice.to_owned(),
            name,
        };
        if !plain_slice(slice) {
            return Err(refused(
                "the slice is none; its name is words joined by `-`, and ends with `.slice`",
            ));
        }
        Ok(unit)
    }

    /// Where its cgroup is, as names below the root of systemd's hierarchy.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        if self.slice != ROOT {
            let words = self.slice.trim_end_matches(SUFFIX);
            let ends = words.match_indices('-').map(|(at, _)| at);
            names.extend(ends.map(|end| format!("{}{SUFFIX}", &words[..end])));
            names.push(self.slice.clone());
        }
        names.push(self.name.clone());
        names
    }
}

/// Whether this is the name of a slice: words of letters, digits and `_`, joined by `-`.
fn plain_slice(slice: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.:\\@".contains(c);
    slice == ROOT
        || slice.len() < LONGEST
            && slice.strip_suffix(SUFFIX).is_some_and(|words| {
                words
                    .split('-')
                    .all(|word| !word.is_empty() && word.chars().all(plain))
            })
}

/// What a unit has to know of these settings. systemd writes the files of a unit anew whenever it likes, and what it
/// was not told it takes for unlimited. Files that it has no property for it leaves alone.
pub fn properties(settings: &[Setting]) -> Vec<Property> {
    settings.iter().flat_map(property).collect()
}

fn property(setting: &Setting) -> Vec<Property> {
    let value = setting.value.as_str();
    let number = |name| {
        let value = match value {
            "max" => Some(u64::MAX),
            value => value.parse().ok(),
        };
        value.map(|value| Property::Number(name, value))
    };
    let one = match setting.file.as_str() {
        "memory.max" => number("MemoryMax"),
        "memory.high" => number("MemoryHigh"),
        "memory.low" => number("MemoryLow"),
        "memory.min" => number("MemoryMin"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        "cpu.weight" => number("CPUWeight"),
        "io.weight" => {
            let weight = value.trim_start_matches("default ").parse();
            weight
                .ok()
                .map(|weight| Property::Number("IOWeight", weight))
        }
        "cpuset.cpus" => set(value).map(|bits| Property::Set("AllowedCPUs", bits)),
        "cpuset.mems" => set(value).map(|bits| Property::Set("AllowedMemoryNodes", bits)),
        "cpu.max" => return quota(value),
        _ => None,
    };
    one.into_iter().collect()
}

/// `cpu.max` is "quota period", in microseconds; a unit has the quota for a second, and the period.
fn quota(value: &str) -> Vec<Property> {
    let mut words = value.split(' ');
    let quota = words.next().unwrap_or_default();
    let period = words.next().and_then(|period| period.parse::<u64>().ok());
    let per_second = match (quota, period) {
        ("max", _) => Some(u64::MAX),
        (quota, Some(period)) if period > 0 => quota
            .parse::<u64>()
            .ok()
            .map(|quota| quota.saturating_mul(1_000_000).div_ceil(period)),
        _ => None,
    };
    let per_second = per_second.map(|n| Property::Number("CPUQuotaPerSecUSec", n));
    let period = period.map(|n| Property::Number("CPUQuotaPeriodUSec", n));
    per_second.into_iter().chain(period).collect()
}

/// The bits of a list such as `0-3,8`; none for what is no such list.
fn set(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        // No kernel has as many (CONFIG_NR_CPUS).
        if first > last || last >= 1 << 13 {
            return None;
        }
        for bit in first..=last {
            let byte = bit / 8;
            if bits.len() <= byte {
                bits.resize(byte + 1, 0);
            }
            bits[byte] |= 1 << (bit % 8);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod test {
    use super::*;

    fn unit(path: &str) -> Result<Unit, CgroupError> {
        Unit::of("web", Some(Path::new(path)))
    }

    #[test]
    fn a_unit_is_named_as_engines_name_it() {
        let podman = unit("machine.slice:libpod:0f").unwrap();
        assert_eq!(podman.names(), ["machine.slice", "libpod-0f.scope"]);
        let kubernetes = unit("kubepods-besteffort-pod7_a.slice:cri-containerd:x").unwrap();
        let names = [
            "kubepods.slice",
            "kubepods-besteffort.slice",
            "kubepods-besteffort-pod7_a.slice",
            "cri-containerd-x.scope",
        ];
        assert_eq!(kubernetes.names(), names);
        assert_eq!(unit("-.slice::x").unwrap().names(), ["x.scope"]);
        let ours = Unit::of("web", None).unwrap();
        assert_eq!(ours.names(), ["system.slice", "godwit-web.scope"]);
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        let long = format!("a.slice:b:{}", "x".repeat(300));
        for bad in [
            "/a/b",
            "a.slice",
            "a.slice:b",
            "a.slice:b:",
            "a.slice:b:c:d",
            "a:b:c",
            ".slice:b:c",
            "a--b.slice:b:c",
            "-a.slice:b:c",
            "a/b.slice:b:c",
            "a.slice:b:c/d",
            "a.slice:..:/",
            "a.slice:b:c d",
            "a.slice:b:c.slice",
            &long,
        ] {
            assert!(unit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_become_properties() {
        let of = |file: &str, value: &str| {
            let setting = Setting {
                field: String::new(),
                controller: String::new(),
                file: file.to_owned(),
                value: value.to_owned(),
                required: true,
            };
            properties(&[setting])
        };
        assert_eq!(
            of("memory.max", "4096"),
            [Property::Number("MemoryMax", 4096)]
        );
        assert_eq!(
            of("pids.max", "max"),
            [Property::Number("TasksMax", u64::MAX)]
        );
        let half = [
            Property::Number("CPUQuotaPerSecUSec", 500_000),
            Property::Number("CPUQuotaPeriodUSec", 100_000),
        ];
        assert_eq!(of("cpu.max", "50000 100000"), half);
        let all = [
            Property::Number("CPUQuotaPerSecUSec", u64::MAX),
            Property::Number("CPUQuotaPeriodUSec", 100_000),
        ];
        assert_eq!(of("cpu.max", "max 100000"), all);
        let set = |bits: &[u8]| vec![Property::Set("AllowedCPUs", bits.to_vec())];
        assert_eq!(of("cpuset.cpus", "0-2,9"), set(&[0b111, 0b10]));
        assert_eq!(of("cpuset.cpus", "2-1"), []);
        assert_eq!(of("cpuset.cpus", "0-99999999"), []);
        assert_eq!(
            of("io.weight", "default 50"),
            [Property::Number("IOWeight", 50)]
        );
        assert_eq!(of("hugetlb.2MB.max", "0"), []);
    }
}
