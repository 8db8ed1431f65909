//! What `prepare` found: blockers first, then warnings. What is in order is only counted.

use rollback_proto::v1::{Finding, Severity};

use super::paint::{Paint, Tone};
use super::text::{clean, count, target};
use super::words::severity;

pub fn blockers(findings: &[Finding]) -> usize {
    findings
        .iter()
        .filter(|f| severity(f.severity) == Severity::Blocker)
        .count()
}

/// Empty when there are no findings at all.
pub fn render(findings: &[Finding], paint: Paint) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let of = |wanted: Severity| findings.iter().filter(move |f| severity(f.severity) == wanted);
    let fine = of(Severity::Ok).count();
    let blockers = of(Severity::Blocker).count();
    let warnings = of(Severity::Warning).count() + of(Severity::Unspecified).count();
    let mut text = format!(
        "{} {}, {}, {fine} in order\n",
        paint.tone(Tone::Strong, "Findings:"),
        count(blockers, "blocker", "blockers"),
        count(warnings, "warning", "warnings"),
    );
    let groups = [
        (Severity::Blocker, "BLOCKER", Tone::Bad),
        (Severity::Warning, "warning", Tone::Warn),
        (Severity::Unspecified, "note", Tone::Plain),
    ];
    for (wanted, word, tone) in groups {
        for finding in of(wanted) {
            let code = if finding.code.is_empty() {
                String::new()
            } else {
                format!(" {}", clean(&finding.code))
            };
            let place = target(&finding.host, &finding.component);
            let word = paint.tone(tone, word);
            text.push_str(&format!("  {word}{code} {place}: {}\n", clean(&finding.message)));
            if !finding.remedy.is_empty() {
                text.push_str(&format!("    what to do: {}\n", clean(&finding.remedy)));
            }
        }
    }
    text
}
