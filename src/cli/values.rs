//! What a word of the command line may be.

use std::time::Duration;

use crate::model::id::IdError;
use crate::model::{Bytes, Name, Rate};

/// A container's name, or the id of one of a bundle.
pub fn container(text: &str) -> Result<Name, IdError> {
    Name::of_id(text).map_or_else(|| text.parse(), Ok)
}

/// `512M`, `1.5GiB`, `4096`: a number of bytes, in binary units.
pub fn bytes(text: &str) -> Result<Bytes, String> {
    let bad = || format!("{text:?} is not an amount of memory: write it like 512M or 1.5G");
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let power = match unit
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(bad()),
    };
    let value = number * 1024_f64.powi(power);
    if value < 1.0 || value > 2_f64.powi(60) {
        return Err(bad());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(Bytes(value as u64))
}

/// `100M`, `1.5GiB/s`: bytes per second, in binary units; `1Gbit`, `500Mbit/s`: bits per second, in decimal ones, as
/// links are sold.
pub fn rate(text: &str) -> Result<Rate, String> {
    let bad = || {
        format!(
            "{text:?} is not a bandwidth: write it like 100M (bytes per second) or 1Gbit (bits per second)"
        )
    };
    let amount = text.trim_end_matches("/s");
    let lower = amount.to_ascii_lowercase();
    let Some(bits) = lower.strip_suffix("bit") else {
        return bytes(amount).map(|bytes| Rate(bytes.0)).map_err(|_| bad());
    };
    let split = bits
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(bad)?;
    let (number, unit) = bits.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let factor = match unit {
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        _ => return Err(bad()),
    };
    let value = number * factor / 8.0;
    if !(1.0..=1e18).contains(&value) {
        return Err(bad());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(Rate(value as u64))
}

/// `0.5`, `2`: a number of cores, in thousandths.
pub fn cpus(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a number of cores: write it like 0.5 or 2");
    let cores: f64 = text.parse().map_err(|_| bad())?;
    if !(0.01..=4096.0).contains(&cores) {
        return Err(bad());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok((cores * 1000.0).round() as u64)
}

/// `300ms`, `30s`, `2m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time: write it like 300ms, 30s or 2m");
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let seconds = number * unit;
    if seconds > 30.0 * 86400.0 {
        return Err(format!("{text:?} is longer than 30 days"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// `KEY=value`.
pub fn env(text: &str) -> Result<String, String> {
    match text.find('=') {
        Some(at) if at > 0 => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not KEY=value")),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn amounts_are_read_in_binary_units() {
        assert_eq!(bytes("4096"), Ok(Bytes(4096)));
        assert_eq!(bytes("512M"), Ok(Bytes(512 << 20)));
        assert_eq!(bytes("1.5GiB"), Ok(Bytes(3 << 29)));
        assert_eq!(bytes("2kb"), Ok(Bytes(2048)));
        for bad in ["", "M", "-1", "0", "1X", "1e9", "1..2", "99999999T", "inf"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bandwidth_is_in_bytes_or_says_bit() {
        assert_eq!(rate("100M"), Ok(Rate(100 << 20)));
        assert_eq!(rate("1.5GiB/s"), Ok(Rate(3 << 29)));
        assert_eq!(rate("1Gbit"), Ok(Rate(125_000_000)));
        assert_eq!(rate("2.5mbit/s"), Ok(Rate(312_500)));
        for bad in [
            "",
            "fast",
            "0",
            "-1M",
            "100bit",
            "Gbit",
            "1Xbit",
            "1..5Gbit",
            "99999999Tbit",
        ] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "300", "s", "-1s", "1d", "1000h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_are_read_in_thousandths() {
        assert_eq!(cpus("0.5"), Ok(500));
        assert_eq!(cpus("2"), Ok(2000));
        for bad in ["", "0", "-1", "NaN", "x"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}
