//! Where a peer listens: a host and a port, as a person wrote them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest DNS name, as text.
const LONGEST_HOST: usize = 253;

/// An address that a host can be dialled at: `10.0.0.1:7447`, `[fd00::1]:7447` or `alpha.example:7447`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

/// A text that is no address to dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address to dial: {rule}")]
pub struct AddressError {
    text: String,
    rule: &'static str,
}

impl Address {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The IP address, where it is one and not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        let address = self.0.parse::<SocketAddr>().ok()?;
        Some(address.ip().to_canonical())
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = |rule| AddressError {
            text: text.chars().take(80).collect(),
            rule,
        };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(bad("port 0 cannot be dialled"))
            } else if address.ip().is_unspecified() || address.ip().is_multicast() {
                Err(bad("give an address that reaches one host"))
            } else {
                Ok(Self(address.to_string()))
            };
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| bad("write host:port"))?;
        let good_port = port.bytes().all(|c| c.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0);
        if !good_port {
            return Err(bad("the port must be a number from 1 to 65535"));
        }
        if host.len() > LONGEST_HOST || !host.split('.').all(is_label) {
            return Err(bad("the host must be an IP address or a DNS name"));
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
}

impl TryFrom<String> for Address {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_address_reaches_one_host_at_one_port() {
        for good in [
            "10.0.0.1:7447",
            "[fd00::1]:1",
            "alpha:65535",
            "a.b-c.example:7447",
        ] {
            assert_eq!(good.parse::<Address>().unwrap().as_str(), good);
        }
        let ip = |text: &str| text.parse::<Address>().unwrap().ip();
        assert_eq!(ip("[::ffff:10.0.0.1]:1"), ip("10.0.0.1:2"));
        assert_eq!(ip("alpha:1"), None);
        for bad in [
            "",
            "alpha",
            ":7447",
            "alpha:",
            "alpha:0",
            "alpha:65536",
            "alpha:+1",
            "alpha: 1",
            "10.0.0.1:0",
            "0.0.0.0:7447",
            "[::]:7447",
            "224.0.0.1:7447",
            "fd00::1:7447",
            "a..b:7447",
            "-a:7447",
            "a/b:7447",
            "a\u{1b}[2J:7447",
            &format!("{}:1", "x".repeat(254)),
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }
}
