//! The bridge and its uplink.

use super::*;

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

        // A container's frames are not longer than the way out allows.
        tool("ip link set up0 mtu 1400");
        with_uplink.make("b", &lease(8));
        let near = link(&Network::port_name(&name("b"))).unwrap();
        let pin = with_uplink.pin("b").display().to_string();
        let eth0 = json(&format!("nsenter --net={pin} ip -j link show eth0"));
        assert_eq!(
            (&near["mtu"], &eth0[0]["mtu"]),
            (&1400.into(), &1400.into())
        );
        with_uplink.remove("b");

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
fn only_a_bridge_that_was_made_here_is_removed() {
    on_a_host("a bridge is removed", |dir| {
        let made = Host::open(dir, |_| {});
        assert!(!made.network.remove_bridge().unwrap());
        assert!(link("lan0").is_none());
        // Again, and without one.
        assert!(!made.network.remove_bridge().unwrap());
        tool("ip link add lan0 type bridge");
        let found = Host::open(dir, |_| {});
        assert!(found.network.remove_bridge().unwrap());
        assert!(link("lan0").is_some());
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
