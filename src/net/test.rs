//! The room on a kernel of its own: every test is a host in new network and mount namespaces, and looks at it with
//! other people's tools (`ip`, `bridge`, `tcpdump`).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::*;
use crate::model::Mac;
use crate::sys::netns;

/// A host that exists for one test.
struct Host {
    dir: PathBuf,
    network: Network,
}

impl Host {
    fn open(dir: &Path, change: impl FnOnce(&mut NetworkConfig)) -> Self {
        let mut config = given_config();
        change(&mut config);
        let network = Network::open(config).unwrap();
        await_forwarding();
        let dir = dir.to_owned();
        Self { dir, network }
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.dir.join("netns").join(name)
    }

    fn make(&self, text: &str, lease: &Lease) {
        self.network
            .make_port(&name(text), lease, &self.pin(text))
            .unwrap();
    }

    fn remove(&self, text: &str) {
        self.network
            .remove_port(&name(text), &self.pin(text))
            .unwrap();
    }

    #[track_caller]
    fn check_nothing_is_left_of(&self, text: &str) {
        assert!(!self.pin(text).exists());
        assert_eq!(link(&Network::port_name(&name(text))), None);
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let ours = mounts.contains(self.dir.join("netns").to_str().unwrap());
        assert!(!ours, "{mounts}");
    }
}

/// Runs a test as a host of its own, or says that it cannot.
fn on_a_host(test: &str, work: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
        assert!(!required, "{test}: needs root");
        println!("SKIP {test}: needs root");
        return;
    }
    // Removed when the host, and its mounts in there, are gone.
    let dir = tempfile::tempdir().unwrap();
    let host = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let one_way = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, one_way, None::<&str>).unwrap();
        tool("ip link set lo up");
        work(dir.path());
    };
    let ended = thread::scope(|scope| scope.spawn(host).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn given_config() -> NetworkConfig {
    NetworkConfig {
        bridge: "lan0".into(),
        uplink: None,
        subnet: Ipv4Addr::new(10, 99, 0, 0),
        prefix: 24,
        bridge_address: Some(ip(1)),
        gateway: Some(ip(1)),
        pool: (ip(10), ip(200)),
    }
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, last)
}

fn lease(last: u8) -> Lease {
    given_config().lease(ip(last))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Runs a command line that must succeed.
#[track_caller]
fn tool(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(line: &str) -> Value {
    serde_json::from_str(&tool(line)).unwrap()
}

/// What `ip` says of one interface.
fn link(interface: &str) -> Option<Value> {
    let all = json("ip -d -j addr show");
    all.as_array()
        .unwrap()
        .iter()
        .find(|link| link["ifname"] == interface)
        .cloned()
}

#[track_caller]
fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"].as_array().unwrap().iter().any(|f| f == flag)
}

/// The interface that the bridge of this thread's host would send a station's frames to.
fn learnt(mac: Mac) -> Option<String> {
    let table = json("bridge -j fdb show br lan0");
    let entry = table
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["mac"] == mac.to_string() && entry["state"] != "permanent")?;
    Some(entry["ifname"].as_str().unwrap().to_owned())
}

/// A bridge lets frames through a port when the kernel has noticed that its link is up, which may take it a second.
fn await_forwarding() {
    let deadline = Instant::now() + Duration::from_secs(5);
    let waits = |port: &Value| port["state"] != "forwarding";
    while json("bridge -j link show")
        .as_array()
        .unwrap()
        .iter()
        .any(waits)
    {
        assert!(Instant::now() < deadline, "a port does not forward");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Listens in a namespace; connections are accepted by the kernel, nobody needs to.
fn listener(pin: &Path) -> TcpListener {
    NetNs::open(pin)
        .unwrap()
        .run(|| TcpListener::bind("0.0.0.0:7000").unwrap())
        .unwrap()
}

fn reaches(address: Ipv4Addr, wait_ms: u64) -> io::Result<()> {
    let there = SocketAddr::from((address, 7000));
    TcpStream::connect_timeout(&there, Duration::from_millis(wait_ms)).map(drop)
}

fn reaches_from(pin: &Path, address: Ipv4Addr, wait_ms: u64) -> io::Result<()> {
    NetNs::open(pin)
        .unwrap()
        .run(|| reaches(address, wait_ms))
        .unwrap()
}

#[test]
fn a_port_is_made_whole_and_nothing_of_it_stays() {
    on_a_host("a port is made whole", |dir| {
        let host = Host::open(dir, |_| {});
        host.make("redis", &lease(7));

        let near = link(&Network::port_name(&name("redis"))).unwrap();
        assert!(has_flag(&near, "UP") && has_flag(&near, "NOARP"), "{near}");
        assert_eq!(near["master"], Value::Null);
        assert_eq!(near["ifalias"], "godwit redis");
        assert_eq!(near["addr_info"].as_array().unwrap().len(), 0, "{near}");

        let pin = host.pin("redis").display().to_string();
        let inside = json(&format!("nsenter --net={pin} ip -j addr show"));
        let inside = inside.as_array().unwrap();
        assert_eq!(inside.len(), 2, "{inside:?}");
        assert!(inside[0]["ifname"] == "lo" && has_flag(&inside[0], "UP"));
        let eth0 = &inside[1];
        assert!(eth0["ifname"] == "eth0" && has_flag(eth0, "UP") && has_flag(eth0, "LOWER_UP"));
        assert_eq!(eth0["address"], "02:67:0a:63:00:07");
        let address = &eth0["addr_info"][0];
        assert_eq!(address["local"], "10.99.0.7");
        assert_eq!(
            (&address["prefixlen"], &address["broadcast"]),
            (&24.into(), &"10.99.0.255".into())
        );
        let routes = json(&format!("nsenter --net={pin} ip -j route show default"));
        assert_eq!(routes[0]["gateway"], "10.99.0.1");
        let setting = |key: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/eth0/{key}");
            let work = || fs::read_to_string(&path).unwrap();
            NetNs::open(&host.pin("redis")).unwrap().run(work).unwrap()
        };
        assert_eq!(setting("accept_ra"), "0\n");
        assert_eq!(setting("accept_dad"), "0\n");

        assert_eq!(
            host.network.ports().unwrap(),
            [Network::port_name(&name("redis"))]
        );
        host.remove("redis");
        host.remove("redis");
        host.check_nothing_is_left_of("redis");
        assert!(host.network.ports().unwrap().is_empty());
    });
}

#[test]
fn a_port_that_exists_is_not_made_again_and_not_harmed() {
    on_a_host("a port is not made again", |dir| {
        let host = Host::open(dir, |_| {});
        host.make("a", &lease(7));
        let index = || link(&Network::port_name(&name("a"))).unwrap()["ifindex"].clone();
        let before = index();
        let again = |pin: &Path| host.network.make_port(&name("a"), &lease(8), pin);
        for pin in [host.pin("a"), host.pin("elsewhere")] {
            let refused = again(&pin);
            assert!(
                matches!(refused, Err(NetError::PortExists { .. })),
                "{refused:?}"
            );
        }
        assert!(!host.pin("elsewhere").exists());
        assert_eq!(index(), before);
        host.network
            .attach(&name("a"))
            .and_then(|()| host.network.attach(&name("a")))
            .unwrap();

        let taken = host.pin("b");
        fs::write(&taken, "something").unwrap();
        let refused = host.network.make_port(&name("b"), &lease(8), &taken);
        assert!(matches!(refused, Err(NetError::PortExists { .. })));
        assert_eq!(fs::read_to_string(&taken).unwrap(), "something");
        host.remove("a");
    });
}

#[test]
fn a_port_that_cannot_be_made_leaves_nothing() {
    on_a_host("a failed port leaves nothing", |dir| {
        let host = Host::open(dir, |_| {});
        let no_way = Lease {
            gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
            ..lease(7)
        };
        let no_station = Lease {
            mac: Mac([0xff; 6]),
            ..lease(7)
        };
        let no_length = Lease {
            prefix: 33,
            ..lease(7)
        };
        for bad in [no_way, no_station, no_length] {
            let result = host.network.make_port(&name("a"), &bad, &host.pin("a"));
            assert!(matches!(result, Err(NetError::Kernel { .. })), "{result:?}");
            host.check_nothing_is_left_of("a");
        }
        // Nowhere to pin.
        fs::write(dir.join("file"), "").unwrap();
        let pin = dir.join("file/netns/a");
        assert!(host.network.make_port(&name("a"), &lease(7), &pin).is_err());
        host.check_nothing_is_left_of("a");
        // And then it works.
        host.make("a", &lease(7));
        host.remove("a");
    });
}

#[test]
fn whatever_a_crash_left_of_a_port_is_removed() {
    on_a_host("a crash leaves a part of a port", |dir| {
        let host = Host::open(dir, |_| {});
        fs::create_dir_all(dir.join("netns")).unwrap();
        let port = Network::port_name(&name("a"));
        let orphan = format!("ip link add {port} type veth peer name far");
        let crashes: [(&str, &dyn Fn()); 5] = [
            ("nothing", &|| {}),
            ("a file", &|| fs::write(host.pin("a"), "").unwrap()),
            ("a pin", &|| netns::pin_new(&host.pin("a")).unwrap()),
            ("an orphan", &|| drop(tool(&orphan))),
            ("a link and a file", &|| {
                tool(&orphan);
                fs::write(host.pin("a"), "").unwrap();
            }),
        ];
        for (what, crash) in crashes {
            crash();
            host.remove("a");
            host.check_nothing_is_left_of("a");
            println!("{what}: removed");
        }
        // A process that lives on in the namespace does not keep the link.
        host.make("a", &lease(7));
        let pin = host.pin("a").display().to_string();
        let mut sleeper = Command::new("nsenter")
            .args([&format!("--net={pin}"), "sleep", "60"])
            .spawn()
            .unwrap();
        host.remove("a");
        host.check_nothing_is_left_of("a");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    });
}

#[test]
fn a_link_that_cannot_be_unpinned_is_removed_all_the_same_and_the_rest_is_told() {
    on_a_host("a stubborn pin", |dir| {
        let host = Host::open(dir, |_| {});
        tool(&format!(
            "ip link add {} type veth peer name far",
            Network::port_name(&name("a"))
        ));
        fs::create_dir_all(host.pin("a").join("not a file")).unwrap();
        let result = host.network.remove_port(&name("a"), &host.pin("a"));
        let text = result.unwrap_err().to_string();
        assert!(
            text.contains("could not be removed entirely: cannot unpin"),
            "{text}"
        );
        assert!(host.network.ports().unwrap().is_empty());
    });
}

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
        reaches_from(&host.pin("a"), ip(1), 2000).unwrap();
        assert_eq!(heard(2), 3);
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

#[test]
fn a_bridge_is_made_once_and_keeps_its_ethernet_address() {
    on_a_host("a bridge is made", |dir| {
        tool("ip link add up0 type veth peer name far");
        tool("ip link set far up");
        let plain = Host::open(dir, |_| {});
        let bridge = link("lan0").unwrap();
        assert_eq!(bridge["linkinfo"]["info_kind"], "bridge");
        assert_eq!(bridge["linkinfo"]["info_data"]["stp_state"], 0);
        assert_eq!(bridge["addr_info"][0]["local"], "10.99.0.1");
        assert!(has_flag(&bridge, "UP"));
        // A port with a lower address does not change the bridge's, and opening again changes nothing.
        let low = Lease {
            mac: Mac([0, 0, 0, 0, 0, 1]),
            ..lease(7)
        };
        plain.make("a", &low);
        plain.network.attach(&name("a")).unwrap();
        let with_uplink = Host::open(dir, |c| c.uplink = Some("up0".into()));
        Host::open(dir, |c| c.uplink = Some("up0".into()));
        let after = link("lan0").unwrap();
        assert_eq!(after["address"], bridge["address"]);
        assert_eq!(after["ifindex"], bridge["ifindex"]);
        let ipv4 = |link: &Value| {
            let all = link["addr_info"].as_array().unwrap();
            all.iter().filter(|a| a["family"] == "inet").count()
        };
        assert_eq!(ipv4(&after), 1);
        assert_eq!(link("up0").unwrap()["master"], "lan0");
        with_uplink.remove("a");

        // Without an address of its own, it is stable too.
        Host::open(dir, |c| {
            (c.bridge, c.bridge_address) = ("lan1".into(), None)
        });
        let before = link("lan1").unwrap();
        tool("ip link add low0 address 00:00:00:00:00:02 type veth peer name far1");
        tool("ip link set low0 master lan1");
        assert_eq!(link("lan1").unwrap()["address"], before["address"]);
    });
}

#[test]
fn a_bridge_or_an_uplink_that_will_not_do_is_refused_and_left_alone() {
    on_a_host("a bridge is refused", |_| {
        let open = |change: &dyn Fn(&mut NetworkConfig)| {
            let mut config = given_config();
            change(&mut config);
            Network::open(config).unwrap_err()
        };
        let uplink = |name: &'static str| open(&|c| c.uplink = Some(name.into()));
        tool("ip link add up0 type veth peer name far");
        assert!(matches!(
            open(&|c| c.bridge = "up0".into()),
            NetError::NotABridge { .. }
        ));
        assert!(matches!(uplink("missing"), NetError::NoUplink { .. }));
        tool("ip addr add 192.0.2.1/24 dev up0");
        let error = uplink("up0").to_string();
        assert!(error.contains("192.0.2.1"), "{error}");
        tool("ip addr flush dev up0");
        tool("ip link add other type bridge");
        tool("ip link set up0 master other");
        assert!(matches!(uplink("up0"), NetError::UplinkElsewhere { .. }));
        assert_eq!(link("lan0"), None);
        // What the kernel refuses only when the bridge is there already: the bridge goes again.
        assert!(matches!(uplink("other"), NetError::Kernel { .. }));
        assert_eq!(link("lan0"), None);
        tool("ip link add lan0 type bridge stp_state 1");
        assert!(matches!(open(&|_| {}), NetError::SlowBridge { .. }));
        tool("ip link set lan0 type bridge stp_state 0");
        Network::open(given_config()).unwrap();
        tool("ip link del lan0");
        let network = Network::open(given_config()).unwrap();
        tool("ip link del lan0");
        let gone = network.attach(&name("a"));
        assert!(matches!(gone, Err(NetError::NoBridge { .. })), "{gone:?}");
    });
}

#[test]
fn it_works_from_any_thread_even_one_that_drives_an_async_runtime() {
    on_a_host("any thread", |dir| {
        let host = Host::open(dir, |_| {});
        let elsewhere = dir.join("elsewhere");
        netns::pin_new(&elsewhere).unwrap();
        NetNs::open(&elsewhere)
            .unwrap()
            .run(|| host.make("a", &lease(7)))
            .unwrap();
        assert_eq!(host.network.ports().unwrap().len(), 1);
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async move {
            host.network.attach(&name("a")).unwrap();
            host.remove("a");
            drop(host);
        });
        netns::unpin(&elsewhere).unwrap();
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
