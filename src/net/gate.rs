//! The network gate: whether a container's frames reach the bridge. It is closed while a container is frozen to
//! move, so that neither copy's kernel answers for it in the meantime, and nobody learns that it is gone.

use std::thread;
use std::time::{Duration, Instant};

use super::netlink::{Link, Netlink, named};
use super::{Here, NetError, bridge, plan, port};
use crate::model::Name;

/// The kernel lets a port's frames through when it has noticed that the link is up. For a link that was made long
/// ago that is at once; of a new one it may take notice a second later.
const PATIENCE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(1);

/// Opens the gate. When it returns, frames pass. A gate that is open already stays so.
pub(super) fn open(here: &Here<'_>, name: &Name) -> Result<(), NetError> {
    let bridge = bridge::get(here)?;
    move_to(&here.netlink, name, bridge.index, "put on the bridge")?;
    let port = plan::port_name(name);
    let deadline = Instant::now() + PATIENCE;
    while !existing(&here.netlink, name, &port)?.forwarding {
        if Instant::now() > deadline {
            let bridge = here.config.bridge.clone();
            return Err(NetError::PortAsleep { bridge, port });
        }
        thread::sleep(STEP);
    }
    Ok(())
}

/// Closes the gate. A gate that is closed already stays so.
pub(super) fn close(here: &Here<'_>, name: &Name) -> Result<(), NetError> {
    move_to(&here.netlink, name, 0, "take off the bridge")
}

/// Whether the gate is open.
pub(super) fn is_open(here: &Here<'_>, name: &Name) -> Result<bool, NetError> {
    let bridge = bridge::get(here)?;
    let link = existing(&here.netlink, name, &plan::port_name(name))?;
    Ok(link.master == Some(bridge.index))
}

fn move_to(
    netlink: &Netlink,
    name: &Name,
    master: u32,
    operation: &'static str,
) -> Result<(), NetError> {
    let port = plan::port_name(name);
    match netlink.change(named(&port).controller(master).build()) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(NetError::NoPort {
            name: name.clone(),
            port,
        }),
        result => result.map_err(NetError::kernel(operation, port)),
    }
}

fn existing(netlink: &Netlink, name: &Name, port: &str) -> Result<Link, NetError> {
    port::look_up(netlink, port)?.ok_or_else(|| NetError::NoPort {
        name: name.clone(),
        port: port.to_owned(),
    })
}
