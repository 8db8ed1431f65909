//! From what is asked for on the wire to what the planner is asked: where to, which part of the fleet, and what a person
//! should know of that before agreeing.
//!
//! Pure. Labels are the agents' own, so which hosts have them is known here and not to the planner.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rollback_engine::event::{Finding, Severity};
use rollback_engine::ids::{HostName, ReleaseName, RollbackId, Target};
use rollback_engine::plan::{DatabaseChoice, OnFailure, Plan, PlanBody, Selection};
use rollback_engine::planner::{Purpose, Request};
use rollback_engine::release::{Action, Release, ReleaseEntry, Role};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;

use crate::prospect::Found;
use crate::store::AgentRecord;

/// How many names a message spells out.
const NAMED: usize = 8;
/// Longest label, "key=value".
const LONGEST_LABEL: usize = 512;

/// Where the fleet shall go. Exactly one of the three is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// By name, or "previous".
    Release(String),
    Undo(RollbackId),
    Converge,
}

impl Goal {
    pub fn of(target: &v1::RollbackTarget) -> Result<Self, Problem> {
        match (target.release.as_str(), target.undo_of.as_str(), target.converge) {
            (release, "", false) => {
                check_name("release", release)?;
                Ok(Goal::Release(release.to_owned()))
            }
            ("", id, false) => {
                check_name("rollback", id)?;
                Ok(Goal::Undo(id.into()))
            }
            ("", "", true) => Ok(Goal::Converge),
            (_, _, _) => Err(Problem::new(
                Code::BadRequest,
                "the target is a release, a rollback to take back, or where everything shall be: exactly one of them",
            )),
        }
    }

    pub fn purpose(&self) -> Purpose {
        match self {
            Goal::Release(_) => Purpose::Rollback,
            Goal::Undo(id) => Purpose::Undo(id.clone()),
            Goal::Converge => Purpose::Converge,
        }
    }
}

/// `None`: what the runbook says. A number that this version does not know must not become that.
pub fn on_failure(number: i32) -> Result<Option<OnFailure>, Problem> {
    match v1::FailureChoice::try_from(number) {
        Ok(v1::FailureChoice::Unspecified) => Ok(None),
        Ok(v1::FailureChoice::Undo) => Ok(Some(OnFailure::Undo)),
        Ok(v1::FailureChoice::Pause) => Ok(Some(OnFailure::Pause)),
        Ok(v1::FailureChoice::Hold) => Ok(Some(OnFailure::Hold)),
        Err(_) => {
            let message = format!("the request says {number} of failures, which this coordinator does not know");
            Err(Problem::new(Code::BadRequest, message).remedy("update the coordinator, then try again"))
        }
    }
}

/// The request for a scope, with its labels looked up.
pub fn request(scope: v1::Scope, purpose: Purpose, agents: &[AgentRecord]) -> Result<Request, Problem> {
    for service in scope.services.iter().chain(&scope.exclude_services) {
        check_name("service", service)?;
    }
    for host in scope.hosts.iter().chain(&scope.exclude_hosts) {
        check_name("host", host)?;
    }
    let labels: BTreeSet<String> = scope.labels.into_iter().collect();
    let labelled = labelled(&labels, agents)?;
    Ok(Request {
        selection: Selection {
            services: scope.services.into_iter().map(Into::into).collect(),
            hosts: scope.hosts.into_iter().map(Into::into).collect(),
            labels,
            exclude_services: scope.exclude_services.into_iter().map(Into::into).collect(),
            exclude_hosts: scope.exclude_hosts.into_iter().map(Into::into).collect(),
        },
        labelled,
        purpose,
    })
}

/// The hosts that have all of these labels.
fn labelled(labels: &BTreeSet<String>, agents: &[AgentRecord]) -> Result<BTreeSet<HostName>, Problem> {
    let mut wanted = Vec::new();
    for label in labels {
        let pair = label.split_once('=').filter(|(key, _)| !key.is_empty());
        let pair = pair.filter(|_| label.len() <= LONGEST_LABEL).ok_or_else(|| {
            let shown: String = label.chars().take(40).collect();
            Problem::new(Code::BadName, format!("{shown:?} is not a label, KEY=VALUE"))
                .remedy("rollbackctl agent list shows the labels of every host")
        })?;
        wanted.push(pair);
    }
    let has = |agent: &AgentRecord, (key, value): &(&str, &str)| agent.labels.get(*key).is_some_and(|v| v == value);
    for label in &wanted {
        if !agents.iter().any(|agent| has(agent, label)) {
            return Err(unknown_label(*label, agents));
        }
    }
    let fits = |agent: &&AgentRecord| wanted.iter().all(|label| has(agent, label));
    let hosts: BTreeSet<HostName> = agents.iter().filter(fits).map(|a| a.name.as_str().into()).collect();
    if hosts.is_empty() && !wanted.is_empty() {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let message = format!("no host has all of these labels: {}", labels.join(", "));
        return Err(Problem::new(Code::PlanRefused, message).remedy("leave one out: every label narrows the scope"));
    }
    Ok(hosts)
}

/// Says the values that there are of the key, or else the keys that there are.
fn unknown_label((key, value): (&str, &str), agents: &[AgentRecord]) -> Problem {
    let values: BTreeSet<String> = agents
        .iter()
        .filter_map(|a| a.labels.get(key))
        .map(|value| format!("{key}={value}"))
        .collect();
    let known = if values.is_empty() {
        let pairs = agents.iter().flat_map(|a| &a.labels);
        pairs.map(|(key, value)| format!("{key}={value}")).collect()
    } else {
        values
    };
    let there_are = match known.len() {
        0 => "no host has any label".to_owned(),
        _ => format!("there are: {}", some(known.into_iter())),
    };
    Problem::new(
        Code::PlanRefused,
        format!("no host has the label {key}={value}; {there_are}"),
    )
    .remedy("correct the label; rollbackctl agent list shows the labels of every host")
}

/// Where everything was before this rollback, as a release. The name is for people: that of the newest release of `recorded`
/// that it is a part of, or one that says what it is.
pub fn release_before(id: &RollbackId, plan: &PlanBody, recorded: &[Release]) -> Release {
    let entries: Vec<ReleaseEntry> = plan
        .changes
        .iter()
        .map(|change| ReleaseEntry {
            target: change.target.clone(),
            role: change.role,
            revision: change.from.clone(),
            summary: String::new(),
        })
        .collect();
    let was = |release: &&Release| {
        let of: BTreeMap<_, _> = release.entries.iter().map(|e| (&e.target, &e.revision)).collect();
        entries.iter().all(|e| of.get(&e.target) == Some(&&e.revision))
    };
    let named = recorded.iter().filter(was).max_by_key(|r| (r.rank(), &r.name));
    let short: String = id.as_str().chars().take(8).collect();
    let name = named.map_or_else(|| ReleaseName(format!("before-{short}")), |r| r.name.clone());
    Release {
        name,
        entries,
        recorded_at: Timestamp::UNIX_EPOCH,
        ..unrecorded()
    }
}

/// It is never stored, and stands before and after no other one.
fn unrecorded() -> Release {
    Release {
        name: ReleaseName(String::new()),
        commit: String::new(),
        notes: String::new(),
        recorded_at: Timestamp::UNIX_EPOCH,
        recorded_by: String::new(),
        entries: Vec::new(),
        stable: false,
        ranks_at: None,
        mark: None,
    }
}

/// A database that was taken to a backup has lost what was written before, and what is in it now belongs to the release that it
/// was taken to. Going back by a plan would need the data that were put aside, which only a person can judge.
pub fn check_way_back(id: &RollbackId, plan: &PlanBody, choice: Option<DatabaseChoice>) -> Result<(), Problem> {
    let restored: Vec<String> = plan.restored_databases().map(Target::to_string).collect();
    let leaves_data = matches!(choice, Some(DatabaseChoice::Keep | DatabaseChoice::Migrate));
    if restored.is_empty() || leaves_data {
        return Ok(());
    }
    let message = format!(
        "rollback {id} restored {} from a backup: what was live before is put aside there, and is not gone back to by a plan",
        some(restored.into_iter())
    );
    Err(Problem::new(Code::NoWayBack, message).remedy(
        "say what becomes of the database: --database keep leaves it, --database migrate brings its schema forward; for the data \
         that were put aside: rollback-agent database list COMPONENT on the host",
    ))
}

/// What is worth knowing of the part of the fleet that a plan is about.
pub fn warnings(plan: &Plan, agents: &[AgentRecord]) -> Vec<Found> {
    let body = &plan.body;
    let components: BTreeMap<Target, _> = agents
        .iter()
        .flat_map(|a| {
            let target = |name: &str| Target::new(a.name.as_str(), name);
            a.components.iter().map(move |c| (target(&c.name), c))
        })
        .collect();
    let outside = |role: Role| {
        let outside = body.outside.iter().filter_map(|t| Some((t, components.get(t)?)));
        outside.filter(move |(_, c)| c.role == role)
    };
    let mut found = Vec::new();
    let apps: Vec<String> = outside(Role::App).map(|(t, _)| t.to_string()).collect();
    let databases = body
        .changes
        .iter()
        .filter(|c| c.role == Role::Database && c.is_needed());
    for database in databases.filter(|_| !apps.is_empty()) {
        let message = format!(
            "applications outside of the scope are not stopped while {} changes, and stay as they are: {}",
            database.target,
            some(apps.iter().cloned())
        );
        let remedy = "make sure that none of them uses it, or take them into the scope";
        found.push(warning(&database.target, message, remedy));
    }
    let restarts: BTreeSet<&Target> = body
        .steps()
        .filter(|s| matches!(s.action, Action::Stop | Action::Switch))
        .map(|s| &s.target)
        .collect();
    for (proxy, component) in outside(Role::Proxy) {
        let backends: BTreeSet<&Target> = component.backends.iter().flatten().collect();
        let met: Vec<String> = backends.intersection(&restarts).map(|t| t.to_string()).collect();
        if !met.is_empty() && !body.schema_changes {
            let message = format!(
                "it is outside of the scope, so these restart without being taken out of it: {}",
                some(met.into_iter())
            );
            found.push(warning(
                proxy,
                message,
                "do not exclude the proxy, or take them out by hand",
            ));
        }
    }
    found
}

fn warning(target: &Target, message: String, remedy: &str) -> Found {
    Found {
        target: target.clone(),
        finding: Finding {
            severity: Severity::Warning,
            code: String::new(),
            message,
            remedy: remedy.to_owned(),
            loss: None,
        },
    }
}

/// "a, b, c and 4 more".
fn some(names: impl ExactSizeIterator<Item = String>) -> String {
    let total = names.len();
    let mut text = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if let more @ 1.. = total.saturating_sub(NAMED) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests;
