//! The filter of a port as a program: what a container may send. Pure.
//!
//! ```text
//!             frame ─▶ tagged? own MAC? no switch's business?
//!                       │
//!        ┌──────────────┼─────────────────────┐
//!       ARP            IPv4                  IPv6            anything else ─▶ dropped
//!   of itself     own source; no DHCP    own link-local;
//!                 server, no router      no router, no DHCP server
//!        │              │                     │
//!        │              ├── to a neighbour ───┤
//!        ▼              ▼                     ▼
//!      passes   to the host: only what answers it, or what it would route on
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use super::NetError;
use super::assembly::{Assembly, If, Label, Register, Width};
use crate::model::Mac;
use Register::{Fp, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9};
use Width::{Byte, Double, Half, Word};

/// What a port's filter must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// The container's Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// The network's broadcast address.
    pub broadcast: Ipv4Addr,
    /// The host's own address in the network.
    pub host: Option<Ipv4Addr>,
    /// The Ethernet addresses at which the host's own network stack listens.
    pub host_macs: Vec<Mac>,
    /// The bridge's index, where the host is the containers' gateway.
    pub routes_at: Option<u32>,
}

/// `TC_ACT_UNSPEC`: as far as this filter is concerned it passes.
const PASS: i32 = -1;
/// `TC_ACT_SHOT`: dropped.
const DROP: i32 = 2;

// The kernel's helpers.
const SKB_LOAD_BYTES: u32 = 26;
const FIB_LOOKUP: u32 = 69;
const SK_LOOKUP_UDP: u32 = 85;
const SK_RELEASE: u32 = 86;
const SKC_LOOKUP_TCP: u32 = 99;

/// Where things are on the stack. The frame's header is two bytes off so that what comes after it is aligned.
const FRAME: i16 = -66;
const BODY: i16 = FRAME + 14;
/// What comes after the IP header.
const INNER: i16 = -96;
/// `struct bpf_sock_tuple`, its IPv4 part.
const TUPLE: i16 = -112;
/// `struct bpf_fib_lookup`.
const ROUTE: i16 = -176;
const ROUTE_LENGTH: i16 = 64;

/// `vlan_present` in `struct __sk_buff`, and `state` in `struct bpf_sock`.
const VLAN_PRESENT: i16 = 20;
const SOCKET_STATE: i16 = 72;
/// States of sockets that are connected to nobody.
const UNCONNECTED: [u32; 2] = [7, 10];

const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;

/// Two bytes of a frame, as a register has them after a load.
const fn half(bytes: [u8; 2]) -> u32 {
    u16::from_ne_bytes(bytes) as u32
}

/// The link-local address that a station forms from its Ethernet address (RFC 4291, appendix A).
pub(super) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}

/// The program.
pub(super) fn program(policy: &Policy) -> Result<Vec<u64>, NetError> {
    let mut assembly = Assembly::default();
    let mut writer = Writer {
        pass: assembly.label(),
        drop: assembly.label(),
        to_host4: assembly.label(),
        to_host6: assembly.label(),
        policy,
        a: assembly,
    };
    writer.ethernet();
    let (pass, drop) = (writer.pass, writer.drop);
    let mut assembly = writer.a;
    assembly.here(pass);
    assembly.end(PASS);
    assembly.here(drop);
    assembly.end(DROP);
    assembly.finish()
}

struct Writer<'a> {
    a: Assembly,
    policy: &'a Policy,
    pass: Label,
    drop: Label,
    to_host4: Label,
    to_host6: Label,
}

impl Writer<'_> {
    /// R6 has the frame, R7 and R8 have its destination's first two and last four bytes, throughout.
    fn ethernet(&mut self) {
        self.a.copy(R6, R1);
        self.a.load(R2, Word, R6, VLAN_PRESENT);
        self.unless(R2, 0);
        // The shortest that may pass is a bare IPv4 header.
        self.read(FRAME, 0, 34);
        let mac = self.policy.mac.0;
        self.expect(Half, FRAME + 10, half([mac[4], mac[5]]));
        self.expect_word(FRAME + 6, [mac[0], mac[1], mac[2], mac[3]]);
        self.a.load(R7, Half, Fp, FRAME);
        self.a.load(R8, Word, Fp, FRAME + 2);
        // 01:80:c2:00:00:0x: spanning tree and its like, between switches.
        let ordinary = self.a.label();
        self.a.go_if(R7, If::Not(half([0x01, 0x80])), ordinary);
        self.a.copy(R2, R8);
        self.a.and(R2, u32::from_ne_bytes([0xff, 0xff, 0xff, 0]));
        let reserved = u32::from_ne_bytes([0xc2, 0, 0, 0]);
        self.a.go_if(R2, If::Equal(reserved), self.drop);
        self.a.here(ordinary);

        let (v4, v6) = (self.a.label(), self.a.label());
        self.a.load(R2, Half, Fp, FRAME + 12);
        self.a.go_if(R2, If::Equal(half([0x08, 0x00])), v4);
        self.a.go_if(R2, If::Equal(half([0x86, 0xdd])), v6);
        self.unless(R2, half([0x08, 0x06]));
        self.arp();
        self.a.here(v4);
        self.ipv4();
        self.a.here(v6);
        self.ipv6();
    }

    /// A container speaks of itself only: its questions teach their hearers too.
    fn arp(&mut self) {
        self.read(FRAME, 0, 42);
        self.expect(Half, BODY, half([0, 1]));
        self.expect(Half, BODY + 2, half([8, 0]));
        self.expect(Half, BODY + 4, half([6, 4]));
        self.a.load(R2, Half, Fp, BODY + 6);
        let known = self.a.label();
        self.a.go_if(R2, If::Equal(half([0, 1])), known);
        self.unless(R2, half([0, 2]));
        self.a.here(known);
        let mac = self.policy.mac.0;
        let ip = self.policy.address.octets();
        self.expect_word(BODY + 8, [mac[0], mac[1], mac[2], mac[3]]);
        self.expect(Half, BODY + 12, half([mac[4], mac[5]]));
        self.expect(Half, BODY + 14, half([ip[0], ip[1]]));
        self.expect(Half, BODY + 16, half([ip[2], ip[3]]));
        self.a.go(self.pass);
    }

    /// R9 has the offset of what comes after the header.
    fn ipv4(&mut self) {
        self.a.load(R9, Byte, Fp, BODY);
        self.a.go_if(R9, If::Below(0x45), self.drop);
        self.a.go_if(R9, If::Above(0x4f), self.drop);
        self.a.and(R9, 0x0f);
        self.a.shift_left(R9, 2);
        self.a.add(R9, 14);
        self.expect_word(BODY + 12, self.policy.address.octets());
        self.ipv4_protocols();

        // Of a group of stations the host is one, so that the group's frames must not carry what is for it alone.
        let unicast = self.a.label();
        self.a.copy(R2, R7);
        self.a.and(R2, half([1, 0]));
        self.a.go_if(R2, If::Equal(0), unicast);
        self.a.load(R2, Word, Fp, BODY + 16);
        for all in [Ipv4Addr::BROADCAST, self.policy.broadcast] {
            let all = u32::from_ne_bytes(all.octets());
            self.a.go_if(R2, If::Equal(all), self.pass);
        }
        self.a.and(R2, u32::from_ne_bytes([0xf0, 0, 0, 0]));
        self.unless(R2, u32::from_ne_bytes([0xe0, 0, 0, 0]));
        self.a.go(self.pass);

        self.a.here(unicast);
        if let Some(host) = self.policy.host {
            let host = u32::from_ne_bytes(host.octets());
            self.a.load(R2, Word, Fp, BODY + 16);
            self.a.go_if(R2, If::Equal(host), self.to_host4);
        }
        self.if_to_host(self.to_host4);
        self.a.go(self.pass);
        self.a.here(self.to_host4);
        self.ipv4_to_host();
    }

    /// No container is a DHCP server or a router. Only a datagram's first part tells; without it the others are
    /// worth nothing.
    fn ipv4_protocols(&mut self) {
        let done = self.a.label();
        self.a.load(R2, Half, Fp, BODY + 6);
        self.a.go_if(R2, If::AnyOf(half([0x1f, 0xff])), done);
        let (udp, icmp, igmp) = (self.a.label(), self.a.label(), self.a.label());
        self.a.load(R2, Byte, Fp, BODY + 9);
        self.a.go_if(R2, If::Equal(UDP), udp);
        self.a.go_if(R2, If::Equal(ICMP), icmp);
        self.a.go_if(R2, If::Equal(2), igmp);
        // PIM makes its port a router's.
        self.a.go_if(R2, If::Equal(103), self.drop);
        self.a.go(done);
        self.a.here(udp);
        self.refuse_ports(67, 68);
        self.a.go(done);
        self.a.here(icmp);
        self.read_inner(1);
        self.a.load(R2, Byte, Fp, INNER);
        // Redirects and router advertisements.
        self.a.go_if(R2, If::Equal(5), self.drop);
        self.a.go_if(R2, If::Equal(9), self.drop);
        self.a.go(done);
        self.a.here(igmp);
        self.read_inner(1);
        self.a.load(R2, Byte, Fp, INNER);
        // A membership query.
        self.a.go_if(R2, If::Equal(0x11), self.drop);
        self.a.here(done);
    }

    /// To the host itself goes what belongs to a connection that the host has begun, and answers to its pings.
    fn ipv4_to_host(&mut self) {
        let other = self.a.label();
        self.a.load(R2, Half, Fp, BODY + 6);
        self.a.go_if(R2, If::AnyOf(half([0x3f, 0xff])), other);
        for (protocol, helper) in [(TCP, SKC_LOOKUP_TCP), (UDP, SK_LOOKUP_UDP)] {
            let next = self.a.label();
            self.a.load(R2, Byte, Fp, BODY + 9);
            self.a.go_if(R2, If::Not(protocol), next);
            self.connected(helper, other);
            self.a.here(next);
        }
        self.a.load(R2, Byte, Fp, BODY + 9);
        self.a.go_if(R2, If::Not(ICMP), other);
        self.read_inner(1);
        self.a.load(R2, Byte, Fp, INNER);
        for answer in [0, 3, 11] {
            self.a.go_if(R2, If::Equal(answer), self.pass);
        }
        self.a.here(other);
        self.routed();
    }

    /// Passes if the host has a socket that is connected to this sender.
    fn connected(&mut self, helper: u32, otherwise: Label) {
        self.read_inner(4);
        for (to, from) in [(0, BODY + 12), (4, BODY + 16), (8, INNER)] {
            self.a.load(R2, Word, Fp, from);
            self.a.store(Word, TUPLE + to, R2);
        }
        self.a.copy(R1, R6);
        self.a.stack(R2, TUPLE);
        self.a.set(R3, 12);
        // This network namespace.
        self.a.set(R4, -1);
        self.a.set(R5, 0);
        self.a.call(helper);
        self.a.go_if_null(R0, otherwise);
        self.a.load(R9, Word, R0, SOCKET_STATE);
        self.a.copy(R1, R0);
        self.a.call(SK_RELEASE);
        for state in UNCONNECTED {
            self.a.go_if(R9, If::Equal(state), otherwise);
        }
        self.a.go(self.pass);
    }

    /// Passes if the host would route it on. What is for the host itself, by whichever of its addresses, it would not.
    fn routed(&mut self) {
        let Some(bridge) = self.policy.routes_at else {
            return self.a.go(self.drop);
        };
        for offset in (0..ROUTE_LENGTH).step_by(8) {
            self.a.store_number(Double, ROUTE + offset, 0);
        }
        self.a
            .store_number(Byte, ROUTE, libc::AF_INET.cast_unsigned());
        self.a.store_number(Word, ROUTE + 8, bridge);
        for (to, from) in [(16, BODY + 12), (32, BODY + 16)] {
            self.a.load(R2, Word, Fp, from);
            self.a.store(Word, ROUTE + to, R2);
        }
        self.a.copy(R1, R6);
        self.a.stack(R2, ROUTE);
        self.a.set(R3, i32::from(ROUTE_LENGTH));
        self.a.set(R4, 0);
        self.a.call(FIB_LOOKUP);
        // Found; found, but nobody has asked for the neighbour's Ethernet address yet; found, and too long for it.
        for found in [0, 7, 8] {
            self.a.go_if(R0, If::Equal(found), self.pass);
        }
        self.a.go(self.drop);
    }

    /// IPv6 stays within the link. Headers between IPv6 and what is allowed can hide what is not (RFC 7113): there
    /// may be none, but for the one that group reports have.
    fn ipv6(&mut self) {
        self.read(FRAME, 0, 54);
        self.a.load(R2, Byte, Fp, BODY);
        self.a.and(R2, 0xf0);
        self.unless(R2, 0x60);
        self.expect_address(BODY + 8, link_local(self.policy.mac));
        self.a.set(R9, 54);
        let (udp, icmp, allowed) = (self.a.label(), self.a.label(), self.a.label());
        self.a.load(R2, Byte, Fp, BODY + 6);
        self.a.go_if(R2, If::Equal(TCP), allowed);
        self.a.go_if(R2, If::Equal(UDP), udp);
        self.a.go_if(R2, If::Equal(ICMPV6), icmp);
        self.unless(R2, 0);
        self.group_report(allowed);
        self.a.here(udp);
        self.refuse_ports(547, 546);
        self.a.go(allowed);
        self.a.here(icmp);
        self.icmpv6(allowed);

        self.a.here(allowed);
        let unicast = self.a.label();
        self.a.copy(R2, R7);
        self.a.and(R2, half([1, 0]));
        self.a.go_if(R2, If::Equal(0), unicast);
        self.expect(Byte, BODY + 24, 0xff);
        self.a.go(self.pass);
        self.a.here(unicast);
        self.if_to_host(self.to_host6);
        self.a.go(self.pass);

        // To the host: who has which address, answers, and errors.
        self.a.here(self.to_host6);
        self.expect(Byte, BODY + 6, ICMPV6);
        self.read_inner(1);
        self.a.load(R2, Byte, Fp, INNER);
        for kind in [1, 2, 3, 4, 129, 135, 136] {
            self.a.go_if(R2, If::Equal(kind), self.pass);
        }
        self.a.go(self.drop);
    }

    /// Multicast listener reports, which have a hop-by-hop header of 8 bytes.
    fn group_report(&mut self, allowed: Label) {
        self.read_inner(9);
        self.expect(Byte, INNER, ICMPV6);
        self.expect(Byte, INNER + 1, 0);
        self.a.load(R2, Byte, Fp, INNER + 8);
        for report in [131, 132, 143] {
            self.a.go_if(R2, If::Equal(report), allowed);
        }
        self.a.go(self.drop);
    }

    /// Errors, pings, questions for neighbours, and answers about oneself; not what routers say.
    fn icmpv6(&mut self, allowed: Label) {
        self.read_inner(1);
        self.a.load(R2, Byte, Fp, INNER);
        for kind in [1, 2, 3, 4, 128, 129, 135] {
            self.a.go_if(R2, If::Equal(kind), allowed);
        }
        self.unless(R2, 136);
        self.read_inner(24);
        self.expect_address(INNER + 8, link_local(self.policy.mac));
        self.a.go(allowed);
    }

    /// Drops what comes from a port or goes to a port, whichever of UDP and TCP it is.
    fn refuse_ports(&mut self, from: u16, to: u16) {
        self.read_inner(4);
        self.a.load(R2, Half, Fp, INNER);
        let from = half(from.to_be_bytes());
        self.a.go_if(R2, If::Equal(from), self.drop);
        self.a.load(R2, Half, Fp, INNER + 2);
        let to = half(to.to_be_bytes());
        self.a.go_if(R2, If::Equal(to), self.drop);
    }

    fn if_to_host(&mut self, there: Label) {
        for mac in &self.policy.host_macs {
            let [a, b, c, d, e, f] = mac.0;
            let next = self.a.label();
            self.a.go_if(R7, If::Not(half([a, b])), next);
            let last = u32::from_ne_bytes([c, d, e, f]);
            self.a.go_if(R8, If::Equal(last), there);
            self.a.here(next);
        }
    }

    /// Copies bytes of the frame to the stack; a frame that ends before is dropped.
    fn read(&mut self, to: i16, from: i32, length: i32) {
        self.a.set(R2, from);
        self.read_at(to, length);
    }

    /// The same with what comes at R9.
    fn read_inner(&mut self, length: i32) {
        self.a.copy(R2, R9);
        self.read_at(INNER, length);
    }

    fn read_at(&mut self, to: i16, length: i32) {
        self.a.copy(R1, R6);
        self.a.stack(R3, to);
        self.a.set(R4, length);
        self.a.call(SKB_LOAD_BYTES);
        self.unless(R0, 0);
    }

    fn unless(&mut self, register: Register, number: u32) {
        self.a.go_if(register, If::Not(number), self.drop);
    }

    fn expect(&mut self, width: Width, at: i16, number: u32) {
        self.a.load(R2, width, Fp, at);
        self.unless(R2, number);
    }

    fn expect_word(&mut self, at: i16, bytes: [u8; 4]) {
        self.expect(Word, at, u32::from_ne_bytes(bytes));
    }

    fn expect_address(&mut self, at: i16, address: Ipv6Addr) {
        for (word, at) in address.octets().chunks_exact(4).zip((at..).step_by(4)) {
            self.expect_word(at, [word[0], word[1], word[2], word[3]]);
        }
    }
}
