//! Devices of this host that somebody else's network namespace gets, and gives back.
//!
//! The kernel moves a device with its Ethernet address, its MTU and its own settings, and takes it down. Addresses
//! and routes it takes away. The addresses come with it that somebody has set, for good and for all the world; those
//! that a protocol has brought or that hold on the link or the host only belong to the place it was in.
//!
//! **Invariant:** a device is either here or there, whole: a move that fails half-way is undone.

use std::os::fd::{AsFd, AsRawFd};

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::NetError;
use super::netlink::{Link, Netlink};
use crate::sys::netns::NetNs;

/// How many names a pattern may stand for: more than one namespace has devices.
const MOST_NAMES: u32 = 32_768;

/// A device that has been moved, and where from. Dropped, it stays where it is.
#[derive(Debug)]
pub struct Moved {
    device: Device,
    home: NetNs,
    there: NetNs,
    new_name: String,
}

/// What a device has that does not come along by itself.
#[derive(Debug)]
struct Device {
    name: String,
    up: bool,
    addresses: Vec<AddressMessage>,
}

/// Fails unless the calling thread's network namespace has a device of this name.
pub fn check_device(name: &str) -> Result<(), NetError> {
    find(&open()?, name).map(drop)
}

/// Moves a device from the calling thread's network namespace, under a name that is free there: `wanted`, in which
/// `%d` stands for the first number that gives one. It is up afterwards, and has its lasting addresses.
///
/// # Errors
///
/// No device of the name is here, one of the new name is there, or the kernel refuses (`EINVAL`: devices of its kind
/// cannot be moved). The device is then where it was.
pub fn give_device(name: &str, there: NetNs, wanted: &str) -> Result<Moved, NetError> {
    let home = NetNs::current().map_err(NetError::kernel("open", "this network namespace"))?;
    let here = open()?;
    let link = find(&here, name)?;
    let all = here.address_messages(link.index);
    let all = all.map_err(NetError::kernel("list the addresses of", name))?;
    let device = Device {
        name: name.to_owned(),
        up: link.up,
        addresses: all.into_iter().filter_map(lasting).collect(),
    };
    let new_name = inside(&there, |netlink| free_name(netlink, wanted))?;
    if let Err(source) = send(&here, link.index, &new_name, &there) {
        // Moved and not renamed is possible: somebody there was faster with the name.
        let _ = inside(&there, |netlink| {
            let gone = find(netlink, name)?;
            send(netlink, gone.index, name, &home)
        })
        .and_then(|()| device.settle(&here, name));
        return Err(source);
    }
    let moved = Moved {
        device,
        home,
        there,
        new_name,
    };
    let raised = inside(&moved.there, |netlink| {
        moved.device.settle_and_raise(netlink, &moved.new_name)
    });
    if raised.is_err() {
        // The first failure is the one worth telling.
        let _ = moved.take_back();
    }
    raised.map(|()| moved)
}

impl Moved {
    /// Brings it back, under the name and to the state that it had here.
    pub fn take_back(&self) -> Result<(), NetError> {
        let device = &self.device;
        inside(&self.there, |netlink| {
            let index = find(netlink, &self.new_name)?.index;
            send(netlink, index, &device.name, &self.home)
        })?;
        inside(&self.home, |netlink| device.settle(netlink, &device.name))
    }
}

impl Device {
    /// Gives it its addresses.
    fn address(&self, netlink: &Netlink, index: u32) -> Result<(), NetError> {
        for address in &self.addresses {
            let mut address = address.clone();
            address.header.index = index;
            let added = netlink.add_address_as(address);
            added.map_err(NetError::kernel("give an address to", &self.name))?;
        }
        Ok(())
    }

    fn settle_and_raise(&self, netlink: &Netlink, name: &str) -> Result<(), NetError> {
        let index = find(netlink, name)?.index;
        self.address(netlink, index)?;
        let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up();
        let raised = netlink.change(up.build());
        raised.map_err(NetError::kernel("switch on", name))
    }

    /// Addresses, and up where it was.
    fn settle(&self, netlink: &Netlink, name: &str) -> Result<(), NetError> {
        if self.up {
            return self.settle_and_raise(netlink, name);
        }
        self.address(netlink, find(netlink, name)?.index)
    }
}

/// Moves and renames in one step.
fn send(netlink: &Netlink, index: u32, name: &str, to: &NetNs) -> Result<(), NetError> {
    let message = LinkMessageBuilder::<LinkUnspec>::new()
        .index(index)
        .name(name)
        .setns_by_fd(to.as_fd().as_raw_fd());
    let moved = netlink.change(message.build());
    moved.map_err(NetError::kernel("move the network device", name))
}

fn open() -> Result<Netlink, NetError> {
    Netlink::open().map_err(NetError::kernel("open", "a netlink socket"))
}

fn inside<T: Send>(
    namespace: &NetNs,
    work: impl FnOnce(&Netlink) -> Result<T, NetError> + Send,
) -> Result<T, NetError> {
    let done = namespace.run(|| work(&open()?));
    done.map_err(NetError::kernel("enter", "a network namespace"))?
}

fn find(netlink: &Netlink, name: &str) -> Result<Link, NetError> {
    let found = netlink.link(name);
    let found = found.map_err(NetError::kernel("look up", name))?;
    found.ok_or_else(|| NetError::NoDevice {
        name: name.to_owned(),
    })
}

fn free_name(netlink: &Netlink, wanted: &str) -> Result<String, NetError> {
    let patterned = wanted.contains("%d");
    let numbers = 0..if patterned { MOST_NAMES } else { 1 };
    for number in numbers {
        let name = wanted.replacen("%d", &number.to_string(), 1);
        let taken = netlink.link(&name);
        let taken = taken.map_err(NetError::kernel("look up", &name))?;
        if taken.is_none() {
            return Ok(name);
        }
    }
    Err(NetError::DeviceExists {
        name: wanted.to_owned(),
    })
}

/// What is asked to have an address again elsewhere, of one that goes along.
fn lasting(mut message: AddressMessage) -> Option<AddressMessage> {
    let header = &message.header;
    if !header.flags.contains(AddressHeaderFlags::Permanent)
        || header.scope != AddressScope::Universe
    {
        return None;
    }
    // Not its label, which has the name of the device here in it, and not what the kernel says of its age.
    message.attributes.retain(|attribute| {
        matches!(
            attribute,
            AddressAttribute::Address(_)
                | AddressAttribute::Local(_)
                | AddressAttribute::Broadcast(_)
                | AddressAttribute::Flags(_)
                | AddressAttribute::RoutePriority(_)
        )
    });
    Some(message)
}
