//! Amounts with their unit in the type: no bare `u64` crosses a room.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The page size of every architecture Godwit migrates between, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// A number of bytes.
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
pub struct Bytes(pub u64);

/// A number of pages of [`PAGE_SIZE`] bytes.
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
pub struct Pages(pub u64);

/// Bytes per second.
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
pub struct Rate(pub u64);

impl Bytes {
    /// The rate at which this many bytes pass in `time`; none for no time at all.
    pub fn per(self, time: Duration) -> Option<Rate> {
        let micros = u64::try_from(time.as_micros()).ok().filter(|&m| m > 0)?;
        Some(Rate(self.0.saturating_mul(1_000_000) / micros))
    }
}

impl Pages {
    /// The bytes these pages hold.
    pub fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE))
    }
}

impl Rate {
    /// How long `bytes` take at this rate; none at rate zero.
    pub fn time_for(self, bytes: Bytes) -> Option<Duration> {
        (self.0 > 0).then(|| Duration::from_micros(bytes.0.saturating_mul(1_000_000) / self.0))
    }
}

macro_rules! additive {
    ($($name:ident),*) => {$(
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self(0), Add::add)
            }
        }
    )*};
}
additive!(Bytes, Pages);

impl fmt::Display for Bytes {
    /// Binary units, three significant digits: `1.25 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if unit == 0 || value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        };
        f.pad(&format!("{value:.digits$} {}", UNITS[unit]))
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", Bytes(self.0)))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn bytes_print_in_binary_units() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1280 * 1024).to_string(), "1.25 MiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "16384 PiB");
    }

    #[test]
    fn a_rate_and_its_time_agree() {
        let rate = Bytes(10_000_000).per(Duration::from_secs(2)).unwrap();
        assert_eq!(rate, Rate(5_000_000));
        assert_eq!(
            rate.time_for(Bytes(10_000_000)),
            Some(Duration::from_secs(2))
        );
        assert_eq!(Rate(0).time_for(Bytes(1)), None);
        assert_eq!(Bytes(1).per(Duration::ZERO), None);
    }
}
