//! The checklist before a deployment, one line per item, with what was seen and what to do.

use rollback_proto::v1::{ChecklistItem, Severity};

use super::paint::{Paint, Tone};
use super::text::{clean, count};
use super::words::severity;

pub fn blockers(items: &[ChecklistItem]) -> usize {
    of(items, Severity::Blocker)
}

fn of(items: &[ChecklistItem], wanted: Severity) -> usize {
    items.iter().filter(|item| severity(item.severity) == wanted).count()
}

pub fn render(items: &[ChecklistItem], paint: Paint) -> String {
    let mut text = String::new();
    for item in items {
        let (tone, word) = match severity(item.severity) {
            Severity::Ok => (Tone::Good, "ok"),
            Severity::Warning => (Tone::Warn, "warning"),
            Severity::Blocker => (Tone::Bad, "BLOCKER"),
            Severity::Unspecified => (Tone::Plain, "?"),
        };
        let word = paint.tone(tone, &format!("{word:<7}"));
        text.push_str(&format!(
            "{word}  {:<10} {}\n",
            clean(&item.name),
            clean(&item.evidence)
        ));
        if !item.remedy.is_empty() && severity(item.severity) != Severity::Ok {
            text.push_str(&format!("                    what to do: {}\n", clean(&item.remedy)));
        }
    }
    text.push_str(&match (blockers(items), of(items, Severity::Warning)) {
        (0, 0) => "\nThe fleet could come back from a deployment.\n".to_owned(),
        (0, warnings) => format!(
            "\nNothing stands in the way; {} to look at.\n",
            count(warnings, "item", "items")
        ),
        (blockers, _) => format!(
            "\nDo not deploy: {} in the way of coming back.\n",
            count(blockers, "item is", "items are")
        ),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::golden;

    #[test]
    fn a_checklist_with_every_answer() {
        let item = |name: &str, severity: Severity, evidence: &str, remedy: &str| ChecklistItem {
            name: name.to_owned(),
            severity: severity.into(),
            evidence: evidence.to_owned(),
            remedy: remedy.to_owned(),
            findings: Vec::new(),
        };
        let fine = [
            item(
                "recorded",
                Severity::Ok,
                "v2.9.0 runs, recorded 2026-11-20T14:02:11Z by ci",
                "",
            ),
            item("health", Severity::Ok, "6 healthy, 2 without a check of their own", ""),
        ];
        let migration = item(
            "migration",
            Severity::Warning,
            "the way down to v2.8.0 was not rehearsed now: db-1/db",
            "rollbackctl release preflight --rehearse",
        );
        let backup = item(
            "backup",
            Severity::Blocker,
            "db-1/db: there is no proven backup of schema 003",
            "make one",
        );
        let warned = [&fine[..], std::slice::from_ref(&migration)].concat();
        let blocked = [&warned[..], &[backup]].concat();
        let text = [&fine[..], &warned, &blocked].map(|items| render(items, Paint::PLAIN));
        golden!("checklist", text.join("\n----------\n\n"));
    }
}
