//! Where a container that leaves is on this host: in a place of the daemon's own, or in that of an OCI bundle.
//!
//! Both are moved by the same steps. What differs is here: where files, cgroup and network are, how it is noted that it is
//! on its way, and what is left when it has gone.
//!
//! A container of a bundle is some engine's, who keeps what it made for it: root, network, cgroup. When it has moved, its
//! processes here have ended, and the engine sees that as it sees every end. Its address goes with it where its engine
//! has it from us ([`Port`]); another stays behind, and at the destination it gets one of the container network.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::obstacle::staying;
use super::remains;
use crate::cgroup::Cgroup;
use crate::container::{Record, place};
use crate::daemon::bundles::Bundles;
use crate::daemon::ports::Port;
use crate::daemon::{Context, DaemonError};
use crate::migration::Cause;
use crate::model::{
    ContainerSpec, ContainerState, Finding, Generation, MigrationId, Name, Neighbour, OfBundle,
    Restart, Userns,
};
use crate::rootfs::copy_tree;
use crate::runtime::Id;
use crate::storage::digest;

/// The name, in a migration's directory, of what is known of a container of a bundle.
const BUNDLE: &str = "bundle.json";

/// A container that leaves, or is to.
#[derive(Debug, Clone)]
pub enum Home {
    /// One of the daemon's own.
    Own(Box<Record>),
    /// One of a bundle.
    Bundle(Box<Bundled>),
}

/// A container of a bundle in a migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bundled {
    /// Its id among those of the command line.
    pub id: Id,
    /// Its first process.
    pub init: i32,
    /// What it will be at the destination.
    pub spec: ContainerSpec,
    /// When it was created, seconds since the epoch.
    pub created_at: u64,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its root.
    pub rootfs: PathBuf,
    /// What is bound in it at each of the places of its spec's copies.
    pub sources: Vec<PathBuf>,
    /// Whether its name had an address before.
    pub had_address: bool,
    /// Whether its network namespace has a port of the container network, and so its address goes with it.
    pub port: bool,
}

impl Bundled {
    /// Looks at the one that has this name; what is found is told besides. An address is kept for it, until
    /// [`Bundled::forget_address`].
    pub fn look(
        context: &Context,
        bundles: &Bundles,
        name: &Name,
    ) -> Result<(Self, Vec<Finding>), DaemonError> {
        let absent = || DaemonError::NoSuchContainer { name: name.clone() };
        let id = bundles.find(name).ok_or_else(absent)?;
        let leaving = bundles.leaving(&id)?;
        let (places, sources) = leaving.copies.iter().cloned().unzip();
        let bundle = OfBundle {
            copies: places,
            covered: leaving.covered.clone(),
        };
        let mut findings = leaving.findings.clone();
        if let Some(problem) = bundle.problem() {
            findings.push(Finding::blocking(
                "mount-places",
                format!("what is mounted in the container cannot be told to CRIU: {problem}"),
            ));
        }
        let image = digest(&empty(&context.config.run_dir)?).map_err(|error| DaemonError::Io {
            what: "read an empty directory".to_owned(),
            source: io::Error::other(error),
        })?;
        let port = Port::load(&context.config.run_dir, name);
        let netns = fs::metadata(format!("/proc/{}/ns/net", leaving.record.init.pid));
        let port = port.is_some_and(|port| netns.is_ok_and(|netns| netns.ino() == port.inode));
        if !port {
            findings.extend(staying(leaving.record.init.pid));
        }
        let had_address = context
            .leases
            .list()
            .iter()
            .any(|entry| entry.name == *name);
        let lease = context.leases.take(name, None)?;
        let process = leaving.record.spec.process().as_ref();
        let spec = ContainerSpec {
            name: name.clone(),
            template: "bundle".to_owned(),
            image,
            command: process
                .and_then(|process| process.args().clone())
                .unwrap_or_default(),
            env: process
                .and_then(|process| process.env().clone())
                .unwrap_or_default(),
            cwd: process.map_or_else(|| "/".into(), |process| process.cwd().clone()),
            user: leaving.user(),
            ports: Vec::new(),
            limits: leaving.limits(),
            restart: Restart::No,
            userns: Userns::Host,
            lease,
            bundle: Some(bundle),
        };
        let bundled = Self {
            init: leaving.record.init.pid,
            spec,
            created_at: leaving.created_at,
            cgroup: leaving.record.cgroup,
            rootfs: leaving.record.rootfs,
            sources,
            had_address,
            port,
            id,
        };
        Ok((bundled, findings))
    }

    /// Takes it into a migration, and keeps what is known of it for a daemon after this one.
    pub fn begin(
        &self,
        context: &Context,
        bundles: &Bundles,
        migration: MigrationId,
        to: &Name,
    ) -> Result<(), DaemonError> {
        let directory = remains::directory(context, migration);
        let kept = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .and_then(|()| fs::write(directory.join(BUNDLE), serde_json::to_vec(self)?))
            .map_err(|source| DaemonError::Io {
                what: format!("write into {}", directory.display()),
                source,
            });
        let begun = kept.and_then(|()| bundles.lend(&self.id, to));
        if begun.is_err() {
            self.forget_address(context);
            let _ = remains::remove_directory(&directory);
        }
        begun
    }

    /// What an earlier daemon has kept of the container of this migration.
    pub fn kept(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(BUNDLE)).ok()?).ok()
    }

    /// Those that are in a migration on the host with this run directory, as daemons have kept them.
    pub fn all_kept(run_dir: &Path) -> Vec<Self> {
        let migrations = fs::read_dir(run_dir.join("migrations"));
        let entries = migrations.into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Self::kept(&entry.path()))
            .collect()
    }

    /// It stays, and is the command line's again; or it has gone, and so is what is left of it. Idempotent.
    pub fn end(&self, context: &Context) -> Result<(), Cause> {
        Ok(Bundles::of(&context.config.run_dir)?.take_back(&self.id)?)
    }

    /// The address that was kept for it is free again, where it had none before. A failure leaves an entry in the book
    /// that its next migration finds.
    pub fn forget_address(&self, context: &Context) {
        if self.had_address {
            return;
        }
        if let Err(error) = context.leases.release(&self.spec.name) {
            tracing::warn!(container = %self.spec.name, "its address was not given back: {error}");
        }
    }

    /// Copies what is bound in it into the new directory `into`, each under its number, as it is now.
    fn copy(&self, into: &Path) -> Result<(), Cause> {
        let private = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        private(into)?;
        for (number, source) in self.sources.iter().enumerate() {
            let target = into.join(number.to_string());
            if fs::metadata(source)?.is_dir() {
                private(&target)?;
                copy_tree(source, &target)?;
                continue;
            }
            fs::copy(source, &target)?;
            let meta = fs::metadata(source)?;
            let copied = File::options().write(true).open(&target)?;
            fchown(&copied, Some(meta.uid()), Some(meta.gid()))?;
            copied.set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
        }
        Ok(())
    }
}

/// A directory with nothing in it, whose digest is that of the image of a container that has all of its files in its own
/// layer.
pub fn empty(run_dir: &Path) -> Result<PathBuf, DaemonError> {
    let path = run_dir.join("empty");
    let made = match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::set_permissions(&path, Permissions::from_mode(0o755)),
    };
    made.map(|()| path).map_err(|source| DaemonError::Io {
        what: "make an empty directory".to_owned(),
        source,
    })
}

impl Home {
    pub fn spec(&self) -> &ContainerSpec {
        match self {
            Self::Own(record) => &record.spec,
            Self::Bundle(bundled) => &bundled.spec,
        }
    }

    pub fn generation(&self) -> Generation {
        match self {
            Self::Own(record) => record.generation,
            Self::Bundle(_) => Generation::default(),
        }
    }

    pub fn created_at(&self) -> u64 {
        match self {
            Self::Own(record) => record.created_at,
            Self::Bundle(bundled) => bundled.created_at,
        }
    }

    pub fn is_bundle(&self) -> bool {
        matches!(self, Self::Bundle(_))
    }

    pub fn cgroup(&self, context: &Context) -> Cgroup {
        match self {
            Self::Own(record) => context.host.cgroup(&record.spec.name),
            Self::Bundle(bundled) => Cgroup::at(bundled.cgroup.clone()),
        }
    }

    /// The read-only part of its root.
    pub fn image(&self, context: &Context) -> Result<PathBuf, Cause> {
        match self {
            Self::Own(record) => Ok(context.images.lower(record.spec.image)),
            Self::Bundle(_) => Ok(empty(&context.config.run_dir)?),
        }
    }

    /// The files that go with it.
    pub fn layer(&self, context: &Context) -> PathBuf {
        match self {
            Self::Own(record) => context.host.upper(&record.spec.name),
            Self::Bundle(bundled) => bundled.rootfs.clone(),
        }
    }

    /// A directory with copies of what was bound in it, each under its number; none where nothing was. It stands still.
    /// Those of a container of a bundle are made now, in the migration's directory.
    pub fn copies(&self, context: &Context, migration: &Path) -> Result<Option<PathBuf>, Cause> {
        let bundle = self.spec().bundle.as_ref();
        if bundle.is_none_or(|bundle| bundle.copies.is_empty()) {
            return Ok(None);
        }
        Ok(Some(match self {
            Self::Own(record) => context.host.copies(&record.spec.name),
            Self::Bundle(bundled) => {
                let copies = migration.join("copies");
                bundled.copy(&copies)?;
                copies
            }
        }))
    }

    /// A path of its network namespace.
    pub fn netns(&self, context: &Context) -> PathBuf {
        match self {
            Self::Own(record) => context.host.netns(&record.spec.name),
            Self::Bundle(bundled) => format!("/proc/{}/ns/net", bundled.init).into(),
        }
    }

    /// Whether it has a gate of ours. The network of a bundle's container may be its engine's alone: what still reaches it
    /// there finds nobody when it has gone.
    fn has_gate(&self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Bundle(bundled) => bundled.port,
        }
    }

    /// Closes its gate.
    pub fn detach(&self, context: &Context) -> Result<(), Cause> {
        match self.has_gate() {
            true => Ok(context.host.network.detach(&self.spec().name)?),
            false => Ok(()),
        }
    }

    /// Opens its gate, and tells where it is.
    pub fn attach(&self, context: &Context) -> Result<(), Cause> {
        if !self.has_gate() {
            return Ok(());
        }
        let (network, spec) = (&context.host.network, self.spec());
        let attached = network.attach(&spec.name);
        network.announce(&spec.lease, &self.netns(context))?;
        Ok(attached?)
    }

    /// Whom it knows on its network.
    pub fn neighbours(&self, context: &Context) -> Vec<Neighbour> {
        match self.has_gate() {
            true => context
                .network
                .neighbours(&self.netns(context))
                .unwrap_or_default(),
            false => Vec::new(),
        }
    }

    /// A daemon that died may have left it slowed down.
    pub fn unthrottle(&self, context: &Context) -> Result<(), Cause> {
        match self {
            Self::Own(record) => Ok(self.cgroup(context).unthrottle(&record.spec.limits)?),
            Self::Bundle(_) => Ok(()),
        }
    }

    /// It runs here as before, or has ended by itself: notes that it is in no migration any more.
    pub fn stays(&self, context: &Context) -> Result<(), Cause> {
        match self {
            Self::Own(record) => {
                let mut record = Record::load(&context.host, &record.spec.name)?;
                record.state = ContainerState::Running;
                record.migration = None;
                Ok(record.save(&context.host)?)
            }
            Self::Bundle(bundled) => {
                bundled.forget_address(context);
                bundled.end(context)
            }
        }
    }

    /// It runs on the host `to`: nothing of this copy goes on, and what is the daemon's of it goes.
    pub fn gone(&self, context: &Context, to: &Name) -> Result<(), Cause> {
        let name = &self.spec().name;
        match self {
            Self::Own(_) => {
                context.outputs.forget(name);
                place::remove(&context.host, name)?;
            }
            Self::Bundle(bundled) => {
                let cgroup = self.cgroup(context);
                if cgroup.exists() {
                    cgroup.clear()?;
                    // Nobody is in it any more. Whoever made it finds it as it was.
                    cgroup.thaw()?;
                }
                let port = Port::load(&context.config.run_dir, name);
                if let Some(port) = port.filter(|_| bundled.port) {
                    port.unplug(context)?;
                }
                bundled.end(context)?;
            }
        }
        Ok(context.leases.moved_away(name, to)?)
    }
}
