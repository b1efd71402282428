//! The filter of a port: a container sends as itself only, and does not reach the host.
//!
//! | dropped | because |
//! |---|---|
//! | another Ethernet address as the sender | a switch would send its owner's frames here |
//! | VLAN tags, spanning tree, other protocols than ARP, IPv4, IPv6 | they lead around the network, or rebuild it |
//! | ARP that speaks of another station | its neighbours would believe it |
//! | another IPv4 address as the sender, or another IPv6 address than that of its link | it would speak in another's name |
//! | neighbour advertisements for other addresses | as with ARP |
//! | what DHCP servers and routers say (RA, redirects, group queries) | it would become its neighbours' router or name server |
//! | IPv6 fragments, routing and other extension headers | they hide the above (RFC 7113) |
//! | what is for the host itself, by any of its addresses | default deny; only answers to what the host has begun, and what it routes on as a gateway, pass |
//! | one station's packets in a frame to all | the host is one of all |
//!
//! It is a BPF program at the ingress of the host's end (tc's clsact), and not rules of a firewall: it is part of the
//! interface. So it appears with the port on whatever host the container comes to, ends with it whoever is killed
//! when, is not lost when somebody loads other firewall rules, and needs no program beside us. What is delivered *to*
//! the container, held frames included, does not come by it.
//!
//! The program asks the kernel two things: whether the host has a connected socket for a packet, and whether it would
//! route one on. The second answer is given to programs under a licence compatible with the GPL only.

mod assembly;
mod plan;

use std::ffi::CStr;
use std::os::fd::AsFd;

use super::netlink::Link;
use super::plan::PORT_MAC;
use super::{Here, NetError, bridge, port};
use crate::model::{Lease, Mac};
use crate::sys::classifier;
use plan::Policy;

const NAME: &str = "godwit_port";

/// This one program may be used under either licence.
const LICENCE: &CStr = c"Dual MIT/GPL";

/// Puts the filter on a port that is made and not yet up.
pub(super) fn install(here: &Here<'_>, port: &str, lease: &Lease) -> Result<(), NetError> {
    let program = plan::program(&policy(here, lease)?)?;
    let failed = |source| NetError::Filter {
        port: port.to_owned(),
        source,
    };
    let existing = port::look_up(&here.netlink, port)?;
    let index = existing.map_or(0, |link| link.index);
    let loaded = classifier::load(NAME, LICENCE, &program).map_err(failed)?;
    here.netlink
        .filter(index, loaded.as_fd(), NAME)
        .map_err(failed)
}

fn policy(here: &Here<'_>, lease: &Lease) -> Result<Policy, NetError> {
    let config = here.config;
    let bridge = bridge::get(here)?;
    let uplink = bridge::uplink(here)?;
    let own = |link: &Link| link.mac.as_slice().try_into().ok().map(Mac);
    let mut host_macs = vec![PORT_MAC];
    host_macs.extend(
        [Some(&bridge), uplink.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(own),
    );
    let is_gateway = config.gateway.is_some() && config.gateway == config.bridge_address;
    Ok(Policy {
        mac: lease.mac,
        address: lease.address,
        broadcast: config.last(),
        host: config.bridge_address,
        host_macs,
        routes_at: is_gateway.then_some(bridge.index),
    })
}
