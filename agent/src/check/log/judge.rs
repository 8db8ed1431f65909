//! Which lines count, and what is said of them.

use regex::RegexSet;
use serde_json::Value;

/// Longest quotation, in characters.
const QUOTED: usize = 200;

pub(super) struct Judge<'p> {
    error: &'p RegexSet,
    ignore: &'p RegexSet,
    lines: u64,
    errors: u64,
    first: Option<String>,
}

impl<'p> Judge<'p> {
    pub fn new(error: &'p RegexSet, ignore: &'p RegexSet) -> Self {
        Self {
            error,
            ignore,
            lines: 0,
            errors: 0,
            first: None,
        }
    }

    pub fn line(&mut self, line: &str) {
        self.lines += 1;
        if self.error.is_match(line) && !self.ignore.is_match(line) {
            self.errors += 1;
            if self.first.is_none() {
                self.first = Some(crate::check::printable(line.trim(), QUOTED));
            }
        }
    }

    /// `whole` says what is remarkable about how the log was read, or why not all of it could be read.
    pub fn verdict(self, target: &str, max: u64, whole: Result<String, String>) -> Result<String, String> {
        if self.errors > max {
            let first = self.first.unwrap_or_default();
            return Err(format!(
                "{target}: {} of {} lines since the switch are errors, {max} are allowed; the first: {first}",
                self.errors, self.lines
            ));
        }
        let note = whole.map_err(|why| format!("{target}: cannot be judged: {why}"))?;
        let comma = if note.is_empty() { "" } else { ", " };
        Ok(format!(
            "{} errors in {} lines since the switch{comma}{note}",
            self.errors, self.lines
        ))
    }
}

/// The message of a line of `journalctl --output=json`, if it was written at or after `since`. A message that is not
/// text comes as a list of bytes.
pub(super) fn journal_message(line: &str, since: u64) -> Result<Option<String>, String> {
    let not_read = || "journalctl's answer cannot be understood".to_owned();
    let entry: Value = serde_json::from_str(line).map_err(|_| not_read())?;
    let written: u64 = entry
        .get("__REALTIME_TIMESTAMP")
        .and_then(Value::as_str)
        .and_then(|t| t.parse().ok())
        .ok_or_else(not_read)?;
    if written < since {
        return Ok(None);
    }
    match entry.get("MESSAGE") {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(bytes)) => {
            let bytes: Option<Vec<u8>> = bytes.iter().map(|b| u8::try_from(b.as_u64()?).ok()).collect();
            Ok(Some(String::from_utf8_lossy(&bytes.ok_or_else(not_read)?).into_owned()))
        }
        // Null: too long to be shown, so nobody knows what it says.
        Some(Value::Null) => Err("a message is too long to be read".into()),
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Err(not_read()),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_journalctl_writes() {
        let line = r#"{"__REALTIME_TIMESTAMP":"1700000000000005","MESSAGE":"ERROR x","__CURSOR":"s=1"}"#;
        assert_eq!(journal_message(line, 1_700_000_000_000_005), Ok(Some("ERROR x".into())));
        assert_eq!(journal_message(line, 1_700_000_000_000_006), Ok(None), "written before");
        let bytes = r#"{"__REALTIME_TIMESTAMP":"2","MESSAGE":[69,82,255]}"#;
        assert_eq!(journal_message(bytes, 1), Ok(Some("ER\u{fffd}".into())));
        for bad in ["", "{}", "x", r#"{"__REALTIME_TIMESTAMP":"2","MESSAGE":null}"#] {
            assert!(journal_message(bad, 1).is_err(), "{bad}");
        }
    }
}
