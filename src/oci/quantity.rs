//! Amounts as people write them: `512 MiB`, `1.5` processors.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::model::Bytes;

/// The memory units, each with how far it shifts. `512M` means what `512 MiB` means, as it does to every
/// other container tool.
const UNITS: [(&str, u32); 13] = [
    ("", 0),
    ("b", 0),
    ("k", 10),
    ("kb", 10),
    ("kib", 10),
    ("m", 20),
    ("mb", 20),
    ("mib", 20),
    ("g", 30),
    ("gb", 30),
    ("gib", 30),
    ("t", 40),
    ("tib", 40),
];

/// The rule that [`memory`] keeps.
pub const MEMORY_RULE: &str =
    "a whole number of bytes, or a text like \"512 MiB\" or \"2G\", more than zero";

/// Reads an amount of memory; none where the text is not one (see [`MEMORY_RULE`]).
pub fn memory(text: &str) -> Option<Bytes> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let number: u64 = number.parse().ok()?;
    number
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes > 0)
        .map(Bytes)
}

/// An amount of memory in a file: a number or a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub Bytes);

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Memory;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(MEMORY_RULE)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Memory, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
                memory(text).map(Memory).ok_or_else(wrong)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Memory, E> {
                let wrong = || E::invalid_value(de::Unexpected::Signed(number), &self);
                let bytes = u64::try_from(number).ok().filter(|&bytes| bytes > 0);
                bytes.map(|b| Memory(Bytes(b))).ok_or_else(wrong)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// The rule that [`cpu_millis`] keeps.
pub const CPUS_RULE: &str = "a number of processors from 0.01 to 10000, like 0.5 or 2";

/// Reads a number of processors as thousandths of one; none where it is not one (see [`CPUS_RULE`]).
pub fn cpu_millis(cpus: f64) -> Option<u64> {
    // The range makes the cast exact.
    (0.01..=10_000.0)
        .contains(&cpus)
        .then(|| (cpus * 1000.0).round() as u64)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn memory_is_read_with_and_without_units() {
        for (text, bytes) in [
            ("1", 1),
            ("4096 B", 4096),
            ("2k", 2048),
            ("512 MiB", 512 << 20),
            ("512M", 512 << 20),
            ("3GB", 3 << 30),
            (" 1TiB ", 1 << 40),
        ] {
            assert_eq!(memory(text), Some(Bytes(bytes)), "{text}");
        }
        for text in [
            "",
            "0",
            "MiB",
            "1.5G",
            "-1",
            "1 XB",
            "99999999999T",
            "1 M B",
        ] {
            assert_eq!(memory(text), None, "{text}");
        }
    }

    #[test]
    fn processors_are_read_in_thousandths() {
        assert_eq!(cpu_millis(0.5), Some(500));
        assert_eq!(cpu_millis(2.0), Some(2000));
        for cpus in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.001, 1e9] {
            assert_eq!(cpu_millis(cpus), None, "{cpus}");
        }
    }
}
