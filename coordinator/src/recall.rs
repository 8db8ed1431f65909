//! Asking the agents' ledgers at a takeover: they are the second copy of the truth.
//!
//! A store that lost commits which it had confirmed (a failover to an asynchronous replica, an older backup) does not know
//! it. The agents do: their ledgers hold steps that the journal has no intent for. Asking them also carries the new
//! leader's epoch to every agent, so that from then on they refuse the leader before it.
//!
//! An agent that does not answer in time holds nobody up. What it is asked to do later is fenced and keyed all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use rollback_engine::event::{Direction, Event};
use rollback_engine::ids::{Epoch, RollbackId};
use rollback_proto::kill_point;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::v1;
use v1::agent_client::AgentClient;

use crate::dispatcher::{Dispatcher, step_name};

/// For each agent. A takeover waits no longer, unless more than [`AT_ONCE`] are silent.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Agents asked at once: the question is small, and when half of a fleet is cut off, the other half waits for it.
const AT_ONCE: usize = 4096;
/// So many rollbacks an agent answers for at once.
const MAX_ROLLBACKS: usize = 64;

/// A step (its id and attempt), and the host that says that it was told to do it.
type Claim = ((String, u32), String);

/// What the ledgers know.
#[derive(Debug, Default)]
pub struct Recalled {
    /// By rollback, in the words of the wire.
    steps: BTreeMap<String, BTreeSet<Claim>>,
    /// Rollbacks that nobody asked for, with a host that knows of them.
    pub others: BTreeMap<String, String>,
    /// Hosts that did not answer, and why.
    pub silent: Vec<(String, Problem)>,
}

impl Recalled {
    /// Steps of this rollback that an agent was told to do and that the journal has no intent for: "step 17.undo on app-1".
    /// An agent is heard about the steps that the plan has for its host, and about no others: it could hold any rollback.
    pub fn unknown_to(&self, id: &RollbackId, events: &[Event]) -> Vec<String> {
        let intended: BTreeSet<(String, u32)> = events
            .iter()
            .filter_map(|event| match event {
                Event::StepIntended {
                    step,
                    direction,
                    attempt,
                    ..
                } => Some((step_name(*step, *direction), *attempt)),
                Event::Created { .. }
                | Event::PhaseStarted { .. }
                | Event::BatchStarted { .. }
                | Event::StepEnded { .. }
                | Event::PhaseEnded { .. }
                | Event::UndoStarted { .. }
                | Event::Steered { .. }
                | Event::Paused { .. }
                | Event::Ended { .. } => None,
            })
            .collect();
        let planned = events.iter().find_map(hosts_of_steps);
        let is_its_own = |step: &String, host: &String| {
            let planned = planned.as_ref();
            planned.is_none_or(|planned| planned.get(step) == Some(&host.as_str()))
        };
        let recalled = self.steps.get(id.as_str()).into_iter().flatten();
        recalled
            .filter(|(key, host)| !intended.contains(key) && is_its_own(&key.0, host))
            .map(|((step, _), host)| format!("step {step} on {host}"))
            .collect()
    }

    fn take_in(&mut self, host: &str, answer: v1::RecallResponse) {
        for step in answer.steps {
            let Some(key) = step.key else { continue };
            let steps = self.steps.entry(key.rollback_id).or_default();
            steps.insert(((key.step_id, key.attempt), host.to_owned()));
        }
        // Each of these can become a line for a person: no more than an honest agent names, and no other texts.
        let others = answer.other_rollbacks.into_iter().take(MAX_ROLLBACKS);
        for other in others.filter(|other| check_name("rollback", other).is_ok()) {
            self.others.entry(other).or_insert_with(|| host.to_owned());
        }
    }
}

/// Where the plan has each step, by the names of both directions. Of the first event.
fn hosts_of_steps(event: &Event) -> Option<BTreeMap<String, &str>> {
    let Event::Created { plan, .. } = event else {
        return None;
    };
    let names = plan.body.steps().flat_map(|step| {
        let host = step.target.host.as_str();
        [Direction::Forward, Direction::Undo].map(|direction| (step_name(step.id, direction), host))
    });
    Some(names.collect())
}

/// Asks these hosts for these rollbacks, all at once.
pub async fn recall(dispatcher: &Dispatcher, hosts: BTreeSet<String>, rollbacks: &[RollbackId]) -> Recalled {
    let rollback_ids: Vec<String> = rollbacks.iter().take(MAX_ROLLBACKS).map(|id| id.0.clone()).collect();
    let ask = |host: String| {
        let rollback_ids = rollback_ids.clone();
        async move {
            let asked = tokio::time::timeout(PATIENCE, recall_one(dispatcher, &host, rollback_ids)).await;
            let answer = asked.unwrap_or_else(|_| {
                Err(Problem::new(
                    Code::HostUnreachable,
                    format!("no answer within {PATIENCE:?}"),
                ))
            });
            (host, answer)
        }
    };
    let answers: Vec<_> = futures::stream::iter(hosts).map(ask).buffered(AT_ONCE).collect().await;
    let mut recalled = Recalled::default();
    for (host, answer) in answers {
        match answer {
            Ok(answer) => recalled.take_in(&host, answer),
            Err(problem) => {
                tracing::debug!(host, %problem, "the agent did not say what its ledger knows");
                recalled.silent.push((host, problem));
            }
        }
    }
    if let Some((host, problem)) = recalled.silent.first() {
        let agents = recalled.silent.len();
        tracing::info!(agents, first = host, %problem, "agents did not say what their ledgers know");
    }
    recalled
}

async fn recall_one(
    dispatcher: &Dispatcher,
    host: &str,
    rollback_ids: Vec<String>,
) -> Result<v1::RecallResponse, Problem> {
    let term = dispatcher.term();
    let channel = dispatcher.inventory().channel(host, PATIENCE).await?;
    let request = v1::RecallRequest {
        epoch: term.epoch().0,
        leader_id: term.leader_for_agents(),
        rollback_ids,
    };
    kill_point::pass(|| "rpc.recall.before".to_owned());
    let answer = AgentClient::new(channel).recall(request).await;
    kill_point::pass(|| "rpc.recall.answered".to_owned());
    answer.map(tonic::Response::into_inner).map_err(|status| {
        let problem = Problem::from_status(&status);
        if let (Code::StaleLeader, Some(Hint::Epoch(epoch))) = (problem.code, &problem.hint) {
            term.outdone(Epoch(*epoch));
        }
        problem
    })
}

/// The reason for which nothing of a rollback is asked for again.
pub fn journal_lost(unknown: &[String]) -> Problem {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = unknown.iter().take(SHOWN).map(String::as_str).collect();
    let more = match unknown.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Problem::new(
        Code::JournalLost,
        format!(
            "the agents remember what the journal does not: {}{more}; the store has lost what it had confirmed",
            shown.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rollback_engine::ids::StepId;

    use super::*;

    fn intended(step: u32, direction: Direction) -> Event {
        Event::StepIntended {
            at: Timestamp::UNIX_EPOCH,
            step: StepId(step),
            direction,
            attempt: 1,
        }
    }

    #[test]
    fn steps_without_an_intent_in_the_journal_are_told_and_only_those() {
        let key = |step: &str| v1::RecalledStep {
            key: Some(v1::StepKey {
                rollback_id: "r1".to_owned(),
                step_id: step.to_owned(),
                attempt: 1,
            }),
            state: v1::recalled_step::State::Ended.into(),
        };
        let mut recalled = Recalled::default();
        let answer = v1::RecallResponse {
            ledger_generation: "g".to_owned(),
            steps: vec![key("3"), key("3.undo"), key("4")],
            other_rollbacks: vec!["r0".to_owned()],
        };
        recalled.take_in("app-1", answer);
        let journal = [intended(3, Direction::Forward), intended(4, Direction::Forward)];
        assert_eq!(recalled.unknown_to(&"r1".into(), &journal), ["step 3.undo on app-1"]);
        assert!(recalled.unknown_to(&"r2".into(), &journal).is_empty());
        assert_eq!(recalled.others.get("r0").map(String::as_str), Some("app-1"));
        let problem = journal_lost(&recalled.unknown_to(&"r1".into(), &[]));
        assert!(
            problem.message.contains("step 3 on app-1, step 3.undo on app-1"),
            "{problem}"
        );
    }

    #[test]
    fn an_agent_is_heard_about_its_own_steps_alone_and_names_no_more_than_an_honest_one() {
        const JOURNAL: &str = include_str!("../engine/tests/journals/v1-demo.jsonl");
        let created: Event = serde_json::from_str(JOURNAL.lines().next().expect("a line")).expect("an event");
        let Event::Created { plan, .. } = &created else {
            panic!("a journal begins otherwise")
        };
        let step = plan.body.steps().last().expect("a step");
        let claim = v1::RecalledStep {
            key: Some(v1::StepKey {
                rollback_id: "r1".to_owned(),
                step_id: step_name(step.id, Direction::Forward),
                attempt: 1,
            }),
            state: v1::recalled_step::State::Ended.into(),
        };
        let answer = v1::RecallResponse {
            ledger_generation: "g".to_owned(),
            steps: vec![claim],
            other_rollbacks: (0..10_000)
                .map(|n| format!("r{n}"))
                .chain(["a\nb".to_owned()])
                .collect(),
        };
        let mut liar = Recalled::default();
        liar.take_in("somebody-else", answer.clone());
        let journal = std::slice::from_ref(&created);
        assert!(liar.unknown_to(&"r1".into(), journal).is_empty());
        assert_eq!(liar.others.len(), MAX_ROLLBACKS);

        let mut both = liar;
        both.take_in(step.target.host.as_str(), answer);
        assert_eq!(
            both.unknown_to(&"r1".into(), journal).len(),
            1,
            "another's lie hides nothing"
        );
    }
}
