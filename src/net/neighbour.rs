//! Whom a container knows on its network: this goes with it.
//!
//! Without it the first packet it sends on its new host waits for an ARP answer; and where that packet is CRIU's
//! window probe, sent while the gate is still closed, the question is lost and asked again a whole second later
//! (`retrans_time_ms`, Documentation/networking/ip-sysctl.rst).

use std::net::Ipv4Addr;
use std::path::Path;

use super::netlink::Netlink;
use super::{NetError, port};
use crate::model::{Mac, Neighbour};
use crate::sys::netns::NetNs;

/// As many neighbours as are told and learnt: the default size of the kernel's table (`gc_thresh3`).
const MOST: usize = 1024;

/// The neighbours that the container with this pinned network namespace knows.
pub(super) fn known(pin: &Path) -> Result<Vec<Neighbour>, NetError> {
    let all: Vec<(Ipv4Addr, [u8; 6])> =
        inside(pin, "ask for the neighbours in", |netlink, index| {
            netlink.neighbours(index)
        })?;
    let told = all.into_iter().take(MOST);
    Ok(told
        .map(|(address, mac)| Neighbour {
            address,
            mac: Mac(mac),
        })
        .collect())
}

/// Lets the container with this pinned network namespace know these neighbours.
pub(super) fn learn(pin: &Path, neighbours: &[Neighbour]) -> Result<(), NetError> {
    inside(pin, "tell the neighbours in", |netlink, index| {
        let told = neighbours.iter().take(MOST);
        told.into_iter()
            .try_for_each(|n| netlink.add_neighbour(index, n.address, &n.mac.0))
    })
}

fn inside<T: Send>(
    pin: &Path,
    operation: &'static str,
    job: impl FnOnce(&Netlink, u32) -> std::io::Result<T> + Send,
) -> Result<T, NetError> {
    let failed = || NetError::kernel(operation, pin.display());
    let run = || {
        let netlink = Netlink::open()?;
        let link = netlink.link(port::INSIDE)?;
        let index = link.ok_or(std::io::ErrorKind::NotFound)?.index;
        job(&netlink, index)
    };
    let namespace = NetNs::open(pin).map_err(failed())?;
    namespace.run(run).map_err(failed())?.map_err(failed())
}
