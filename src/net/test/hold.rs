//! Frames that come while a container runs nowhere.

use super::*;

#[test]
fn frames_that_come_in_the_blackout_arrive_in_their_order() {
    on_a_host("frames are held", |dir| {
        let host = Host::open(dir, |_| {});
        host.make("a", &lease(7));
        host.make("b", &lease(8));
        let (a, b) = (name("a"), name("b"));
        host.network.attach(&b).unwrap();
        let inside = |pin: &Path, port: u16| {
            let open = || UdpSocket::bind(("0.0.0.0", port)).unwrap();
            NetNs::open(pin).unwrap().run(open).unwrap()
        };
        let ear = inside(&host.pin("a"), 7001);
        ear.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mouth = inside(&host.pin("b"), 7002);

        // They have spoken before, on another host.
        let known = Neighbour {
            address: ip(7),
            mac: lease(7).mac,
        };
        host.network.learn(&host.pin("b"), &[known]).unwrap();

        let frames = host.network.prepare_to_hold(&a, &lease(7)).unwrap();
        assert_eq!(learnt(lease(7).mac), None, "nothing is held yet");
        // The bridge knows no port of it, and so takes this to all of them.
        mouth.send_to(&[99], (ip(7), 7001)).unwrap();
        host.network.hold(&frames).unwrap();
        assert!(!host.network.is_attached(&a).unwrap());
        let tap = plan::tap_name(&a);
        assert_eq!(learnt(lease(7).mac), Some(tap.clone()));
        for number in 0..50u8 {
            mouth.send_to(&[number], (ip(7), 7001)).unwrap();
        }

        host.network.attach(&a).unwrap();
        let delivered = frames.deliver().unwrap();
        assert!(
            delivered.frames >= 50 && delivered.lost == 0,
            "{delivered:?}"
        );
        // Until it has announced itself, frames go on coming here.
        mouth.send_to(&[50], (ip(7), 7001)).unwrap();
        host.network.announce(&lease(7), &host.pin("a")).unwrap();
        mouth.send_to(&[51], (ip(7), 7001)).unwrap();
        let delivered = frames.deliver().unwrap();
        assert!(delivered.frames >= 1, "{delivered:?}");
        drop(frames);
        let mut message = [0; 8];
        let heard: Vec<u8> = (0..52)
            .map(|_| ear.recv(&mut message).map(|_| message[0]).unwrap())
            .collect();
        assert_eq!(heard[..50], (0..50).collect::<Vec<u8>>());
        // The last one took the direct way, perhaps past the one before it.
        assert_eq!(heard[50] + heard[51], 101);
        assert_eq!(link(&tap), None, "the tap outlives its frames");
        assert_eq!(learnt(lease(7).mac), Some(Network::port_name(&a)));

        host.remove("a");
        host.remove("b");
    });
}

#[test]
fn frames_that_are_not_wanted_any_more_leave_nothing() {
    on_a_host("frames are forgotten", |dir| {
        let host = Host::open(dir, |_| {});
        host.make("a", &lease(7));
        let a = name("a");
        let frames = host.network.prepare_to_hold(&a, &lease(7)).unwrap();
        host.network.hold(&frames).unwrap();
        assert!(
            host.network.prepare_to_hold(&a, &lease(7)).is_err(),
            "two taps of one name"
        );
        drop(frames);
        assert_eq!(link(&plan::tap_name(&a)), None);
        assert_eq!(learnt(lease(7).mac), None);
        host.remove("a");
        assert!(matches!(
            host.network.prepare_to_hold(&a, &lease(7)),
            Err(NetError::NoPort { .. })
        ));
        assert_eq!(link(&plan::tap_name(&a)), None);
    });
}

#[test]
fn whom_a_container_knows_goes_with_it() {
    on_a_host("neighbours go with it", |dir| {
        let host = Host::open(dir, |_| {});
        host.make("a", &lease(7));
        host.make("b", &lease(8));
        for port in ["a", "b"] {
            host.network.attach(&name(port)).unwrap();
        }
        let _in_b = listener(&host.pin("b"));
        reaches_from(&host.pin("a"), ip(8), 2000).unwrap();
        let known = host.network.neighbours(&host.pin("a")).unwrap();
        let b = Neighbour {
            address: ip(8),
            mac: lease(8).mac,
        };
        assert!(known.contains(&b), "{known:?}");

        host.remove("a");
        host.make("a", &lease(7));
        assert_eq!(host.network.neighbours(&host.pin("a")).unwrap(), []);
        host.network.learn(&host.pin("a"), &known).unwrap();
        let again = host.network.neighbours(&host.pin("a")).unwrap();
        assert!(again.contains(&b), "{again:?}");
        host.remove("a");
        host.remove("b");
    });
}
