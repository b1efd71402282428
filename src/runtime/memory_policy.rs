//! `linux.memoryPolicy`: from which memory nodes a container's processes get their pages.

use std::io;

use oci_spec::runtime::{Linux, MemoryPolicyFlagType, MemoryPolicyModeType};

use super::RuntimeError;
use super::error::refused;
use crate::sys::process;

/// The words of the specification, and the kernel's numbers.
const MODES: [(MemoryPolicyModeType, &str, u32); 7] = [
    (MemoryPolicyModeType::MpolDefault, "MPOL_DEFAULT", 0),
    (MemoryPolicyModeType::MpolPreferred, "MPOL_PREFERRED", 1),
    (MemoryPolicyModeType::MpolBind, "MPOL_BIND", 2),
    (MemoryPolicyModeType::MpolInterleave, "MPOL_INTERLEAVE", 3),
    (MemoryPolicyModeType::MpolLocal, "MPOL_LOCAL", 4),
    (
        MemoryPolicyModeType::MpolPreferredMany,
        "MPOL_PREFERRED_MANY",
        5,
    ),
    (
        MemoryPolicyModeType::MpolWeightedInterleave,
        "MPOL_WEIGHTED_INTERLEAVE",
        6,
    ),
];
const FLAGS: [(MemoryPolicyFlagType, &str, u32); 3] = [
    (
        MemoryPolicyFlagType::MpolFNumaBalancing,
        "MPOL_F_NUMA_BALANCING",
        1 << 13,
    ),
    (
        MemoryPolicyFlagType::MpolFRelativeNodes,
        "MPOL_F_RELATIVE_NODES",
        1 << 14,
    ),
    (
        MemoryPolicyFlagType::MpolFStaticNodes,
        "MPOL_F_STATIC_NODES",
        1 << 15,
    ),
];
/// More nodes than any kernel is built for.
const MOST_NODES: usize = 1024;

/// A policy, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicy {
    mode: u32,
    nodes: Vec<u64>,
}

impl MemoryPolicy {
    /// The one that the configuration asks for.
    pub fn of(linux: &Linux) -> Result<Option<Self>, RuntimeError> {
        let Some(asked) = linux.memory_policy() else {
            return Ok(None);
        };
        let mode = MODES.iter().find(|(mode, ..)| *mode == asked.mode());
        let Some((mode, word, number)) = mode else {
            return Err(refused("linux.memoryPolicy.mode", "is not known"));
        };
        let flags = asked.flags().iter().flatten();
        let bits = flags.filter_map(|flag| FLAGS.iter().find(|(one, ..)| one == flag));
        let bits = bits.fold(0, |all, (.., bit)| all | bit);
        let nodes = nodes(asked.nodes().as_deref().unwrap_or_default())?;
        let without = [
            MemoryPolicyModeType::MpolDefault,
            MemoryPolicyModeType::MpolLocal,
        ];
        if without.contains(mode) && !nodes.is_empty() {
            let why = format!("must be empty for {word}");
            return Err(refused("linux.memoryPolicy.nodes", why));
        }
        let may_be_empty = *mode == MemoryPolicyModeType::MpolPreferred;
        if !without.contains(mode) && !may_be_empty && nodes.is_empty() {
            let why = format!("are needed for {word}: give a list like 0-1");
            return Err(refused("linux.memoryPolicy.nodes", why));
        }
        Ok(Some(Self {
            mode: number | bits,
            nodes,
        }))
    }

    /// Makes it that of the calling process and of all that comes of it.
    pub fn set(&self) -> io::Result<()> {
        process::memory_policy(self.mode, &self.nodes)
    }
}

/// A list like `0-3,7` as a set of bits.
fn nodes(list: &str) -> Result<Vec<u64>, RuntimeError> {
    let mut bits = Vec::new();
    let bad = || {
        let why = format!("{list:?} is not a list like 0-3,7");
        refused("linux.memoryPolicy.nodes", why)
    };
    for range in list
        .split(',')
        .map(str::trim)
        .filter(|_| !list.trim().is_empty())
    {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: usize = first.parse().map_err(|_| bad())?;
        let last: usize = last.parse().map_err(|_| bad())?;
        if first > last || last >= MOST_NODES {
            return Err(bad());
        }
        for node in first..=last {
            let at = node / 64;
            if bits.len() <= at {
                bits.resize(at + 1, 0);
            }
            bits[at] |= 1 << (node % 64);
        }
    }
    Ok(bits)
}

/// The words that are known: modes, and flags.
pub(super) fn words() -> (Vec<&'static str>, Vec<&'static str>) {
    let modes = MODES.iter().map(|(_, word, _)| *word);
    let flags = FLAGS.iter().map(|(_, word, _)| *word);
    (modes.collect(), flags.collect())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_list_of_nodes_is_a_set_of_bits() {
        assert_eq!(nodes("").unwrap(), Vec::<u64>::new());
        assert_eq!(nodes("0-2,5").unwrap(), [0b10_0111]);
        assert_eq!(nodes("64").unwrap(), [0, 1]);
        for bad in ["x", "1-", "3-1", "1024", ",", "0,,1"] {
            assert!(nodes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_has_the_nodes_that_its_mode_needs() {
        let of = |policy: serde_json::Value| {
            let linux = serde_json::json!({"memoryPolicy": policy});
            let linux: Linux = serde_json::from_value(linux).unwrap();
            MemoryPolicy::of(&linux)
        };
        let static_nodes = serde_json::json!({
            "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"],
        });
        let policy = of(static_nodes).unwrap().unwrap();
        assert_eq!((policy.mode, policy.nodes), (2 | (1 << 15), vec![1]));
        assert!(of(serde_json::json!({"mode": "MPOL_BIND"})).is_err());
        assert!(of(serde_json::json!({"mode": "MPOL_LOCAL", "nodes": "0"})).is_err());
    }
}
