//! Capability sets that a bundle chooses: all five of them, for the process that becomes its command.
//!
//! **Invariant:** nothing is given that the calling thread does not have. What was asked for and is not to be had is
//! told and no error: the runtime specification wants it so, for a bundle may run where less is allowed.

use std::collections::BTreeSet;

use caps::{CapSet, Capability, CapsHashSet};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

use super::SecurityError;
use crate::sys::capability;

/// The sets. The default is none at all, as it is for a bundle without `process.capabilities`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    inheritable: CapsHashSet,
    permitted: CapsHashSet,
    ambient: CapsHashSet,
}

fn failed(set: &'static str) -> impl FnOnce(caps::errors::CapsError) -> SecurityError {
    move |source| SecurityError::Capability { set, source }
}

impl Sets {
    /// The sets that a bundle chooses.
    ///
    /// # Errors
    /// A capability that this program does not know.
    pub fn of(chosen: &LinuxCapabilities) -> Result<Self, SecurityError> {
        let set = |set: &Option<Capabilities>| {
            let named = set.iter().flatten().map(|capability| {
                let name = capability.to_string();
                name.parse::<Capability>()
                    .or_else(|_| format!("CAP_{name}").parse())
                    .map_err(|source| SecurityError::Capability {
                        set: "chosen",
                        source,
                    })
            });
            named.collect::<Result<CapsHashSet, _>>()
        };
        Ok(Self {
            bounding: set(chosen.bounding())?,
            effective: set(chosen.effective())?,
            inheritable: set(chosen.inheritable())?,
            permitted: set(chosen.permitted())?,
            ambient: set(chosen.ambient())?,
        })
    }

    /// Bounds what any program can ever get, and lets the sets survive a change of the user, after which
    /// [`Self::settle`] has to be called. While still root.
    pub fn bound(&self) -> Result<(), SecurityError> {
        let kept: BTreeSet<u32> = self.bounding.iter().map(|c| u32::from(c.index())).collect();
        let failed = |source: std::io::Error| SecurityError::Capability {
            set: "bounding",
            source: source.to_string().into(),
        };
        // Those of newer kernels too, which have no name here.
        for number in (0..64).filter(|number| !kept.contains(number)) {
            if !capability::drop_from_bounding(number).map_err(failed)? {
                break;
            }
        }
        capability::keep_over_change_of_user(true).map_err(failed)
    }

    /// Makes the other four sets what was chosen. After the change to the container's user. What could not be given,
    /// by name, for a warning.
    pub fn settle(&self) -> Result<Vec<String>, SecurityError> {
        caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
        let have = caps::read(None, CapSet::Permitted).map_err(failed("permitted"))?;
        let inherited = caps::read(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
        let both = |a: &CapsHashSet, b: &CapsHashSet| a & b;
        let permitted = both(&self.permitted, &have);
        let effective = both(&self.effective, &permitted);
        let inheritable = both(&self.inheritable, &(&have | &inherited));
        let ambient = both(&self.ambient, &both(&permitted, &inheritable));
        // Each step leaves the sets in an order that the kernel takes: what is effective is permitted.
        caps::set(None, CapSet::Inheritable, &inheritable).map_err(failed("inheritable"))?;
        caps::set(None, CapSet::Effective, &effective).map_err(failed("effective"))?;
        caps::set(None, CapSet::Permitted, &permitted).map_err(failed("permitted"))?;
        for one in &ambient {
            caps::raise(None, CapSet::Ambient, *one).map_err(failed("ambient"))?;
        }
        capability::keep_over_change_of_user(false).map_err(|source| {
            SecurityError::Capability {
                set: "permitted",
                source: source.to_string().into(),
            }
        })?;
        let given = [
            (&self.permitted, permitted),
            (&self.effective, effective),
            (&self.inheritable, inheritable),
            (&self.ambient, ambient),
        ];
        let missing = given.iter().flat_map(|(asked, given)| *asked - given);
        let names: BTreeSet<String> = missing.map(|capability| capability.to_string()).collect();
        Ok(names.into_iter().collect())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn sets(json: serde_json::Value) -> Sets {
        Sets::of(&serde_json::from_value::<LinuxCapabilities>(json).unwrap()).unwrap()
    }

    /// The sets of this thread as the kernel shows them.
    fn shown() -> Vec<u64> {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"]
            .map(line)
            .into()
    }

    fn bits(of: &[Capability]) -> u64 {
        of.iter().fold(0, |all, one| all | one.bitmask())
    }

    #[test]
    fn every_capability_of_the_specification_has_its_name() {
        for one in caps::all() {
            let json = serde_json::json!({"bounding": [one.to_string()]});
            assert_eq!(sets(json).bounding, [one].into(), "{one}");
        }
    }

    #[test]
    fn a_thread_has_what_was_chosen_and_what_is_not_to_be_had_is_told() {
        use Capability::{CAP_CHOWN, CAP_KILL, CAP_NET_RAW, CAP_SETUID};
        if !crate::sys::process::is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP a_thread_has_what_was_chosen: needs root");
            return;
        }
        let json = serde_json::json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
            "effective": ["CAP_CHOWN", "CAP_NET_RAW"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL", "CAP_CHOWN"],
        });
        // Capabilities are those of a thread: this one, which ends with the test.
        std::thread::spawn(move || {
            let sets = sets(json);
            sets.bound().unwrap();
            let missing = sets.settle().unwrap();
            assert_eq!(missing, ["CAP_CHOWN", "CAP_NET_RAW"]);
            let bounding = bits(&[CAP_CHOWN, CAP_KILL, CAP_SETUID]);
            let expected = [
                bits(&[CAP_KILL]),
                bounding,
                bits(&[CAP_CHOWN]),
                bounding,
                bits(&[CAP_KILL]),
            ];
            assert_eq!(shown(), expected);
            assert_eq!(bits(&[CAP_NET_RAW]) & shown()[3], 0);
        })
        .join()
        .unwrap();
    }
}
