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
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, RollbackId};
use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::v1;
use v1::agent_client::AgentClient;

use crate::dispatcher::{Dispatcher, step_name};
use crate::survey::AT_ONCE;

/// For all agents together: a takeover waits no longer.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// So many rollbacks an agent answers for at once.
const MAX_ROLLBACKS: usize = 64;

/// What the ledgers know.
#[derive(Debug, Default)]
pub struct Recalled {
    /// Steps by rollback, in the words of the wire: (step id, attempt).
    steps: BTreeMap<String, BTreeMap<(String, u32), String>>,
    /// Rollbacks that nobody asked for, with a host that knows of them.
    pub others: BTreeMap<String, String>,
    /// Hosts that did not answer.
    pub silent: Vec<String>,
}

impl Recalled {
    /// Steps of this rollback that an agent was told to do and that the journal has no intent for: "step 17.undo on app-1".
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
                | Event::Ended { .. } => None,
            })
            .collect();
        let recalled = self.steps.get(id.as_str()).into_iter().flatten();
        recalled
            .filter(|(key, _)| !intended.contains(key))
            .map(|((step, _), host)| format!("step {step} on {host}"))
            .collect()
    }

    fn take_in(&mut self, host: &str, answer: v1::RecallResponse) {
        for step in answer.steps {
            let Some(key) = step.key else { continue };
            let steps = self.steps.entry(key.rollback_id).or_default();
            steps.insert((key.step_id, key.attempt), host.to_owned());
        }
        for other in answer.other_rollbacks {
            self.others.entry(other).or_insert_with(|| host.to_owned());
        }
    }
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
                tracing::info!(host, %problem, "the agent did not say what its ledger knows");
                recalled.silent.push(host);
            }
        }
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
        leader_id: term.leader().to_owned(),
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
    use rollback_engine::event::Direction;
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
}
