//! What a container may send. Every frame that must not pass is sent a second time with the filter taken off, and
//! then it arrives: the filter is what stops it.

use super::*;
use crate::model::Mac;
use crate::net::plan::PORT_MAC;
use crate::sys::ethernet::EthernetSocket;

const ALL: u16 = libc::ETH_P_ALL as u16;
const EVERYBODY: Mac = Mac([0xff; 6]);
const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn frame(to: Mac, from: Mac, rest: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, rest].concat()
}

fn arp(to: Mac, from: Mac, operation: u8, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut body = hex("0806 0001 0800 06 04 00");
    body.push(operation);
    body.extend(sender.0.0);
    body.extend(sender.1.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    frame(to, from, &body)
}

/// With a header's checksum, which bridges look at; without others.
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(&[], from, to, fragment, protocol, payload)
}

fn ipv4_with(
    options: &[u8],
    from: Ipv4Addr,
    to: Ipv4Addr,
    fragment: u16,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let length = 20 + options.len();
    let mut head = vec![0x40 + (length / 4) as u8, 0];
    head.extend(((length + payload.len()) as u16).to_be_bytes());
    head.extend([0, 1]);
    head.extend(fragment.to_be_bytes());
    head.extend([64, protocol, 0, 0]);
    head.extend(from.octets());
    head.extend(to.octets());
    head.extend(options);
    let words = head
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[8, 0], &head[..], payload].concat()
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut body = from.to_be_bytes().to_vec();
    body.extend(to.to_be_bytes());
    body.extend(hex("0014 0000 0102 0304 0506 0708 090a 0b0c"));
    body
}

fn ipv6(from: &str, to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut body = hex("86dd 6000 0000");
    body.extend((payload.len() as u16).to_be_bytes());
    body.extend([next, 255]);
    body.extend(address(from));
    body.extend(address(to));
    body.extend(payload);
    body
}

fn advertisement(target: &str) -> Vec<u8> {
    let mut body = hex("88 00 0000 20000000");
    body.extend(target.parse::<std::net::Ipv6Addr>().unwrap().octets());
    body.extend(hex("0201 02670a63000a"));
    body
}

const A: u8 = 10;
const B: u8 = 11;
const A_LINK_LOCAL: &str = "fe80::67:aff:fe63:a";
const ROUTER: &str = "86 00 0000 40 00 0708 00000000 00000000";

/// What a container may not send to a neighbour, or to all of them.
fn evil() -> Vec<(&'static str, Vec<u8>)> {
    let (a, b, a_ip, b_ip) = (lease(A).mac, lease(B).mac, ip(A), ip(B));
    let other = Mac([2, 0xbb, 0, 0, 0, 1]);
    let to_b = |rest: &[u8]| frame(b, a, rest);
    let to_all = |rest: &[u8]| frame(ALL_NODES, a, rest);
    let plain = ipv4(a_ip, b_ip, 0, 17, &udp(1000, 1001));
    let tagged = |tag: &str| [&hex(tag)[..], &plain].concat();
    let to_nodes = |next, payload: &str| ipv6(A_LINK_LOCAL, "ff02::1", next, &hex(payload));
    vec![
        ("another MAC", frame(b, other, &plain)),
        ("the neighbour's own MAC", frame(b, b, &plain)),
        ("a VLAN tag", to_b(&tagged("8100 0005"))),
        ("two VLAN tags", to_b(&tagged("88a8 0005 8100 0006"))),
        (
            "spanning tree",
            frame(
                Mac([1, 0x80, 0xc2, 0, 0, 0]),
                a,
                &hex("0026 424203 000000000000000000000000"),
            ),
        ),
        ("LLDP", frame(EVERYBODY, a, &hex("88cc 0207 04"))),
        (
            "an unknown protocol",
            to_b(&hex("1234 00000000000000000000000000000000000000000000")),
        ),
        ("ARP reply for the gateway", arp(b, a, 2, (a, ip(1)), b_ip)),
        (
            "ARP request as a neighbour",
            arp(EVERYBODY, a, 1, (a, b_ip), ip(9)),
        ),
        (
            "ARP with another MAC inside",
            arp(b, a, 2, (other, a_ip), b_ip),
        ),
        (
            "gratuitous ARP for a neighbour",
            arp(EVERYBODY, a, 1, (a, b_ip), b_ip),
        ),
        (
            "ARP probe",
            arp(EVERYBODY, a, 1, (a, Ipv4Addr::UNSPECIFIED), ip(99)),
        ),
        (
            "another IPv4 source",
            to_b(&ipv4(ip(12), b_ip, 0, 17, &udp(1, 2))),
        ),
        (
            "no IPv4 source",
            to_b(&ipv4(Ipv4Addr::UNSPECIFIED, b_ip, 0, 17, &udp(1, 2))),
        ),
        (
            "a later fragment from another",
            to_b(&ipv4(ip(12), b_ip, 9, 17, &udp(1, 2))),
        ),
        (
            "DHCP offer",
            frame(
                EVERYBODY,
                a,
                &ipv4(a_ip, Ipv4Addr::BROADCAST, 0, 17, &udp(67, 68)),
            ),
        ),
        (
            "DHCP offer from another port",
            to_b(&ipv4(a_ip, b_ip, 0, 17, &udp(9, 68))),
        ),
        ("DHCP offer behind IP options", {
            let options = [1, 1, 1, 1];
            to_b(&ipv4_with(&options, a_ip, b_ip, 0, 17, &udp(67, 68)))
        }),
        (
            "DHCP offer in fragments",
            to_b(&ipv4(a_ip, b_ip, 0x2000, 17, &udp(67, 68))),
        ),
        (
            "a header that ends early",
            to_b(&ipv4(a_ip, b_ip, 0, 17, &[0, 67])),
        ),
        (
            "ICMP redirect",
            to_b(&ipv4(a_ip, b_ip, 0, 1, &hex("0501 0000 0a630001"))),
        ),
        (
            "IGMP query",
            to_b(&ipv4(a_ip, b_ip, 0, 2, &hex("1164 ee9b 00000000"))),
        ),
        (
            "PIM hello",
            to_b(&ipv4(a_ip, b_ip, 0, 103, &hex("2000 0000"))),
        ),
        (
            "one's packet to all",
            frame(EVERYBODY, a, &ipv4(a_ip, b_ip, 0, 17, &udp(1, 2))),
        ),
        ("router advertisement", to_all(&to_nodes(58, ROUTER))),
        ("router advertisement behind options", {
            to_all(&to_nodes(60, &format!("3a00 010400000000 {ROUTER}")))
        }),
        ("router advertisement in a fragment", {
            to_all(&to_nodes(44, &format!("3a00 0000 00000001 {ROUTER}")))
        }),
        ("router advertisement behind hop-by-hop", {
            to_all(&to_nodes(0, &format!("3a00 010400000000 {ROUTER}")))
        }),
        (
            "IPv6 redirect",
            to_all(&to_nodes(58, "89 00 0000 00000000")),
        ),
        (
            "another IPv6 source",
            to_all(&ipv6("fe80::1", "ff02::1", 17, &udp(1, 2))),
        ),
        (
            "no IPv6 source",
            to_all(&ipv6("::", "ff02::1", 17, &udp(1, 2))),
        ),
        (
            "a global IPv6 source",
            to_all(&ipv6("2001:db8::1", "ff02::1", 17, &udp(1, 2))),
        ),
        ("neighbour advertisement for another", {
            to_all(&ipv6(
                A_LINK_LOCAL,
                "ff02::1",
                58,
                &advertisement("fe80::67:aff:fe63:b"),
            ))
        }),
        (
            "DHCPv6 reply",
            to_all(&ipv6(A_LINK_LOCAL, "ff02::1", 17, &udp(547, 546))),
        ),
        ("multicast listener query", {
            to_all(&to_nodes(0, "3a00 050200000100 8200 0000 0000 0000"))
        }),
        ("one's IPv6 packet to all", {
            to_all(&ipv6(A_LINK_LOCAL, "fe80::67:aff:fe63:b", 17, &udp(1, 2)))
        }),
    ]
}

fn good() -> Vec<(&'static str, Vec<u8>)> {
    let (a, b, a_ip, b_ip) = (lease(A).mac, lease(B).mac, ip(A), ip(B));
    let to_b = |rest: &[u8]| frame(b, a, rest);
    let to_all = |rest: &[u8]| frame(ALL_NODES, a, rest);
    vec![
        ("ARP request", arp(EVERYBODY, a, 1, (a, a_ip), b_ip)),
        ("ARP reply", arp(b, a, 2, (a, a_ip), b_ip)),
        ("announcement", arp(EVERYBODY, a, 2, (a, a_ip), a_ip)),
        ("UDP", to_b(&ipv4(a_ip, b_ip, 0, 17, &udp(1000, 53)))),
        (
            "a first fragment",
            to_b(&ipv4(a_ip, b_ip, 0x2000, 17, &udp(1000, 53))),
        ),
        ("a later fragment", to_b(&ipv4(a_ip, b_ip, 9, 17, &[7; 40]))),
        (
            "ping",
            to_b(&ipv4(a_ip, b_ip, 0, 1, &hex("0800 0000 00010001"))),
        ),
        (
            "broadcast",
            frame(EVERYBODY, a, &ipv4(a_ip, ip(255), 0, 17, &udp(1000, 1001))),
        ),
        ("multicast", {
            let group = Ipv4Addr::new(224, 0, 0, 251);
            frame(
                Mac([1, 0, 0x5e, 0, 0, 251]),
                a,
                &ipv4(a_ip, group, 0, 17, &udp(5353, 5353)),
            )
        }),
        (
            "beyond the network",
            to_b(&ipv4(a_ip, Ipv4Addr::new(192, 0, 2, 9), 0, 17, &udp(1, 2))),
        ),
        (
            "IPv6 UDP",
            to_all(&ipv6(A_LINK_LOCAL, "ff02::1", 17, &udp(1, 2))),
        ),
        ("neighbour solicitation", {
            let question = hex("87 00 0000 00000000 fe80000000000000 00670afffe63000b");
            to_all(&ipv6(A_LINK_LOCAL, "ff02::1", 58, &question))
        }),
        ("neighbour advertisement", {
            to_all(&ipv6(
                A_LINK_LOCAL,
                "ff02::1",
                58,
                &advertisement(A_LINK_LOCAL),
            ))
        }),
    ]
}

/// Does it in a container's network namespace.
fn inside<T: Send>(host: &Host, text: &str, work: impl FnOnce() -> T + Send) -> T {
    NetNs::open(&host.pin(text)).unwrap().run(work).unwrap()
}

/// B's address of the link, at the interface of the calling thread's namespace.
fn link_local_of_b() -> SocketAddr {
    let scope = nix::net::if_::if_nametoindex("eth0").unwrap();
    let address = "fe80::67:aff:fe63:b".parse().unwrap();
    std::net::SocketAddrV6::new(address, 9, 0, scope).into()
}

/// Whether an address answers an echo request of this host.
fn pings(address: Ipv4Addr) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let raw = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    );
    // Sent and received like datagrams; the port means nothing.
    let socket = UdpSocket::from(raw.unwrap());
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket
        .send_to(&hex("0800 e5ca 1234 0001"), (address, 0))
        .unwrap();
    let mut answer = [0; 64];
    while let Ok(length) = socket.recv(&mut answer) {
        if answer[20..length] == hex("0000 edca 1234 0001") {
            return true;
        }
    }
    false
}

/// Two containers whose gates are open, and sockets on their eth0.
struct Wire {
    mouth: EthernetSocket,
    ear: EthernetSocket,
}

impl Wire {
    fn between(host: &Host) -> Self {
        for (text, last) in [("a", A), ("b", B)] {
            host.make(text, &lease(last));
            host.network.attach(&name(text)).unwrap();
        }
        let open = |text| {
            NetNs::open(&host.pin(text))
                .unwrap()
                .run(|| EthernetSocket::open("eth0", ALL).unwrap())
                .unwrap()
        };
        let (mouth, ear) = (open("a"), open("b"));
        Self { mouth, ear }
    }

    /// Whether a frame comes through. A marker is sent after it, so that silence need not be waited for.
    fn passes(&self, sent: &[u8]) -> bool {
        static NUMBER: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let marker = frame(
            lease(B).mac,
            lease(A).mac,
            &ipv4(ip(A), ip(B), 0, 17, &udp(40_000, number)),
        );
        self.mouth.send(sent).unwrap();
        self.mouth.send(&marker).unwrap();
        let (mut buffer, mut seen) = ([0; 2048], false);
        let until = Instant::now() + Duration::from_secs(5);
        while let Some(length) = self.ear.receive(&mut buffer, until).unwrap() {
            if buffer[..length] == marker {
                return seen;
            }
            // A tag is shown apart from the frame; what comes after it is compared.
            let untagged = [&sent[..12], sent.get(16..).unwrap_or_default()].concat();
            seen |= buffer[..length] == *sent || buffer[..length] == untagged;
        }
        panic!("what was sent after {sent:02x?} is lost");
    }
}

#[test]
fn a_container_sends_as_itself_only() {
    on_a_host("a container sends as itself only", |dir| {
        let host = Host::open(dir, |_| {});
        let wire = Wire::between(&host);
        for (what, sent) in good() {
            assert!(wire.passes(&sent), "{what} is dropped");
        }
        for (what, sent) in evil() {
            assert!(!wire.passes(&sent), "{what} passes");
        }
        let neighbour = "the neighbour's own MAC";
        let port = Network::port_name(&name("a"));
        tool(&format!("tc qdisc del dev {port} clsact"));
        // The bridge keeps spanning tree to itself, and looks at checksums behind a hop-by-hop header.
        let elsewhere = [
            neighbour,
            "spanning tree",
            "router advertisement behind hop-by-hop",
            "multicast listener query",
        ];
        let stopped: Vec<_> = evil()
            .into_iter()
            .filter(|(what, sent)| !elsewhere.contains(what) && !wire.passes(sent))
            .map(|(what, _)| what)
            .collect();
        assert!(stopped.is_empty(), "dropped by something else: {stopped:?}");
        assert_ne!(learnt(lease(B).mac), Some(port.clone()));
        let taken = evil().into_iter().find(|(what, _)| *what == neighbour);
        let taken = taken.unwrap().1;
        // A busy machine takes a frame in later, and whose the address is may say so again.
        let moved = (0..100).any(|_| {
            wire.mouth.send(&taken).unwrap();
            std::thread::sleep(Duration::from_millis(10));
            learnt(lease(B).mac) == Some(port.clone())
        });
        assert!(moved, "the address is still led to its owner");
        host.remove("a");
        host.remove("b");
        host.check_nothing_is_left_of("a");
        host.check_nothing_is_left_of("b");
    });
}

#[test]
fn the_kernels_own_frames_of_a_container_pass() {
    on_a_host("the kernel's own frames pass", |dir| {
        let host = Host::open(dir, |_| {});
        let _wire = Wire::between(&host);
        let a = host.pin("a").display().to_string();
        let addresses = json(&format!("nsenter --net={a} ip -6 -j addr show dev eth0"));
        assert_eq!(addresses[0]["addr_info"][0]["local"], A_LINK_LOCAL);
        // Ethernet addresses are found, and packets too long for a frame come through.
        for there in ["0.0.0.0:9", "[::]:9"] {
            let there: SocketAddr = there.parse().unwrap();
            let ear = inside(&host, "b", || UdpSocket::bind(there).unwrap());
            ear.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            inside(&host, "a", || {
                let mouth = UdpSocket::bind((there.ip(), 0)).unwrap();
                let to = match there.is_ipv4() {
                    true => SocketAddr::from((ip(B), 9)),
                    false => link_local_of_b(),
                };
                mouth.send_to(&[7; 1000], to).unwrap();
                if there.is_ipv4() {
                    mouth.send_to(&[7; 4000], to).unwrap();
                }
            });
            assert_eq!(ear.recv(&mut [0; 8000]).unwrap(), 1000);
            if there.is_ipv4() {
                assert_eq!(ear.recv(&mut [0; 8000]).unwrap(), 4000);
            }
        }
        let port = Network::port_name(&name("a"));
        let filters = tool(&format!("tc filter show dev {port} ingress"));
        assert!(filters.contains("godwit_port direct-action"), "{filters}");
        host.remove("a");
        host.remove("b");
    });
}

#[test]
fn a_container_does_not_reach_the_host_unless_the_host_has_begun() {
    on_a_host("a container does not reach the host", |dir| {
        let host = Host::open(dir, |_| {});
        let wire = Wire::between(&host);
        let a = host.pin("a");
        let in_a = |work: &(dyn Fn() + Sync)| NetNs::open(&a).unwrap().run(work).unwrap();
        tool("ip addr add 192.0.2.1/32 dev lo");
        fs::write("/proc/sys/net/ipv4/conf/lan0/forwarding", "1").unwrap();
        let _services = TcpListener::bind("0.0.0.0:7000").unwrap();
        let datagrams = UdpSocket::bind("0.0.0.0:7001").unwrap();
        datagrams
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let reached = |to: Ipv4Addr| {
            in_a(&|| {
                let mouth = UdpSocket::bind("0.0.0.0:0").unwrap();
                mouth.send_to(b"knock", (to, 7001)).unwrap();
            });
            datagrams.recv(&mut [0; 16]).is_ok()
        };
        let others = [ip(1), Ipv4Addr::new(192, 0, 2, 1)];
        for address in others {
            assert!(reaches_from(&a, address, 300).is_err(), "{address}");
            assert!(!reached(address), "{address}");
        }
        // Its frames to any of the host's Ethernet addresses, or to all of them.
        for mac in [PORT_MAC, Mac::of(ip(1)), EVERYBODY] {
            let knock = ipv4(ip(A), ip(1), 0, 17, &udp(1000, 7001));
            wire.mouth.send(&frame(mac, lease(A).mac, &knock)).unwrap();
            assert!(datagrams.recv(&mut [0; 16]).is_err(), "{mac}");
        }

        // The host's own connections work, in both directions and to their end.
        let _in_a = listener(&a);
        reaches(ip(A), 2000).unwrap();
        assert!(pings(ip(A)));
        let echo = NetNs::open(&a)
            .unwrap()
            .run(|| UdpSocket::bind("0.0.0.0:7002").unwrap());
        let echo = echo.unwrap();
        let asking = UdpSocket::bind("10.99.0.1:0").unwrap();
        asking
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        asking.connect((ip(A), 7002)).unwrap();
        asking.send(b"question").unwrap();
        let (_, from) = echo.recv_from(&mut [0; 16]).unwrap();
        echo.send_to(b"answer", from).unwrap();
        assert_eq!(asking.recv(&mut [0; 16]).unwrap(), 6);

        // What the host routes on as a gateway passes.
        netns::pin_new(&dir.join("beyond")).unwrap();
        tool("ip link add out type veth peer name in");
        tool(&format!(
            "ip link set in netns {}",
            dir.join("beyond").display()
        ));
        tool("ip addr add 198.51.100.1/24 dev out");
        tool("ip link set out up");
        fs::write("/proc/sys/net/ipv4/conf/out/forwarding", "1").unwrap();
        let beyond = |line: &str| {
            tool(&format!(
                "nsenter --net={} {line}",
                dir.join("beyond").display()
            ))
        };
        beyond("ip addr add 198.51.100.2/24 dev in");
        beyond("ip link set in up");
        beyond("ip route add default via 198.51.100.1");
        let _out_there = listener(&dir.join("beyond"));
        reaches_from(&a, Ipv4Addr::new(198, 51, 100, 2), 3000).unwrap();
        assert!(reaches_from(&a, Ipv4Addr::new(198, 51, 100, 1), 300).is_err());

        // And all of this is the filter's doing.
        tool(&format!(
            "tc qdisc del dev {} clsact",
            Network::port_name(&name("a"))
        ));
        for address in others {
            reaches_from(&a, address, 2000).unwrap();
            assert!(reached(address), "{address}");
        }
        host.remove("a");
        host.remove("b");
        netns::unpin(&dir.join("beyond")).unwrap();
    });
}
