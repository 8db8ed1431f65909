//! The incident report of a rollback in Markdown: everything that the journal knows, and a marked gap for all that only
//! people know. Written to be committed beside the post-mortem, so that nothing in it depends on the day it is read.
//!
//! Texts from hosts and operators are [`md`]: they cannot end a table or become a link.

mod failures;
mod hosts;
mod timeline;

use rollback_proto::v1::{
    Action, GetRollbackResponse, Hold, PhaseTiming, Release, RollbackState, RollbackSummary, StepReport,
};

use super::paint::Paint;
use super::text::{clean, count, duration, millis, name_some, or_none, stamp, timestamp};
use super::{loss, scope, words};

/// Everything that a report is made of.
pub struct Sources<'a> {
    pub details: &'a GetRollbackResponse,
    /// Releases as they are now; those that are held are named.
    pub releases: &'a [Release],
    /// The rollback's own holds are told apart from others by its id.
    pub made_at: jiff::Timestamp,
}

pub fn render(sources: &Sources<'_>) -> String {
    let details = sources.details;
    let unknown = RollbackSummary::default();
    let summary = details.summary.as_ref().unwrap_or(&unknown);
    let sections = [
        title(summary, sources.made_at),
        summary_of(details, summary),
        gap(
            "Impact",
            "who noticed what, how many, from when to when, in which regions and for which customers",
        ),
        gap(
            "Detection",
            "what raised the alarm and when, who took it, and what would have raised it earlier",
        ),
        timeline::section(details, summary),
        plan_of(details, summary),
        phases_of(&details.phases, summary),
        hosts::section(details),
        hosts::checks(details),
        backups(&details.steps),
        data_loss(details),
        failures::section(details, summary),
        downtime(details),
        held(sources.releases, summary),
        gap(
            "Root cause",
            "what was wrong in the release, why nothing found it before it was deployed, and since when it was there",
        ),
        gap(
            "Customer communication",
            "who was told what, when, and by whom; what is still owed",
        ),
        gap("Lessons", "what went well, what went badly, where we were lucky"),
        follow_ups(details, summary, sources.releases),
    ];
    sections.join("\n")
}

/// A text from elsewhere, as plain words of Markdown.
fn md(text: &str) -> String {
    let mut out = String::new();
    for c in clean(text).chars() {
        if matches!(c, '\\' | '`' | '*' | '|' | '<' | '>' | '[' | ']' | '#') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn md_or_none(text: &str) -> String {
    md(&or_none(text))
}

fn fill_in(what: &str) -> String {
    format!("_(to be filled in: {what})_")
}

fn gap(title: &str, what: &str) -> String {
    format!("## {title}\n\n{}\n", fill_in(what))
}

/// A Markdown table; the cells are Markdown already.
fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", header.join(" | "), "---|".repeat(header.len()));
    for row in rows {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}

fn title(summary: &RollbackSummary, made_at: jiff::Timestamp) -> String {
    let incident = match clean(&summary.incident) {
        none if none.is_empty() => String::new(),
        incident => format!("{}: ", md(&incident)),
    };
    format!(
        "# {incident}rollback to {}\n\nMade from the journal of rollback `{}` at {}. Times are UTC.\n",
        md(&summary.release),
        clean(&summary.id),
        stamp(Some(made_at))
    )
}

fn took(start: Option<&prost_types::Timestamp>, end: Option<&prost_types::Timestamp>) -> String {
    let both = timestamp(start).zip(timestamp(end));
    both.map_or_else(|| "not ended".to_owned(), |(start, end)| duration(millis(start, end)))
}

fn summary_of(details: &GetRollbackResponse, summary: &RollbackSummary) -> String {
    let state = summary.state();
    let mut rows = vec![
        ("Outcome", outcome(details, summary, state)),
        (
            "Started",
            format!(
                "{} by {}",
                stamp(timestamp(summary.started_at.as_ref())),
                md_or_none(&summary.started_by)
            ),
        ),
        ("Ended", stamp(timestamp(summary.ended_at.as_ref()))),
        ("Took", took(summary.started_at.as_ref(), summary.ended_at.as_ref())),
        (
            "Reason",
            if summary.reason.is_empty() {
                fill_in("why")
            } else {
                md(&summary.reason)
            },
        ),
        (
            "Incident",
            if summary.incident.is_empty() {
                fill_in("its number")
            } else {
                md(&summary.incident)
            },
        ),
    ];
    if let Some(approval) = &summary.approval {
        rows.push((
            "Approved",
            match approval.approved_by.as_str() {
                "" => "by nobody".to_owned(),
                by => format!("{} by {}", stamp(timestamp(approval.approved_at.as_ref())), md(by)),
            },
        ));
    }
    if !summary.undo_of.is_empty() {
        rows.push(("Undo of", format!("rollback `{}`", clean(&summary.undo_of))));
    }
    if !summary.trace_id.is_empty() {
        rows.push(("Trace", format!("`{}`", clean(&summary.trace_id))));
    }
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    format!("## Summary\n\n{}", table(&["", ""], rows))
}

/// One sentence that is true.
fn outcome(details: &GetRollbackResponse, summary: &RollbackSummary, state: RollbackState) -> String {
    let release = md(&summary.release);
    let (word, _) = words::state_told(state, summary.blocked);
    let excused = details.plan.iter().flat_map(|p| &p.excused).map(|e| e.host.as_str());
    let failed = name_some(summary.failed_hosts.iter().map(String::as_str).chain(excused), 20);
    let sentence = match (state, summary.blocked) {
        (RollbackState::Verified, _) => match details.plan.as_ref().map_or(0, |p| super::plan::left(p).count()) {
            0 => format!("everything that was to go back was observed at {release}"),
            left => format!(
                "what was to go back was observed at {release}; {} on purpose",
                count(left, "component stayed", "components stayed")
            ),
        },
        (RollbackState::Undone, true) => "it did not begin, and nothing was touched".to_owned(),
        (RollbackState::Undone, false) => {
            format!("{release} was not reached; everything is where it was before")
        }
        (RollbackState::Partial, _) => format!("{release} was reached, but not on {}", md(&failed)),
        (RollbackState::Held, _) => "it stopped on purpose and waits for a person".to_owned(),
        (RollbackState::Running | RollbackState::Undoing, _) => "it has not ended yet".to_owned(),
        (RollbackState::Unspecified, _) => "nobody knows".to_owned(),
    };
    format!("**{}**: {sentence}", word.to_uppercase())
}

fn plan_of(details: &GetRollbackResponse, summary: &RollbackSummary) -> String {
    let Some(plan) = &details.plan else {
        return "## Plan\n\nThe journal has no plan.\n".to_owned();
    };
    let mut text = format!(
        "## Plan\n\nRunbook {}, plan `{}`, databases: {}. {} on {} to change.\n",
        md(&plan.runbook),
        clean(&plan.digest),
        words::database(plan.database),
        count(super::plan::changing(plan), "component", "components"),
        count(hosts::changing(plan), "host", "hosts"),
    );
    let scope = scope::words(summary.scope.as_ref().or(plan.scope.as_ref()));
    if !scope.is_empty() {
        text.push_str(&format!("Scope: {}; {} outside it.\n", md(&scope), plan.outside));
    }
    for excused in &plan.excused {
        text.push_str(&format!("Left out: {} ({}).\n", md(&excused.host), md(&excused.reason)));
    }
    if let Some(consent) = summary.consent {
        let databases = plan.changes.iter().filter(|c| c.from_backup).count();
        text.push_str(&format!(
            "Agreed loss of data: {}.\n",
            loss::consent(consent, databases)
        ));
    }
    text
}

fn phases_of(phases: &[PhaseTiming], summary: &RollbackSummary) -> String {
    if phases.is_empty() {
        return "## Phases\n\nNone was begun.\n".to_owned();
    }
    let rows = phases.iter().map(|p| {
        vec![
            md(&p.name),
            stamp(timestamp(p.started_at.as_ref())),
            took(p.started_at.as_ref(), p.ended_at.as_ref()),
        ]
    });
    format!(
        "## Phases\n\n{}\n{} of {} steps were done.\n",
        table(&["phase", "began", "took"], rows),
        summary.steps_done,
        summary.steps_total
    )
}

fn backups(steps: &[StepReport]) -> String {
    let rows: Vec<Vec<String>> = steps
        .iter()
        .filter_map(|s| {
            let receipt = s.outcome.as_ref()?.receipt.as_ref()?;
            Some(vec![
                format!("{}/{}", md(&s.host), md(&s.component)),
                format!("`{}`", clean(&receipt.path).replace('`', "'")),
                format!("`{}`", clean(&receipt.sha256).replace('`', "'")),
                receipt.bytes.to_string(),
                match receipt.rows {
                    0 => md_or_none(&receipt.verified),
                    rows => format!(
                        "{}: {} in {}",
                        md(&receipt.verified),
                        loss::rows_of(rows),
                        count(usize::try_from(receipt.tables).unwrap_or(usize::MAX), "table", "tables")
                    ),
                },
            ])
        })
        .collect();
    if rows.is_empty() {
        return "## Backups\n\nNone was made.\n".to_owned();
    }
    format!(
        "## Backups\n\n{}",
        table(&["of", "file", "SHA-256", "bytes", "proven by"], rows)
    )
}

fn data_loss(details: &GetRollbackResponse) -> String {
    let told = loss::of_report(details, Paint { colored: false });
    if told.is_empty() {
        return "## Data loss\n\nNo database was restored from a backup. No row was lost by the rollback.\n".to_owned();
    }
    let lines: Vec<String> = told.lines().skip(1).map(|l| format!("- {}\n", md(l))).collect();
    format!(
        "## Data loss\n\n{}\n{}\n",
        lines.concat(),
        fill_in("which of it can be entered again, and by whom")
    )
}

/// When users got the maintenance answer: from the first proxy that was drained as a whole to the last that served again.
fn downtime(details: &GetRollbackResponse) -> String {
    let whole = |action: Action| {
        details
            .steps
            .iter()
            .filter(move |s| s.action == i32::from(action) && s.backend.is_empty())
    };
    let start = whole(Action::Drain)
        .filter_map(|s| timestamp(s.started_at.as_ref()))
        .min();
    let end = whole(Action::Resume)
        .filter_map(|s| timestamp(s.ended_at.as_ref()))
        .max();
    let text = match (start, end) {
        (None, _) => "The rollback gave no maintenance answer.".to_owned(),
        (Some(start), Some(end)) => format!(
            "Users got the maintenance answer for {}, from {} to {}.",
            duration(millis(start, end)),
            stamp(Some(start)),
            stamp(Some(end))
        ),
        (Some(start), None) => format!(
            "Users get the maintenance answer since {}; nothing took it back.",
            stamp(Some(start))
        ),
    };
    format!(
        "## Downtime\n\n{text}\n\n{}\n",
        fill_in("downtime that the release itself caused before the rollback")
    )
}

fn holds(releases: &[Release]) -> impl Iterator<Item = &Hold> {
    releases.iter().filter_map(|r| r.hold.as_ref())
}

fn held(releases: &[Release], summary: &RollbackSummary) -> String {
    let rows: Vec<Vec<String>> = holds(releases)
        .map(|h| {
            let by = if h.rollback_id == summary.id {
                "this rollback".to_owned()
            } else {
                md_or_none(&h.by)
            };
            vec![
                md(&h.release),
                stamp(timestamp(h.since.as_ref())),
                by,
                md_or_none(&h.reason),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "## Held now\n\nNo release is held: each can be deployed again.\n".to_owned();
    }
    format!("## Held now\n\n{}", table(&["release", "since", "by", "why"], rows))
}

/// What is left to do, as boxes to tick.
fn follow_ups(details: &GetRollbackResponse, summary: &RollbackSummary, releases: &[Release]) -> String {
    let mut items = Vec::new();
    let excused = details.plan.iter().flat_map(|p| &p.excused).map(|e| e.host.as_str());
    let left: Vec<&str> = summary
        .failed_hosts
        .iter()
        .chain(&summary.skipped_hosts)
        .map(String::as_str)
        .chain(excused)
        .collect();
    let left: std::collections::BTreeSet<&str> = left.into_iter().collect();
    if !left.is_empty() && summary.state() == RollbackState::Partial {
        items.push(format!(
            "bring {} to {}: `rollbackctl rollback retry {}`",
            md(&name_some(left, 20)),
            md(&summary.release),
            clean(&summary.id)
        ));
    }
    if summary.state() == RollbackState::Held {
        items.push(format!(
            "decide how to go on: `rollbackctl rollback show {}`",
            clean(&summary.id)
        ));
    }
    for hold in holds(releases) {
        let release = clean(&hold.release).replace('`', "'");
        items.push(format!(
            "when {release} is mended: `rollbackctl fleet unhold {release} --reason TEXT`"
        ));
    }
    items.extend(loss::to_collect(details).iter().map(|what| md(what)));
    items.push(fill_in("what keeps this from happening again, with owner and date"));
    let items: Vec<String> = items.iter().map(|item| format!("- [ ] {item}\n")).collect();
    format!("## Follow-ups\n\n{}", items.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, golden};

    fn report(details: &GetRollbackResponse, releases: &[Release]) -> String {
        render(&Sources {
            details,
            releases,
            made_at: samples::at(900_000),
        })
    }

    #[test]
    fn of_a_rollback_that_was_steered() {
        let details = samples::operators::steered();
        let mut bad = samples::release("v3.0.0");
        bad.hold = Some(Hold {
            release: "v3.0.0".to_owned(),
            since: Some(samples::proto_at(312_000)),
            by: "ana".to_owned(),
            reason: "error rate 12 %".to_owned(),
            rollback_id: details.summary.as_ref().expect("a summary").id.clone(),
        });
        golden!("report", report(&details, &[bad, samples::release("v2.9.0")]));
    }

    #[test]
    fn of_a_restore_that_lost_rows() {
        let details = samples::restore::details(loss::Fate::Lost);
        golden!("report_restore", report(&details, &[]));
    }

    /// Whatever an operator or a host says stays inside its cell.
    #[test]
    fn words_from_elsewhere_are_no_markup() {
        let mut details = samples::details(RollbackState::Undone, false);
        let summary = details.summary.as_mut().expect("a summary");
        summary.reason = "a | b\n# c <script> [x](http://y) `z`".to_owned();
        let text = report(&details, &[]);
        assert!(
            text.contains(r"| Reason | a \| b \# c \<script\> \[x\](http://y) \`z\` |"),
            "{text}"
        );
    }
}
