//! How a rollback ended, or how far it is: the last thing on the screen, and what gets copied into the incident's chat.

use rollback_proto::problem::Code;
use rollback_proto::v1::{
    DatabaseChoice, GetRollbackResponse, PhaseTiming, Plan, RollbackState, RollbackSummary, Severity,
};

use super::paint::{Paint, Tone};
use super::standstill::Down;
use super::table::{Table, plain, right};
use super::text::{clean, count, duration, millis, name_some, or_none, stamp, timestamp};
use super::words::{self, Waits};
use super::{findings, loss, plan, scope, standstill};

/// Failed hosts that are named before they are only counted.
const NAMED_HOSTS: usize = 20;

pub fn render(details: &GetRollbackResponse, paint: Paint) -> String {
    let unknown = RollbackSummary::default();
    let summary = details.summary.as_ref().unwrap_or(&unknown);
    let state = RollbackState::try_from(summary.state).unwrap_or(RollbackState::Unspecified);
    let mut text = verdict(summary, state, details.plan.as_ref(), paint);
    if words::waits(summary) == Some(Waits::Paused) {
        for missed in Down::of(details).words() {
            text.push_str(&format!("  {}\n", paint.tone(Tone::Bad, &missed)));
        }
    }
    if let (RollbackState::Verified | RollbackState::Partial, Some(plan)) = (state, &details.plan) {
        text.push_str(&plan::stays(plan, paint));
    }
    text.push('\n');
    text.push_str(&timings(&details.phases, paint));
    text.push_str(&facts(summary, details.plan.as_ref(), paint));
    let losses = loss::of_report(details, paint);
    if !losses.is_empty() {
        text.push('\n');
        text.push_str(&losses);
    }
    let told = findings::of_report(details, paint);
    if summary.blocked && !told.is_empty() {
        text.push('\n');
        text.push_str(&told);
    }
    text.push_str(&next(details, summary, state, paint));
    text
}

/// One sentence that is true.
fn verdict(summary: &RollbackSummary, state: RollbackState, plan: Option<&Plan>, paint: Paint) -> String {
    let (word, tone) = words::standing(summary);
    let release = clean(&summary.release);
    if let Some(sentence) = standing_still(summary, &release) {
        return format!("{}: {sentence}\n", paint.tone(tone, word));
    }
    let scope = plan.map(|plan| {
        let reached = || plan.changes.iter().filter(|c| c.left.is_none());
        let hosts: std::collections::BTreeSet<&str> = reached().map(|c| c.host.as_str()).collect();
        (
            count(reached().count(), "component", "components"),
            count(hosts.len(), "host", "hosts"),
        )
    });
    let left = plan.map_or(0, |plan| plan::left(plan).count());
    // A part of the fleet at a release is no fleet at it.
    let whole = summary.scope.is_none()
        && summary.undo_of.is_empty()
        && plan.is_none_or(|plan| plan.scope.is_none() && plan.outside == 0);
    let outside = plan.map_or(0, |plan| usize::try_from(plan.outside).unwrap_or(usize::MAX));
    let sentence = match (state, summary.blocked) {
        (RollbackState::Verified, _) => match scope {
            Some((components, hosts)) if left == 0 && outside > 0 => {
                let others = count(outside, "component of it is", "components of it are");
                format!(
                    "what was to go back is at {release}: {components} on {hosts} observed at the target; {others} outside the \
                     scope."
                )
            }
            Some((components, hosts)) if left == 0 && !whole => {
                format!("what was to go back is at {release}: {components} on {hosts} observed at the target.")
            }
            Some((components, hosts)) if left == 0 => {
                format!("the fleet is at {release}: {components} on {hosts} observed at the target.")
            }
            Some((components, hosts)) => {
                let left = count(left, "was left where it was", "were left where they were");
                format!("what was to go back is at {release}: {components} on {hosts} observed at the target; {left}.")
            }
            None => format!("the fleet is at {release}: every component was observed at the target."),
        },
        (RollbackState::Undone, true) => format!("the rollback to {release} did not begin. Nothing was touched."),
        (RollbackState::Undone, false) => {
            format!("{release} was not reached. Every step that was begun and has a way back was reversed.")
        }
        (RollbackState::Partial, _) => {
            // What was left out from the beginning is not there, either.
            let excused = plan.iter().flat_map(|plan| &plan.excused).map(|e| e.host.as_str());
            let away: std::collections::BTreeSet<&str> =
                summary.failed_hosts.iter().map(String::as_str).chain(excused).collect();
            let hosts = count(away.len(), "host", "hosts");
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

/// What a rollback waits for that does not go on by itself.
fn standing_still(summary: &RollbackSummary, release: &str) -> Option<String> {
    match words::waits(summary)? {
        Waits::ForApproval => {
            let until = summary.approval.as_ref().and_then(|a| timestamp(a.expires_at.as_ref()));
            Some(format!(
                "the rollback to {release} begins when a second operator approves it, until {}. Nothing was touched.",
                stamp(until)
            ))
        }
        Waits::Paused => {
            let standstill = summary.standstill.clone().unwrap_or_default();
            let who = if standstill.by.is_empty() {
                "its runbook".to_owned()
            } else {
                clean(&standstill.by)
            };
            let flying = match standstill::in_flight(&standstill) {
                nothing if nothing.is_empty() => "nothing new begins".to_owned(),
                steps => steps,
            };
            Some(format!(
                "{who} paused it at {}, on the way to {release}, in phase {}; {flying}.",
                stamp(timestamp(standstill.since.as_ref())),
                or_none(&summary.phase)
            ))
        }
    }
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

fn facts(summary: &RollbackSummary, plan: Option<&Plan>, paint: Paint) -> String {
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
    fact("undo of", &clean(&summary.undo_of));
    fact("scope", &scope::words(summary.scope.as_ref()));
    fact("approval", &approval(summary));
    let databases = plan.map_or(0, restored);
    let consent = summary.consent.map(|consent| loss::consent(consent, databases));
    fact("agreed loss", &consent.unwrap_or_default());
    if let Some(problem) = &summary.problem {
        let code = paint.tone(Tone::Bad, &clean(&problem.code));
        fact("cause", &format!("{code} {}", clean(&problem.message)));
        fact("what to do", &clean(&problem.remedy));
    }
    let standstill = summary.standstill.clone().unwrap_or_default();
    fact("paused for", &clean(&standstill.reason));
    if let Some(problem) = &standstill.problem {
        let code = paint.tone(Tone::Bad, &clean(&problem.code));
        fact("paused for", &format!("{code} {}", clean(&problem.message)));
        fact("what to do", &clean(&problem.remedy));
    }
    // While it stands still, those whose steps can be tried again; afterwards, those that it did not reach.
    let failed = if standstill.failed_hosts.is_empty() {
        &summary.failed_hosts
    } else {
        &standstill.failed_hosts
    };
    let hosts = name_some(failed.iter().map(String::as_str), NAMED_HOSTS);
    fact("failed hosts", &hosts);
    let skipped = name_some(summary.skipped_hosts.iter().map(String::as_str), NAMED_HOSTS);
    fact("skipped", &skipped);
    text
}

fn approval(summary: &RollbackSummary) -> String {
    match &summary.approval {
        None => String::new(),
        Some(a) if a.approved_by.is_empty() && words::is_over(summary.state()) => "by nobody".to_owned(),
        Some(a) if a.approved_by.is_empty() => {
            format!("by nobody yet; expires {}", stamp(timestamp(a.expires_at.as_ref())))
        }
        Some(a) => format!(
            "by {} at {}",
            clean(&a.approved_by),
            stamp(timestamp(a.approved_at.as_ref()))
        ),
    }
}

/// What can be done with one that stands still.
fn steering(summary: &RollbackSummary, id: &str) -> Option<Vec<String>> {
    match words::waits(summary)? {
        Waits::ForApproval => Some(vec![
            format!("look at the plan: rollbackctl rollback show {id}"),
            format!(
                "another operator than {}: rollbackctl rollback approve {id}",
                clean(&summary.started_by)
            ),
            format!("end it: rollbackctl rollback abort {id} --undo --reason TEXT"),
        ]),
        Waits::Paused => {
            let standstill = summary.standstill.clone().unwrap_or_default();
            let mut steps = vec![format!("see every step: rollbackctl rollback show {id}")];
            steps.extend(standstill::fits(id, &standstill));
            Some(steps)
        }
    }
}

/// Databases that the plan takes to backups.
fn restored(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| c.from_backup).count()
}

/// Where to go from here.
fn next(details: &GetRollbackResponse, summary: &RollbackSummary, state: RollbackState, paint: Paint) -> String {
    let plan = details.plan.as_ref();
    let id = clean(&summary.id);
    let release = clean(&summary.release);
    let same = |from_start| same_again(summary, plan, from_start);
    let steps = match (state, summary.blocked) {
        (RollbackState::Unspecified, _) => return String::new(),
        (RollbackState::Verified, _) => [
            format!("write the incident report: rollbackctl rollback report {id}"),
            format!("back to where it was before: rollbackctl rollback undo {id}"),
        ]
        .into_iter()
        .chain(loss::to_collect(details))
        .collect(),
        (RollbackState::Undone, true) => again(details, summary, "mend the blockers above")
            .into_iter()
            // Nothing plans an undo or a converge without starting it.
            .chain((summary.undo_of.is_empty() && !words::is_of_objectives(summary)).then(|| {
                format!(
                    "check without touching anything: rollbackctl fleet plan --to {release}{}",
                    same(true)
                )
            }))
            .collect(),
        (RollbackState::Undone, false) => [
            format!("see every step: rollbackctl rollback show {id}"),
            "see what runs now: rollbackctl fleet status".to_owned(),
        ]
        .into_iter()
        .chain(again(details, summary, "mend the cause"))
        .collect(),
        (RollbackState::Partial, _) => [
            "keep the failed hosts away from users until they are mended".to_owned(),
            format!("see every step: rollbackctl rollback show {id}"),
            format!("when they are mended, those alone: rollbackctl rollback retry {id}"),
            format!("write the incident report: rollbackctl rollback report {id}"),
        ]
        .into_iter()
        .chain(loss::to_collect(details))
        .collect(),
        (RollbackState::Held, _) => [
            "see what runs now: rollbackctl fleet status".to_owned(),
            format!("see every step: rollbackctl rollback show {id}"),
            format!("{}, then go on: {}", cause(summary), command(summary, plan, false)),
        ]
        .into_iter()
        // A backup that was restored is not taken back.
        .chain(
            plan.is_none_or(|plan| restored(plan) == 0)
                .then(|| format!("or take back what it has done: rollbackctl rollback undo {id}")),
        )
        .chain(plan.filter(|plan| restored(plan) > 0).map(|_| {
            format!(
                "that restores no backup; if one is not live yet and still shall be: rollbackctl fleet rollback --to \
                 {release}{} --accept-data-loss",
                same(true)
            )
        }))
        .chain(["or go to another release: rollbackctl release list".to_owned()])
        // That runbook would take along what this rollback was to leave.
        .chain(plan.is_none_or(|plan| plan::left(plan).next().is_none()).then(|| {
            format!(
                "hosts that cannot come back are left out with: rollbackctl fleet rollback --to {release} --runbook emergency{}{}",
                database_again(plan, false),
                scope::flags(plan.and_then(|plan| plan.scope.as_ref()))
            )
        }))
        .collect(),
        (RollbackState::Running | RollbackState::Undoing, _) => steering(summary, &id)
            .unwrap_or_else(|| vec![format!("watch it: rollbackctl rollback watch {id}")]),
    };
    if steps.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", paint.tone(Tone::Strong, "Next:"));
    for step in steps {
        text.push_str(&format!("  - {step}\n"));
    }
    text
}

/// How a rollback that was not done is done after all. Where the loss was not agreed to, the same command fails the same way.
fn again(details: &GetRollbackResponse, summary: &RollbackSummary, mend: &str) -> Vec<String> {
    let of_consent = |code: &str| [Code::ConsentNeeded, Code::LossTooGreat].iter().any(|c| c.id() == code);
    let blockers = details
        .findings
        .iter()
        .filter(|f| summary.blocked && words::severity(f.severity) == Severity::Blocker)
        .map(|f| f.code.as_str());
    let mut codes: Vec<&str> = blockers.collect();
    if codes.is_empty() {
        codes.extend(summary.problem.as_ref().map(|p| p.code.as_str()));
    }
    let (consent, other): (Vec<&str>, Vec<&str>) = codes.into_iter().partition(|code| of_consent(code));
    let ended_by_hand = summary.problem.as_ref().is_some_and(|p| p.code == Code::Aborted.id());
    let unapproved = summary
        .problem
        .as_ref()
        .is_some_and(|p| p.code == Code::ApprovalExpired.id());
    if ended_by_hand || unapproved {
        // There is nothing to mend: somebody did not want it, or nobody was there to agree.
        return vec![format!(
            "if it is wanted after all: {}",
            command(summary, details.plan.as_ref(), true)
        )];
    }
    let plan = details.plan.as_ref();
    if consent.is_empty() && plan.map_or(0, restored) == 0 {
        return vec![format!("{mend}, then: {}", command(summary, plan, true))];
    }
    if consent.is_empty() {
        return vec![format!("{mend}, then run the same command again")];
    }
    let what = if summary.consent.is_some() {
        "a greater loss than was agreed to"
    } else {
        "the loss"
    };
    let agree = format!(
        "agree to {what} (--accept-data-loss=all: to any): rollbackctl fleet rollback --to {}{} --accept-data-loss=ROWS",
        clean(&summary.release),
        same_again(summary, details.plan.as_ref(), true)
    );
    if other.is_empty() {
        vec![agree]
    } else {
        vec![format!("{mend}; then {agree}")]
    }
}

/// What an operator has ended needs nobody to mend anything.
fn cause(summary: &RollbackSummary) -> &'static str {
    match &summary.problem {
        Some(problem) if problem.code == Code::Aborted.id() => "settle what it was ended for",
        Some(_) | None => "mend what the cause names",
    }
}

/// What starts such a rollback again.
fn command(summary: &RollbackSummary, plan: Option<&Plan>, from_start: bool) -> String {
    let scope = || scope::flags(plan.and_then(|plan| plan.scope.as_ref()));
    if !summary.undo_of.is_empty() {
        return format!("rollbackctl rollback undo {}", clean(&summary.undo_of));
    }
    if words::is_of_objectives(summary) {
        return format!("rollbackctl fleet converge{}", scope());
    }
    format!(
        "rollbackctl fleet rollback --to {}{}",
        clean(&summary.release),
        same_again(summary, plan, from_start)
    )
}

/// What shaped the plan and is not said by default: the same command without it would do something else. Once a rollback has
/// begun, nothing restores a backup again: that may be done already, and would lose what was written since.
fn same_again(summary: &RollbackSummary, plan: Option<&Plan>, from_start: bool) -> String {
    options(&summary.runbook, plan, from_start)
}

/// The options that make such a plan again, each with a space before it.
pub fn options(runbook: &str, plan: Option<&Plan>, from_start: bool) -> String {
    let mut options = String::new();
    let runbook = runbook.split('@').next().unwrap_or_default();
    let plain = ["", "default"].contains(&runbook) || (runbook == "restore" && !from_start);
    if !plain {
        options.push_str(&format!(" --runbook {}", clean(runbook)));
    }
    options.push_str(&database_again(plan, from_start));
    options.push_str(&scope::flags(plan.and_then(|plan| plan.scope.as_ref())));
    options
}

fn database_again(plan: Option<&Plan>, from_start: bool) -> String {
    match plan.map(Plan::database) {
        None | Some(DatabaseChoice::Unspecified | DatabaseChoice::Auto) => String::new(),
        Some(DatabaseChoice::Restore) if !from_start => String::new(),
        Some(choice @ (DatabaseChoice::Keep | DatabaseChoice::Migrate | DatabaseChoice::Restore)) => {
            format!(" --database {}", words::database(choice.into()))
        }
    }
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

    #[test]
    fn what_stands_still_says_how_it_goes_on() {
        let all = [
            samples::operators::standing_still("ana"),
            samples::operators::standing_still(""),
            samples::operators::awaiting_approval(),
        ];
        let told = all.map(|summary| {
            let details = GetRollbackResponse {
                summary: Some(summary),
                ..GetRollbackResponse::default()
            };
            render(&details, Paint::PLAIN)
        });
        golden!("summaries_standing_still", told.join("\n----------\n\n"));
    }

    /// Nor is what was left out from the beginning.
    #[test]
    fn part_of_a_fleet_is_not_called_the_fleet() {
        let mut details = samples::operators::steered();
        let summary = details.summary.as_mut().expect("a summary");
        summary.failed_hosts.clear();
        assert!(
            render(&details, Paint::PLAIN).contains("reached, but not on 1 host."),
            "app-3 was left out"
        );
        let plan = details.plan.as_mut().expect("a plan");
        plan.changes.retain(|c| c.left.is_none());
        details.summary.as_mut().expect("a summary").state = RollbackState::Verified.into();
        let text = render(&details, Paint::PLAIN);
        assert!(
            text.starts_with("VERIFIED: what was to go back is at v2.9.0: 4 components"),
            "{text}"
        );
    }

    /// Each agent counts its own: twice as many may be gone.
    #[test]
    fn limit_of_each_database_is_said_to_be_that() {
        let mut details = samples::restore::details(crate::output::loss::Fate::Lost);
        let plan = details.plan.as_mut().expect("has a plan");
        let mut other = plan.changes.iter().find(|c| c.from_backup).expect("a restore").clone();
        other.host = "db-2".to_owned();
        plan.changes.push(other);
        let text = render(&details, Paint::PLAIN);
        assert!(text.contains("at most 1,132 rows in each of 2 databases"), "{text}");
    }

    /// The same command would fail the same way.
    #[test]
    fn loss_that_was_not_agreed_to_is_agreed_to_next() {
        let mut details = samples::restore::details(crate::output::loss::Fate::NotExchanged);
        let summary = details.summary.as_mut().expect("a summary");
        summary.problem.as_mut().expect("a cause").code = "RB0710".to_owned();
        let agree = "agree to a greater loss than was agreed to (--accept-data-loss=all: to any): rollbackctl fleet \
                     rollback --to v2.9.0 --database restore --accept-data-loss=ROWS\n";
        let same = "then run the same command again";
        let text = render(&details, Paint::PLAIN);
        assert!(text.contains(&format!("  - {agree}")) && !text.contains(same), "{text}");

        let summary = details.summary.as_mut().expect("a summary");
        summary.blocked = true;
        details.findings = vec![samples::restore::needs_consent(), samples::restore::blocker("RB0710")];
        let text = render(&details, Paint::PLAIN);
        assert!(text.contains(&format!("  - {agree}")) && !text.contains(same), "{text}");
        assert!(!text.contains("the same command with `fleet plan`"), "{text}");

        details.findings.push(samples::restore::blocker("RB0503"));
        let text = render(&details, Paint::PLAIN);
        assert!(
            text.contains(&format!("  - mend the blockers above; then {agree}")),
            "{text}"
        );
        details.findings.remove(1);
        let text = render(&details, Paint::PLAIN);
        assert!(text.contains(same), "{text}");
    }

    #[test]
    fn restores_and_what_was_left() {
        use crate::output::loss::Fate;
        let of_restores = [Fate::Lost, Fate::NotExchanged, Fate::Unclear].map(samples::restore::details);
        let left = samples::restore::details_with_something_left();
        let all = of_restores.iter().chain([&left]);
        let all: Vec<String> = all.map(|details| render(details, Paint::PLAIN)).collect();
        golden!("summaries_databases", all.join("\n----------\n\n"));
    }
}
