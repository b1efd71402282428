//! Is an address in use by somebody? Nobody but the network can tell (RFC 5227).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::frame::{Arp, ETHERTYPE};
use super::{Here, NetError};
use crate::model::Mac;
use crate::sys::ethernet::EthernetSocket;

/// How often it is asked within the wait: a frame may be lost.
const PROBES: u32 = 3;

/// Asks on the bridge, and listens for as long as `wait`; an answer ends it at once.
pub(super) fn answers(
    here: &Here<'_>,
    address: Ipv4Addr,
    wait: Duration,
) -> Result<bool, NetError> {
    let own = here
        .netlink
        .all_addresses()
        .map_err(NetError::kernel("read the addresses of", "this host"))?;
    // The host does not hear its own question.
    if own.contains(&IpAddr::V4(address)) {
        return Ok(true);
    }
    let bridge = &here.config.bridge;
    EthernetSocket::open(bridge, ETHERTYPE)
        .and_then(|socket| ask(&socket, address, wait))
        .map_err(NetError::kernel("ask for an address on", bridge))
}

fn ask(socket: &EthernetSocket, address: Ipv4Addr, wait: Duration) -> io::Result<bool> {
    let asker = Mac(socket.hardware_address()?);
    let question = Arp::probe(asker, address).encode();
    let start = Instant::now();
    // An ARP frame with its padding, and room to spare.
    let mut frame = [0; 128];
    for number in 1..=PROBES {
        socket.send(&question)?;
        let until = start + wait * number / PROBES;
        while let Some(length) = socket.receive(&mut frame, until)? {
            if Arp::decode(&frame[..length]).is_some_and(|arp| arp.claims(address, asker)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
