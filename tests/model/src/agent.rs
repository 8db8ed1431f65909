//! The agents with their hosts, as `executor`, `settle`, `recovery` and `ledger` do it.
//!
//! - Whoever asks is fenced first: a lower epoch, or the same one of another leader, is refused, and a higher one is durable
//!   before anything else. The fence is asked again when a step's turn comes.
//! - What mutates: a known outcome is the answer; a running step is joined; else intent, driver, result, answers, with one
//!   step of a component at a time. What only reads is done at once and leaves nothing behind.
//! - A kill leaves intents without results; the driver's probe says what became of each.

use std::collections::BTreeMap;

use rollback_engine::release::{Action, Role};

use crate::action::How;
use crate::configuration::Safeguard;
use crate::coverage::{Met, Notes};
use crate::model::Fleetwide;
use crate::world::{
    Agent, Cause, Component, Entry, Fault, Fence, Key, Reply, Revised, Said, Stage, Standing, Task, Term, World,
};

impl Fleetwide {
    /// `Err`: this epoch is obeyed instead.
    pub(crate) fn observe(&self, agent: &mut Agent, fence: Fence) -> Result<(), u8> {
        match agent.seen {
            Some(known) if known == fence => Ok(()),
            Some(known) if fence.epoch <= known.epoch => {
                if self.lacks(Safeguard::EpochCheck) {
                    Ok(())
                } else {
                    Err(known.epoch)
                }
            }
            Some(_) | None => {
                agent.seen = Some(fence);
                Ok(())
            }
        }
    }

    /// Is this a leader that the agent must not obey any more? Asked by the property, not by the agent.
    fn is_stale(agent: &Agent, fence: Fence) -> bool {
        agent
            .seen
            .is_some_and(|known| known != fence && fence.epoch <= known.epoch)
    }

    /// A request to execute a step arrives.
    pub(crate) fn execute(&self, w: &mut World, term: Term, key: Key, generation: u8, fails: bool, notes: &mut Notes) {
        let subject = self.subject(key);
        let host = subject.host(key.step);
        let asked = subject.asked(key.step);
        let sender_leads = w.coordinators.iter().any(|c| c.standing.term() == Some(term));
        if !sender_leads {
            notes.note(Met::Late);
        }
        let World {
            agents,
            wire,
            left,
            faults,
            ..
        } = w;
        let agent = &mut agents[host];
        if Self::is_stale(agent, term.fence) && self.lacks(Safeguard::EpochCheck) {
            faults.note(Fault::ObeyedStale);
        }
        if let Err(known) = self.observe(agent, term.fence) {
            notes.note(Met::StaleAtAgent);
            wire.insert(Reply::Stale(known).to(key, term.serial));
            return;
        }
        if !asked.mutates() {
            if fails {
                left.failures = left.failures.saturating_sub(1);
            }
            let said = if fails {
                Said::Failed
            } else {
                self.look(&agent.component, asked.action)
            };
            wire.insert(Reply::Said(said).to(key, term.serial));
            return;
        }
        if generation != agent.generation {
            notes.note(Met::LedgerLost);
            wire.insert(Reply::LedgerLost.to(key, term.serial));
            return;
        }
        if let Some(Entry::Ended(said)) = agent.ledger.get(&key) {
            notes.note(Met::FromLedger);
            notes.note(Met::Duplicate);
            if !self.lacks(Safeguard::AnswerAgain) {
                wire.insert(Reply::Said(*said).to(key, term.serial));
            }
            return;
        }
        match agent.tasks.get_mut(&key) {
            Some(task) => {
                let known = task.asked_by.insert(term.serial, term.fence);
                notes.note(if known.is_some() { Met::Duplicate } else { Met::Joined });
            }
            None => {
                let task = Task {
                    fence: term.fence,
                    asked_by: BTreeMap::from([(term.serial, term.fence)]),
                    stage: Stage::Queued,
                };
                agent.tasks.insert(key, task);
            }
        }
    }

    /// What a step that only reads sees.
    fn look(&self, component: &Component, action: Action) -> Said {
        match action {
            Action::Verify if self.lacks(Safeguard::HonestSight) => Said::Done(Some(Revised::Target)),
            Action::Verify if component.running && !component.drained => Said::Done(Some(component.revision)),
            Action::Verify => Said::Failed,
            Action::Prepare
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Drain
            | Action::Resume
            | Action::Stop
            | Action::Start
            | Action::Switch
            | Action::Finish => Said::Done(None),
        }
    }

    /// A step's turn comes: its intent becomes durable, or it is refused.
    pub(crate) fn begin(&self, w: &mut World, host: usize, key: Key, notes: &mut Notes) {
        let World {
            agents, wire, faults, ..
        } = w;
        let agent = &mut agents[host];
        let Some(mut task) = agent.tasks.remove(&key) else {
            return;
        };
        if Self::is_stale(agent, task.fence) && self.lacks(Safeguard::EpochCheck) {
            faults.note(Fault::ObeyedStale);
        }
        if self.observe(agent, task.fence).is_err() {
            notes.note(Met::StaleAtItsTurn);
            // The refusal was for whoever started it. Who joined asks again: under its own epoch, the step starts anew.
            let known = agent.seen.map_or(0, |known| known.epoch);
            let (valid, stale): (BTreeMap<u8, Fence>, BTreeMap<u8, Fence>) = task
                .asked_by
                .iter()
                .partition(|(_, fence)| !Self::is_stale(agent, **fence));
            wire.extend(stale.keys().map(|serial| Reply::Stale(known).to(key, *serial)));
            if let Some(fence) = valid.values().max().copied() {
                task.fence = fence;
                task.asked_by = valid;
                agent.tasks.insert(key, task);
            }
            return;
        }
        if agent.ledger.insert(key, Entry::Unfinished) == Some(Entry::Interrupted) {
            notes.note(Met::RanAgain);
        }
        task.stage = Stage::Begun;
        agent.tasks.insert(key, task);
    }

    /// The driver does its work.
    pub(crate) fn drive(&self, w: &mut World, host: usize, key: Key, how: How, notes: &mut Notes) {
        let subject = self.subject(key);
        let asked = subject.asked(key.step);
        let applied = match how {
            How::Well | How::FailsAfter => true,
            How::Fails => false,
            How::Unsure { applied } => applied,
        };
        match how {
            How::Well => {}
            How::Fails | How::FailsAfter => w.left.failures = w.left.failures.saturating_sub(1),
            How::Unsure { .. } => w.left.unknowns = w.left.unknowns.saturating_sub(1),
        }
        if applied {
            let forth = asked.action == Action::Switch && !key.step.back;
            let unstaged = |(facts, agent): (&crate::fleet::HostFacts, &Agent)| facts.staged && !agent.component.staged;
            if forth && subject.hosts.iter().zip(&w.agents).any(unstaged) {
                w.faults.note(Fault::SwitchedUnstaged);
            }
            if forth && subject.hosts[host].role == Role::Database && !w.agents[host].component.snapshot {
                w.faults.note(Fault::ChangedUnprotected);
            }
            let waits = |standing: &Standing| match standing {
                Standing::Leading { running, .. } => {
                    let local = running[usize::from(key.rollback)];
                    local.is_some_and(|local| self.machine.node(local).awaits(key.step))
                }
                Standing::TakingOver { .. } | Standing::Following => false,
            };
            let ended = self.journal(w, key.rollback).end.is_some();
            if ended && !w.coordinators.iter().any(|c| waits(&c.standing)) {
                notes.note(Met::LateEffect);
            }
            self.take_effect(w, host, key);
        }
        let agent = &mut w.agents[host];
        let observed = matches!(asked.action, Action::Switch | Action::Start).then_some(agent.component.revision);
        let observed = observed.map(|seen| if self.pretends(key) { asked.to } else { seen });
        let said = match how {
            How::Well => Said::Done(observed),
            How::Fails | How::FailsAfter => Said::Failed,
            How::Unsure { .. } => Said::Unknown(Cause::Step),
        };
        if let Some(task) = agent.tasks.get_mut(&key) {
            task.stage = Stage::Driven { said, applied };
        }
    }

    /// Says that it was done, and does nothing.
    fn pretends(&self, key: Key) -> bool {
        let switches = self.subject(key).asked(key.step).action == Action::Switch;
        key.step.back && self.lacks(Safeguard::HonestUndo) || switches && self.lacks(Safeguard::HonestSight)
    }

    fn take_effect(&self, w: &mut World, host: usize, key: Key) {
        let asked = self.subject(key).asked(key.step);
        let agent = &mut w.agents[host];
        // Across the loss of a ledger, what leaves the service alone may be done again.
        let counts = self.configuration.budget.wipes == 0 || asked.action.changes_service();
        if !agent.taken.insert(key) && counts {
            w.faults.note(Fault::TookEffectTwice);
        }
        if self.pretends(key) {
            return;
        }
        let component = &mut agent.component;
        match asked.action {
            Action::Prepare | Action::Verify | Action::Finish => {}
            Action::Stage => component.staged = !self.lacks(Safeguard::HonestStage),
            Action::Discard => component.staged = false,
            Action::Snapshot => component.snapshot = !self.lacks(Safeguard::HonestSnapshot),
            Action::Drain => component.drained = true,
            Action::Resume => component.drained = false,
            Action::Stop => component.running = false,
            Action::Start => component.running = true,
            Action::Switch => component.revision = asked.to,
        }
    }

    /// The result becomes durable, and everybody who asked is answered.
    pub(crate) fn finish(&self, w: &mut World, host: usize, key: Key) {
        let agent = &mut w.agents[host];
        let Some(task) = agent.tasks.remove(&key) else {
            return;
        };
        if let Stage::Driven { said, .. } = task.stage {
            agent.ledger.insert(key, Entry::Ended(said));
            let answers = task.asked_by.keys().map(|serial| Reply::Said(said).to(key, *serial));
            w.wire.extend(answers);
        }
    }

    /// The process ends, the next one resolves what was cut off.
    pub(crate) fn kill(&self, w: &mut World, host: usize, unsure: bool, notes: &mut Notes) {
        w.left.kills = w.left.kills.saturating_sub(1);
        if unsure {
            w.left.unknowns = w.left.unknowns.saturating_sub(1);
        }
        let agent = &mut w.agents[host];
        for (key, task) in std::mem::take(&mut agent.tasks) {
            let applied = match task.stage {
                Stage::Queued => continue,
                Stage::Begun => false,
                Stage::Driven { applied, .. } => applied,
            };
            let asked = self.subject(key).asked(key.step);
            let entry = if self.lacks(Safeguard::Probe) {
                Entry::Interrupted
            } else if unsure {
                notes.note(Met::FoundUnclear);
                Entry::Ended(Said::Unknown(Cause::Step))
            } else if applied {
                notes.note(Met::FoundApplied);
                let observed = matches!(asked.action, Action::Switch | Action::Start);
                Entry::Ended(Said::Done(observed.then_some(agent.component.revision)))
            } else {
                notes.note(Met::FoundRepeatable);
                Entry::Interrupted
            };
            agent.ledger.insert(key, entry);
        }
    }

    /// The process ends, and the next one begins with an empty ledger.
    pub(crate) fn wipe(&self, w: &mut World, host: usize) {
        w.left.wipes = w.left.wipes.saturating_sub(1);
        let agent = &mut w.agents[host];
        agent.tasks.clear();
        agent.ledger.clear();
        agent.seen = None;
        agent.generation += 1;
    }
}
