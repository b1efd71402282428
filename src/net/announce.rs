//! Telling the neighbours, and every switch on the way, where a container is now.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::frame::{Arp, ETHERTYPE};
use super::{NetError, port};
use crate::model::Lease;
use crate::sys::ethernet::EthernetSocket;
use crate::sys::netns::NetNs;

/// When it is told again, from the first time: a frame may be lost, and a switch may be slow to listen.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// Tells it once, from inside the container's namespace, and leaves a thread that tells it again. The gate must
/// be open for anybody to hear it.
pub(super) fn announce(lease: &Lease, pin: &Path) -> Result<(), NetError> {
    let inside = NetNs::open(pin).map_err(NetError::kernel("open", pin.display()))?;
    let failed = || NetError::kernel("announce", lease.address);
    let socket = inside
        .run(|| EthernetSocket::open(port::INSIDE, ETHERTYPE))
        .map_err(NetError::kernel("enter", pin.display()))?
        .map_err(failed())?;
    let lease = *lease;
    tell(&socket, &lease).map_err(failed())?;
    let start = Instant::now();
    let again = move || {
        for offset in AGAIN {
            thread::sleep((start + offset).saturating_duration_since(Instant::now()));
            // The container has gone, or is going: there is nothing to tell any more.
            if let Err(error) = tell(&socket, &lease) {
                tracing::debug!(address = %lease.address, %error, "announcements end early");
                return;
            }
        }
    };
    thread::Builder::new()
        .name("announce".to_owned())
        .spawn(again)
        .map(drop)
        .map_err(failed())
}

fn tell(socket: &EthernetSocket, lease: &Lease) -> io::Result<()> {
    Arp::announcements(lease.mac, lease.address)
        .iter()
        .try_for_each(|arp| socket.send(&arp.encode()))
}
