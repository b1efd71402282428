//! The container network on this host: one bridge, one port per container, the gate between the two.
//!
//! ```text
//!  other hosts ═══ uplink ─┐
//!                          bridge ┈┈ gate ┈┈ gw… ──── eth0 of a container
//!                          │      ┈┈ gate ┈┈ gw… ──── eth0 of another
//!              host's own address
//! ```
//!
//! Hosts whose uplinks are on one Ethernet segment share one container network: a container that moves keeps its
//! address and its Ethernet address, and announces itself where it arrives.
//!
//! **Invariant:** a port is made with its gate closed; only [`Network::attach`] opens it.
//! **Invariant:** whatever a container sends is judged at its port (`filter`) before anybody sees it, from the
//! port's first moment to its last.
//! **Invariant:** everything here can be done again after a crash, and a failure leaves nothing behind.
//! **Invariant:** a [`Network`] works in the network namespace in which it was opened, whichever thread calls it,
//! and no thread but its own short-lived ones ever changes its namespace or drives its async runtime.

mod announce;
mod bridge;
mod device;
mod error;
mod filter;
mod frame;
mod gate;
mod hold;
mod lease;
mod neighbour;
mod netlink;
mod plan;
mod port;
mod probe;

#[cfg(test)]
mod test;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

pub use device::{Moved, check_device, give_device};
pub use error::{Failures, NetError};
pub use hold::{Delivered, HeldFrames};
pub use lease::{LeaseEntry, Leases};
pub use plan::NetworkConfig;

use crate::model::{Lease, Name, Neighbour};
use crate::sys::netns::NetNs;

/// The container network on this host. Its calls block.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    /// Where the bridge is.
    home: NetNs,
}

/// What a job has that runs at home: on a thread of its own, in the namespace where the bridge is.
struct Here<'a> {
    config: &'a NetworkConfig,
    netlink: netlink::Netlink,
}

impl Network {
    /// Sees to it that the bridge exists, is up, and has its address and its uplink. It may be done again and
    /// again; on failure nothing is left behind.
    pub fn open(config: NetworkConfig) -> Result<Self, NetError> {
        let network = Self::unseen(config)?;
        network.at_home(bridge::ensure)?;
        Ok(network)
    }

    /// The same, whether there is a bridge or not: for who takes things away.
    pub fn unseen(config: NetworkConfig) -> Result<Self, NetError> {
        config.check()?;
        let home =
            NetNs::current().map_err(NetError::kernel("open", "this host's network namespace"))?;
        Ok(Self { config, home })
    }

    /// Removes the bridge, unless it had been there before [`Network::open`] first saw to it. Whether one stays is
    /// told.
    pub fn remove_bridge(&self) -> Result<bool, NetError> {
        self.at_home(bridge::give_up)
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Makes a container's network namespace, pinned at `pin`, with everything a container needs in it: loopback,
    /// and an eth0 with the lease's addresses and the default route, all up. The gate is closed. Nothing of it
    /// may exist before; on failure nothing is left behind.
    pub fn make_port(&self, name: &Name, lease: &Lease, pin: &Path) -> Result<(), NetError> {
        self.at_home(|here| port::make(here, name, lease, pin))
    }

    /// The same in a network namespace that is pinned at `pin` already, and new. On failure it is not there any more.
    pub fn make_port_in(&self, name: &Name, lease: &Lease, pin: &Path) -> Result<(), NetError> {
        self.at_home(|here| port::make_in(here, name, lease, pin))
    }

    /// Makes a port in the network namespace at `netns`, which somebody else has made and keeps: an eth0 with the lease's
    /// addresses and the default route, and loopback, all up. The gate is closed. There may be no eth0 in it; on failure
    /// nothing is left behind.
    pub fn plug(&self, name: &Name, lease: &Lease, netns: &Path) -> Result<(), NetError> {
        self.at_home(|here| port::plug(here, name, lease, netns))
    }

    /// Removes what [`Network::plug`] has made. What is not there is no failure.
    pub fn unplug(&self, name: &Name) -> Result<(), NetError> {
        self.at_home(|here| port::unplug(here, name))
    }

    /// Opens the gate: from now on the container's frames pass. An open gate stays open.
    pub fn attach(&self, name: &Name) -> Result<(), NetError> {
        self.at_home(|here| gate::open(here, name))
    }

    /// Closes the gate: from now on no frame passes. A closed gate stays closed.
    pub fn detach(&self, name: &Name) -> Result<(), NetError> {
        self.at_home(|here| gate::close(here, name))
    }

    /// Whether the gate is open.
    pub fn is_attached(&self, name: &Name) -> Result<bool, NetError> {
        self.at_home(|here| gate::is_open(here, name))
    }

    /// Tells the neighbours where the container is now: at once, and three times more within two seconds, from a
    /// thread of its own.
    pub fn announce(&self, lease: &Lease, pin: &Path) -> Result<(), NetError> {
        announce::announce(lease, pin)
    }

    /// Makes room for the frames that others will send to a container which is on its way to this host, for
    /// [`Network::hold`]. Its port is made.
    pub fn prepare_to_hold(&self, name: &Name, lease: &Lease) -> Result<HeldFrames, NetError> {
        self.at_home(|here| hold::prepare(here, name, lease))
    }

    /// From now on, keeps the frames that others send to the container: they learn that it is here, and what they send
    /// waits until [`HeldFrames::deliver`]. The gate is closed.
    pub fn hold(&self, frames: &HeldFrames) -> Result<(), NetError> {
        self.at_home(|here| hold::begin(here, frames))
    }

    /// Whom a container knows on its network.
    pub fn neighbours(&self, pin: &Path) -> Result<Vec<Neighbour>, NetError> {
        neighbour::known(pin)
    }

    /// Lets a container that comes from elsewhere know whom it knew there.
    pub fn learn(&self, pin: &Path, neighbours: &[Neighbour]) -> Result<(), NetError> {
        neighbour::learn(pin, neighbours)
    }

    /// Removes everything that [`Network::make_port`] makes, or whatever there is of it. It does as much as it
    /// can, and tells everything that failed.
    pub fn remove_port(&self, name: &Name, pin: &Path) -> Result<(), NetError> {
        self.at_home(|here| port::remove(here, name, pin))
    }

    /// The host's ends of all ports that exist, whosever they are: see [`Network::port_name`].
    pub fn ports(&self) -> Result<Vec<String>, NetError> {
        self.at_home(port::list)
    }

    /// The name of the host's end of a container's port.
    pub fn port_name(name: &Name) -> String {
        plan::port_name(name)
    }

    /// Whether anybody on the network has this address, or is about to take it. Silence takes `wait` to hear; a
    /// few hundred milliseconds are right for one segment.
    pub fn answers(&self, address: Ipv4Addr, wait: Duration) -> Result<bool, NetError> {
        self.at_home(|here| probe::answers(here, address, wait))
    }

    fn at_home<T: Send>(
        &self,
        job: impl FnOnce(&Here<'_>) -> Result<T, NetError> + Send,
    ) -> Result<T, NetError> {
        let config = &self.config;
        let run = || {
            let netlink =
                netlink::Netlink::open().map_err(NetError::kernel("open", "a netlink socket"))?;
            job(&Here { config, netlink })
        };
        self.home
            .run(run)
            .map_err(NetError::kernel("enter", "this host's network namespace"))?
    }
}
