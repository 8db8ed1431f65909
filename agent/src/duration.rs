//! Durations in configuration files: `500ms`, `30s`, `5m`, `1h`.
//!
//! One number and one unit, nothing else: what an operator writes is what an operator reads back in a message.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Reads `500ms`, `30s`, `5m` or `1h`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let unusable = || format!("{text:?} is not a duration: write 500ms, 30s, 5m or 1h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(unusable)?;
    let number: u64 = number.parse().map_err(|_| unusable())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(unusable()),
    };
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is too long a duration"))
}

/// For `#[serde(deserialize_with = "crate::duration::deserialize")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_number_and_one_unit() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 m",
            "5min",
            "99999999999999999h",
            "1h30m",
            "٣s",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
