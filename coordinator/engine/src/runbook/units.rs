//! The two measures of a runbook: how many hosts, and how long.

use std::fmt;

use jiff::fmt::friendly::SpanParser;
use serde::{Deserialize, Serialize};

/// How many hosts a batch takes: `"3"`, or `"25%"` of all hosts of the phase (rounded up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BatchSize {
    Count(usize),
    Percent(u8),
}

/// A length of time in a runbook: `"500ms"`, `"30s"`, `"15m"`, `"1h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    pub millis: u64,
}

impl BatchSize {
    /// How many of `total` hosts; at least one, so that every batch makes progress.
    pub fn of(self, total: usize) -> usize {
        match self {
            BatchSize::Count(n) => n,
            BatchSize::Percent(p) => (total * usize::from(p)).div_ceil(100).max(1),
        }
    }
}

impl TryFrom<String> for BatchSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a batch size; write a count (\"3\") or a share (\"25%\")");
        let size = match text.strip_suffix('%') {
            Some(share) => BatchSize::Percent(share.parse().ok().filter(|p| *p <= 100).ok_or_else(wrong)?),
            None => BatchSize::Count(text.parse().map_err(|_| wrong())?),
        };
        match size {
            BatchSize::Count(0) | BatchSize::Percent(0) => Err(format!("`{text}` would be a batch of no hosts")),
            BatchSize::Count(_) | BatchSize::Percent(_) => Ok(size),
        }
    }
}

impl From<BatchSize> for String {
    fn from(size: BatchSize) -> Self {
        match size {
            BatchSize::Count(n) => n.to_string(),
            BatchSize::Percent(p) => format!("{p}%"),
        }
    }
}

/// Longest first, so that printing picks the largest unit that fits exactly.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let length = SpanParser::new().parse_unsigned_duration(&text);
        match length.map(|length| u64::try_from(length.as_millis())) {
            Ok(Ok(millis)) => Ok(Span { millis }),
            Ok(Err(_)) | Err(_) => Err(format!("`{text}` is not a duration; write 500ms, 30s, 15m or 1h")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS
            .into_iter()
            .find(|(_, factor)| self.millis.is_multiple_of(*factor))
            .unwrap_or(("ms", 1));
        write!(f, "{}{unit}", self.millis / factor)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}
