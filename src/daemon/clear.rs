//! Takes from this host what daemons and containers have put there, but for what is below `state_dir`.
//!
//! It is what a package's removal wants: afterwards nothing of Godwit runs, and no cgroup, network namespace, interface,
//! mount or run directory tells that it did. Records and files of the containers stay; a later daemon finds them
//! stopped. Nothing here needs the daemon, which may have been ended by anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use super::context::make_directories;
use super::migrations::Bundled;
use super::ports::Port;
use super::requests::{self, Request};
use super::{Config, DaemonError, recovery, run};
use crate::cgroup::CgroupRoot;
use crate::container::{self, ContainerError, Host, Record, place};
use crate::model::{ContainerState, Name};
use crate::net::{Network, NetworkConfig};
use crate::rootfs::ImageStore;

/// How long a container that was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What was not taken away, because it is not Godwit's alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// A bridge that had been there before.
    pub bridge: Option<String>,
    /// Directories and cgroups that others have put something in.
    pub places: Vec<PathBuf>,
}

/// Ends every container and takes everything away. No daemon may run; a container that is on its way to another host,
/// or in doubt, is refused before anything is changed, since this could end its only copy.
pub fn clear(config: &Config) -> Result<Left, DaemonError> {
    if !config.run_dir.exists() && !config.state_dir.exists() {
        return Ok(Left::default());
    }
    make_directories(config)?;
    let lock = run::lock(&config.run_dir)?;
    let host = open(config)?;
    let names = recovery::names(config)?;
    for name in &names {
        check(&host, name)?;
    }
    for lent in Bundled::all_kept(&config.run_dir) {
        requests::allowed(
            Request::Stop,
            &lent.spec.name,
            ContainerState::Migrating,
            None,
        )?;
    }
    for name in &names {
        end(&host, name)?;
    }
    let mut left = Left::default();
    for port in Port::all(&config.run_dir) {
        host.network.unplug(&port.name)?;
    }
    if host.network.remove_bridge()? {
        left.bridge = Some(config.network.bridge.clone());
    }
    // Shims, and fillers whose container is gone.
    host.cgroups.shims().remove()?;
    remove_empty(host.cgroups.path(), &mut left)?;
    unmount_all(&config.run_dir)?;
    for name in [
        "containers",
        "netns",
        "userns",
        "ids",
        "migrations",
        "ports",
        "empty",
    ] {
        let path = config.run_dir.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(failed("remove", &path))?,
        }
    }
    let _ = fs::remove_file(config.socket());
    drop(lock);
    let _ = fs::remove_file(config.run_dir.join(run::LOCK));
    remove_empty(&config.run_dir, &mut left)?;
    Ok(left)
}

fn open(config: &Config) -> Result<Host, DaemonError> {
    let network = Network::unseen(NetworkConfig::from(&config.network))?;
    Ok(Host {
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
        cgroups: CgroupRoot::find(&config.cgroup.parent)?,
        network: Arc::new(network),
        images: Arc::new(ImageStore::open(&config.state_dir)?),
        exe: PathBuf::new(),
    })
}

fn recorded(host: &Host, name: &Name) -> Result<Option<Record>, ContainerError> {
    match Record::load(host, name) {
        Ok(record) => Ok(Some(record)),
        Err(ContainerError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn check(host: &Host, name: &Name) -> Result<(), DaemonError> {
    use ContainerState::{Arriving, InDoubt, Migrating};
    let Some(record) = recorded(host, name)? else {
        return Ok(());
    };
    if let state @ (Arriving | InDoubt | Migrating) = record.state {
        requests::allowed(Request::Stop, name, state, record.migration)?;
    }
    Ok(())
}

/// Ends what runs of it, and takes away what does not survive a restart of the host.
fn end(host: &Host, name: &Name) -> Result<(), DaemonError> {
    match recorded(host, name)?.map(|record| record.state) {
        // It was never finished, or its record is gone.
        None | Some(ContainerState::Creating) => return Ok(place::remove(host, name)?),
        Some(ContainerState::Stopped) => return Ok(place::remove_runtime(host, name)?),
        Some(_) => {}
    }
    let cgroup = host.cgroup(name);
    if cgroup.exists() {
        cgroup.kill()?;
    }
    container::wait(host, name, GONE_WITHIN)?;
    container::settle(host, name)?;
    Ok(place::remove_runtime(host, name)?)
}

/// Whatever is still mounted beneath the run directory, the deepest first.
fn unmount_all(run_dir: &Path) -> Result<(), DaemonError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(failed("read", table))?;
    let point = |line: &str| Some(PathBuf::from(line.split(' ').nth(4)?));
    let beneath = |path: &PathBuf| path != run_dir && path.starts_with(run_dir);
    let mut points: Vec<PathBuf> = text.lines().filter_map(point).filter(beneath).collect();
    points.sort();
    for point in points.iter().rev() {
        let done = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        done.map_err(|errno| failed("unmount", point)(errno.into()))?;
    }
    Ok(())
}

/// A directory or cgroup in which others have something stays.
fn remove_empty(path: &Path, left: &mut Left) -> Result<(), DaemonError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
            ) =>
        {
            left.places.push(path.to_owned());
            Ok(())
        }
        Err(e) => Err(failed("remove", path)(e)),
    }
}

fn failed(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> DaemonError {
    let what = format!("{verb} {}", path.display());
    |source| DaemonError::Io { what, source }
}
