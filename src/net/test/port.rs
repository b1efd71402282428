//! What a port is made of, and that nothing of it stays.

use super::*;

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
