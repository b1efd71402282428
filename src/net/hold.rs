//! Frames that come for a container while it runs nowhere wait at its destination instead of being lost.
//!
//! A frame that is lost costs its sender a retransmission timeout (200 ms at least, doubled each time; RFC 6298),
//! an ARP request a whole second. So from the freeze on the destination says that the container is there, takes
//! its frames in at a tap on the bridge, and hands them over, in their order, when its gate is open. What a client
//! sees of the blackout is then the blackout.
//!
//! ```text
//! source         frozen, gate open ──────────────▶ gate closed ─▶ dump
//!                   │ Frozen          Holding ▲        │ GateClosed
//! destination  tap  └▶ bridge, announce ──────┘        └▶ announce again … gate open, deliver
//!
//! until the gate opens:   uplink ─▶ bridge ─▶ tap: a queue in the kernel
//! from then on:           uplink ─▶ bridge ─▶ port ─▶ container
//!                                    queue ─────┘
//! ```
//!
//! The source's gate stays open until the frames come here: what still reaches the source waits in the sockets of
//! the frozen container, and moves with them.
//!
//! **Invariant:** the queue is bounded ([`QUEUE`] frames; the kernel drops what comes beyond), and exists no longer
//! than this value: a daemon that dies takes the tap with it.

use std::io;

use super::frame::{Arp, ETHERTYPE};
use rtnetlink::packet_route::link::LinkAttribute;

use super::netlink::named;
use super::{Here, NetError, bridge, plan, port};
use crate::model::{Lease, Name};
use crate::sys::ethernet::EthernetSocket;
use crate::sys::tap::Tap;

/// How many frames may wait: what a TCP window of some MiB takes, and no more than 1.5 MB of frames of full size.
const QUEUE: u32 = 1000;

/// The longest frame: 64 KiB of payload, as a bridge of any MTU may carry, and its header.
const LONGEST: usize = 65_536 + 18;

/// Frames that wait, once they [are held](super::Network::hold). Dropping it forgets them: their senders will send again.
#[derive(Debug)]
pub struct HeldFrames {
    tap: Tap,
    name: String,
    index: u32,
    port: EthernetSocket,
    lease: Lease,
}

/// What became of frames that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delivered {
    /// Handed to the container.
    pub frames: u64,
    /// Not taken by its port.
    pub lost: u64,
}

/// Makes the tap for the frames of a container whose port is made, and puts it on the bridge, which takes the kernel
/// most of the time that holding frames does. Nobody looks for the container there yet; what the bridge sends to every
/// port of it is [dropped](begin) in the end.
pub(super) fn prepare(here: &Here<'_>, name: &Name, lease: &Lease) -> Result<HeldFrames, NetError> {
    let name_of_tap = plan::tap_name(name);
    let failed = |operation| NetError::kernel(operation, &name_of_tap);
    let bridge = bridge::get(here)?;
    let port_name = plan::port_name(name);
    let absent = || NetError::NoPort {
        name: name.clone(),
        port: port_name.clone(),
    };
    let existing = port::look_up(&here.netlink, &port_name)?.ok_or_else(absent)?;
    let port = EthernetSocket::open(&port_name, ETHERTYPE)
        .map_err(NetError::kernel("send through", &port_name))?;
    let tap = Tap::create(&name_of_tap).map_err(failed("make"))?;
    let mut change = named(&name_of_tap).address(plan::PORT_MAC.0.to_vec());
    change = change.append_extra_attribute(LinkAttribute::TxQueueLen(QUEUE));
    if let Some(mtu) = existing.mtu {
        change = change.mtu(mtu);
    }
    here.netlink
        .change(change.build())
        .map_err(failed("set up"))?;
    let change = named(&name_of_tap).up().controller(bridge.index);
    here.netlink
        .change(change.build())
        .map_err(failed("put on the bridge"))?;
    let link = here.netlink.link(&name_of_tap);
    let link = link.map_err(failed("look at"))?;
    Ok(HeldFrames {
        tap,
        name: name_of_tap,
        index: link.map_or(0, |link| link.index),
        port,
        lease: *lease,
    })
}

/// From now on the frames are held; the gate is closed.
pub(super) fn begin(here: &Here<'_>, held: &HeldFrames) -> Result<(), NetError> {
    let failed = |operation| NetError::kernel(operation, &held.name);
    held.forget().map_err(failed("empty"))?;
    here.netlink
        .claim_mac(held.index, &held.lease.mac.0)
        .map_err(failed("lead frames to"))?;
    held.announce().map_err(failed("announce through"))
}

impl HeldFrames {
    /// Drops what has come so far: no more than the queue has room for.
    fn forget(&self) -> io::Result<()> {
        let mut buffer = vec![0; LONGEST];
        for _ in 0..QUEUE {
            if self.tap.receive(&mut buffer)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Says once more that the container is here: what its source's kernel still sent in its name, before the gate
    /// there was closed, has led every switch on the way back to that host.
    pub fn announce(&self) -> io::Result<()> {
        Arp::announcements(self.lease.mac, self.lease.address)
            .iter()
            .try_for_each(|arp| self.tap.send(&arp.encode()))
    }

    /// Hands over the frames that have come so far, in their order, through the open gate. A frame that the port does
    /// not take is lost, like any other frame may be. Frames go on coming here until the container has announced
    /// itself; once it has, they are handed over by the last call.
    pub fn deliver(&self) -> io::Result<Delivered> {
        let mut buffer = vec![0; LONGEST];
        let mut delivered = Delivered::default();
        while let Some(length) = self.tap.receive(&mut buffer)? {
            let frame = &buffer[..length];
            if !self.is_for_it(frame) {
                continue;
            }
            match self.port.send(frame) {
                Ok(()) => delivered.frames += 1,
                Err(_) => delivered.lost += 1,
            }
        }
        Ok(delivered)
    }

    /// What is for the container, and questions for an address: it answers those for its own, and a late answer
    /// spares whoever asked from asking again a second later.
    fn is_for_it(&self, frame: &[u8]) -> bool {
        let is_question = frame.get(12..14) == Some(&ETHERTYPE.to_be_bytes()[..]);
        is_question || frame.get(..6) == Some(&self.lease.mac.0[..])
    }
}
