//! Whose a container's users are.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a container has a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Userns {
    /// Of its own: its users, root among them, are nobody on the host. Which numbers of the host they have is each
    /// host's affair, and different for every container.
    Auto,
    /// None: its users are those of the host, less what its capabilities and its other namespaces keep from them.
    #[default]
    Host,
}

impl Userns {
    /// Whether it has none.
    pub fn is_host(&self) -> bool {
        *self == Self::Host
    }
}

impl fmt::Display for Userns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Host => "host",
        })
    }
}

impl FromStr for Userns {
    type Err = NotUserns;

    fn from_str(text: &str) -> Result<Self, NotUserns> {
        match text {
            "auto" => Ok(Self::Auto),
            "host" => Ok(Self::Host),
            _ => Err(NotUserns(text.to_owned())),
        }
    }
}

/// A text that says nothing about user namespaces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not auto (a user namespace of its own) or host (none)")]
pub struct NotUserns(String);

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_choice_is_written_as_it_is_read_and_what_is_none_is_refused() {
        for choice in [Userns::Auto, Userns::Host] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, format!("\"{choice}\""));
        }
        let error = "own".parse::<Userns>().unwrap_err().to_string();
        assert!(error.contains("auto") && error.contains("host"), "{error}");
    }
}
