//! What one host tells another about itself before a container moves between them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bytes, Name, TrackerChoice, Userns};

/// Facts of a host, gathered when its daemon starts (memory: when asked).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostFacts {
    /// The host's name among its peers.
    pub name: Name,
    /// Godwit's own version.
    pub godwit: String,
    /// Kernel release, as uname(2) tells it.
    pub kernel: String,
    /// The processor.
    pub cpu: CpuFacts,
    /// CRIU's version; none where CRIU is missing or its self-test failed.
    pub criu: Option<CriuVersion>,
    /// Why CRIU cannot be used here, where it cannot.
    pub criu_problem: Option<String>,
    /// Whether the kernel tracks soft-dirty pages.
    pub soft_dirty: bool,
    /// Memory a container could still get here.
    pub memory_available: Bytes,
    /// How changed pages can be found here, the best first.
    #[serde(default)]
    pub trackers: Vec<TrackerOffer>,
    /// Whether a container can run here while its memory is still being filled in.
    #[serde(default)]
    pub lazy_restore: Ability,
    /// Whether a container can have a user namespace of its own here.
    #[serde(default)]
    pub userns: Ability,
    /// Whether one that has can run here while its memory is still being filled in.
    #[serde(default)]
    pub lazy_userns: Ability,
    /// Whether CRIU can be kept from reading memory that was copied before.
    #[serde(default)]
    pub hides_pages: Ability,
    /// Whether CRIU can be told the flags of mappings, so that the kernel need not count their pages for it.
    #[serde(default)]
    pub spares_smaps: Ability,
    /// Whether a container can be slowed down here while its memory is copied.
    #[serde(default)]
    pub throttle: Ability,
}

impl HostFacts {
    /// Whether such a container can run here while its memory is still being filled in.
    pub fn lazy(&self, userns: Userns) -> &Ability {
        if userns.is_host() || !self.lazy_restore.usable {
            &self.lazy_restore
        } else {
            &self.lazy_userns
        }
    }
}

/// Whether a host can do something, and why, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ability {
    /// Whether it can.
    pub usable: bool,
    /// For people: what that is known from.
    pub why: String,
}

impl Ability {
    /// What a test has shown: `proof` where it passed, its error where it did not.
    pub fn shown<E: fmt::Display>(found: Result<(), E>, proof: impl Into<String>) -> Self {
        match found {
            Ok(()) => Self {
                usable: true,
                why: proof.into(),
            },
            Err(error) => Self {
                usable: false,
                why: error.to_string(),
            },
        }
    }
}

impl Default for Ability {
    /// It has not been found out, so it is not counted on.
    fn default() -> Self {
        Self {
            usable: false,
            why: "it was not tried".to_owned(),
        }
    }
}

/// A tracker of changed pages, and whether this kernel has what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrackerOffer {
    /// Which; never [`TrackerChoice::Auto`].
    pub kind: TrackerChoice,
    /// Whether it can be used here.
    pub usable: bool,
    /// For people: why, or why not.
    pub why: String,
}

/// What a moved program may have learnt about the processor and would miss elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CpuFacts {
    /// `x86_64`, `aarch64`, …
    pub arch: String,
    /// Vendor, as the kernel names it (`GenuineIntel`); empty where it names none.
    pub vendor: String,
    /// Feature flags, as /proc/cpuinfo lists them.
    pub flags: BTreeSet<String>,
}

/// A CRIU version. Its wire and image formats changed at 4.2.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct CriuVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number, 0 where there is none.
    pub patch: u32,
}

impl CriuVersion {
    /// The oldest CRIU that Godwit drives.
    pub const OLDEST: Self = Self {
        major: 4,
        minor: 1,
        patch: 1,
    };

    /// Whether a restore by this CRIU understands the images of a dump by `other`. CRIU reads those of older releases and
    /// promises nothing of newer ones. From 4.1.1 to 4.2.1, though, all that is new in them (CRIU's images/*.proto) is
    /// the width of page counts, of which [`crate::memory`] writes either, and `allow_uprobes`, which a dump has only
    /// where it was asked for.
    pub fn reads_images_of(self, other: Self) -> bool {
        let release = |v: Self| (v.major, v.minor);
        release(self) >= release(other) || (self >= Self::OLDEST && release(other) <= (4, 2))
    }

    /// Whether page counts are 64 bits wide, on the page-server wire and in pagemap images (CRIU commit
    /// 7e0da4d97, first released in 4.2).
    pub fn wide_page_counts(self) -> bool {
        (self.major, self.minor) >= (4, 2)
    }
}

impl fmt::Display for CriuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}.{}", self.major, self.minor, self.patch))
    }
}

/// A text that is no CRIU version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a CRIU version like 4.2.1")]
pub struct CriuVersionError {
    text: String,
}

impl FromStr for CriuVersion {
    type Err = CriuVersionError;
    fn from_str(text: &str) -> Result<Self, CriuVersionError> {
        let bad = || CriuVersionError {
            text: text.chars().take(40).collect(),
        };
        let mut parts = text.split('.').map(|p| p.parse::<u32>().map_err(|_| bad()));
        let major = parts.next().ok_or_else(bad)??;
        let minor = parts.next().ok_or_else(bad)??;
        let patch = parts.next().unwrap_or(Ok(0))?;
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Self {
                major,
                minor,
                patch,
            })
        }
    }
}

impl TryFrom<String> for CriuVersion {
    type Error = CriuVersionError;
    fn try_from(text: String) -> Result<Self, CriuVersionError> {
        text.parse()
    }
}

impl From<CriuVersion> for String {
    fn from(version: CriuVersion) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn images_are_read_by_newer_ones_and_by_those_that_differ_in_nothing() {
        let reads = |this: &str, other: &str| {
            let version = |text: &str| text.parse::<CriuVersion>().unwrap();
            version(this).reads_images_of(version(other))
        };
        assert!(reads("4.2.1", "4.1.1") && reads("4.1.1", "4.2.1") && reads("4.3", "4.2"));
        assert!(!reads("4.2.1", "4.3") && !reads("4.1.1", "4.3") && !reads("3.19", "4.1.1"));
    }

    #[test]
    fn page_counts_are_wide_since_4_2() {
        let wide = |t: &str| t.parse::<CriuVersion>().unwrap().wide_page_counts();
        assert!(!wide("4.1.1") && wide("4.2") && wide("4.2.1") && wide("5.0") && !wide("3.19"));
        assert!("4".parse::<CriuVersion>().is_err() && "4.x".parse::<CriuVersion>().is_err());
    }
}
