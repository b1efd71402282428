//! The bridge: this host's part of the container network's Ethernet segment.

use std::net::IpAddr;

use rtnetlink::LinkBridge;
use rtnetlink::packet_route::link::InfoKind;

use super::netlink::{Link, Netlink, named, noted};
use super::{Failures, Here, NetError, NetworkConfig};
use crate::model::Mac;

/// What a bridge says of itself that was made here, and not found.
const OURS: &str = "made by godwit";

/// Sees to it that the bridge exists, is up, has its address and its uplink. What is so already stays untouched;
/// everything is checked before anything is changed, and a bridge that was made is removed again on failure.
pub(super) fn ensure(here: &Here<'_>) -> Result<(), NetError> {
    let (netlink, config) = (&here.netlink, here.config);
    let found = find(netlink, config)?;
    if let Some(uplink) = &config.uplink {
        check_uplink(netlink, uplink, found.as_ref())?;
    }
    if let Some(bridge) = found {
        return equip(netlink, config, &bridge);
    }
    let made = make(netlink, config).and_then(|bridge| equip(netlink, config, &bridge));
    let Err(source) = made else { return Ok(()) };
    let mut failures = Failures::default();
    failures.note(remove(netlink, &config.bridge));
    if failures.0.is_empty() {
        return Err(source);
    }
    Err(NetError::BridgeRemains {
        bridge: config.bridge.clone(),
        source: Box::new(source),
        failures,
    })
}

/// The bridge that [`ensure`] saw to.
pub(super) fn get(here: &Here<'_>) -> Result<Link, NetError> {
    existing(&here.netlink, here.config)
}

fn existing(netlink: &Netlink, config: &NetworkConfig) -> Result<Link, NetError> {
    let bridge = config.bridge.clone();
    find(netlink, config)?.ok_or(NetError::NoBridge { bridge })
}

/// How long a frame may be that crosses the bridge to wherever it leads.
pub(super) fn mtu(here: &Here<'_>) -> Result<Option<u32>, NetError> {
    // A bridge takes the shortest of its ports', so that without an uplink there is nothing to learn from it.
    Ok(uplink(here)?.and_then(|link| link.mtu))
}

/// The uplink, where there is one.
pub(super) fn uplink(here: &Here<'_>) -> Result<Option<Link>, NetError> {
    match &here.config.uplink {
        Some(uplink) => look_up(&here.netlink, uplink),
        None => Ok(None),
    }
}

fn look_up(netlink: &Netlink, name: &str) -> Result<Option<Link>, NetError> {
    netlink
        .link(name)
        .map_err(NetError::kernel("look up", name))
}

/// The bridge, if there is one; an error where something else has its name, or it would hold back frames.
fn find(netlink: &Netlink, config: &NetworkConfig) -> Result<Option<Link>, NetError> {
    let bridge = config.bridge.clone();
    match look_up(netlink, &bridge)? {
        Some(link) if link.kind != Some(InfoKind::Bridge) => Err(NetError::NotABridge { bridge }),
        Some(link) if link.slow => Err(NetError::SlowBridge { bridge }),
        found => Ok(found),
    }
}

/// A bridge without an Ethernet address of its own takes the lowest of its ports', so that it changes with the
/// containers that come and go, and neighbours lose this host for a while. Ours keeps one for good.
fn make(netlink: &Netlink, config: &NetworkConfig) -> Result<Link, NetError> {
    let name = &config.bridge;
    let mut message = LinkBridge::new(name);
    if let Some(address) = config.bridge_address {
        message = message.address(Mac::of(address).0.to_vec());
    }
    netlink
        .add(message.build())
        .map_err(NetError::kernel("make the bridge", name))?;
    netlink
        .change(noted(name, OURS))
        .map_err(NetError::kernel("write a note at", name))?;
    let bridge = existing(netlink, config)?;
    if config.bridge_address.is_none() {
        // The kernel's own choice, but as a decision that stays.
        netlink
            .change(named(name).address(bridge.mac.clone()).build())
            .map_err(NetError::kernel("fix the Ethernet address of", name))?;
    }
    Ok(bridge)
}

fn equip(netlink: &Netlink, config: &NetworkConfig, bridge: &Link) -> Result<(), NetError> {
    let name = &config.bridge;
    if !bridge.up {
        netlink
            .change(named(name).up().build())
            .map_err(NetError::kernel("switch on", name))?;
    }
    if let Some(address) = config.bridge_address {
        netlink
            .add_address(bridge.index, address, config.prefix)
            .map_err(NetError::kernel("give an address to", name))?;
    }
    if let Some(uplink) = &config.uplink {
        netlink
            .change(named(uplink).controller(bridge.index).up().build())
            .map_err(NetError::kernel("put on the bridge the uplink", uplink))?;
    }
    Ok(())
}

/// Removes the bridge, if it was made here; whether one stays, because it is somebody else's.
pub(super) fn give_up(here: &Here<'_>) -> Result<bool, NetError> {
    let name = &here.config.bridge;
    match look_up(&here.netlink, name)? {
        Some(bridge) if bridge.alias != OURS => Ok(true),
        _ => remove(&here.netlink, name).map(|()| false),
    }
}

fn remove(netlink: &Netlink, name: &str) -> Result<(), NetError> {
    match look_up(netlink, name)? {
        Some(bridge) => netlink
            .delete(bridge.index)
            .map_err(NetError::kernel("remove the bridge", name)),
        None => Ok(()),
    }
}

/// An uplink must be there, free, and without an address: the host would lose what it reaches over it.
fn check_uplink(netlink: &Netlink, name: &str, bridge: Option<&Link>) -> Result<(), NetError> {
    let uplink = name.to_owned();
    let Some(link) = look_up(netlink, name)? else {
        return Err(NetError::NoUplink { uplink });
    };
    match link.master {
        Some(master) if Some(master) == bridge.map(|bridge| bridge.index) => return Ok(()),
        Some(_) => return Err(NetError::UplinkElsewhere { uplink }),
        None => {}
    }
    let addresses = netlink
        .addresses(link.index)
        .map_err(NetError::kernel("read the addresses of", name))?;
    // Every interface that is up has a link-local IPv6 address that nobody gave it.
    let given = |address: &IpAddr| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    match addresses.into_iter().find(given) {
        Some(address) => Err(NetError::UplinkHasAddress {
            uplink,
            address: address.to_string(),
        }),
        None => Ok(()),
    }
}
