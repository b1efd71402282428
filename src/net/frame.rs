//! ARP frames (RFC 826) as values.
//!
//! ```text
//!  destination | source | 08 06 | 00 01 | 08 00 | 06 | 04 | operation | sender MAC | sender IP | target MAC | target IP
//!       6          6        2       2       2      1    1       2           6            4           6            4
//! ```

use std::net::Ipv4Addr;

use crate::model::Mac;

/// The Ethernet type of ARP.
pub(super) const ETHERTYPE: u16 = 0x0806;

/// The length of an ARP frame for IPv4 over Ethernet, without padding.
pub(super) const LENGTH: usize = 42;

/// Everything between the Ethernet type and the operation: Ethernet, IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

const BROADCAST: Mac = Mac([0xff; 6]);
const NOBODY: Mac = Mac([0; 6]);

/// What an ARP frame does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Asks who has the target's IP address.
    Request,
    /// Tells that the sender has the sender's IP address.
    Reply,
}

/// One ARP frame, as far as this room looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    pub operation: Operation,
    pub sender: (Mac, Ipv4Addr),
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// "Does anybody have this address?", asked by somebody who has no address himself (RFC 5227 §2.1.1).
    pub(super) fn probe(asker: Mac, address: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender: (asker, Ipv4Addr::UNSPECIFIED),
            target: (NOBODY, address),
        }
    }

    /// "I have this address": both forms, as some neighbours believe only the one (RFC 5227 §3) and some only
    /// the other.
    pub(super) fn announcements(mac: Mac, address: Ipv4Addr) -> [Self; 2] {
        [(Operation::Request, NOBODY), (Operation::Reply, BROADCAST)].map(|(operation, to)| Self {
            operation,
            sender: (mac, address),
            target: (to, address),
        })
    }

    /// The frame, to everybody.
    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let operation = match self.operation {
            Operation::Request => [0, 1],
            Operation::Reply => [0, 2],
        };
        let mut frame = [0; LENGTH];
        let mut rest = &mut frame[..];
        for part in [
            &BROADCAST.0[..],
            &self.sender.0.0,
            &ETHERTYPE.to_be_bytes(),
            &KIND,
            &operation,
            &self.sender.0.0,
            &self.sender.1.octets(),
            &self.target.0.0,
            &self.target.1.octets(),
        ] {
            let (head, tail) = rest.split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        }
        frame
    }

    /// What a frame says; none where it is no ARP request or reply for IPv4 over Ethernet. Padding is ignored.
    pub(super) fn decode(frame: &[u8]) -> Option<Self> {
        let body = frame.get(12..LENGTH)?;
        if body[..2] != ETHERTYPE.to_be_bytes() || body[2..8] != KIND {
            return None;
        }
        let operation = match body[8..10] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        let station = |at: usize| -> Option<(Mac, Ipv4Addr)> {
            let mac: [u8; 6] = body.get(at..at + 6)?.try_into().ok()?;
            let address: [u8; 4] = body.get(at + 6..at + 10)?.try_into().ok()?;
            Some((Mac(mac), Ipv4Addr::from(address)))
        };
        Some(Self {
            operation,
            sender: station(10)?,
            target: station(20)?,
        })
    }

    /// Whether this frame, seen by `asker`, tells that somebody else has `address`, or is about to take it:
    /// another's probe for it counts too (RFC 5227 §2.1.1).
    pub(super) fn claims(&self, address: Ipv4Addr, asker: Mac) -> bool {
        let probes = self.operation == Operation::Request
            && self.sender.1.is_unspecified()
            && self.target.1 == address;
        self.sender.0 != asker && (self.sender.1 == address || probes)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);
    const MAC: Mac = Mac([2, 0x67, 10, 88, 0, 5]);

    #[test]
    fn the_bytes_of_an_announcement_are_those_of_the_rfc() {
        let frame = Arp::announcements(MAC, ADDRESS)[0].encode();
        let expected = "ffffffffffff 02670a580005 0806 0001 0800 06 04 0001 \
                        02670a580005 0a580005 000000000000 0a580005";
        let text: String = frame.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(text, expected.replace(' ', ""));
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let [one, two] = Arp::announcements(MAC, ADDRESS);
        for arp in [one, two, Arp::probe(MAC, ADDRESS)] {
            let frame = arp.encode();
            assert_eq!(Arp::decode(&frame), Some(arp));
            assert_eq!(Arp::decode(&[&frame[..], &[0; 18]].concat()), Some(arp));
            for end in 0..frame.len() {
                assert_eq!(Arp::decode(&frame[..end]), None);
            }
        }
    }

    #[test]
    fn what_is_no_arp_for_ipv4_over_ethernet_is_nothing() {
        let good = Arp::probe(MAC, ADDRESS).encode();
        for at in 12..22 {
            let mut frame = good;
            frame[at] ^= 0x40;
            assert_eq!(Arp::decode(&frame), None, "byte {at}");
        }
    }

    #[test]
    fn a_probe_of_somebody_else_is_a_claim_and_our_own_is_not() {
        let other = Mac([2; 6]);
        assert!(Arp::probe(other, ADDRESS).claims(ADDRESS, MAC));
        assert!(!Arp::probe(MAC, ADDRESS).claims(ADDRESS, MAC));
        assert!(!Arp::probe(other, ADDRESS).claims(Ipv4Addr::new(10, 88, 0, 6), MAC));
        assert!(Arp::announcements(other, ADDRESS)[1].claims(ADDRESS, MAC));
        // A question about the address, from somebody with another one, tells nothing.
        let question = Arp {
            operation: Operation::Request,
            sender: (other, Ipv4Addr::new(10, 88, 0, 9)),
            target: (NOBODY, ADDRESS),
        };
        assert!(!question.claims(ADDRESS, MAC));
    }
}
