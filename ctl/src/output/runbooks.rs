//! Runbooks: the list, one as it was written, and what is wrong with one.

use rollback_proto::v1::{LintRunbookResponse, RunbookFinding, RunbookInfo, Severity};

use super::paint::{Paint, Tone};
use super::table::{Table, cell, plain, right};
use super::text::{clean, count, or_none, stamp, timestamp};
use super::words;

/// More of them are no mistakes in a runbook, but a file that is none.
const FINDINGS: usize = 20;

/// Nobody writes longer lines by hand.
const WIDEST: usize = 200;

pub fn list(runbooks: &[RunbookInfo], paint: Paint) -> String {
    let mut table = Table::new(paint, &["RUNBOOK", "VERSION", "APPLIED", "BY", "ABOUT"]);
    for r in runbooks {
        table.row([
            cell(Tone::Strong, clean(&r.name)),
            right(r.version),
            plain(stamp(timestamp(r.applied_at.as_ref()))),
            if r.builtin {
                cell(Tone::Dim, "built-in")
            } else {
                plain(or_none(&r.applied_by))
            },
            plain(clean(&r.about)),
        ]);
    }
    table.render(0)
}

/// "web@3, applied by ana at 2026-11-21 03:12:44Z".
pub fn origin(runbook: &RunbookInfo) -> String {
    let (name, version) = (clean(&runbook.name), runbook.version);
    if runbook.builtin {
        return format!("{name}@{version}, built in\n");
    }
    let at = stamp(timestamp(runbook.applied_at.as_ref()));
    format!(
        "{name}@{version}, applied by {} at {at}\n",
        or_none(&runbook.applied_by)
    )
}

pub fn applied(runbook: &RunbookInfo, changed: bool) -> String {
    let (name, version) = (clean(&runbook.name), runbook.version);
    if changed {
        format!(
            "{name}@{version} is applied. Look at what it would do: rollbackctl fleet plan --to RELEASE --runbook {name}\n"
        )
    } else {
        format!("{name}@{version} has this text already\n")
    }
}

/// The file with every character that is not safe to print made a space. TOML itself has none of them outside of comments.
pub fn printable(text: &str) -> String {
    let safe = |c: char| c == '\t' || !clean(c.encode_utf8(&mut [0; 4])).is_empty();
    let line = |line: &str| {
        let line: String = line.chars().map(|c| if safe(c) { c } else { ' ' }).collect();
        line + "\n"
    };
    text.lines().map(line).collect()
}

/// Every finding with its line, and what it comes to.
pub fn lint(file: &str, text: &str, answer: &LintRunbookResponse, paint: Paint) -> String {
    let mut page = findings(file, text, &answer.findings, paint);
    let of = |wanted: Severity| {
        answer
            .findings
            .iter()
            .filter(|f| words::severity(f.severity) == wanted)
            .count()
    };
    let warnings = match of(Severity::Warning) {
        0 => String::new(),
        n => format!(", {}", count(n, "warning", "warnings")),
    };
    let verdict = match &answer.runbook {
        None => {
            let errors = count(of(Severity::Blocker), "error", "errors");
            paint.tone(Tone::Bad, &format!("{errors}{warnings}"))
        }
        Some(r) => {
            let ready = format!("can be applied as {}@{}{warnings}", clean(&r.name), r.version);
            paint.tone(Tone::Good, &ready)
        }
    };
    page.push_str(&format!("{}: {verdict}\n", clean(file)));
    page
}

/// As compilers write it: "web.toml:12:9: error: …", the line, and what to write instead.
pub fn findings(file: &str, text: &str, findings: &[RunbookFinding], paint: Paint) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut page = String::new();
    for finding in findings.iter().take(FINDINGS) {
        let place = match finding.line {
            0 => clean(file),
            line => format!("{}:{line}:{}", clean(file), finding.column),
        };
        let severity = match words::severity(finding.severity) {
            Severity::Blocker => paint.tone(Tone::Bad, "error"),
            Severity::Warning => paint.tone(Tone::Warn, "warning"),
            Severity::Ok | Severity::Unspecified => paint.tone(Tone::Dim, "note"),
        };
        let key = match finding.key.as_str() {
            "" => String::new(),
            key => format!("{}: ", clean(key)),
        };
        page.push_str(&format!("{place}: {severity}: {key}{}\n", clean(&finding.message)));
        page.push_str(&quote(&lines, finding, paint));
        if !finding.hint.is_empty() {
            page.push_str(&format!("  hint: {}\n", clean(&finding.hint)));
        }
    }
    let more = findings.len().saturating_sub(FINDINGS);
    if more > 0 {
        page.push_str(&format!(
            "{}: and {more} more; is it a runbook? rollbackctl runbook show default\n",
            clean(file)
        ));
    }
    page
}

/// The line, with a mark below the column.
fn quote(lines: &[&str], finding: &RunbookFinding, paint: Paint) -> String {
    let Ok(line) = usize::try_from(finding.line) else {
        return String::new();
    };
    let Some(text) = line.checked_sub(1).and_then(|index| lines.get(index)) else {
        return String::new();
    };
    if text.len() > WIDEST {
        return String::new();
    }
    let number = finding.line.to_string();
    // Tabs count as one character above and below.
    let quoted = printable(text).replace('\t', " ");
    let before = usize::try_from(finding.column.saturating_sub(1)).unwrap_or(0);
    let (margin, mark) = (" ".repeat(number.len()), paint.tone(Tone::Warn, "^"));
    format!(
        "  {number} | {}\n  {margin} | {}{mark}\n",
        quoted.trim_end(),
        " ".repeat(before)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::golden;

    fn finding(severity: Severity, line: u32, column: u32, key: &str, message: &str, hint: &str) -> RunbookFinding {
        RunbookFinding {
            severity: severity.into(),
            line,
            column,
            key: key.to_owned(),
            message: message.to_owned(),
            hint: hint.to_owned(),
        }
    }

    #[test]
    fn mistakes_are_shown_with_their_lines() {
        let text = "name = \"web\"\nbatchs = [\"1\"]\n\t[timeouts]\nstage = \"1s\"\n";
        let answer = LintRunbookResponse {
            findings: vec![
                finding(
                    Severity::Blocker,
                    0,
                    0,
                    "hold",
                    "is missing",
                    "add it; default.toml has: hold = true",
                ),
                finding(
                    Severity::Blocker,
                    2,
                    1,
                    "batchs",
                    "there is no such key",
                    "did you mean `batches`?",
                ),
                finding(Severity::Warning, 4, 9, "timeouts.stage", "is \u{1b}[2Jshort", ""),
            ],
            runbook: None,
        };
        golden!("runbook_lint", lint("web.toml", text, &answer, Paint::PLAIN));
        let info = RunbookInfo {
            name: "web".to_owned(),
            version: 3,
            ..RunbookInfo::default()
        };
        let sound = LintRunbookResponse {
            findings: Vec::new(),
            runbook: Some(info),
        };
        assert_eq!(
            lint("web.toml", text, &sound, Paint::PLAIN),
            "web.toml: can be applied as web@3\n"
        );
    }

    /// A plan in JSON on one line, say.
    #[test]
    fn a_file_that_is_no_runbook_fills_no_screen() {
        let text = "x".repeat(50_000);
        let wrong = finding(Severity::Blocker, 1, 40_000, "", "key with no value", "");
        let page = findings("plan.json", &text, &vec![wrong; 3_000], Paint::PLAIN);
        assert_eq!(page.lines().count(), FINDINGS + 1);
        assert!(page.len() < 5_000 && page.contains("and 2980 more"), "{page}");
    }

    #[test]
    fn a_file_is_shown_as_it_was_written() {
        let text = "# a\n  b = 1 \n\n\tc = \"\u{e4}\"\t# d\n";
        assert_eq!(printable(text), text);
        assert_eq!(printable("# \u{202e}evil\u{1b}[2J\n"), "#  evil [2J\n");
    }
}
