//! What `doctor` found, one line per check.

use super::paint::{Paint, Tone};
use super::text::clean;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Check {
    pub level: Level,
    /// What was checked: "certificate".
    pub name: String,
    pub message: String,
    /// Empty when there is nothing to do.
    pub remedy: String,
}

impl Check {
    pub fn ok(name: &str, message: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            name: name.to_owned(),
            message: message.into(),
            remedy: String::new(),
        }
    }

    pub fn warn(name: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            name: name.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    pub fn fail(name: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            name: name.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

pub fn render(checks: &[Check], paint: Paint) -> String {
    let mut text = String::new();
    for check in checks {
        let tone = match check.level {
            Level::Ok => Tone::Good,
            Level::Warn => Tone::Warn,
            Level::Fail => Tone::Bad,
        };
        let word = paint.tone(tone, &format!("{:<4}", check.level.word()));
        text.push_str(&format!("{word}  {:<13} {}\n", check.name, clean(&check.message)));
        if !check.remedy.is_empty() {
            text.push_str(&format!("        what to do: {}\n", clean(&check.remedy)));
        }
    }
    let of = |level| checks.iter().filter(|c| c.level == level).count();
    let (warnings, failures) = (of(Level::Warn), of(Level::Fail));
    text.push_str(&match (failures, warnings) {
        (0, 0) => "\nAll is well.\n".to_owned(),
        (0, _) => format!("\nUsable, {warnings} to look at.\n"),
        (_, _) => format!("\nNOT usable: {failures} failed, {warnings} to look at.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::golden;

    #[test]
    fn the_three_levels() {
        let checks = [
            Check::ok("context", "/home/ana/.config/rollbackctl/context.toml (fleet prod)"),
            Check::warn(
                "clock",
                "the coordinator's clock is 12.0 s ahead",
                "synchronize both clocks (chrony, ntp)",
            ),
            Check::fail(
                "endpoint",
                "coord-2:7443: connection refused",
                "look at rollback-coordinator there",
            ),
        ];
        golden!("doctor", render(&checks, Paint::PLAIN));
    }
}
