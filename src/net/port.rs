//! A container's port: a pinned network namespace and the link between it and this host.
//!
//! ```text
//!   host's namespace                      container's namespace, pinned at a path
//!   bridge ┈┈ gate ┈┈ gw0123456789ab ──── eth0  (lease: MAC, address, default route)     lo
//! ```
//!
//! **Invariant:** there is no moment at which a frame passes the host's end of a port that has no filter: it is up
//! only later.
//! **Invariant:** a port is made with its gate closed (`gate` opens it), and what stands before a closed gate
//! does not reach the host's own network stack either: the host's end has no IPv6, and answers no ARP.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rtnetlink::LinkVeth;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
};

use super::netlink::{Link, Netlink, named};
use super::{Failures, Here, NetError, bridge, filter, plan};
use crate::model::{Lease, Name};
use crate::sys::netns::{self, NetNs};

/// The container's end of the link.
pub(super) const INSIDE: &str = "eth0";

/// IPv6 inside stays within the link: no router decides what a container's addresses and routes are, as they
/// could not follow it; and no start-up traffic, as a container that arrives is not starting up.
/// The address within the link follows from the Ethernet address, on every host, and the filter knows it.
const QUIET_IPV6: [(&str, &str); 6] = [
    ("addr_gen_mode", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("router_solicitations", "0"),
    ("accept_dad", "0"),
    ("dad_transmits", "0"),
];

/// Makes the port, or nothing.
pub(super) fn make(
    here: &Here<'_>,
    name: &Name,
    lease: &Lease,
    pin: &Path,
) -> Result<(), NetError> {
    is_free(here, name)?;
    if fs::symlink_metadata(pin).is_ok() {
        return Err(exists(name, pin.display().to_string()));
    }
    if let Some(directory) = pin.parent() {
        fs::create_dir_all(directory)
            .map_err(NetError::kernel("make the directory", directory.display()))?;
    }
    netns::pin_new(pin).map_err(NetError::kernel(
        "pin a new network namespace at",
        pin.display(),
    ))?;
    furnish(here, name, lease, pin)
}

/// The same for a network namespace that is there, and new. On failure it is gone with the rest.
pub(super) fn make_in(
    here: &Here<'_>,
    name: &Name,
    lease: &Lease,
    pin: &Path,
) -> Result<(), NetError> {
    is_free(here, name)?;
    furnish(here, name, lease, pin)
}

/// The same for a network namespace that is somebody else's, and stays on failure.
pub(super) fn plug(
    here: &Here<'_>,
    name: &Name,
    lease: &Lease,
    netns: &Path,
) -> Result<(), NetError> {
    is_free(here, name)?;
    let Err(source) = connect(here, name, lease, netns) else {
        return Ok(());
    };
    match unplug(here, name) {
        Ok(()) => Err(source),
        Err(error) => {
            let mut failures = Failures::default();
            failures.note(Err(error));
            Err(NetError::NotUndone {
                name: name.clone(),
                source: Box::new(source),
                failures,
            })
        }
    }
}

/// Removes the link of a port, and nothing else.
pub(super) fn unplug(here: &Here<'_>, name: &Name) -> Result<(), NetError> {
    remove_link(&here.netlink, &plan::port_name(name))
}

fn exists(name: &Name, what: String) -> NetError {
    NetError::PortExists {
        name: name.clone(),
        what,
    }
}

fn is_free(here: &Here<'_>, name: &Name) -> Result<(), NetError> {
    let port = plan::port_name(name);
    match look_up(&here.netlink, &port)? {
        Some(_) => Err(exists(name, format!("interface {port}"))),
        None => Ok(()),
    }
}

fn furnish(here: &Here<'_>, name: &Name, lease: &Lease, pin: &Path) -> Result<(), NetError> {
    let Err(source) = connect(here, name, lease, pin) else {
        return Ok(());
    };
    // The port was not there when we began, and its name is the container's: what is there now is ours.
    match remove(here, name, pin) {
        Ok(()) => Err(source),
        Err(NetError::Remains { failures, .. }) => Err(NetError::NotUndone {
            name: name.clone(),
            source: Box::new(source),
            failures,
        }),
        Err(other) => Err(other),
    }
}

/// Removes the port, or whatever a crash in [`make`] or here has left of it.
pub(super) fn remove(here: &Here<'_>, name: &Name, pin: &Path) -> Result<(), NetError> {
    let mut failures = Failures::default();
    // The link first: it takes eth0 with it, even where a process still lives in the namespace.
    failures.note(remove_link(&here.netlink, &plan::port_name(name)));
    failures.note(netns::unpin(pin).map_err(NetError::kernel(
        "unpin the network namespace at",
        pin.display(),
    )));
    if failures.0.is_empty() {
        Ok(())
    } else {
        let name = name.clone();
        Err(NetError::Remains { name, failures })
    }
}

/// The host's ends that exist, of whatever containers.
pub(super) fn list(here: &Here<'_>) -> Result<Vec<String>, NetError> {
    let links = here
        .netlink
        .links(InfoKind::Veth)
        .map_err(NetError::kernel("list", "the interfaces"))?;
    let names = links.into_iter().map(|link| link.name);
    Ok(names.filter(|name| plan::is_port_name(name)).collect())
}

pub(super) fn look_up(netlink: &Netlink, port: &str) -> Result<Option<Link>, NetError> {
    netlink
        .link(port)
        .map_err(NetError::kernel("look up", port))
}

fn remove_link(netlink: &Netlink, port: &str) -> Result<(), NetError> {
    let Some(link) = look_up(netlink, port)? else {
        return Ok(());
    };
    match netlink.delete(link.index) {
        // The kernel was faster: it removes the link when the namespace at its other end goes.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result.map_err(NetError::kernel("remove the interface", port)),
    }
}

fn connect(here: &Here<'_>, name: &Name, lease: &Lease, pin: &Path) -> Result<(), NetError> {
    let port = plan::port_name(name);
    let inside = NetNs::open(pin).map_err(NetError::kernel("open", pin.display()))?;
    make_link(here, &port, lease, &inside)?;
    filter::install(here, &port, lease)?;
    tame_host_end(&here.netlink, name, &port)?;
    inside
        .run(|| configure_inside(lease))
        .map_err(NetError::kernel("enter", pin.display()))?
}

/// Both ends at once, each in its place: there is no moment at which eth0 is somewhere else.
fn make_link(here: &Here<'_>, port: &str, lease: &Lease, inside: &NetNs) -> Result<(), NetError> {
    let mut far = named(INSIDE)
        .address(lease.mac.0.to_vec())
        .setns_by_fd(inside.as_fd().as_raw_fd());
    let mut near = LinkVeth::new(port, INSIDE).address(plan::PORT_MAC.0.to_vec());
    if let Some(mtu) = bridge::mtu(here)? {
        far = far.mtu(mtu);
        near = near.mtu(mtu);
    }
    let near = near.set_info_data(InfoData::Veth(InfoVeth::Peer(far.build())));
    here.netlink
        .add(near.build())
        .map_err(NetError::kernel("make the link", port))
}

/// No ARP, no IPv6 and no IPv4 from the host's end. Before a closed gate the frames of a container come to the
/// host's own stack, which would answer ARP for any of the host's addresses and take what it is sent, and so hear a
/// container that nobody is to hear. The container's address is never reached over this interface, which is what
/// `rp_filter` asks. On the bridge all this makes no difference: there the bridge speaks for the host.
fn tame_host_end(netlink: &Netlink, name: &Name, port: &str) -> Result<(), NetError> {
    let key = format!("ipv4/conf/{port}/rp_filter");
    netns::set_parameter(&key, "1").map_err(NetError::kernel("set", key))?;
    let no_ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let tamed = named(port)
        .arp(false)
        .alias(format!("godwit {name}"))
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_ipv6]));
    netlink
        .change(tamed.build())
        .and_then(|()| netlink.change(named(port).up().build()))
        .map_err(NetError::kernel("set up the interface", port))
}

/// Runs on a thread in the container's namespace.
fn configure_inside(lease: &Lease) -> Result<(), NetError> {
    let inside = |what| NetError::kernel(what, format!("{INSIDE} of the container"));
    let netlink = Netlink::open().map_err(inside("open a netlink socket for"))?;
    for (key, value) in QUIET_IPV6 {
        let key = format!("ipv6/conf/{INSIDE}/{key}");
        netns::set_parameter(&key, value).map_err(NetError::kernel("set", key))?;
    }
    // CRIU wants the loopback up, and so do programs.
    netlink
        .change(named("lo").up().build())
        .map_err(NetError::kernel("switch on", "lo of the container"))?;
    let link = netlink
        .link(INSIDE)
        .and_then(|link| link.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        .map_err(inside("look up"))?;
    netlink
        .add_address(link.index, lease.address, lease.prefix)
        .map_err(inside("give an address to"))?;
    netlink
        .change(named(INSIDE).up().build())
        .map_err(inside("switch on"))?;
    match lease.gateway {
        Some(gateway) => netlink
            .add_default_route(link.index, gateway)
            .map_err(NetError::kernel("set the default route to", gateway)),
        None => Ok(()),
    }
}
