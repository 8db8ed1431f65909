//! What happened when: what people did, the phases, and what failed. Steps that went well are in the trace.

use jiff::Timestamp;
use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{GetRollbackResponse, RollbackSummary};

use super::{fill_in, md, md_or_none, table};
use crate::output::acts;
use crate::output::problem::brief;
use crate::output::text::{stamp, subject, timestamp};
use crate::output::words;

struct Entry {
    at: Timestamp,
    who: String,
    what: String,
}

pub fn section(details: &GetRollbackResponse, summary: &RollbackSummary) -> String {
    let mut entries = Vec::new();
    let mut entry = |at: Option<&prost_types::Timestamp>, who: &str, what: String| {
        if let Some(at) = timestamp(at) {
            let who = who.to_owned();
            entries.push(Entry { at, who, what });
        }
    };
    // Journals without acts begin all the same.
    if !details.events.iter().any(|e| e.kind == i32::from(Kind::Created)) {
        entry(
            summary.started_at.as_ref(),
            &summary.started_by,
            with("started", &summary.reason),
        );
    }
    for event in &details.events {
        if let Some(act) = acts::told(event) {
            let who = if act.by.is_empty() && event.kind == i32::from(Kind::Created) {
                &summary.started_by
            } else {
                &act.by
            };
            entry(event.at.as_ref(), who, with(act.word, &act.why));
        } else if event.kind == i32::from(Kind::UndoStarted) {
            let why = event.problem.as_ref().map(brief).unwrap_or_default();
            entry(event.at.as_ref(), "", with("the undo began", &why));
        }
    }
    for phase in &details.phases {
        entry(
            phase.started_at.as_ref(),
            "",
            format!("phase {} began", md(&phase.name)),
        );
    }
    for step in &details.steps {
        let Some(outcome) = &step.outcome else { continue };
        let word = match Status::try_from(outcome.status) {
            Ok(Status::Failed) => "failed",
            Ok(Status::Indeterminate) => "ended, and nobody can tell how",
            Ok(Status::Succeeded | Status::Unspecified) | Err(_) => continue,
        };
        let what = format!(
            "{}{} of {}{} {word}",
            if step.undo { "undo of " } else { "" },
            words::action(step.action),
            subject(&step.host, &step.component, &step.backend),
            if step.attempt > 1 {
                format!(", attempt {},", step.attempt)
            } else {
                String::new()
            },
        );
        let why = outcome.problem.as_ref().map(brief).unwrap_or_default();
        entry(step.ended_at.as_ref(), "", with(&what, &why));
    }
    if summary.ended_at.is_some() {
        let (word, _) = words::state_told(summary.state(), summary.blocked);
        entry(summary.ended_at.as_ref(), "", format!("ended: **{word}**"));
    }
    entries.sort_by_key(|e| e.at);
    let before = vec![
        "".to_owned(),
        "".to_owned(),
        fill_in("what happened before: the deployment, the first sign, the alert"),
    ];
    let rows = entries
        .into_iter()
        .map(|e| vec![stamp(Some(e.at)), md_or_none(&e.who), e.what]);
    let after = vec![
        "".to_owned(),
        "".to_owned(),
        fill_in("when users were well again, and how that was seen"),
    ];
    format!(
        "## Timeline\n\n{}",
        table(
            &["at", "who", "what"],
            std::iter::once(before).chain(rows).chain([after])
        )
    )
}

fn with(what: &str, why: &str) -> String {
    let (what, why) = (md(what), md(why));
    if why.is_empty() { what } else { format!("{what}: {why}") }
}
