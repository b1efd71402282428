//! What the caller of a migration may wish, and what cannot be wished together.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Rate;

/// A text that names none of the choices there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: choose one of {choices}")]
pub struct ChoiceError {
    what: &'static str,
    text: String,
    choices: &'static str,
}

/// Kebab-case names of an enum without values, for serde, command line and reports alike.
macro_rules! choices {
    ($name:ident, $what:literal, $list:literal, $($variant:ident = $text:literal),*) => {
        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = ChoiceError;
            fn from_str(text: &str) -> Result<Self, ChoiceError> {
                Self::ALL.iter().copied().find(|choice| choice.as_str() == text).ok_or_else(|| ChoiceError {
                    what: $what,
                    text: text.chars().take(40).collect(),
                    choices: $list,
                })
            }
        }
    };
}

/// How a source finds the pages that changed since the round before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerChoice {
    /// The best one that this kernel has.
    #[default]
    Auto,
    /// The kernel's soft-dirty bits.
    SoftDirty,
    /// Asynchronous write protection by a userfaultfd.
    UffdWp,
    /// All memory is read in each round and compared by a hash per page.
    Hash,
    /// CRIU's own pre-dumps, which stop the container in each round (soft-dirty bits, too).
    Criu,
}
choices!(
    TrackerChoice,
    "tracker",
    "auto, soft-dirty, uffd-wp, hash and criu",
    Auto = "auto",
    SoftDirty = "soft-dirty",
    UffdWp = "uffd-wp",
    Hash = "hash",
    Criu = "criu"
);

/// How memory comes back at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreChoice {
    /// Lazily where the destination can, eagerly otherwise.
    #[default]
    Auto,
    /// The container runs at once and its memory is filled in behind it.
    Lazy,
    /// All memory is in place before the container runs.
    Eager,
}
choices!(
    RestoreChoice,
    "way to restore",
    "auto, lazy and eager",
    Auto = "auto",
    Lazy = "lazy",
    Eager = "eager"
);

/// What is done about a container that changes its memory faster than it can be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnNoConvergence {
    /// It is given less processor time, step by step, until the rest can be copied within the wished blackout.
    /// Where there is no `cpu` controller, or the least share does not help, it is frozen anyway.
    #[default]
    Throttle,
    /// It runs at the destination while a part of its memory is still on the source. A source that is lost
    /// meanwhile takes the container with it.
    PostCopy,
    /// It is frozen anyway; the blackout is then longer than was wished.
    StopCopy,
    /// It stays where it is.
    Abort,
}
choices!(
    OnNoConvergence,
    "answer to memory that does not converge",
    "throttle, post-copy, stop-copy and abort",
    Throttle = "throttle",
    PostCopy = "post-copy",
    StopCopy = "stop-copy",
    Abort = "abort"
);

/// How pages are compressed on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Compress {
    /// As much as the link and the processor, both measured, make worth while.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// With this zstd level, within [`Compress::LEVELS`].
    Level(i32),
}

impl Compress {
    /// The zstd levels that may be asked for.
    pub const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;
}

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::None => f.pad("none"),
            Self::Level(level) => f.pad(&level.to_string()),
        }
    }
}

impl FromStr for Compress {
    type Err = ChoiceError;
    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            text => text
                .parse()
                .ok()
                .filter(|level| Self::LEVELS.contains(level))
                .map(Self::Level)
                .ok_or_else(|| ChoiceError {
                    what: "compression",
                    text: text.chars().take(40).collect(),
                    choices: "auto, none and the levels 1 to 19",
                }),
        }
    }
}

impl TryFrom<String> for Compress {
    type Error = ChoiceError;
    fn try_from(text: String) -> Result<Self, ChoiceError> {
        text.parse()
    }
}

impl From<Compress> for String {
    fn from(compress: Compress) -> Self {
        compress.to_string()
    }
}

/// What the caller wishes of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationOptions {
    /// Freeze as soon as the predicted blackout is no longer than this, in milliseconds.
    pub max_blackout_ms: u64,
    /// Give up when the container is not frozen by then, in milliseconds from the start.
    pub timeout_ms: u64,
    /// At most this many pre-copy rounds; 0: dump all memory inside the freeze.
    pub max_rounds: u32,
    /// How changed pages are found.
    pub tracker: TrackerChoice,
    /// How pages are compressed: `"auto"`, `"none"`, or a level like `"7"`.
    pub compress: Compress,
    /// How memory comes back at the destination.
    pub restore: RestoreChoice,
    /// At most this many bytes per second over the wire, all streams together; none: as fast as it goes.
    pub bandwidth: Option<Rate>,
    /// What is done when memory changes faster than it can be copied.
    pub on_no_convergence: OnNoConvergence,
}

impl Default for MigrationOptions {
    fn default() -> Self {
        Self {
            max_blackout_ms: 300,
            timeout_ms: 30_000,
            max_rounds: 8,
            tracker: TrackerChoice::Auto,
            compress: Compress::Auto,
            restore: RestoreChoice::Auto,
            bandwidth: None,
            on_no_convergence: OnNoConvergence::Throttle,
        }
    }
}

/// An option that no migration can follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct OptionError {
    /// Which field of [`MigrationOptions`].
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
    /// What to wish instead.
    pub remedy: &'static str,
}

impl MigrationOptions {
    /// The most rounds that may be wished.
    pub const MOST_ROUNDS: u32 = 1000;
    /// The longest time that may be wished, in milliseconds: thirty days.
    pub const LONGEST_MS: u64 = 30 * 86_400_000;
    /// The slowest link that may be wished: even a small container would take hours over a slower one.
    pub const SLOWEST: Rate = Rate(64 << 10);

    /// Whether a migration can follow these options.
    ///
    /// # Errors
    /// The first one that it cannot follow.
    pub fn check(&self) -> Result<(), OptionError> {
        let wrong = |field, problem, remedy| {
            Err(OptionError {
                field,
                problem,
                remedy,
            })
        };
        if self.max_blackout_ms > Self::LONGEST_MS {
            let problem = format!(
                "a blackout of {} ms is longer than 30 days",
                self.max_blackout_ms
            );
            return wrong(
                "max_blackout_ms",
                problem,
                "wish for a shorter one, like 300",
            );
        }
        if self.timeout_ms == 0 || self.timeout_ms > Self::LONGEST_MS {
            let problem = format!(
                "a time limit of {} ms is none, or longer than 30 days",
                self.timeout_ms
            );
            return wrong("timeout_ms", problem, "wish for one between, like 30000");
        }
        if self.max_rounds > Self::MOST_ROUNDS {
            let problem = format!("{} rounds are more than there may be", self.max_rounds);
            return wrong(
                "max_rounds",
                problem,
                "wish for at most 1000; the time limit ends them anyway",
            );
        }
        if let Compress::Level(level) = self.compress
            && !Compress::LEVELS.contains(&level)
        {
            let problem = format!("{level} is no compression level");
            return wrong("compress", problem, "choose auto, none or a level 1 to 19");
        }
        if let Some(rate) = self.bandwidth
            && rate < Self::SLOWEST
        {
            let problem = format!("a bandwidth of {rate} is too little to move a container");
            return wrong(
                "bandwidth",
                problem,
                "allow at least 65536 bytes per second, or leave it out for all there is",
            );
        }
        if self.on_no_convergence == OnNoConvergence::PostCopy
            && self.restore == RestoreChoice::Eager
        {
            let problem =
                "post-copy fills memory behind a running container, and an eager restore does not"
                    .to_owned();
            return wrong(
                "on_no_convergence",
                problem,
                "choose throttle, stop-copy or abort, or leave the restore to auto",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn round_trip<T: Serialize + for<'a> Deserialize<'a> + PartialEq + fmt::Debug>(
        value: &T,
        text: &str,
    ) {
        let json = format!("{text:?}");
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value);
    }

    #[test]
    fn a_choice_has_one_name_everywhere() {
        for choice in TrackerChoice::ALL {
            round_trip(choice, choice.as_str());
            assert_eq!(choice.as_str().parse(), Ok(*choice));
        }
        for choice in RestoreChoice::ALL {
            round_trip(choice, choice.as_str());
            assert_eq!(choice.as_str().parse(), Ok(*choice));
        }
        for choice in OnNoConvergence::ALL {
            round_trip(choice, choice.as_str());
            assert_eq!(choice.as_str().parse(), Ok(*choice));
        }
        for (choice, text) in [
            (Compress::Auto, "auto"),
            (Compress::None, "none"),
            (Compress::Level(7), "7"),
        ] {
            round_trip(&choice, text);
        }
        let error = "fast".parse::<TrackerChoice>().unwrap_err().to_string();
        assert!(
            error.contains("uffd-wp") && error.contains("fast"),
            "{error}"
        );
        for bad in ["0", "20", "-1", "best", ""] {
            assert!(bad.parse::<Compress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn absent_options_are_the_defaults_and_unknown_ones_an_error() {
        let options: MigrationOptions = serde_json::from_str(r#"{"tracker": "hash"}"#).unwrap();
        let wished = MigrationOptions {
            tracker: TrackerChoice::Hash,
            ..MigrationOptions::default()
        };
        assert_eq!(options, wished);
        assert!(serde_json::from_str::<MigrationOptions>(r#"{"trackr": "hash"}"#).is_err());
        assert!(serde_json::from_str::<MigrationOptions>(r#"{"compress": "20"}"#).is_err());
    }

    #[test]
    fn an_option_that_cannot_be_followed_is_named_with_its_remedy() {
        let fine = MigrationOptions::default();
        assert_eq!(fine.check(), Ok(()));
        let wrong = |change: fn(&mut MigrationOptions), field: &str| {
            let mut options = MigrationOptions::default();
            change(&mut options);
            let error = options.check().unwrap_err();
            assert_eq!(error.field, field);
            assert!(error.problem.len() > 20 && error.remedy.len() > 10);
        };
        wrong(|o| o.max_blackout_ms = u64::MAX, "max_blackout_ms");
        wrong(|o| o.timeout_ms = 0, "timeout_ms");
        wrong(|o| o.timeout_ms = u64::MAX, "timeout_ms");
        wrong(|o| o.max_rounds = 1001, "max_rounds");
        wrong(|o| o.compress = Compress::Level(20), "compress");
        wrong(|o| o.bandwidth = Some(Rate(1)), "bandwidth");
        wrong(
            |o| {
                o.restore = RestoreChoice::Eager;
                o.on_no_convergence = OnNoConvergence::PostCopy;
            },
            "on_no_convergence",
        );
    }
}
