//! What `prepare` found: blockers first, then warnings. What is in order is only counted.

use rollback_proto::problem::Code;
use rollback_proto::v1::{Finding, GetRollbackResponse, Severity};

use super::paint::{Paint, Tone};
use super::text::{clean, count, target};
use super::words::severity;

pub fn blockers(findings: &[Finding]) -> usize {
    findings
        .iter()
        .filter(|f| severity(f.severity) == Severity::Blocker)
        .count()
}

/// Of a plan. `to_agree` is what to do about a loss that needs consent, which depends on what is being done; empty: nothing.
/// What the agents say of that is for somebody who has not looked yet.
pub fn of_plan(findings: &[Finding], to_agree: &str, paint: Paint) -> String {
    render(findings, Some(to_agree), paint)
}

/// Of a rollback that was. What was agreed to leaves nothing to do.
pub fn of_report(details: &GetRollbackResponse, paint: Paint) -> String {
    let agreed = details.summary.as_ref().is_some_and(|s| s.consent.is_some());
    render(&details.findings, agreed.then_some(""), paint)
}

/// Empty when there are no findings at all.
fn render(findings: &[Finding], to_agree: Option<&str>, paint: Paint) -> String {
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
            let remedy = match to_agree {
                Some(to_agree) if finding.code == Code::ConsentNeeded.id() => to_agree,
                _ => &finding.remedy,
            };
            if !remedy.is_empty() {
                text.push_str(&format!("    what to do: {}\n", clean(remedy)));
            }
        }
    }
    text
}
