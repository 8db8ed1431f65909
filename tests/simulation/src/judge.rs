//! Whether a run kept the promises. Reads the journals by itself, without the machine that wrote them, and compares them
//! with what the recorder saw.

mod effects;
mod hands;
mod journal;

use std::collections::BTreeMap;

use rollback_engine::event::{AbortThen, Ending, Event};
use rollback_engine::ids::RollbackId;
use rollback_proto::v1::RollbackState;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::journal::Journal;
use crate::faults::Counts;
use crate::recorder::{Line, Seen};
use crate::world::Aftermath;

/// What is told of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    pub seed: u64,
    /// Of each rollback: "verified", …
    pub endings: Vec<String>,
    /// Why those that were held were held.
    pub held_because: Vec<String>,
    pub violations: Vec<String>,
    #[serde(flatten)]
    pub counts: Counts,
    /// Times that another leader came while a rollback ran.
    pub takeovers: u64,
    pub lost_commits: u64,
    /// Operators' acts that were taken.
    #[serde(default)]
    pub acts: u64,
    /// Effects of moves on components.
    pub effects: u64,
    /// Requests of leaders that had been replaced, and that reached an agent that knew it.
    pub stale_requests: u64,
    pub simulated_seconds: f64,
    /// Over everything that was seen, but for real time: the same for every run of the seed.
    pub digest: String,
}

pub fn judge(after: &Aftermath) -> Verdict {
    let mut violations = Vec::new();
    if !after.settled {
        violations.push(unsettled(after));
    }
    let journals: Vec<Journal<'_>> = after
        .journals
        .iter()
        .filter_map(|(id, recorded)| {
            let journal = Journal::read(id, recorded);
            if journal.is_none() {
                violations.push(format!("{id}: the journal does not begin with a plan"));
            }
            journal
        })
        .collect();
    for journal in &journals {
        violations.extend(journal.violations());
        violations.extend(truth(after, journal));
        violations.extend(effects::violations(after, journal));
        violations.extend(hands::violations(&after.lines, journal));
    }
    violations.extend(stale_writes(&after.lines));
    violations.extend(overlaps(after));
    violations.extend(after.lines.iter().filter_map(|line| match &line.seen {
        Seen::Wrong { what } => Some(what.clone()),
        _ => None,
    }));
    // One that an operator wants to be held is.
    let by_itself = |journal: &&Journal<'_>| journal.aborted() != Some(AbortThen::Hold);
    let held_because = journals.iter().filter(by_itself).filter_map(Journal::held_because);
    let held_because: Vec<String> = held_because.collect();
    if !held_because.is_empty() && !may_be_held(after) {
        violations.push(format!("held without a reason: {}", held_because.join("; ")));
    }
    Verdict {
        seed: after.seed.number,
        endings: journals
            .iter()
            .map(|j| match (j.ending(), j.aborted()) {
                (Some(Ending::Held { .. }), Some(AbortThen::Hold)) => "held on demand".to_owned(),
                (ending, _) => ending.map_or("unfinished", name).to_owned(),
            })
            .collect(),
        held_because,
        violations: violations.into_iter().map(|v| plain(after, v)).collect(),
        counts: after.counts.clone(),
        takeovers: takeovers(&after.lines),
        lost_commits: count(&after.lines, |seen| matches!(seen, Seen::AnswerLost { .. })),
        acts: count(&after.lines, |seen| matches!(seen, Seen::Acted { .. })),
        effects: count(&after.lines, |seen| matches!(seen, Seen::Effect { .. })),
        stale_requests: effects::stale_requests(&after.lines),
        simulated_seconds: after.took.as_secs_f64(),
        digest: digest(after),
    }
}

fn count(lines: &[Line], fits: impl Fn(&Seen) -> bool) -> u64 {
    lines.iter().filter(|line| fits(&line.seen)).count() as u64
}

fn name(ending: &Ending) -> &'static str {
    match ending {
        Ending::Verified => "verified",
        Ending::Undone { .. } => "undone",
        Ending::Partial { .. } => "partial",
        Ending::Held { .. } => "held",
    }
}

fn unsettled(after: &Aftermath) -> String {
    let open: Vec<&str> = after
        .journals
        .iter()
        .filter(|(_, events)| !events.iter().any(|r| matches!(r.event, Event::Ended { .. })))
        .map(|(id, _)| id.as_str())
        .collect();
    format!(
        "{} of {} operators were told an end within {:.0} s; not ended: {}",
        after.told.len(),
        after.operators,
        after.took.as_secs_f64(),
        if open.is_empty() { "none" } else { "some" },
    )
}

/// What a rollback says of its end, against how the fleet really stood at that moment, and what an operator was told.
fn truth(after: &Aftermath, journal: &Journal<'_>) -> Vec<String> {
    let id = journal.id;
    let picture = |opened: bool| {
        after.lines.iter().find_map(|line| match &line.seen {
            Seen::Opened { rollback, picture } if opened && rollback == id => Some(picture),
            Seen::Closed { rollback, picture } if !opened && rollback == id => Some(picture),
            _ => None,
        })
    };
    let (Some(ending), Some(before), Some(now)) = (journal.ending(), picture(true), picture(false)) else {
        return Vec::new();
    };
    let mut lies = Vec::new();
    for change in &journal.plan.body.changes {
        let target = &change.target;
        let (Some(was), Some(is)) = (before.get(target), now.get(target)) else {
            lies.push(format!("{target} is in the plan and not in the fleet"));
            continue;
        };
        let expected = match ending {
            Ending::Verified => Some((&change.to, true)),
            Ending::Undone { .. } => Some((&change.from, was.serves)),
            Ending::Partial { hosts, .. } if hosts.contains(&target.host) => None,
            Ending::Partial { .. } => Some((&change.to, true)),
            Ending::Held { .. } => None,
        };
        if let Some((revision, serves)) = expected
            && (is.revision != *revision || (serves && !is.serves))
        {
            lies.push(format!(
                "{}, but {target} is at {}{}",
                name(ending),
                is.revision.version,
                if is.serves { "" } else { " and does not serve" }
            ));
        }
    }
    let told = after.told.get(id.as_str());
    let expected = match ending {
        Ending::Verified => RollbackState::Verified,
        Ending::Undone { .. } => RollbackState::Undone,
        Ending::Partial { .. } => RollbackState::Partial,
        Ending::Held { .. } => RollbackState::Held,
    };
    if told.is_some_and(|told| *told != expected) {
        lies.push(format!("{}, but the operator was told {told:?}", name(ending)));
    }
    lies
}

/// A person is to be asked only when nobody else can know: a move that was cut off half way, or a way back that fails.
fn may_be_held(after: &Aftermath) -> bool {
    let torn = after.lines.iter().any(|line| matches!(line.seen, Seen::Torn { .. }));
    let no_way_back = after.seed.temper.failing.iter().any(|(_, _, undo)| *undo);
    torn || no_way_back
}

/// Nothing is written in the name of a leader that has been replaced.
fn stale_writes(lines: &[Line]) -> Vec<String> {
    let mut newest = 0;
    let mut stale = Vec::new();
    for line in lines {
        match &line.seen {
            Seen::Won { epoch, .. } if *epoch <= newest => {
                stale.push(format!("epoch {epoch} was given out after {newest}"));
            }
            Seen::Won { epoch, .. } => newest = *epoch,
            Seen::Written { epoch, first, .. } if *epoch < newest => {
                stale.push(format!(
                    "event {first} was written with epoch {epoch}, after epoch {newest} had begun"
                ));
            }
            _ => {}
        }
    }
    stale
}

/// One rollback at a time for overlapping scopes. All that the simulation starts overlap.
fn overlaps(after: &Aftermath) -> Vec<String> {
    let mut running: Option<&RollbackId> = None;
    let mut found = Vec::new();
    for line in &after.lines {
        match &line.seen {
            Seen::Opened { rollback, .. } => {
                if let Some(other) = running.replace(rollback) {
                    found.push(format!("{rollback} began while {other} ran"));
                }
            }
            Seen::Closed { .. } => running = None,
            _ => {}
        }
    }
    found
}

fn takeovers(lines: &[Line]) -> u64 {
    let (mut running, mut takeovers) = (false, 0);
    for line in lines {
        match &line.seen {
            Seen::Opened { .. } => running = true,
            Seen::Closed { .. } => running = false,
            Seen::Won { .. } if running => takeovers += 1,
            _ => {}
        }
    }
    takeovers
}

/// Ids of rollbacks carry real time, and so are another for every run.
fn plain(after: &Aftermath, text: String) -> String {
    let ids = after.journals.iter().enumerate();
    ids.fold(text, |text, (n, (id, _))| {
        text.replace(id.as_str(), &format!("rollback-{}", n + 1))
    })
}

/// Everything that was seen, line by line, without real time.
pub fn transcript(after: &Aftermath) -> Vec<String> {
    let line = |line: &Line| {
        let what = match &line.seen {
            Seen::Written {
                epoch,
                rollback,
                first,
                events,
            } => format!("Written {rollback} {first} epoch {epoch}: {}", timeless(events)),
            other => format!("{other:?}"),
        };
        plain(after, format!("{:10.3} {what}", line.at.as_secs_f64()))
    };
    after.lines.iter().map(line).collect()
}

fn timeless(events: &[Event]) -> String {
    let brief = |event: &Event| match event {
        Event::Created { plan, .. } => format!("Created plan {}", plan.digest),
        other => {
            let mut value = serde_json::to_value(other).unwrap_or_default();
            strip(&mut value);
            value.to_string()
        }
    };
    events.iter().map(brief).collect::<Vec<_>>().join(" ")
}

fn strip(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|key, _| !matches!(key.as_str(), "at" | "operations"));
            fields.values_mut().for_each(strip);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(strip),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

fn digest(after: &Aftermath) -> String {
    let mut hash = Sha256::new();
    for line in transcript(after) {
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    hex::encode(hash.finalize())
}

/// Sums up the endings of many runs.
pub fn tally(endings: impl IntoIterator<Item = String>) -> BTreeMap<String, u64> {
    let mut tally = BTreeMap::new();
    for ending in endings {
        *tally.entry(ending).or_insert(0) += 1;
    }
    tally
}
