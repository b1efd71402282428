//! Identifiers: parsed once, then trusted.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a text is not an identifier. The message names the text and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a name: see [`Name`].
    #[error(
        "{text:?} is not a name: use 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or a digit"
    )]
    Name {
        /// What was given.
        text: String,
    },
    /// Not a hexadecimal text of the right length.
    #[error("{text:?} is not {what}: {digits} hexadecimal digits are expected")]
    Hex {
        /// What was given.
        text: String,
        /// What it should have been.
        what: &'static str,
        /// How many digits.
        digits: usize,
    },
}

/// The name of a container or of a host: one DNS label (RFC 1123), because neighbours resolve it.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that a container of this id has on the network: of the 64 hexadecimal digits that engines give, what they
    /// show of them; of others, what is a name in them. None: nothing is.
    pub fn of_id(id: &str) -> Option<Self> {
        if let Ok(name) = id.parse() {
            return Some(name);
        }
        let long = id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit());
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let text: String = id
            .chars()
            .map(plain)
            .take(if long { 12 } else { 63 })
            .collect();
        text.to_ascii_lowercase().trim_matches('-').parse().ok()
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let good = (1..=63).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Name {
                text: text.chars().take(80).collect(),
            })
        }
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn parse_hex<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], IdError> {
    let bad = || IdError::Hex {
        text: text.chars().take(80).collect(),
        what,
        digits: N * 2,
    };
    if text.len() != N * 2 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
    }
    Ok(out)
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:expr, $what:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; $bytes]);

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex(text, $what).map(Self)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
                f.pad(&text)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

hex_id!(
    /// One migration, chosen at random by the source; both hosts journal under it.
    MigrationId, 8, "a migration id"
);
hex_id!(
    /// BLAKE3 of some content: an image in the store, a certificate.
    Digest, 32, "a digest"
);

/// How many times a container has been handed over. It fences a source that comes back late: of two
/// hosts that both claim a container, the lower generation is the stale one.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after one more handover.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_name_is_one_dns_label() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a/b",
            "..",
            "a\0",
            "ü",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hex_id_survives_its_text_form() {
        let id = MigrationId([0, 1, 2, 0xab, 0xcd, 0xef, 9, 0xff]);
        assert_eq!(id.to_string(), "000102abcdef09ff");
        assert_eq!(id.to_string().parse::<MigrationId>().unwrap(), id);
        assert!("000102abcdef09f".parse::<MigrationId>().is_err());
        assert!("+00102abcdef09ff".parse::<MigrationId>().is_err());
    }
}
