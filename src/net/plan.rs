//! The container network as a value: what a host's configuration says, and the rules it has to keep.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::NetError;
use crate::model::{Lease, Mac, Name};

/// The container network as this host sees it. Hosts between which containers move need the same subnet,
/// prefix and gateway, one Ethernet segment under their bridges (the uplink), and pools that do not overlap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The bridge; made where it does not exist.
    pub bridge: String,
    /// An interface of the host, without address, that joins the bridge to the other hosts' bridges.
    pub uplink: Option<String>,
    /// The network's address.
    pub subnet: Ipv4Addr,
    /// The length of its prefix, in bits.
    pub prefix: u8,
    /// This host's own address in the container network.
    pub bridge_address: Option<Ipv4Addr>,
    /// Where containers send what leaves their network.
    pub gateway: Option<Ipv4Addr>,
    /// The first and the last address that this host gives to new containers.
    pub pool: (Ipv4Addr, Ipv4Addr),
}

impl NetworkConfig {
    /// Whether every field keeps its rule; the error names the field and the rule.
    pub fn check(&self) -> Result<(), NetError> {
        let broken = |field, value: &dyn ToString, rule| {
            Err(NetError::Config {
                field,
                value: value.to_string(),
                rule,
            })
        };
        if let Some(rule) = interface_rule(&self.bridge) {
            return broken("bridge", &self.bridge, rule);
        }
        if let Some(uplink) = &self.uplink {
            if let Some(rule) = interface_rule(uplink) {
                return broken("uplink", uplink, rule);
            }
            if *uplink == self.bridge {
                return broken("uplink", uplink, "cannot be the bridge itself");
            }
        }
        if !(8..=30).contains(&self.prefix) {
            return broken("prefix", &self.prefix, "must be from 8 to 30");
        }
        if self.subnet != self.first() {
            let rule = "is not a network address: the bits after the prefix must be 0";
            return broken("subnet", &self.subnet, rule);
        }
        if matches!(self.subnet.octets()[0], 0 | 127 | 224..) {
            return broken("subnet", &self.subnet, "is not a range for hosts");
        }
        for (field, address) in [
            ("bridge_address", self.bridge_address),
            ("gateway", self.gateway),
            ("pool", Some(self.pool.0)),
            ("pool", Some(self.pool.1)),
        ] {
            let Some(address) = address else { continue };
            if !self.contains(address) {
                return broken(field, &address, "is outside the subnet");
            }
            if address == self.first() || address == self.last() {
                let rule = "is the subnet's network or broadcast address";
                return broken(field, &address, rule);
            }
        }
        if self.pool.0 > self.pool.1 {
            let rule = "comes after the pool's last address";
            return broken("pool", &self.pool.0, rule);
        }
        Ok(())
    }

    /// The network as people write it: `10.88.0.0/16`.
    pub fn network(&self) -> String {
        format!("{}/{}", self.subnet, self.prefix)
    }

    /// Whether `address` lies in the subnet.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first()..=self.last()).contains(&address)
    }

    /// The lease of a container with this address.
    pub(super) fn lease(&self, address: Ipv4Addr) -> Lease {
        Lease {
            address,
            prefix: self.prefix,
            gateway: self.gateway,
            mac: Mac::of(address),
        }
    }

    /// Whether a container may have `address`, as far as the network alone tells.
    pub(super) fn allows(&self, address: Ipv4Addr) -> Result<(), NetError> {
        if !self.contains(address) {
            let network = self.network();
            return Err(NetError::OutsideNetwork { address, network });
        }
        let purpose = if address == self.first() {
            "network address"
        } else if address == self.last() {
            "broadcast address"
        } else if Some(address) == self.gateway {
            "gateway"
        } else if Some(address) == self.bridge_address {
            "bridge's own address"
        } else {
            return Ok(());
        };
        Err(NetError::Reserved { address, purpose })
    }

    /// The addresses for new containers, lowest first.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Ipv4Addr> {
        (self.pool.0.to_bits()..=self.pool.1.to_bits())
            .map(Ipv4Addr::from_bits)
            .filter(|&address| self.allows(address).is_ok())
    }

    fn mask(&self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix.min(32)))
            .unwrap_or(0)
    }

    fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.to_bits() & self.mask())
    }

    pub(super) fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.to_bits() | !self.mask())
    }
}

/// The kernel's rule for the name of an interface, where `name` breaks it.
fn interface_rule(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 15 {
        Some("must have from 1 to 15 characters")
    } else if name == "." || name == ".." {
        Some("is not a name for an interface")
    } else if !name
        .bytes()
        .all(|c| c.is_ascii_graphic() && !matches!(c, b'/' | b':' | b'%'))
    {
        Some("must be made of visible ASCII characters other than '/', ':' and '%'")
    } else if is_port_name(name) {
        Some("looks like a container's port: choose another name")
    } else {
        None
    }
}

/// How the host's end of a container's link begins.
const PORT_PREFIX: &str = "gw";

/// How many hexadecimal digits follow it: with 48 bits, two of a thousand containers share a name once in
/// half a billion hosts, and then the second is refused, not confused with the first.
const PORT_DIGITS: usize = 12;

/// The name of the host's end of a container's link: the same on every host, and short enough for the kernel.
pub(super) fn port_name(name: &Name) -> String {
    let hash = blake3::hash(name.as_str().as_bytes()).to_hex();
    format!("{PORT_PREFIX}{}", &hash[..PORT_DIGITS])
}

/// The name of the interface at which frames wait for a container that is on its way: unlike a port's.
pub(super) fn tap_name(name: &Name) -> String {
    format!("gh{}", &port_name(name)[PORT_PREFIX.len()..])
}

/// The Ethernet address of every port's end at the host: its own stack takes what is sent to it, so that it must be
/// known to whoever keeps containers from there. High, as a bridge without an address takes the lowest of its ports'.
pub(super) const PORT_MAC: Mac = Mac([0xfe, 0x67, 0x6f, 0x64, 0x77, 0x69]);

/// Whether an interface's name is one that [`port_name`] gives.
pub(super) fn is_port_name(name: &str) -> bool {
    let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    name.strip_prefix(PORT_PREFIX)
        .is_some_and(|digits| digits.len() == PORT_DIGITS && digits.bytes().all(hex))
}

#[cfg(test)]
mod test {
    use super::*;

    fn given_config() -> NetworkConfig {
        serde_json::from_str(
            r#"{"bridge": "godwit0", "subnet": "10.88.0.0", "prefix": 16, "gateway": "10.88.0.1",
                "bridge_address": "10.88.0.2", "pool": ["10.88.0.1", "10.88.0.9"]}"#,
        )
        .unwrap()
    }

    #[track_caller]
    fn check_refused(field: &str, change: impl FnOnce(&mut NetworkConfig)) {
        let mut config = given_config();
        change(&mut config);
        match config.check() {
            Err(NetError::Config { field: told, .. }) => assert_eq!(told, field),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broken_rule_is_told_with_the_name_of_its_field() {
        given_config().check().unwrap();
        check_refused("bridge", |c| c.bridge = String::new());
        check_refused("bridge", |c| c.bridge = "sixteen-letters-".into());
        check_refused("bridge", |c| c.bridge = "a b".into());
        check_refused("bridge", |c| c.bridge = "gw0123456789ab".into());
        check_refused("uplink", |c| c.uplink = Some("..".into()));
        check_refused("uplink", |c| c.uplink = Some("godwit0".into()));
        for prefix in [0, 7, 31, 32, 33, 255] {
            check_refused("prefix", |c| c.prefix = prefix);
        }
        check_refused("subnet", |c| c.subnet = Ipv4Addr::new(10, 88, 1, 0));
        check_refused("subnet", |c| c.subnet = Ipv4Addr::new(127, 0, 0, 0));
        check_refused("gateway", |c| c.gateway = Some(Ipv4Addr::new(10, 89, 0, 1)));
        check_refused("bridge_address", |c| c.bridge_address = Some(c.subnet));
        check_refused("pool", |c| c.pool.1 = Ipv4Addr::new(10, 88, 255, 255));
        check_refused("pool", |c| c.pool.1 = Ipv4Addr::new(10, 88, 0, 0));
        check_refused("pool", |c| c.pool.0 = Ipv4Addr::new(10, 88, 0, 10));
    }

    #[test]
    fn an_unknown_field_of_the_configuration_is_refused() {
        let text = r#"{"bridge": "b", "subnet": "10.0.0.0", "prefix": 8, "pool": ["10.0.0.2", "10.0.0.3"],
            "bridge_adress": "10.0.0.1"}"#;
        let error = serde_json::from_str::<NetworkConfig>(text).unwrap_err();
        assert!(error.to_string().contains("bridge_adress"), "{error}");
    }

    #[test]
    fn the_pool_skips_what_has_a_purpose() {
        let first: Vec<_> = given_config().candidates().take(2).collect();
        assert_eq!(
            first,
            [Ipv4Addr::new(10, 88, 0, 3), Ipv4Addr::new(10, 88, 0, 4)]
        );
        assert_eq!(given_config().candidates().count(), 7);
    }

    #[test]
    fn a_port_has_a_name_the_kernel_takes_and_we_know_again() {
        let longest = "a".repeat(63).parse::<Name>().unwrap();
        let (one, two) = (port_name(&"redis".parse().unwrap()), port_name(&longest));
        assert!(one != two && two.len() <= 15);
        assert!(is_port_name(&one) && is_port_name(&two));
        for other in [
            "gw0",
            "godwit0",
            "gw0123456789AB",
            "gw0123456789abc",
            "eth0",
        ] {
            assert!(!is_port_name(other), "{other}");
        }
    }
}
