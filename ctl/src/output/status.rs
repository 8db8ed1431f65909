//! The fleet as it is now: what runs where, whether it is healthy, and which release that makes.

use std::collections::BTreeSet;

use rollback_proto::v1::{
    AgentInfo, CheckGateResponse, ComponentState, Drift, GetFleetResponse, Hold, HostState, Problem, RollbackSummary,
};

use super::paint::{Paint, Tone};
use super::problem::brief;
use super::table::{Table, cell, plain};
use super::text::{NONE, change, clean, count, or_none, short, stamp, target, timestamp};
use super::words;

pub fn render(fleet: &GetFleetResponse, paint: Paint) -> String {
    let mut text = String::new();
    text.push_str(&match fleet.matches_release.as_str() {
        "" => {
            let none = match fleet.hosts.iter().filter(|h| h.problem.is_some()).count() {
                0 => "none: what runs matches no recorded release",
                _ => "not known: not every host answers",
            };
            format!("release      {}\n", paint.tone(Tone::Warn, none))
        }
        name => {
            let troubles = troubles(fleet);
            let tone = if troubles.is_empty() { Tone::Strong } else { Tone::Bad };
            format!(
                "release      {}\n",
                paint.tone(tone, &format!("{}{troubles}", clean(name)))
            )
        }
    });
    let away = fleet.hosts.iter().filter(|h| h.problem.is_some()).count();
    let hosts = count(fleet.hosts.len(), "host", "hosts");
    let away = match away {
        0 if fleet.hosts.is_empty() => "none enrolled".to_owned(),
        0 => "all reachable".to_owned(),
        n => paint.tone(Tone::Bad, &format!("{n} not reachable")),
    };
    text.push_str(&format!("hosts        {hosts}, {away}\n"));
    for rollback in &fleet.active {
        text.push_str(&format!("running now  {}\n", active(rollback, paint)));
    }
    for hold in &fleet.holds {
        text.push_str(&format!("held         {}\n", held(hold, paint)));
    }
    if !fleet.drift.is_empty() {
        let hosts: BTreeSet<&str> = fleet.drift.iter().map(|d| d.host.as_str()).collect();
        let told = format!(
            "{} on {} not where they shall be",
            count(fleet.drift.len(), "component", "components"),
            count(hosts.len(), "host", "hosts")
        );
        text.push_str(&format!("drift        {}\n", paint.tone(Tone::Bad, &told)));
    }
    if fleet.hosts.is_empty() {
        text.push_str("\nNo agent is enrolled. Make a token for a host: rollbackctl agent token NAME\n");
        return text;
    }
    text.push('\n');
    let mut table = Table::new(
        paint,
        &["HOST", "COMPONENT", "ROLE", "VERSION", "DIGEST", "HEALTH", "DETAIL"],
    );
    for host in &fleet.hosts {
        rows(&mut table, host);
    }
    text.push_str(&table.render(0));
    text.push_str(&drift(&fleet.drift, paint));
    text
}

/// "v3.0.0 must not be deployed, since … by ana: leaks file handles".
pub fn held(hold: &Hold, paint: Paint) -> String {
    let release = paint.tone(Tone::Warn, &clean(&hold.release));
    let since = stamp(timestamp(hold.since.as_ref()));
    let mut text = format!("{release} must not be deployed, since {since} by {}", or_none(&hold.by));
    if !hold.reason.is_empty() {
        text.push_str(&format!(": {}", clean(&hold.reason)));
    }
    text
}

/// May it be deployed now? If not: why, and what to do.
pub fn gate(release: &str, answer: &CheckGateResponse, paint: Paint) -> String {
    if answer.open {
        let open = paint.tone(Tone::Good, "open");
        return format!("{open}: {} may be deployed\n", clean(release));
    }
    let closed = paint.tone(Tone::Bad, "closed");
    let unnamed = Problem::default();
    let problem = answer.problem.as_ref().unwrap_or(&unnamed);
    let mut text = format!("{closed}: {}\n", brief(problem));
    if !problem.remedy.is_empty() {
        text.push_str(&format!("  {}\n", clean(&problem.remedy)));
    }
    // The problem tells of a hold first; a rollback that runs as well would come as a surprise later.
    for rollback in &answer.active {
        text.push_str(&format!("running now  {}\n", active(rollback, paint)));
    }
    text
}

/// What is not where the last record or rollback put it, and how it gets there.
pub fn drift(drift: &[Drift], paint: Paint) -> String {
    if drift.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", paint.tone(Tone::Strong, "Not where it shall be:"));
    let mut table = Table::new(paint, &["WHERE", "IS AT", "", "SHALL BE AT", "SINCE", "WHY"]);
    for d in drift {
        let (at, shall) = change(d.observed.as_ref(), d.expected.as_ref());
        let at = if d.observed.is_some() {
            at
        } else {
            "not observed".to_owned()
        };
        table.row([
            plain(target(&d.host, &d.component)),
            cell(Tone::Bad, at),
            plain("→"),
            plain(shall),
            plain(stamp(timestamp(d.since.as_ref()))),
            plain(why(d)),
        ]);
    }
    text.push_str(&table.render(2));
    let by_itself = drift.iter().filter(|d| d.automatic).count();
    if by_itself > 0 {
        let which = count(by_itself, "goes there by itself", "go there by themselves");
        text.push_str(&format!("  {which} when the host is back\n"));
    }
    if by_itself < drift.len() {
        text.push_str("  to bring it there: rollbackctl fleet converge\n");
    }
    text
}

fn why(d: &Drift) -> String {
    match (d.missed, d.rollback_id.is_empty()) {
        (true, _) => format!(
            "not reached by rollback {} to {}",
            clean(&d.rollback_id),
            clean(&d.release)
        ),
        (false, false) => format!(
            "changed since rollback {} to {}",
            clean(&d.rollback_id),
            clean(&d.release)
        ),
        (false, true) => format!("changed since {} was recorded", clean(&d.release)),
    }
}

/// Components that were seen, and that users cannot count on now: (host, state).
pub fn not_serving(fleet: &GetFleetResponse) -> impl Iterator<Item = (&HostState, &ComponentState)> {
    let states = fleet.hosts.iter().flat_map(|h| h.states.iter().map(move |s| (h, s)));
    states.filter(|(_, s)| words::is_down(s.health))
}

/// A release's name must not stand there as if all was well: " (2 components not serving)".
fn troubles(fleet: &GetFleetResponse) -> String {
    let states = || fleet.hosts.iter().flat_map(|h| &h.states);
    let unseen = states().filter(|s| s.revision.is_none()).count();
    let away = fleet.hosts.iter().filter(|h| h.problem.is_some()).count();
    let told: Vec<String> = [
        (not_serving(fleet).count(), "component", "components", "not serving"),
        (unseen, "component", "components", "not observed"),
        (away, "host", "hosts", "not reachable"),
    ]
    .into_iter()
    .filter(|(n, ..)| *n > 0)
    .map(|(n, one, many, what)| format!("{} {what}", count(n, one, many)))
    .collect();
    if told.is_empty() {
        String::new()
    } else {
        format!(" ({})", told.join(", "))
    }
}

/// One running rollback in one line; also how the holder of a scope is shown.
pub fn active(rollback: &RollbackSummary, paint: Paint) -> String {
    let (state, tone) = words::standing(rollback);
    let phase = match clean(&rollback.phase) {
        none if none.is_empty() => none,
        phase => format!("phase {phase}, "),
    };
    let mut line = format!(
        "{} to {}: {}, {phase}{} of {} steps, by {} since {}",
        clean(&rollback.id),
        clean(&rollback.release),
        paint.tone(tone, state),
        rollback.steps_done,
        rollback.steps_total,
        or_none(&rollback.started_by),
        stamp(timestamp(rollback.started_at.as_ref())),
    );
    if !rollback.reason.is_empty() {
        line.push_str(&format!(" ({})", clean(&rollback.reason)));
    }
    line
}

fn rows(table: &mut Table, host: &HostState) {
    let unnamed = AgentInfo::default();
    let agent = host.agent.as_ref().unwrap_or(&unnamed);
    let name = or_none(&agent.name);
    if let Some(problem) = &host.problem {
        table.row([
            plain(name),
            plain(NONE),
            plain(NONE),
            plain(NONE),
            plain(NONE),
            cell(Tone::Bad, "UNREACHABLE"),
            plain(brief(problem)),
        ]);
        return;
    }
    for state in &host.states {
        let role = agent
            .components
            .iter()
            .find(|c| c.name == state.component)
            .map_or(0, |c| c.role);
        table.row(component_row(&name, role, state));
    }
}

fn component_row(host: &str, role: i32, state: &ComponentState) -> [comfy_table::Cell; 7] {
    let revision = state.revision.as_ref();
    let (health, detail) = match (&state.problem, revision) {
        (Some(problem), None) => (cell(Tone::Bad, "UNOBSERVED"), brief(problem)),
        (Some(problem), Some(_)) => {
            let (word, tone) = words::health(state.health);
            (cell(tone, word), brief(problem))
        }
        (None, _) => {
            let (word, tone) = words::health(state.health);
            (cell(tone, word), clean(&state.detail))
        }
    };
    [
        plain(host),
        plain(clean(&state.component)),
        plain(words::role(role)),
        plain(revision.map_or_else(|| NONE.to_owned(), |r| or_none(&r.version))),
        cell(
            Tone::Dim,
            revision.map_or_else(|| NONE.to_owned(), |r| short(&r.digest)),
        ),
        health,
        plain(detail),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, golden};

    #[test]
    fn status_of_a_troubled_fleet() {
        golden!("status", render(&samples::fleet(), Paint::PLAIN));
    }

    #[test]
    fn status_of_a_fleet_in_maintenance() {
        golden!(
            "status_maintenance",
            render(&samples::fleet_in_maintenance(), Paint::PLAIN)
        );
    }

    #[test]
    fn status_with_a_backend_down() {
        let fleet = samples::rolling::fleet_with_a_backend_down();
        golden!("status_backend_down", render(&fleet, Paint::PLAIN));
    }

    #[test]
    fn an_empty_fleet_says_what_to_do() {
        let text = render(&GetFleetResponse::default(), Paint::PLAIN);
        assert!(text.contains("rollbackctl agent token NAME"), "{text}");
    }

    #[test]
    fn a_gate_says_why_it_is_closed() {
        let open = CheckGateResponse {
            open: true,
            ..CheckGateResponse::default()
        };
        let by_hold = CheckGateResponse {
            open: false,
            problem: Some(Problem {
                code: "RB0209".to_owned(),
                message: "release v3.0.0 is held since 2026-11-20T22:10:00Z by ana: leaks file handles".to_owned(),
                remedy: "when it is mended, or was not to blame: rollbackctl fleet unhold v3.0.0 --reason TEXT"
                    .to_owned(),
            }),
            hold: Some(samples::operators::hold()),
            active: vec![samples::operators::standing_still("ana")],
        };
        let told: Vec<String> = [open, by_hold]
            .iter()
            .map(|a| gate("v3.0.0", a, Paint::PLAIN))
            .collect();
        golden!("status_gate", told.join("\n"));
    }

    #[test]
    fn drift_and_holds_are_told_with_what_to_do() {
        let mut fleet = samples::fleet();
        fleet.active = vec![samples::operators::standing_still("ana")];
        fleet.holds = vec![samples::operators::hold()];
        fleet.drift = samples::operators::drift();
        golden!("status_drift", render(&fleet, Paint::PLAIN));
    }
}
