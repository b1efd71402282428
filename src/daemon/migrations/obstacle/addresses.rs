//! Sockets at addresses that do not go with their container: those of a network that its engine alone has.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::Finding;

/// A connection of which nothing is left but a name (`TCP_TIME_WAIT`, include/net/tcp_states.h).
const TIME_WAIT: &str = "06";

/// What the sockets of a process's network namespace have at addresses other than its loopback's: each address and port
/// once.
pub fn staying(pid: i32) -> Vec<Finding> {
    let tables = ["tcp", "tcp6", "udp", "udp6"].map(|table| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}"));
        (table.trim_end_matches('6'), text.unwrap_or_default())
    });
    let all: BTreeSet<(&str, SocketAddr)> = tables
        .iter()
        .flat_map(|(kind, text)| bound(text).map(move |address| (*kind, address)))
        .collect();
    let tell = |(kind, address): (&str, SocketAddr)| {
        let text = format!(
            "a {kind} socket is at {address}, an address of its engine's network, which does not go with it: close it, or \
             have the engine connect the container by Godwit's CNI plugin"
        );
        Finding::blocking("address-stays", text)
    };
    all.into_iter().map(tell).collect()
}

/// The local addresses of a table of proc_pid_net(5) that are one host's.
fn bound(table: &str) -> impl Iterator<Item = SocketAddr> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let address = parse(local)?;
        let ip = address.ip().to_canonical();
        (state != TIME_WAIT && !ip.is_loopback() && !ip.is_unspecified()).then_some(address)
    })
}

/// `0100007F:1F90`: each four bytes of the address as a number of this machine's, then the port.
fn parse(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|at| {
            let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect();
    let bytes = words?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn addresses_of_one_host_are_found_and_others_are_not() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
                        0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n\
                        1: 0100007F:1F91 00000000:0000 0A 00000000:00000000\n\
                        2: 0500580A:1F92 0600580A:D431 01 00000000:00000000\n\
                        3: 0500580A:1F93 0600580A:D431 06 00000000:00000000\n";
        let found: Vec<String> = bound(table).map(|address| address.to_string()).collect();
        assert_eq!(found, ["10.88.0.5:8082"]);
        let mapped = "head\n 0: 0000000000000000FFFF00000100007F:0050 0000:0000 01 0\n";
        assert_eq!(bound(mapped).count(), 0);
        let six = "head\n 0: 000080FE00000000FF005450B6AD1DFE:0050 0000:0000 01 0\n";
        let found: Vec<String> = bound(six).map(|address| address.to_string()).collect();
        assert_eq!(found, ["[fe80::5054:ff:fe1d:adb6]:80"]);
        assert_eq!(bound("head\n 0: zz:50 x 01\n 1: 00:1\n").count(), 0);
    }

    #[test]
    fn what_listens_at_loopback_is_not_told_of() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let told = staying(std::process::id().cast_signed());
        assert!(
            told.iter()
                .all(|f| !f.text.contains(&format!("127.0.0.1:{port}")))
        );
    }
}
