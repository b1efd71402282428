//! What is done when a container's command has ended.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a command that has ended is started again. One that a person has stopped never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When it ended with another exit code than 0, by a signal, or nobody knows how (its host went down).
    OnFailure {
        /// How often at most, since a person has started it; without, for ever.
        most: Option<u32>,
    },
    /// However it ended.
    Always,
}

/// Why a text is no such choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not say when to restart: write no, on-failure, on-failure:5 or always")]
pub struct RestartError {
    text: String,
}

impl Restart {
    /// Whether it never is.
    pub fn is_no(&self) -> bool {
        *self == Self::No
    }
}

impl FromStr for Restart {
    type Err = RestartError;
    fn from_str(text: &str) -> Result<Self, RestartError> {
        let wrong = || RestartError {
            text: text.chars().take(40).collect(),
        };
        match text.split_once(':') {
            None if text == "no" => Ok(Self::No),
            None if text == "on-failure" => Ok(Self::OnFailure { most: None }),
            None if text == "always" => Ok(Self::Always),
            Some(("on-failure", most)) if most.bytes().all(|c| c.is_ascii_digit()) => {
                let most = most.parse().ok().filter(|&most| most > 0);
                Ok(Self::OnFailure {
                    most: Some(most.ok_or_else(wrong)?),
                })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.pad("no"),
            Self::OnFailure { most: None } => f.pad("on-failure"),
            Self::OnFailure { most: Some(most) } => f.pad(&format!("on-failure:{most}")),
            Self::Always => f.pad("always"),
        }
    }
}

impl TryFrom<String> for Restart {
    type Error = RestartError;
    fn try_from(text: String) -> Result<Self, RestartError> {
        text.parse()
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> Self {
        restart.to_string()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["no", "on-failure", "on-failure:3", "always"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "yes",
            "always:3",
            "on-failure:",
            "on-failure:0",
            "on-failure:-1",
            "on-failure:+1",
            "on-failure:99999999999",
            "No",
        ] {
            let error = text.parse::<Restart>().unwrap_err();
            assert!(error.to_string().contains("on-failure:5"), "{text}");
        }
    }
}
