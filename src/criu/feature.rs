//! Which CRIU there is, what it can do, and whether it works here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use super::rpc::{FeatureFlags, Kind, NetworkLock};
use super::{CriuError, MappingFlags, NotHiding, NotSparing, Session, Spawn};
use crate::model::CriuVersion;

/// Where CRIU is looked for, in this order, before `PATH`.
const PLACES: [&str; 2] = ["/usr/local/sbin/criu", "/usr/sbin/criu"];

/// The CRIU of this host.
#[derive(Debug, Clone)]
pub struct Criu {
    program: PathBuf,
    version: CriuVersion,
    hides: Arc<OnceLock<Result<(), NotHiding>>>,
    spares: Arc<OnceLock<Result<MappingFlags, NotSparing>>>,
}

/// What kernel and CRIU can do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Soft-dirty bits, and so CRIU's pre-dumps.
    pub mem_track: bool,
    /// Restores without memory, filled in through a userfaultfd.
    pub lazy_pages: bool,
}

impl Criu {
    /// Finds CRIU, at `configured` alone where that is given, and asks for its version.
    pub fn find(configured: Option<&Path>) -> Result<Self, CriuError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<PathBuf> = match configured {
            Some(program) => vec![program.to_owned()],
            None => PLACES
                .iter()
                .map(PathBuf::from)
                .chain(std::env::split_paths(&path).map(|directory| directory.join("criu")))
                .collect(),
        };
        let Some(program) = candidates.iter().find(|path| is_program(path)) else {
            let mut searched: Vec<String> = Vec::new();
            for candidate in &candidates {
                let text = candidate.display().to_string();
                if !searched.contains(&text) {
                    searched.push(text);
                }
            }
            return Err(CriuError::Missing {
                searched: searched.join(", "),
            });
        };
        Self::at(program)
    }

    /// The CRIU at `program`, which is asked for its version.
    fn at(program: &Path) -> Result<Self, CriuError> {
        let unknown = CriuVersion {
            major: 0,
            minor: 0,
            patch: 0,
        };
        let criu = Self {
            program: program.to_owned(),
            version: unknown,
            hides: Arc::default(),
            spares: Arc::default(),
        };
        let answer =
            Session::start(&criu, Spawn::default())?.simple("version", Kind::Version, None)?;
        let version = answer.version.unwrap_or_default();
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        let version = CriuVersion {
            major: number(version.major),
            minor: number(version.minor),
            patch: number(version.sublevel.unwrap_or(0)),
        };
        if version < CriuVersion::OLDEST {
            return Err(CriuError::TooOld { version });
        }
        Ok(Self { version, ..criu })
    }

    /// A CRIU that was found before, by another process of this host: it is not asked again.
    pub fn known(program: &Path, version: CriuVersion) -> Self {
        Self {
            program: program.to_owned(),
            version,
            hides: Arc::default(),
            spares: Arc::default(),
        }
    }

    /// The executable.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its version.
    pub fn version(&self) -> CriuVersion {
        self.version
    }

    /// Whether this kernel has everything CRIU cannot do without. CRIU logs into `scratch`, an existing directory.
    pub fn check(&self, scratch: &Path) -> Result<(), CriuError> {
        Session::start(self, Spawn::default())?.check(scratch)
    }

    /// What this kernel and CRIU can do beyond that.
    pub fn features(&self) -> Result<Features, CriuError> {
        let all = FeatureFlags {
            mem_track: Some(true),
            lazy_pages: Some(true),
            pidfd_store: Some(true),
        };
        let session = Session::start(self, Spawn::default())?;
        let answer = session.simple("feature check", Kind::FeatureCheck, Some(all))?;
        let features = answer.features.unwrap_or_default();
        Ok(Features {
            mem_track: features.mem_track == Some(true),
            lazy_pages: features.lazy_pages == Some(true),
        })
    }

    /// How this CRIU can keep packets away from a network namespace, while it has its connections in hands: by nftables
    /// where it was built with them and the kernel has them, else by the programs of iptables; none where it cannot.
    pub fn network_lock(&self) -> Option<NetworkLock> {
        let asked = Command::new(&self.program)
            .args(["check", "--feature", "network_lock_nftables"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if asked.is_ok_and(|status| status.success()) {
            return Some(NetworkLock::Nftables);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
        let mut directories = std::env::split_paths(&path).chain(usual);
        directories
            .any(|directory| is_program(&directory.join("iptables-restore")))
            .then_some(NetworkLock::Iptables)
    }

    /// Whether memory can be hidden from this CRIU on this kernel, as the last [self-test](Self::self_test) has
    /// proven. Copies of this know it too.
    ///
    /// # Errors
    /// Why not, or that it was not tested in this process.
    pub fn hides_pages(&self) -> Result<(), NotHiding> {
        self.hides
            .get()
            .cloned()
            .unwrap_or(Err(NotHiding::Untested))
    }

    /// The flags of mappings without smaps, for [`Spawn::smaps`], where the last [self-test](Self::self_test) has proven
    /// that this CRIU can be told them. Copies of this know them too.
    ///
    /// # Errors
    /// Why not, or that it was not tested in this process.
    pub fn mapping_flags(&self) -> Result<MappingFlags, NotSparing> {
        self.spares
            .get()
            .cloned()
            .unwrap_or(Err(NotSparing::Untested))
    }

    pub(super) fn remember_sparing(
        &self,
        proven: Result<MappingFlags, NotSparing>,
    ) -> Result<MappingFlags, NotSparing> {
        self.spares.get_or_init(|| proven).clone()
    }

    pub(super) fn remember_hiding(&self, proven: Result<(), NotHiding>) -> Result<(), NotHiding> {
        self.hides.get_or_init(|| proven).clone()
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_missing_criu_is_named_with_every_place() {
        let error = Criu::find(Some(Path::new("/nowhere/criu"))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nowhere/criu") && text.contains("install CRIU"));
    }

    #[test]
    fn a_program_that_is_not_criu_is_an_error_that_says_so() {
        let Err(error) = Criu::find(Some(Path::new("/bin/true"))) else {
            panic!("/bin/true is no CRIU");
        };
        let text = error.to_string();
        assert!(
            text.contains("CRIU ended") || text.contains("cannot"),
            "{text}"
        );
    }
}
