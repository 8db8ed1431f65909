//! What failed, and how that was resolved.

use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{GetRollbackResponse, RollbackState, RollbackSummary, StepReport};

use super::{fill_in, md};
use crate::output::problem::brief;
use crate::output::text::{clean, stamp, subject, timestamp};
use crate::output::words;

pub fn section(details: &GetRollbackResponse, summary: &RollbackSummary) -> String {
    let mut text = "## What failed, and how it was resolved\n\n".to_owned();
    let mut any = false;
    for step in details.steps.iter().filter(|s| failed(s)) {
        any = true;
        let outcome = step.outcome.clone().unwrap_or_default();
        let problem = outcome.problem.as_ref().map(brief).unwrap_or_default();
        let mut line = format!(
            "- {}{} of {}, attempt {}: {}",
            if step.undo { "undo of " } else { "" },
            words::action(step.action),
            md(&subject(&step.host, &step.component, &step.backend)),
            step.attempt.max(1),
            md(&problem)
        );
        line.push_str(&format!("\n  - {}\n", resolved(details, summary, step)));
        text.push_str(&line);
    }
    if let Some(problem) = &summary.problem {
        any = true;
        text.push_str(&format!("- it ended so because of: {}\n", md(&brief(problem))));
        let remedy = clean(&problem.remedy);
        if !remedy.is_empty() {
            text.push_str(&format!("  - what to do: {}\n", md(&remedy)));
        }
    }
    if !any {
        text.push_str("Nothing failed.\n");
        return text;
    }
    text.push_str(&format!(
        "\n{}\n",
        fill_in("what was done on the hosts by hand, and by whom")
    ));
    text
}

fn failed(step: &StepReport) -> bool {
    let status = step
        .outcome
        .as_ref()
        .map(|o| Status::try_from(o.status).unwrap_or(Status::Unspecified));
    match status {
        Some(Status::Failed | Status::Indeterminate) => true,
        Some(Status::Succeeded | Status::Unspecified) | None => false,
    }
}

fn resolved(details: &GetRollbackResponse, summary: &RollbackSummary, step: &StepReport) -> String {
    let later = details
        .steps
        .iter()
        .find(|s| (s.id, s.undo, s.attempt) == (step.id, step.undo, step.attempt + 1));
    if let Some(later) = later {
        let how = match &later.outcome {
            None => "is on its way".to_owned(),
            Some(_) if failed(later) => "failed, too".to_owned(),
            Some(_) => format!("succeeded at {}", stamp(timestamp(later.ended_at.as_ref()))),
        };
        return format!("tried again: attempt {} {how}", later.attempt);
    }
    // A proxy's step for a backend is one of the backend's host, too.
    let backend = step.backend.split('/').next().unwrap_or_default();
    let skipped = details.events.iter().find_map(|e| {
        let of = |host: &str| e.kind == i32::from(Kind::Skipped) && e.hosts.iter().any(|h| h == host);
        let host = [step.host.as_str(), backend].into_iter().find(|host| of(host))?;
        Some((host, e))
    });
    if let Some((host, event)) = skipped {
        return format!("{} was left out by {}: {}", md(host), md(&event.by), md(&event.reason));
    }
    match summary.state() {
        RollbackState::Undone => "everything that was begun was reversed".to_owned(),
        RollbackState::Partial => format!("the runbook went on without {}", md(&step.host)),
        RollbackState::Held => "it waits for a person".to_owned(),
        RollbackState::Verified => "it did not keep the target from being reached".to_owned(),
        RollbackState::Running | RollbackState::Undoing | RollbackState::Unspecified => "not yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rollback_proto::v1::{Outcome, RollbackEvent};

    use super::*;

    /// The proxy was not left out: the host was that it could not take out of service.
    #[test]
    fn a_proxys_step_is_resolved_with_the_host_that_it_was_for() {
        let drain = StepReport {
            host: "proxy-1".to_owned(),
            component: "proxy".to_owned(),
            backend: "app-2/api".to_owned(),
            outcome: Some(Outcome {
                status: Status::Failed.into(),
                ..Outcome::default()
            }),
            ..StepReport::default()
        };
        let skipped = RollbackEvent {
            kind: Kind::Skipped.into(),
            by: "ana".to_owned(),
            reason: "dead".to_owned(),
            hosts: vec!["app-2".to_owned()],
            ..RollbackEvent::default()
        };
        let summary = RollbackSummary {
            state: RollbackState::Partial.into(),
            ..RollbackSummary::default()
        };
        let mut details = GetRollbackResponse {
            steps: vec![drain],
            events: vec![skipped],
            ..GetRollbackResponse::default()
        };
        assert!(section(&details, &summary).contains("app-2 was left out by ana: dead"));
        details.events.clear();
        assert!(section(&details, &summary).contains("the runbook went on without proxy-1"));
    }
}
