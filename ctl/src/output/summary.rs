//! How a rollback ended, or how far it is: the last thing on the screen, and what gets copied into the incident's chat.

use rollback_proto::v1::{GetRollbackResponse, PhaseTiming, Plan, RollbackState, RollbackSummary};

use super::findings;
use super::paint::{Paint, Tone};
use super::table::{Table, plain, right};
use super::text::{clean, count, duration, millis, name_some, or_none, stamp, timestamp};
use super::words;

/// Failed hosts that are named before they are only counted.
const NAMED_HOSTS: usize = 20;

pub fn render(details: &GetRollbackResponse, paint: Paint) -> String {
    let unknown = RollbackSummary::default();
    let summary = details.summary.as_ref().unwrap_or(&unknown);
    let state = RollbackState::try_from(summary.state).unwrap_or(RollbackState::Unspecified);
    let mut text = verdict(summary, state, details.plan.as_ref(), paint);
    text.push('\n');
    text.push_str(&timings(&details.phases, paint));
    text.push_str(&facts(summary, paint));
    if summary.blocked {
        text.push('\n');
        text.push_str(&findings::render(&details.findings, paint));
    }
    text.push_str(&next(summary, state, paint));
    text
}

/// One sentence that is true.
fn verdict(summary: &RollbackSummary, state: RollbackState, plan: Option<&Plan>, paint: Paint) -> String {
    let (word, tone) = words::state_told(state, summary.blocked);
    let release = clean(&summary.release);
    let scope = plan.map(|plan| {
        let hosts: std::collections::BTreeSet<&str> = plan.changes.iter().map(|c| c.host.as_str()).collect();
        (
            count(plan.changes.len(), "component", "components"),
            count(hosts.len(), "host", "hosts"),
        )
    });
    let sentence = match (state, summary.blocked) {
        (RollbackState::Verified, _) => match scope {
            Some((components, hosts)) => {
                format!("the fleet is at {release}: {components} on {hosts} observed at the target.")
            }
            None => format!("the fleet is at {release}: every component was observed at the target."),
        },
        (RollbackState::Undone, true) => format!("the rollback to {release} did not begin. Nothing was touched."),
        (RollbackState::Undone, false) => {
            format!("{release} was not reached. Every step that was begun and has a way back was reversed.")
        }
        (RollbackState::Partial, _) => {
            let hosts = count(summary.failed_hosts.len(), "host", "hosts");
            format!("{release} was reached, but not on {hosts}.")
        }
        (RollbackState::Held, _) => {
            format!("the rollback to {release} stopped and waits for a person. Nothing moves by itself any more.")
        }
        (RollbackState::Running, _) => {
            format!("on the way to {release}, phase {}.", or_none(&summary.phase))
        }
        (RollbackState::Undoing, _) => {
            format!("{release} was not reached; the steps that were begun are being reversed.")
        }
        (RollbackState::Unspecified, _) => format!("the state of the rollback to {release} is not known."),
    };
    format!("{}: {sentence}\n", paint.tone(tone, &word.to_uppercase()))
}

fn timings(phases: &[PhaseTiming], paint: Paint) -> String {
    let mut table = Table::new(paint, &["PHASE", "TOOK"]);
    for phase in phases {
        let (start, end) = (timestamp(phase.started_at.as_ref()), timestamp(phase.ended_at.as_ref()));
        let took = match (start, end) {
            (Some(start), Some(end)) => duration(millis(start, end)),
            (Some(_), None) => "not ended".to_owned(),
            (None, _) => "not begun".to_owned(),
        };
        table.row([plain(clean(&phase.name)), right(took)]);
    }
    if table.is_empty() {
        String::new()
    } else {
        format!("{}\n", table.render(2))
    }
}

fn facts(summary: &RollbackSummary, paint: Paint) -> String {
    let (start, end) = (
        timestamp(summary.started_at.as_ref()),
        timestamp(summary.ended_at.as_ref()),
    );
    let total = match (start, end) {
        (Some(start), Some(end)) => {
            format!(
                "{}   ({} to {})",
                duration(millis(start, end)),
                stamp(Some(start)),
                stamp(Some(end))
            )
        }
        (start, _) => format!("since {}", stamp(start)),
    };
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<13} {value}\n"));
        }
    };
    fact("total", &total);
    fact("steps", &format!("{} of {}", summary.steps_done, summary.steps_total));
    fact("rollback", &clean(&summary.id));
    fact("started by", &clean(&summary.started_by));
    fact("reason", &clean(&summary.reason));
    fact("incident", &clean(&summary.incident));
    fact("trace", &clean(&summary.trace_id));
    if let Some(problem) = &summary.problem {
        let code = paint.tone(Tone::Bad, &clean(&problem.code));
        fact("cause", &format!("{code} {}", clean(&problem.message)));
        fact("what to do", &clean(&problem.remedy));
    }
    let hosts = name_some(summary.failed_hosts.iter().map(String::as_str), NAMED_HOSTS);
    fact("failed hosts", &hosts);
    text
}

/// Where to go from here.
fn next(summary: &RollbackSummary, state: RollbackState, paint: Paint) -> String {
    let id = clean(&summary.id);
    let release = clean(&summary.release);
    let steps = match (state, summary.blocked) {
        (RollbackState::Verified, _) | (RollbackState::Unspecified, _) => return String::new(),
        (RollbackState::Undone, true) => vec![
            "mend the blockers above, then run the same command again".to_owned(),
            format!("check without touching anything: rollbackctl fleet plan --to {release}"),
        ],
        (RollbackState::Undone, false) => vec![
            format!("see every step: rollbackctl rollback show {id}"),
            "see what runs now: rollbackctl fleet status".to_owned(),
            "mend the cause, then run the same command again".to_owned(),
        ],
        (RollbackState::Partial, _) => vec![
            "keep the failed hosts away from users until they are mended".to_owned(),
            format!("see every step: rollbackctl rollback show {id}"),
            format!("when they are mended: rollbackctl fleet rollback --to {release}"),
        ],
        (RollbackState::Held, _) => vec![
            "see what runs now: rollbackctl fleet status".to_owned(),
            format!("see every step: rollbackctl rollback show {id}"),
            format!("mend what the cause names, then go on: rollbackctl fleet rollback --to {release}"),
            "or go to another release: rollbackctl release list".to_owned(),
            format!(
                "hosts that cannot come back are left out with: rollbackctl fleet rollback --to {release} --runbook emergency"
            ),
        ],
        (RollbackState::Running | RollbackState::Undoing, _) => {
            vec![format!("watch it: rollbackctl rollback watch {id}")]
        }
    };
    let mut text = format!("\n{}\n", paint.tone(Tone::Strong, "Next:"));
    for step in steps {
        text.push_str(&format!("  - {step}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, golden};

    #[test]
    fn every_ending_has_its_words() {
        let endings = [
            (RollbackState::Verified, false),
            (RollbackState::Undone, false),
            (RollbackState::Undone, true),
            (RollbackState::Partial, false),
            (RollbackState::Held, false),
        ];
        let all: Vec<String> = endings
            .into_iter()
            .map(|(state, blocked)| render(&samples::details(state, blocked), Paint::PLAIN))
            .collect();
        golden!("summaries", all.join("\n----------\n\n"));
    }
}
