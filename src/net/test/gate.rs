//! What passes a gate, and what does not.

use super::*;

#[test]
fn frames_pass_through_an_open_gate_only() {
    on_a_host("frames pass through an open gate", |dir| {
        let host = Host::open(dir, |_| {});
        host.make("a", &lease(7));
        host.make("b", &lease(8));
        let _on_host = TcpListener::bind("0.0.0.0:7000").unwrap();
        let _in_a = listener(&host.pin("a"));
        let ear = UdpSocket::bind("0.0.0.0:7001").unwrap();
        ear.set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        // A datagram that waits for an ARP answer may come through a later opening: only those of now count.
        let heard = |now: u8| {
            let speak = || {
                let mouth = UdpSocket::bind("0.0.0.0:0").unwrap();
                mouth.set_broadcast(true).unwrap();
                for to in [ip(1), ip(255), Ipv4Addr::BROADCAST] {
                    // An unanswered ARP may be told as an error.
                    let _ = mouth.send_to(&[now], (to, 7001));
                }
            };
            NetNs::open(&host.pin("a")).unwrap().run(speak).unwrap();
            let (mut count, mut message) = (0, [0; 8]);
            while ear.recv(&mut message).is_ok() {
                count += u32::from(message[0] == now);
            }
            count
        };
        let (a, b) = (name("a"), name("b"));

        host.network.detach(&a).unwrap();
        assert!(!host.network.is_attached(&a).unwrap());
        // Closed: neither a neighbour, nor the host, nor the host's own address from before the gate.
        host.network.attach(&b).unwrap();
        assert!(reaches_from(&host.pin("b"), ip(7), 300).is_err());
        assert!(reaches(ip(7), 300).is_err());
        assert!(reaches_from(&host.pin("a"), ip(1), 300).is_err());
        assert_eq!(heard(1), 0);

        host.network.attach(&a).unwrap();
        assert!(host.network.is_attached(&a).unwrap());
        reaches_from(&host.pin("b"), ip(7), 2000).unwrap();
        reaches(ip(7), 2000).unwrap();
        // What it sends to the host alone never passes.
        assert_eq!(heard(2), 2);
        let ports = json("bridge -j link show");
        let states: Vec<_> = ports
            .as_array()
            .unwrap()
            .iter()
            .map(|p| &p["state"])
            .collect();
        assert_eq!(states, ["forwarding", "forwarding"]);

        // Neighbours know each other now, and the gate holds all the same.
        host.network.detach(&a).unwrap();
        host.network.detach(&a).unwrap();
        assert!(reaches_from(&host.pin("b"), ip(7), 300).is_err());
        assert!(reaches(ip(7), 300).is_err());
        assert!(reaches_from(&host.pin("a"), ip(1), 300).is_err());
        assert_eq!(heard(3), 0);
        assert_eq!(learnt(lease(7).mac), None);

        host.remove("a");
        for gone in [host.network.attach(&a), host.network.detach(&a)] {
            assert!(matches!(gone, Err(NetError::NoPort { .. })), "{gone:?}");
        }
        host.remove("b");
    });
}

#[test]
fn many_ports_are_made_and_moved_at_the_same_time() {
    on_a_host("many ports", |dir| {
        let host = Host::open(dir, |_| {});
        thread::scope(|scope| {
            for number in 10..18_u8 {
                let host = &host;
                scope.spawn(move || {
                    let text = format!("c{number}");
                    let begin = Instant::now();
                    host.make(&text, &lease(number));
                    let made = begin.elapsed();
                    host.network.attach(&name(&text)).unwrap();
                    let opened = begin.elapsed() - made;
                    host.network
                        .announce(&lease(number), &host.pin(&text))
                        .unwrap();
                    let told = begin.elapsed() - made - opened;
                    host.network.detach(&name(&text)).unwrap();
                    let closed = begin.elapsed() - made - opened - told;
                    println!(
                        "{text}: made {made:?} opened {opened:?} told {told:?} closed {closed:?}"
                    );
                });
            }
        });
        assert_eq!(host.network.ports().unwrap().len(), 8);
        let begin = Instant::now();
        host.make("alone", &lease(30));
        let made = begin.elapsed();
        host.network.attach(&name("alone")).unwrap();
        let opened = begin.elapsed() - made;
        host.network.detach(&name("alone")).unwrap();
        let closed = begin.elapsed() - made - opened;
        println!("alone: made {made:?} opened {opened:?} closed {closed:?}");
        host.remove("alone");
        for number in 10..18_u8 {
            host.remove(&format!("c{number}"));
        }
        host.check_nothing_is_left_of("c10");
        assert!(host.network.ports().unwrap().is_empty());
    });
}
