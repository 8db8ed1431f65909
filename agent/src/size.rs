//! Sizes in configuration files: `2GB`, `512MB`, `64KiB`, or a number of bytes. `KB` is 1000 bytes, `KiB` is 1024.

use serde::Deserialize;
use serde::de::{Deserializer, Error};

const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Bytes(u64),
    Text(String),
}

/// For `#[serde(deserialize_with = "crate::size::deserialize")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Written::deserialize(deserializer)? {
        Written::Bytes(bytes) => Ok(bytes),
        Written::Text(text) => {
            parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a size; write 2GB, 512MB or 64KiB")))
        }
    }
}

/// The same, for a key that may be absent.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserialize(deserializer).map(Some)
}

fn parse(text: &str) -> Option<u64> {
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(factor)
}

/// "3.1 MB", for people.
pub fn shown(bytes: u64) -> String {
    if bytes < 1_000_000 {
        return format!("{:.1} KB", bytes as f64 / 1e3);
    }
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_sizes_and_nothing_else() {
        for (text, bytes) in [
            ("2GB", 2_000_000_000),
            ("64KiB", 65_536),
            ("10 MB", 10_000_000),
            ("7", 7),
            ("7B", 7),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for bad in ["", "GB", "-1MB", "1.5GB", "2gb", "99999999999GB", "1 M"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
