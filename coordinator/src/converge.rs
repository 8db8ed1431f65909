//! Brings hosts home that were away while the fleet went somewhere else, when the runbook of that rollback says so: the leader
//! starts a rollback for each of them as soon as it is connected again.
//!
//! ```text
//! awaited ──connected──▶ elsewhere? ──yes──▶ rollback 1 ──verified──▶ home
//!    ▲                       │ no                │ undone
//!    └─ looked at later ◀────┘                   └──▶ pause ──▶ rollback 2 … ──▶ given up, until a person acts
//! ```
//!
//! Invariants:
//! - A request id follows from the rollback that went on without the host, the host, and the attempt. So each attempt is
//!   started once, whichever leader does it, and the journal knows how many there were.
//! - At most [`ATTEMPTS`] rollbacks, with pauses between them; none after one that was held or that somebody ended. A person
//!   who is asked for (consent, approval, a database that changes) is not replaced.
//! - Whoever else goes anywhere goes first, whatever part of the fleet that is about: where the fleet shall be then is not
//!   known before. And away from the others, or to a release that was held since, no host is taken without being asked.
//!
//! Leaves out hosts on which something failed, and those that an operator left out: [`crate::objective`] says which these are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rollback_engine::ids::{Epoch, HostName, RollbackId};
use rollback_engine::plan::Plan;
use rollback_engine::planner::{self, Purpose, Request};
use rollback_proto::problem::{Code, Problem};
use tokio::time::Instant;

use crate::inventory::Inventory;
use crate::leader::{Leader, Start};
use crate::objective::{self, Convergence, Objectives};
use crate::projection::{Summary, SummaryState};
use crate::replica::Replica;
use crate::shelf;
use crate::store::{Store, StoreError};
use crate::survey::{self, HostSurvey};
use crate::{history, hold};

/// Rollbacks for one host.
const ATTEMPTS: u32 = 3;
/// After the first one that did not help; five times as long after each further one.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(60);
/// How often it is looked whether an awaited host is back.
const LOOK: Duration = Duration::from_secs(1);
/// How often the store is asked who is awaited, when no rollback has ended here.
const READ_AGAIN: Duration = Duration::from_secs(15);
/// A host of which no plan can be made is looked at again: first soon, since it may still be starting, then ever later.
const LATER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// Who started it, in the journal.
pub const US: &str = "coordinator";

/// Whenever this replica leads, until the process stops.
pub async fn keep(replica: Replica) {
    let stop = replica.parts().stop.clone();
    let mut past = Epoch(0);
    loop {
        let leader = tokio::select! {
            () = stop.cancelled() => return,
            leader = replica.until_leading_after(past) => leader,
        };
        let term = leader.shared().term.clone();
        past = term.epoch();
        let mut keeper = Keeper {
            leader,
            inventory: Arc::clone(&replica.parts().inventory),
            later: BTreeMap::new(),
            given_up: BTreeSet::new(),
        };
        tokio::select! {
            biased;
            () = term.ended() => {}
            () = keeper.in_term() => {}
        }
    }
}

/// Of one term.
struct Keeper {
    leader: Leader,
    inventory: Arc<Inventory>,
    /// Hosts that are not looked at before their time.
    later: BTreeMap<HostName, Later>,
    /// Hosts that a person has been told of.
    given_up: BTreeSet<HostName>,
}

struct Later {
    /// For which rollback it was looked at: another one that missed it begins anew.
    missed_by: RollbackId,
    not_before: Instant,
    pause: Duration,
}

impl Keeper {
    /// Goes on until the term ends.
    async fn in_term(&mut self) {
        let mut rollbacks = self.leader.watch_count();
        loop {
            rollbacks.mark_unchanged();
            let read = Instant::now();
            match objective::all(self.store()).await {
                Ok(objectives) => {
                    let awaited = awaited(&objectives);
                    self.later
                        .retain(|host, later| awaited.get(host) == Some(&later.missed_by));
                    for host in self.given_up.extract_if(.., |host| !awaited.contains_key(host)) {
                        self.leader.shared().troubles.over(&subject(&host));
                    }
                    loop {
                        self.look(&awaited).await;
                        // One that ends may say anew who is awaited. The sender lives as long as the leader.
                        let news = tokio::time::timeout(LOOK, rollbacks.changed()).await;
                        if news.is_ok() || read.elapsed() >= READ_AGAIN {
                            break;
                        }
                    }
                }
                // A store that does not answer ends the term by other means.
                Err(error) => {
                    tracing::debug!(%error, "read where hosts shall be");
                    tokio::time::sleep(READ_AGAIN).await;
                }
            }
        }
    }

    fn store(&self) -> &dyn Store {
        self.leader.shared().store.as_ref()
    }

    async fn look(&mut self, awaited: &BTreeMap<HostName, RollbackId>) {
        let now = Instant::now();
        // One that went away again is looked at as soon as it is back.
        self.later.retain(|host, _| self.inventory.is_connected(host.as_str()));
        let due: Vec<(&HostName, &RollbackId)> = awaited
            .iter()
            .filter(|(host, _)| self.later.get(*host).is_none_or(|later| later.not_before <= now))
            .filter(|(host, _)| self.inventory.is_connected(host.as_str()))
            .collect();
        if due.is_empty() {
            return;
        }
        if self.is_under_way().await {
            due.into_iter().for_each(|(host, id)| self.put_off(host, id, true));
            return;
        }
        let survey = survey::observe(&self.inventory).await;
        // What was recorded since it was read the last time counts.
        let Ok(objectives) = &objective::all(self.store()).await else {
            return;
        };
        let still_awaited = self::awaited(objectives);
        let away = objective::converging(objectives, &survey, |o| o.automatic);
        for (host, missed_by) in due {
            let here = away.as_ref().filter(|convergence| convergence.hosts.contains(host));
            let here = here.filter(|_| still_awaited.get(host) == Some(missed_by));
            let done = match here {
                // It is where it shall be, or cannot tell yet.
                None => Ok(()),
                Some(convergence) => match self.may_follow(host, objectives, &survey).await {
                    Ok(()) => self.bring_home(host, missed_by, convergence, &survey).await,
                    Err(problem) => Err(problem),
                },
            };
            // Whoever is at it will be done some time.
            let in_turn = matches!(&done, Err(problem) if problem.code == Code::ScopeHeld);
            if let Err(problem) = done {
                tracing::info!(%host, missed_by = %missed_by, %problem, "not brought where it shall be yet");
            }
            self.put_off(host, missed_by, in_turn);
        }
    }

    /// Does a rollback run that somebody asked for? One that nobody can read may be that.
    async fn is_under_way(&self) -> bool {
        let ours = |summary: &Option<Summary>| summary.as_ref().is_some_and(|s| s.started_by == US);
        match history::running(self.store()).await {
            Ok(running) => running.iter().any(|(_, summary)| !ours(summary)),
            // Nothing is begun without the store.
            Err(_) => true,
        }
    }

    /// Is it there that the fleet is, as far as anybody can tell?
    async fn may_follow(&self, host: &HostName, objectives: &Objectives, survey: &[HostSurvey]) -> Result<(), Problem> {
        if let Some(gone) = objective::gone_elsewhere(objectives, survey, host) {
            let message = format!("{gone} has gone elsewhere since {host} was left behind");
            let remedy = format!("record what runs now, or bring it there: rollbackctl fleet converge --host {host}");
            return Err(Problem::new(Code::ApprovalRefused, message).remedy(remedy));
        }
        let holds = hold::all(self.store()).await?;
        let of_host = objectives
            .iter()
            .filter(|(target, o)| target.host == *host && o.automatic);
        let held = of_host.filter_map(|(_, o)| Some((o, holds.get(&o.release)?)));
        // Whoever took the fleet to one that was held already knew that.
        let held = held.filter(|(o, hold)| hold.since > o.since);
        let mut held = held.map(|(o, hold)| (&o.release, hold));
        match held.next() {
            None => Ok(()),
            Some((release, hold)) => {
                let message = format!("{host} would go to {release}, which is {}", hold.told());
                let remedy = format!("bring it there all the same: rollbackctl fleet converge --host {host}");
                Err(Problem::new(Code::ApprovalRefused, message).remedy(remedy))
            }
        }
    }

    fn put_off(&mut self, host: &HostName, missed_by: &RollbackId, in_turn: bool) {
        let later = self.later.entry(host.clone()).or_insert_with(|| Later {
            missed_by: missed_by.clone(),
            not_before: Instant::now(),
            pause: LATER.0,
        });
        if in_turn {
            later.pause = LATER.0;
        }
        later.not_before = Instant::now() + later.pause;
        later.pause = (later.pause * 2).min(LATER.1);
    }

    async fn bring_home(
        &mut self,
        host: &HostName,
        missed_by: &RollbackId,
        convergence: &Convergence,
        survey: &[HostSurvey],
    ) -> Result<(), Problem> {
        let past = self.attempts(host, missed_by).await?;
        let attempt = match next(&past, Timestamp::now()) {
            Next::Attempt(attempt) => attempt,
            Next::Wait => return Ok(()),
            Next::GiveUp => {
                let what = format!(
                    "{host} was away during rollback {missed_by}, and it was not brought where it shall be; \
                     look why: rollbackctl rollback list; then: rollbackctl fleet converge --host {host}"
                );
                if self.given_up.insert(host.clone()) {
                    self.leader.shared().troubles.begin(subject(host), what);
                }
                return Ok(());
            }
        };
        let plan = self.plan(host, missed_by, convergence, survey).await?;
        if let Some(why) = needs_a_person(&plan) {
            let message = format!("{host} is not brought where it shall be without being asked: {why}");
            let problem = Problem::new(Code::ApprovalRefused, message);
            return Err(problem.remedy(format!("bring it there: rollbackctl fleet converge --host {host}")));
        }
        let start = Start {
            plan,
            request_id: request_id(missed_by, host, attempt),
            started_by: US.to_owned(),
            reason: format!("{host} was away when rollback {missed_by} went on without it"),
            incident: String::new(),
            // A root of its own.
            trace_id: hex::encode(rand::random::<[u8; 16]>()),
            parent_span_id: String::new(),
            consent: None,
        };
        let id = self.leader.start(start).await?;
        tracing::info!(%host, rollback = %id, %missed_by, attempt, "brings a host where it shall be");
        Ok(())
    }

    /// What became of every rollback for this host, in their order.
    async fn attempts(&self, host: &HostName, missed_by: &RollbackId) -> Result<Vec<Past>, StoreError> {
        let mut past = Vec::new();
        for attempt in 1..=ATTEMPTS {
            let Some(id) = self.store().requested(&request_id(missed_by, host, attempt)).await? else {
                break;
            };
            let summary = self.store().summary(&id).await?;
            let summary = summary.and_then(|s| serde_json::from_str::<Summary>(&s).ok());
            // One that cannot be read is for a person, too.
            past.push(summary.as_ref().map_or(Past::LeftToAPerson, Past::of));
        }
        Ok(past)
    }

    async fn plan(
        &self,
        host: &HostName,
        missed_by: &RollbackId,
        convergence: &Convergence,
        survey: &[HostSurvey],
    ) -> Result<Plan, Problem> {
        let summary = self.store().summary(missed_by).await?;
        let summary = summary.and_then(|s| serde_json::from_str::<Summary>(&s).ok());
        let summary =
            summary.ok_or_else(|| Problem::new(Code::NotFound, format!("rollback {missed_by} cannot be read")))?;
        let runbook = shelf::called(self.store(), &summary.runbook).await?.runbook()?;
        let mut request = Request {
            purpose: Purpose::Converge,
            ..Request::default()
        };
        request.selection.hosts.insert(host.clone());
        let observed = survey::observed_fleet(survey);
        planner::plan(&observed, &convergence.release, &runbook, &request)
            .map_err(|refused| Problem::new(Code::PlanRefused, refused.to_string()).remedy(refused.remedy()))
    }
}

fn subject(host: &HostName) -> String {
    format!("host {host}")
}

/// Hosts to be brought home without being asked, and the last rollback that went on without them.
fn awaited(objectives: &Objectives) -> BTreeMap<HostName, RollbackId> {
    let mut awaited: BTreeMap<HostName, RollbackId> = BTreeMap::new();
    for (target, objective) in objectives.iter().filter(|(_, objective)| objective.automatic) {
        if let Some(id) = &objective.rollback_id {
            let last = awaited.entry(target.host.clone()).or_insert_with(|| id.clone());
            // Ids sort by time.
            *last = last.clone().max(id.clone());
        }
    }
    awaited
}

fn request_id(missed_by: &RollbackId, host: &HostName, attempt: u32) -> String {
    format!("converge.{missed_by}.{host}.{attempt}")
}

/// What an operator has to say.
fn needs_a_person(plan: &Plan) -> Option<&'static str> {
    let body = &plan.body;
    if body.restored_databases().next().is_some() || body.schema_changes {
        Some("a database would change")
    } else if body.approval.is_some() {
        Some("its runbook wants a second operator to approve")
    } else {
        None
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    Runs,
    /// It ended well, or everything is as it was before: the next one may do better.
    Ended(Timestamp),
    /// It is held, or somebody has ended it.
    LeftToAPerson,
}

impl Past {
    fn of(summary: &Summary) -> Self {
        let aborted = summary.problem.as_ref().is_some_and(|p| p.code == Code::Aborted.id());
        match (summary.state, summary.ended_at) {
            (SummaryState::Running | SummaryState::Undoing, _) => Past::Runs,
            (SummaryState::Verified | SummaryState::Undone | SummaryState::Partial, Some(at)) if !aborted => {
                Past::Ended(at)
            }
            (
                SummaryState::Held | SummaryState::Verified | SummaryState::Undone | SummaryState::Partial,
                Some(_) | None,
            ) => Past::LeftToAPerson,
        }
    }
}

/// What is to be done for a host that is not where it shall be.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Attempt(u32),
    /// One runs, or ended a moment ago.
    Wait,
    GiveUp,
}

/// `past`: the attempts until now, in their order.
fn next(past: &[Past], now: Timestamp) -> Next {
    let number = u32::try_from(past.len()).unwrap_or(u32::MAX);
    match past.last() {
        None => Next::Attempt(1),
        Some(Past::Runs) => Next::Wait,
        Some(Past::LeftToAPerson) => Next::GiveUp,
        Some(Past::Ended(_)) if number >= ATTEMPTS => Next::GiveUp,
        Some(Past::Ended(at)) => {
            let pause = FIRST_PAUSE * 5_i32.saturating_pow(number.saturating_sub(1));
            if now.duration_since(*at) < pause {
                Next::Wait
            } else {
                Next::Attempt(number + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn attempts_are_few_and_far_between() {
        let ended = |second| Past::Ended(at(second));
        let table: [(&[Past], i64, Next); 9] = [
            (&[], 0, Next::Attempt(1)),
            (&[Past::Runs], 9999, Next::Wait),
            (&[ended(100)], 159, Next::Wait),
            (&[ended(100)], 160, Next::Attempt(2)),
            (&[ended(100), Past::Runs], 9999, Next::Wait),
            (&[ended(100), ended(200)], 499, Next::Wait),
            (&[ended(100), ended(200)], 500, Next::Attempt(3)),
            (&[ended(100), ended(200), ended(600)], 99_999, Next::GiveUp),
            (&[Past::LeftToAPerson], 99_999, Next::GiveUp),
        ];
        for (past, now, wanted) in table {
            assert_eq!(next(past, at(now)), wanted, "{past:?} at {now}");
        }
    }

    /// Who ended it did not do that to see it again a minute later.
    #[test]
    fn what_a_person_has_to_look_at_is_not_tried_again() {
        let table = [
            (SummaryState::Running, None, Past::Runs),
            (SummaryState::Undoing, Some(Code::Aborted), Past::Runs),
            (SummaryState::Undone, Some(Code::StepTimeout), Past::Ended(at(9))),
            (SummaryState::Undone, Some(Code::Aborted), Past::LeftToAPerson),
            (SummaryState::Held, Some(Code::StepTimeout), Past::LeftToAPerson),
            (SummaryState::Verified, None, Past::Ended(at(9))),
        ];
        for (state, code, wanted) in table {
            let runs = wanted == Past::Runs;
            let json = serde_json::json!({
                "id": "r", "release": "v2", "runbook": "default@3", "state": state, "blocked": false, "phase": "",
                "started_by": US, "reason": "", "incident": "", "started_at": at(1), "trace_id": "",
                "ended_at": (!runs).then(|| at(9)),
                "steps_total": 0, "steps_done": 0, "failed_hosts": [],
                "problem": code.map(|c| serde_json::json!({"code": c.id(), "message": "", "remedy": ""})),
            });
            let summary: Summary = serde_json::from_value(json).expect("a summary");
            assert_eq!(Past::of(&summary), wanted, "{state:?} {code:?}");
        }
    }

    /// Whichever leader does it: the same attempt is the same request, and none is another host's.
    #[test]
    fn request_ids_are_names() {
        let id = RollbackId("0198f0b2-7c1a-7e3f-9d55-000000000001".to_owned());
        let longest = HostName("h".repeat(64));
        let name = request_id(&id, &longest, ATTEMPTS);
        assert_ne!(name, request_id(&id, &longest, 1));
        assert!(name.ends_with(&format!("{longest}.3")), "{name}");
    }
}
