//! Rollbacks that were: the list, and the steps of one.

use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::{GetRollbackResponse, PlanRollbackResponse, RollbackSummary, StepReport};

use super::acts;
use super::findings;
use super::paint::{Paint, Tone};
use super::plan;
use super::problem::brief;
use super::summary;
use super::table::{Table, cell, plain, right};
use super::text::{NONE, clean, duration, millis, or_none, stamp, subject, timestamp};
use super::words::{self, Waits};

pub fn list(rollbacks: &[RollbackSummary], paint: Paint) -> String {
    if rollbacks.is_empty() {
        return "No rollback has been started on this fleet.\n".to_owned();
    }
    let mut table = Table::new(
        paint,
        &[
            "ID", "TO", "STATE", "PHASE", "STEPS", "STARTED", "TOOK", "BY", "INCIDENT", "REASON",
        ],
    );
    for r in rollbacks {
        let (word, tone) = words::standing(r);
        let (start, end) = (timestamp(r.started_at.as_ref()), timestamp(r.ended_at.as_ref()));
        let took = start
            .zip(end)
            .map_or_else(|| NONE.to_owned(), |(start, end)| duration(millis(start, end)));
        table.row([
            plain(clean(&r.id)),
            plain(clean(&r.release)),
            cell(tone, word),
            plain(or_none(&r.phase)),
            right(format!("{}/{}", r.steps_done, r.steps_total)),
            plain(stamp(start)),
            right(took),
            plain(or_none(&r.started_by)),
            plain(or_none(&r.incident)),
            plain(clean(&r.reason)),
        ]);
    }
    table.render(0)
}

/// The summary, then what operators did, then every step in the order in which it was begun, then what preflight found.
pub fn show(details: &GetRollbackResponse, paint: Paint) -> String {
    let mut text = summary::render(details, paint);
    // Whoever shall approve looks at this before.
    let awaits = details
        .summary
        .as_ref()
        .is_some_and(|s| words::waits(s) == Some(Waits::ForApproval));
    if awaits {
        let planned = PlanRollbackResponse {
            plan: details.plan.clone(),
            findings: details.findings.clone(),
            ..PlanRollbackResponse::default()
        };
        text.push_str(&format!(
            "\n{}\n{}",
            paint.tone(Tone::Strong, "What is to be approved:"),
            plan::page(&planned, "", None, paint)
        ));
    }
    let acts = acts::lines(&details.events, paint);
    if !acts.is_empty() {
        text.push_str(&format!("\n{}\n{acts}", paint.tone(Tone::Strong, "Acts:")));
    }
    if !details.steps.is_empty() {
        text.push_str(&format!("\n{}\n", paint.tone(Tone::Strong, "Steps:")));
        text.push_str(&steps(&details.steps, paint));
    }
    // A blocked rollback's findings stand in the summary already.
    let told = awaits || details.summary.as_ref().is_some_and(|s| s.blocked);
    if !told && !details.findings.is_empty() {
        text.push('\n');
        text.push_str(&findings::of_report(details, paint));
    }
    text
}

fn steps(steps: &[StepReport], paint: Paint) -> String {
    let mut table = Table::new(paint, &["PHASE", "WHERE", "ACTION", "TOOK", "RESULT", "DETAIL"]);
    for step in steps {
        let (start, end) = (timestamp(step.started_at.as_ref()), timestamp(step.ended_at.as_ref()));
        let took = start
            .zip(end)
            .map_or_else(|| NONE.to_owned(), |(start, end)| duration(millis(start, end)));
        let (result, tone, detail) = outcome(step);
        let undo = if step.undo { "undo: " } else { "" };
        let again = if step.attempt > 1 {
            format!(" (attempt {})", step.attempt)
        } else {
            String::new()
        };
        table.row([
            plain(or_none(&step.phase)),
            plain(subject(&step.host, &step.component, &step.backend)),
            plain(format!("{undo}{}{again}", words::action(step.action))),
            right(took),
            cell(tone, result),
            plain(detail),
        ]);
    }
    table.render(2)
}

fn outcome(step: &StepReport) -> (&'static str, Tone, String) {
    let Some(outcome) = &step.outcome else {
        return ("running", Tone::Strong, String::new());
    };
    let detail = match &outcome.problem {
        Some(problem) => brief(problem),
        None => clean(&outcome.summary),
    };
    match Status::try_from(outcome.status) {
        Ok(Status::Succeeded) => ("ok", Tone::Good, detail),
        Ok(Status::Failed) => ("FAILED", Tone::Bad, detail),
        Ok(Status::Indeterminate) => ("UNCLEAR", Tone::Bad, detail),
        Ok(Status::Unspecified) | Err(_) => ("unknown", Tone::Dim, detail),
    }
}

#[cfg(test)]
mod tests {
    use rollback_proto::v1::RollbackState;

    use super::*;
    use crate::output::samples::{self, golden};

    #[test]
    fn the_list_and_one_of_it() {
        let details = samples::details(RollbackState::Undone, false);
        let summary = details.summary.clone().expect("has a summary");
        let all = [
            samples::operators::awaiting_approval(),
            samples::operators::standing_still("ana"),
            summary,
        ];
        let text = format!("{}\n{}", list(&all, Paint::PLAIN), show(&details, Paint::PLAIN));
        golden!("rollbacks", text);
    }

    #[test]
    fn acts_of_operators_are_told_with_who_and_why() {
        golden!("rollback_steered", show(&samples::operators::steered(), Paint::PLAIN));
    }

    /// Nobody can agree to what nobody shows.
    #[test]
    fn what_awaits_approval_is_shown_with_its_plan_and_digest() {
        let mut details = samples::details(RollbackState::Running, false);
        details.summary = Some(samples::operators::awaiting_approval());
        (details.phases, details.steps) = (Vec::new(), Vec::new());
        let text = show(&details, Paint::PLAIN);
        let plan = details.plan.expect("a plan");
        let digest = super::super::text::short(&plan.digest);
        assert!(text.contains("What is to be approved:"), "{text}");
        assert!(text.contains(&format!("plan {digest}")), "{text}");
        assert!(text.contains("Phases:"), "{text}");
    }

    #[test]
    fn a_backend_is_named_with_its_proxy() {
        let report = samples::rolling::report();
        golden!("rollback_backends", show(&report, Paint::PLAIN));
        let json = crate::output::json::rollback_in_full(&report);
        assert_eq!(json["steps"][0]["backend"], "app-1/api");
        let planned = &json["plan"]["phases"][0]["batches"][0]["lanes"][0];
        assert_eq!(planned[0]["backend"], "app-1/api");
        assert_eq!(planned[1]["backend"], serde_json::Value::Null);
    }
}
