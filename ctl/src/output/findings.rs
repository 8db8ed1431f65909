//! What `prepare` found: blockers first, then warnings. What is in order is only counted.

use std::collections::HashMap;

use rollback_proto::problem::Code;
use rollback_proto::v1::{Finding, GetRollbackResponse, Severity};

use super::paint::{Paint, Tone};
use super::text::{clean, count, name_some, target};
use super::words::severity;

/// Different ones of each kind that are shown.
const BLOCKERS: usize = 20;
const WARNINGS: usize = 10;
/// Components that have the same finding and are named.
const NAMED: usize = 6;

pub fn blockers(findings: &[Finding]) -> usize {
    findings
        .iter()
        .filter(|f| severity(f.severity) == Severity::Blocker)
        .count()
}

/// What stands in the way of a plan, for its top; empty when nothing does.
pub fn in_the_way(findings: &[Finding], to_agree: &str, paint: Paint) -> String {
    let blockers = group(findings, Severity::Blocker);
    if blockers.is_empty() {
        return String::new();
    }
    let title = paint.tone(Tone::Bad, "BLOCKED: it cannot start until this is mended");
    let mut text = format!("{title}\n");
    text.push_str(&lines(
        &blockers,
        ("BLOCKER", Tone::Bad),
        BLOCKERS,
        Some(to_agree),
        paint,
    ));
    text
}

/// Of a plan, without what [`in_the_way`] says. `to_agree` is what to do about a loss that needs consent, which depends on
/// what is being done; empty: nothing. What the agents say of that is for somebody who has not looked yet.
pub fn of_plan(findings: &[Finding], to_agree: &str, paint: Paint) -> String {
    render(findings, false, Some(to_agree), paint)
}

/// Of a rollback that was. What was agreed to leaves nothing to do.
pub fn of_report(details: &GetRollbackResponse, paint: Paint) -> String {
    let agreed = details.summary.as_ref().is_some_and(|s| s.consent.is_some());
    render(&details.findings, true, agreed.then_some(""), paint)
}

/// Empty when there are no findings at all.
fn render(findings: &[Finding], with_blockers: bool, to_agree: Option<&str>, paint: Paint) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let count_of = |wanted: Severity| findings.iter().filter(|f| severity(f.severity) == wanted).count();
    let blockers = count_of(Severity::Blocker);
    let warnings = count_of(Severity::Warning) + count_of(Severity::Unspecified);
    let mut text = format!(
        "{} {}{}, {}, {} in order\n",
        paint.tone(Tone::Strong, "Findings:"),
        count(blockers, "blocker", "blockers"),
        if blockers > 0 && !with_blockers { " (above)" } else { "" },
        count(warnings, "warning", "warnings"),
        count_of(Severity::Ok),
    );
    let groups = [
        (Severity::Blocker, "BLOCKER", Tone::Bad, BLOCKERS),
        (Severity::Warning, "warning", Tone::Warn, WARNINGS),
        (Severity::Unspecified, "note", Tone::Plain, WARNINGS),
    ];
    for (wanted, word, tone, at_most) in groups {
        if wanted == Severity::Blocker && !with_blockers {
            continue;
        }
        text.push_str(&lines(&group(findings, wanted), (word, tone), at_most, to_agree, paint));
    }
    text
}

/// The same finding of several components, in the order in which they were found.
struct Same<'a> {
    finding: &'a Finding,
    places: Vec<String>,
}

/// A thousand hosts without room on their disks are one thing to read.
fn group(findings: &[Finding], wanted: Severity) -> Vec<Same<'_>> {
    let mut groups: Vec<Same<'_>> = Vec::new();
    let mut known: HashMap<(&str, &str, &str), usize> = HashMap::new();
    for finding in findings.iter().filter(|f| severity(f.severity) == wanted) {
        let what = (finding.code.as_str(), finding.message.as_str(), finding.remedy.as_str());
        let at = *known.entry(what).or_insert_with(|| {
            groups.push(Same {
                finding,
                places: Vec::new(),
            });
            groups.len() - 1
        });
        groups[at].places.push(target(&finding.host, &finding.component));
    }
    groups
}

fn lines(
    groups: &[Same<'_>],
    (word, tone): (&str, Tone),
    at_most: usize,
    to_agree: Option<&str>,
    paint: Paint,
) -> String {
    let mut text = String::new();
    for Same { finding, places } in groups.iter().take(at_most) {
        let code = if finding.code.is_empty() {
            String::new()
        } else {
            format!(" {}", clean(&finding.code))
        };
        let places = name_some(places.iter().map(String::as_str), NAMED);
        let word = paint.tone(tone, word);
        let place = if places.is_empty() {
            String::new()
        } else {
            format!(" {places}")
        };
        text.push_str(&format!("  {word}{code}{place}: {}\n", clean(&finding.message)));
        let remedy = match to_agree {
            Some(to_agree) if finding.code == Code::ConsentNeeded.id() => to_agree,
            _ => &finding.remedy,
        };
        if !remedy.is_empty() {
            text.push_str(&format!("    what to do: {}\n", clean(remedy)));
        }
    }
    match groups.len().saturating_sub(at_most) {
        0 => {}
        more => text.push_str(&format!("  and {more} more; -o json has all of them\n")),
    }
    text
}
