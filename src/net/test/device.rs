//! Devices that go to somebody else's network namespace, and come back.

use super::*;

/// A pair of devices of this host, one end with everything that is to go along, and a namespace to go to.
fn with_device(test: &str, work: impl FnOnce(&Path) + Send) {
    on_a_host(test, |dir| {
        tool("ip link add dev0 type veth peer name far0");
        tool("ip link set dev0 address 02:00:00:00:00:07 mtu 1400 up");
        tool("ip link set far0 up");
        tool("ip addr add 10.1.2.3/24 broadcast 10.1.2.255 dev dev0");
        tool("ip addr add 10.1.2.4/24 dev dev0 noprefixroute");
        tool("ip -6 addr add fd00::7/64 dev dev0 nodad");
        tool("ip addr add 10.1.2.5/24 dev dev0 valid_lft 900 preferred_lft 900");
        tool("ip addr add 169.254.1.1/16 scope link dev dev0");
        let pin = dir.join("pin");
        netns::pin_new(&pin).unwrap();
        work(&pin);
        netns::unpin(&pin).unwrap();
    });
}

fn give(pin: &Path, wanted: &str) -> Result<Moved, NetError> {
    give_device("dev0", NetNs::open(pin).unwrap(), wanted)
}

fn inside<T: Send>(pin: &Path, work: impl FnOnce() -> T + Send) -> T {
    NetNs::open(pin).unwrap().run(work).unwrap()
}

/// Addresses other than those the kernel gives by itself, with their prefixes and flags.
fn addresses(device: &Value) -> Vec<String> {
    let all = device["addr_info"].as_array().unwrap().iter();
    let all = all.filter(|address| !address["local"].as_str().unwrap().starts_with("fe80"));
    let told = all.map(|address| {
        let bare = if address["noprefixroute"] == true {
            " alone"
        } else {
            ""
        };
        let broadcast = address["broadcast"].as_str().unwrap_or_default();
        format!(
            "{}/{} {broadcast}{bare}",
            address["local"].as_str().unwrap(),
            address["prefixlen"]
        )
    });
    told.collect()
}

const LASTING: [&str; 3] = [
    "10.1.2.3/24 10.1.2.255",
    "10.1.2.4/24  alone",
    "fd00::7/64 ",
];

#[test]
fn a_device_goes_with_what_it_has_and_comes_back() {
    with_device("a device goes and comes back", |pin| {
        let before = link("dev0").unwrap();
        let moved = give(pin, "inside0").unwrap();
        assert_eq!(link("dev0"), None);
        let there = inside(pin, || link("inside0")).unwrap();
        assert!(
            has_flag(&there, "UP") && has_flag(&there, "LOWER_UP"),
            "{there}"
        );
        assert_eq!(there["address"], "02:00:00:00:00:07");
        assert_eq!(there["mtu"], 1400);
        assert_eq!(addresses(&there), LASTING);
        let routes = inside(pin, || json("ip -j route show dev inside0"));
        assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");

        moved.take_back().unwrap();
        assert_eq!(inside(pin, || link("inside0")), None);
        let back = link("dev0").unwrap();
        assert!(has_flag(&back, "UP"), "{back}");
        assert_eq!(addresses(&back), LASTING);
        assert_eq!(back["address"], before["address"]);
    });
}

#[test]
fn a_device_that_was_down_is_up_there_and_down_again() {
    with_device("a device that was down", |pin| {
        tool("ip link set dev0 down");
        let moved = give(pin, "dev0").unwrap();
        assert!(has_flag(&inside(pin, || link("dev0")).unwrap(), "UP"));
        moved.take_back().unwrap();
        assert!(!has_flag(&link("dev0").unwrap(), "UP"));
    });
}

#[test]
fn a_name_that_is_taken_is_refused_and_a_pattern_finds_the_next() {
    with_device("a name that is taken", |pin| {
        inside(pin, || tool("ip link add eth0 type veth peer name eth1"));
        let before = addresses(&link("dev0").unwrap());
        let error = give(pin, "eth0").unwrap_err();
        assert!(matches!(error, NetError::DeviceExists { .. }), "{error}");
        assert_eq!(addresses(&link("dev0").unwrap()), before);
        give(pin, "eth%d").unwrap();
        assert_eq!(link("dev0"), None);
        let there = inside(pin, || link("eth2")).unwrap();
        assert_eq!(there["address"], "02:00:00:00:00:07");
    });
}

#[test]
fn what_cannot_be_moved_stays_as_it_is() {
    with_device("what cannot be moved", |pin| {
        let gone = give_device("none0", NetNs::open(pin).unwrap(), "none0").unwrap_err();
        assert!(matches!(gone, NetError::NoDevice { .. }), "{gone}");
        assert!(check_device("none0").is_err() && check_device("dev0").is_ok());
        // The kernel keeps the loopback device where it is.
        let error = give_device("lo", NetNs::open(pin).unwrap(), "other").unwrap_err();
        assert!(matches!(error, NetError::Kernel { .. }), "{error}");
        let lo = link("lo").unwrap();
        assert!(has_flag(&lo, "UP"), "{lo}");
        assert_eq!(inside(pin, || link("other")), None);
    });
}
