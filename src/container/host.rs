//! The host as a container sees it: where things lie, and the rooms that make them.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cgroup::{Cgroup, CgroupRoot};
use crate::model::Name;
use crate::net::Network;
use crate::rootfs::ImageStore;

/// Everything a verb needs of the host it works on. Assembled once, by the daemon.
#[derive(Clone)]
pub struct Host {
    /// Where things lie that do not survive a restart of the host.
    pub run_dir: PathBuf,
    /// Where things lie that do.
    pub state_dir: PathBuf,
    /// The parent of the containers' cgroups.
    pub cgroups: CgroupRoot,
    /// The container network.
    pub network: Arc<Network>,
    /// The images.
    pub images: Arc<ImageStore>,
    /// The godwit program, which is started anew for shims and for commands in containers.
    pub exe: PathBuf,
}

impl Host {
    /// The run directory of a container.
    pub fn run(&self, name: &Name) -> PathBuf {
        self.run_dir.join("containers").join(name.as_str())
    }

    /// The state directory of a container.
    pub fn state(&self, name: &Name) -> PathBuf {
        self.containers().join(name.as_str())
    }

    /// The directory of all containers' state directories.
    pub fn containers(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    /// Where the root of a container is mounted.
    pub fn rootfs(&self, name: &Name) -> PathBuf {
        self.run(name).join("rootfs")
    }

    /// Where its network namespace is pinned.
    pub fn netns(&self, name: &Name) -> PathBuf {
        self.run_dir.join("netns").join(name.as_str())
    }

    /// Where its user namespace is pinned, if it has one.
    pub fn userns(&self, name: &Name) -> PathBuf {
        self.run_dir.join("userns").join(name.as_str())
    }

    /// Where it is written down which ids of this host are whose.
    pub fn ids(&self) -> PathBuf {
        self.run_dir.join("ids")
    }

    /// Where its layers are shown for a moment as its users see them.
    pub fn shown_layers(&self, name: &Name) -> PathBuf {
        self.run(name).join("layers")
    }

    /// Copies of what was bound in it on the host where it was made of a bundle, each by its number.
    pub fn copies(&self, name: &Name) -> PathBuf {
        self.run(name).join("copies")
    }

    /// Its own layer: what it has changed.
    pub fn upper(&self, name: &Name) -> PathBuf {
        self.state(name).join("upper")
    }

    /// The overlay's own directory beside it.
    pub fn work(&self, name: &Name) -> PathBuf {
        self.state(name).join("work")
    }

    /// Its log; see [`super::shim::line`] for what is in it.
    pub fn log(&self, name: &Name) -> PathBuf {
        self.state(name).join("log")
    }

    /// Its cgroup.
    pub fn cgroup(&self, name: &Name) -> Cgroup {
        self.cgroups.container(name)
    }
}
