//! What the long jobs of a daemon share.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::facts::{self, CriuFacts};
use super::kept::Outputs;
use super::locks::Locks;
use super::peers::advertised;
use super::{Config, DaemonError, Events};
use crate::cgroup::CgroupRoot;
use crate::container::Host;
use crate::criu::{Criu, CriuError};
use crate::model::{Ability, HostFacts};
use crate::net::{Leases, Network, NetworkConfig};
use crate::peer::{Identity, PeerBook};
use crate::rootfs::ImageStore;

/// What the long jobs of a daemon share.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// The host, as it was when the daemon started.
    pub facts: HostFacts,
    /// CRIU, where it works.
    pub criu: Option<Criu>,
    /// The containers' network.
    pub network: Arc<Network>,
    /// The containers' addresses.
    pub leases: Arc<Leases>,
    /// The images.
    pub images: Arc<ImageStore>,
    /// The host, as its containers see it.
    pub host: Host,
    /// The other hosts.
    pub peers: Arc<PeerBook>,
    /// What a new shim needs to take the place of one that has died: the read ends of the containers' outputs.
    pub outputs: Outputs,
    /// Where to tell what happens.
    pub events: Events,
    /// One request at a time per container.
    pub locks: Arc<Locks>,
}

impl Context {
    /// Opens everything that the configuration names, and finds out what this host can do. `outputs` is what an
    /// earlier daemon has left. Blocks.
    pub fn open(config: Config, outputs: Outputs) -> Result<Self, DaemonError> {
        let state = &config.state_dir;
        let network_config = NetworkConfig::from(&config.network);
        let network = Network::open(network_config.clone())?;
        let leases = Leases::open(&state.join("leases.json"), &network_config)?;
        let images = ImageStore::open(state)?.with_cache(config.image_cache.clone());
        let identity = Identity::load_or_create(&state.join("identity"), &config.name)?;
        let advertise = advertised(&config.peer);
        let book = state.join("peers.json");
        let peers = PeerBook::open(&book, identity, config.name.clone(), advertise)?;
        let cgroups = CgroupRoot::find(&config.cgroup.parent)?;
        let (criu, criu_facts) = find_criu(&config);
        let facts = facts::gather(
            &config.name,
            criu_facts,
            facts::memory(&cgroups),
            facts::userns(state),
        )?;
        let (network, images) = (Arc::new(network), Arc::new(images));
        let host = Host {
            run_dir: config.run_dir.clone(),
            state_dir: config.state_dir.clone(),
            cgroups,
            network: Arc::clone(&network),
            images: Arc::clone(&images),
            exe: PROGRAM.into(),
        };
        Ok(Self {
            facts,
            criu,
            host,
            network,
            leases: Arc::new(leases),
            images,
            peers: Arc::new(peers),
            outputs,
            events: Events::new(),
            locks: Arc::default(),
            config,
        })
    }
}

/// The program of this process, whoever has replaced or removed its file meanwhile: an upgrade does so seconds before it
/// restarts the daemon, and what this one starts must speak as it does.
const PROGRAM: &str = "/proc/self/exe";

/// Makes the directories of a host that are missing. Nobody but root sees into them.
pub fn make_directories(config: &Config) -> Result<(), DaemonError> {
    let (run, state) = (&config.run_dir, &config.state_dir);
    let all = [
        run.clone(),
        run.join("netns"),
        run.join("userns"),
        run.join("ids"),
        run.join("containers"),
        run.join("migrations"),
        state.clone(),
        state.join("containers"),
        state.join("images"),
        state.join("migrations"),
    ];
    all.iter().try_for_each(|path| make_directory(path))
}

fn make_directory(path: &Path) -> Result<(), DaemonError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    let is_directory = |()| match fs::metadata(path)?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    };
    made.and_then(is_directory)
        .map_err(|source| DaemonError::Io {
            what: format!("make the directory {}", path.display()),
            source,
        })
}

/// Finds CRIU and lets it move a task of its own. A host without a working CRIU still runs containers.
fn find_criu(config: &Config) -> (Option<Criu>, CriuFacts) {
    let tried = try_criu(config);
    match tried {
        Ok((criu, soft_dirty)) => {
            let facts = CriuFacts {
                version: Some(criu.version()),
                problem: None,
                soft_dirty,
                hides_pages: hiding(&criu),
                spares_smaps: Ability::shown(
                    criu.mapping_flags().map(drop),
                    "the self-test has shown it",
                ),
            };
            (Some(criu), facts)
        }
        Err(e) => {
            let problem = super::chain(&e);
            tracing::warn!("containers cannot move from or to this host: {problem}");
            let facts = CriuFacts {
                version: None,
                problem: Some(problem),
                ..CriuFacts::default()
            };
            (None, facts)
        }
    }
}

/// Whether CRIU can be kept from memory that was copied before, as its self-test has shown.
fn hiding(criu: &Criu) -> Ability {
    Ability::shown(criu.hides_pages(), "the self-test has shown it")
}

fn try_criu(config: &Config) -> Result<(Criu, bool), CriuError> {
    let criu = Criu::find(config.criu.path.as_deref())?;
    criu.check(&config.run_dir.join("migrations"))?;
    let features = criu.features()?;
    let mut task = Command::new("sleep");
    task.arg("1000").env_clear();
    let test = criu.self_test(&config.run_dir.join("migrations"), task)?;
    tracing::info!(version = %criu.version(), dump = ?test.dump, restore = ?test.restore, "CRIU works");
    Ok((criu, features.mem_track))
}
