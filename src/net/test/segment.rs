//! Several hosts and a client on one segment.

use super::*;

/// Two hosts and a neighbour that is no Godwit host, on one segment: the thread's own host, `other`, and `client`.
fn given_segment(dir: &Path) -> (NetNs, NetNs) {
    let pins = ["other", "client", "switch"].map(|text| dir.join(text));
    for pin in &pins {
        netns::pin_new(pin).unwrap();
    }
    let [other, client, switch] = pins.each_ref().map(|pin| pin.display().to_string());
    let at_switch = |line: &str| tool(&format!("nsenter --net={switch} {line}"));
    at_switch("ip link add lan0 up type bridge");
    tool("ip link add up0 type veth peer name port1");
    tool("ip link add up1 type veth peer name port2");
    tool("ip link add up2 type veth peer name port3");
    for (near, home, far) in [("up1", &other, "port2"), ("up2", &client, "port3")] {
        tool(&format!("ip link set {near} netns {home}"));
        tool(&format!("nsenter --net={home} ip link set {near} up"));
        tool(&format!("ip link set {far} netns {switch}"));
    }
    tool(&format!("ip link set port1 netns {switch}"));
    tool("ip link set up0 up");
    for port in ["port1", "port2", "port3"] {
        at_switch(&format!("ip link set {port} master lan0 up"));
    }
    tool(&format!(
        "nsenter --net={client} ip addr add 10.99.0.250/24 dev up2"
    ));
    let open = |pin: &Path| NetNs::open(pin).unwrap();
    open(&pins[2]).run(await_forwarding).unwrap();
    (open(&pins[0]), open(&pins[1]))
}

#[test]
fn a_container_that_moves_is_found_by_its_neighbours_at_once() {
    on_a_host("a container moves", |dir| {
        let (other, client) = given_segment(dir);
        let switch = NetNs::open(&dir.join("switch")).unwrap();
        let source = Host::open(dir, |c| c.uplink = Some("up0".into()));
        let destination = other
            .run(|| {
                Host::open(&dir.join("far"), |c| {
                    c.uplink = Some("up1".into());
                    c.bridge_address = Some(ip(2));
                })
            })
            .unwrap();
        let a = name("a");
        // Both have it, as during a migration; the gates decide.
        source.make("a", &lease(7));
        destination.make("a", &lease(7));
        let _here = listener(&source.pin("a"));
        let _there = listener(&destination.pin("a"));
        let from_client = |wait| client.run(|| reaches(ip(7), wait)).unwrap();

        source.network.attach(&a).unwrap();
        from_client(3000).unwrap();
        assert_eq!(
            switch.run(|| learnt(lease(7).mac)).unwrap().unwrap(),
            "port1"
        );

        source.network.detach(&a).unwrap();
        assert!(from_client(300).is_err());
        destination.network.attach(&a).unwrap();
        destination
            .network
            .announce(&lease(7), &destination.pin("a"))
            .unwrap();
        assert_eq!(
            switch.run(|| learnt(lease(7).mac)).unwrap().unwrap(),
            "port2"
        );
        assert_eq!(learnt(lease(7).mac).unwrap(), "up0");
        let asked = Instant::now();
        from_client(900).unwrap();
        println!("reached {:?} after the announcement", asked.elapsed());

        // And back.
        destination.network.detach(&a).unwrap();
        source.network.attach(&a).unwrap();
        source
            .network
            .announce(&lease(7), &source.pin("a"))
            .unwrap();
        assert_eq!(
            switch.run(|| learnt(lease(7).mac)).unwrap().unwrap(),
            "port1"
        );
        from_client(900).unwrap();
        source.remove("a");
        destination.remove("a");
        source.check_nothing_is_left_of("a");
    });
}

#[test]
fn an_announcement_is_made_in_both_forms_and_four_times() {
    on_a_host("announcements", |dir| {
        let host = Host::open(dir, |_| {});
        host.make("a", &lease(7));
        host.network.attach(&name("a")).unwrap();
        let capture = dir.join("capture");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        let mut tcpdump = Command::new("tcpdump")
            .args(["-i", "lan0", "-U", "-w"])
            .arg(&capture)
            .args(["-c", "8", "arp"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It writes the file's head when it listens.
        while fs::metadata(&capture).map_or(0, |m| m.len()) == 0 {
            assert!(tcpdump.try_wait().unwrap().is_none(), "tcpdump ended");
            thread::sleep(Duration::from_millis(10));
        }
        host.network.announce(&lease(7), &host.pin("a")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while tcpdump.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                tcpdump.kill().unwrap();
                tcpdump.wait().unwrap();
                panic!("fewer than eight frames");
            }
            thread::sleep(Duration::from_millis(20));
        }
        let text = tool(&format!("tcpdump -ttt -e -n -r {}", capture.display()));
        let lines: Vec<_> = text.lines().collect();
        println!("{text}");
        for pair in lines.chunks(2) {
            let from = "02:67:0a:63:00:07 > ff:ff:ff:ff:ff:ff";
            assert!(pair.iter().all(|line| line.contains(from)), "{text}");
            assert!(pair[0].contains("Request who-has 10.99.0.7"), "{text}");
            assert!(
                pair[1].contains("Reply 10.99.0.7 is-at 02:67:0a:63:00:07"),
                "{text}"
            );
        }
        // A port that goes ends the announcements quietly.
        host.network.announce(&lease(7), &host.pin("a")).unwrap();
        host.remove("a");
        host.check_nothing_is_left_of("a");
    });
}

#[test]
fn an_address_answers_if_somebody_has_it_or_is_about_to() {
    on_a_host("an address answers", |dir| {
        let (_, client) = given_segment(dir);
        let host = Host::open(dir, |c| c.uplink = Some("up0".into()));
        let ask = |last| {
            let asked = Instant::now();
            let answer = host.network.answers(ip(last), Duration::from_millis(400));
            (answer.unwrap(), asked.elapsed())
        };
        let (silent, waited) = ask(99);
        assert!(
            !silent && waited >= Duration::from_millis(400),
            "{waited:?}"
        );
        let (answered, waited) = ask(250);
        assert!(
            answered && waited < Duration::from_millis(300),
            "{waited:?}"
        );
        assert!(ask(1).0, "the host's own address");

        host.make("a", &lease(7));
        assert!(!ask(7).0, "before its gate");
        host.network.attach(&name("a")).unwrap();
        assert!(ask(7).0, "with its gate open");

        // Another host asks for the same address at the same time.
        let rival = client.run(|| {
            let socket =
                crate::sys::ethernet::EthernetSocket::open("up2", frame::ETHERTYPE).unwrap();
            let own = Mac(socket.hardware_address().unwrap());
            (socket, frame::Arp::probe(own, ip(99)).encode())
        });
        let (socket, probe) = rival.unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(100));
                socket.send(&probe).unwrap();
            });
            assert!(ask(99).0, "somebody else asks too");
        });
        host.remove("a");
    });
}
