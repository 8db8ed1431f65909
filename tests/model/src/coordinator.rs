//! The coordinators and their store, as `replica`, `leader`, `runner`, `dispatcher` and the stores do it.
//!
//! - A campaign gives out the next epoch. A term begins with reading the running journals, then asks the ledgers, then goes
//!   on: `Resume`, and every outstanding step is asked for again; or, where a ledger knows more than the journal, `Hold`.
//! - The store writes for the epoch and the leader of a lease that has not run out. A process never has an epoch twice.
//! - What arrives becomes a command; its events are appended behind the journal that is known here, under the term's epoch;
//!   only then their effects are carried out. A refused append ends the term.
//! - A leader that an agent calls stale asks the store whether the lease is its own, and if so campaigns for more than the
//!   epoch that the agent knows. One that misses a rollback which the store has running begins a new term.

use crate::action::Heard;
use crate::configuration::Safeguard;
use crate::coverage::{Met, Notes};
use crate::engine::{NEW, NodeId, Stimulus};
use crate::model::Fleetwide;
use crate::world::{Cause, Committed, Fault, Fence, Hand, Key, Message, Move, Reply, Said, Standing, Term, World};

/// Why nothing was written.
enum Refused {
    Fenced,
    Conflict,
}

impl Fleetwide {
    fn commit(&self, w: &mut World, change: impl FnOnce(&mut Committed)) {
        if w.left.failovers > 0 {
            w.store.past.push(w.store.now.clone());
            if w.store.past.len() > self.configuration.lag {
                w.store.past.remove(0);
            }
        }
        change(&mut w.store.now);
    }

    pub(crate) fn campaign(&self, w: &mut World, who: usize, at_least: u8, notes: &mut Notes) {
        if self.anything_runs(w) {
            notes.note(Met::TakeoverInTheMiddle);
        }
        w.store.serial += 1;
        let never_before = w.coordinators[who].had + 1;
        let fence = Fence {
            epoch: (w.store.now.lease.fence.epoch + 1).max(at_least).max(never_before),
            leader: w.coordinators[who].identity,
        };
        let known = w.agents.iter().filter_map(|a| a.seen);
        let others = w.coordinators.iter().filter_map(|c| c.standing.term()).map(|t| t.fence);
        if known.chain(others).any(|other| other.epoch == fence.epoch) {
            notes.note(Met::EpochRepeated);
        }
        let term = Term {
            fence,
            serial: w.store.serial,
        };
        self.commit(w, |now| now.lease = term);
        if self.may_lose_commits() && !self.lacks(Safeguard::FreshEpochs) {
            w.coordinators[who].had = fence.epoch;
        }
        let asked = if self.lacks(Safeguard::Recall) { u8::MAX } else { 0 };
        w.coordinators[who].standing = Standing::TakingOver {
            term,
            // Where no commit is lost, nobody else can write any more, and it does not matter when the journals are read.
            read: (!self.may_lose_commits()).then(|| w.store.now.journals.clone()),
            asked,
            doubts: 0,
        };
    }

    pub(crate) fn read(&self, w: &mut World, who: usize) {
        let journals = w.store.now.journals.clone();
        if let Standing::TakingOver { read: read @ None, .. } = &mut w.coordinators[who].standing {
            *read = Some(journals);
        }
    }

    pub(crate) fn recall(&self, w: &mut World, who: usize, host: usize, heard: Heard, notes: &mut Notes) {
        let World {
            coordinators,
            agents,
            left,
            ..
        } = w;
        let Standing::TakingOver {
            term,
            read: Some(read),
            asked,
            doubts,
        } = &mut coordinators[who].standing
        else {
            return;
        };
        *asked |= 1 << host;
        if heard != Heard::Answer {
            left.silences = left.silences.saturating_sub(1);
            notes.note(Met::Silent);
        }
        if heard == Heard::NeverAsked {
            return;
        }
        let agent = &mut agents[host];
        if let Err(known) = self.observe(agent, term.fence) {
            notes.note(Met::StaleAtAgent);
            if heard == Heard::Answer {
                self.outdone(w, who, known, notes);
            }
            return;
        }
        if heard == Heard::Answer {
            for key in agent.ledger.keys() {
                let journal = self.machine.node(read[usize::from(key.rollback)]);
                if journal.is_running() && !journal.intends(key.step) {
                    *doubts |= 1 << key.rollback;
                }
            }
        }
    }

    pub(crate) fn resume(&self, w: &mut World, who: usize, notes: &mut Notes) {
        let Standing::TakingOver {
            term,
            read: Some(read),
            doubts,
            ..
        } = w.coordinators[who].standing.clone()
        else {
            return;
        };
        let runs = |id: &NodeId| Some(*id).filter(|id| self.machine.node(*id).is_running());
        w.coordinators[who].standing = Standing::Leading {
            term,
            running: read.iter().map(runs).collect(),
        };
        for (rollback, journal) in (0..).zip(&read) {
            let node = self.machine.node(*journal);
            if !node.is_running() || node.is_damaged() {
                continue;
            }
            let mut stimuli = vec![Stimulus::Resume];
            if doubts & (1 << rollback) != 0 {
                notes.note(Met::Doubt);
                if self.lacks(Safeguard::HoldInDoubt) {
                    let unknown = |step: &Move| Stimulus::Ended(*step, Said::Unknown(Cause::Journal));
                    stimuli.extend(node.outstanding.iter().map(unknown));
                } else {
                    stimuli.push(Stimulus::Hold);
                }
            } else {
                for step in &node.outstanding {
                    self.dispatch(w, term, Key { rollback, step: *step }, Origin::Journal);
                }
            }
            self.tick(w, who, rollback, &stimuli, notes);
        }
    }

    /// An operator's request, to whoever believes to lead.
    pub(crate) fn request(&self, w: &mut World, who: usize, rollback: u8, notes: &mut Notes) {
        let Standing::Leading { term, running } = &w.coordinators[who].standing else {
            return;
        };
        if running[usize::from(rollback)].is_some() || !self.holds_lease(w, *term) {
            return;
        }
        let journal = self.journal(w, rollback);
        if journal.seq > 0 {
            // It was started before, and runs in this term since the takeover, or has ended.
            notes.note(Met::RequestRepeated);
            return;
        }
        let held = (0..self.rollbacks()).any(|other| other != rollback && self.journal(w, other).is_running());
        if held && !self.lacks(Safeguard::Scope) {
            notes.note(Met::ScopeHeld);
            return;
        }
        self.create(w, who, rollback);
    }

    /// An operator acts on a rollback, wherever one believes to lead it. What does not fit is refused.
    pub(crate) fn steer(&self, w: &mut World, who: usize, rollback: u8, hand: Hand, notes: &mut Notes) {
        let Standing::Leading { running, .. } = &w.coordinators[who].standing else {
            return;
        };
        let stimulus = Stimulus::Steer(hand);
        let local = running[usize::from(rollback)];
        let Some(fits) = local.and_then(|local| self.machine.transition(local, stimulus)) else {
            return;
        };
        w.left.acts = w.left.acts.saturating_sub(1);
        notes.note(Met::Steered);
        if fits.dispatch.iter().any(|step| step.attempt > 1) {
            notes.note(Met::TriedAgain);
        }
        self.tick(w, who, rollback, &[stimulus], notes);
    }

    /// Writes a new rollback and starts it.
    pub(crate) fn create(&self, w: &mut World, who: usize, rollback: u8) {
        let created = self.machine.transition(NEW, Stimulus::Create(rollback));
        let created = created.expect("the planner makes plans that the machine accepts");
        let slot = usize::from(rollback);
        self.commit(w, |now| now.journals[slot] = created.to);
        if let Standing::Leading { term, running } = &mut w.coordinators[who].standing {
            running[slot] = Some(created.to);
            let term = *term;
            for step in &created.dispatch {
                self.dispatch(w, term, Key { rollback, step: *step }, Origin::Now);
            }
        }
    }

    /// What the store asks before it writes in the name of a term. It knows no serials: that the lease is not the last one
    /// that was ever given out means that it has run out, or the next one could not have been won, whatever became of that.
    pub(crate) fn holds_lease(&self, w: &World, term: Term) -> bool {
        let lease = w.store.now.lease;
        self.lacks(Safeguard::FencedAppends)
            || lease.fence.epoch == term.fence.epoch
                && (self.lacks(Safeguard::FencedByHolder)
                    || lease.fence == term.fence
                        && (self.lacks(Safeguard::FencedInTime) || lease.serial == w.store.serial))
    }

    /// Takes in what arrived, writes down what follows from it, does what that asks for.
    fn tick(&self, w: &mut World, who: usize, rollback: u8, stimuli: &[Stimulus], notes: &mut Notes) {
        let slot = usize::from(rollback);
        let Standing::Leading { term, running } = &w.coordinators[who].standing else {
            return;
        };
        let (term, Some(before)) = (*term, running[slot]) else {
            return;
        };
        let (mut local, mut written, mut dispatch) = (before, Vec::new(), Vec::new());
        for stimulus in stimuli {
            // A late or repeated answer is refused by the machine, and ignored.
            let Some(transition) = self.machine.transition(local, *stimulus) else {
                continue;
            };
            local = transition.to;
            written.extend(transition.written);
            dispatch.extend_from_slice(&transition.dispatch);
        }
        if written.is_empty() {
            return;
        }
        let end = self.machine.node(local).end;
        dispatch.retain(|step| self.machine.node(local).awaits(*step));
        let dispatch_all = |w: &mut World| {
            for step in &dispatch {
                self.dispatch(w, term, Key { rollback, step: *step }, Origin::Now);
            }
        };
        if self.lacks(Safeguard::IntentFirst) {
            if let Standing::Leading { running, .. } = &mut w.coordinators[who].standing {
                running[slot] = Some(local);
            }
            dispatch_all(w);
        }
        let appended = self.append(w, term, rollback, before, |journal| {
            written
                .iter()
                .fold(journal, |journal, w| self.machine.append(journal, *w))
        });
        match appended {
            Ok(()) => {}
            Err(refused) => {
                notes.note(match refused {
                    Refused::Fenced => Met::Fenced,
                    Refused::Conflict => Met::Conflict,
                });
                w.coordinators[who].standing = Standing::Following;
                return;
            }
        }
        if let Standing::Leading { running, .. } = &mut w.coordinators[who].standing {
            running[slot] = Some(local).filter(|_| end.is_none());
            if !self.lacks(Safeguard::IntentFirst) {
                dispatch_all(w);
            }
        }
    }

    fn append(
        &self,
        w: &mut World,
        term: Term,
        rollback: u8,
        after: NodeId,
        extend: impl FnOnce(NodeId) -> NodeId,
    ) -> Result<(), Refused> {
        if !self.holds_lease(w, term) {
            return Err(Refused::Fenced);
        }
        let journal = self.journal(w, rollback);
        if journal.seq != self.machine.node(after).seq {
            return Err(Refused::Conflict);
        }
        if w.store.now.lease.serial != term.serial {
            w.faults.note(Fault::StaleAppend);
        }
        if journal.end.is_some() {
            w.faults.note(Fault::EndedTwice);
        }
        let slot = usize::from(rollback);
        self.commit(w, |now| now.journals[slot] = extend(now.journals[slot]));
        Ok(())
    }

    fn dispatch(&self, w: &mut World, term: Term, key: Key, origin: Origin) {
        let host = self.subject(key).host(key.step);
        if origin == Origin::Now {
            let local = w.coordinators.iter().find_map(|c| match &c.standing {
                Standing::Leading { term: t, running } if *t == term => running[usize::from(key.rollback)],
                Standing::Leading { .. } | Standing::TakingOver { .. } | Standing::Following => None,
            });
            let durable = w.store.now.journals[usize::from(key.rollback)];
            if !self.machine.node(durable).intends(key.step) {
                w.faults.note(Fault::IntentNotDurable);
            }
            if local.is_some_and(|local| local != durable) {
                w.faults.note(Fault::OutcomeNotDurable);
            }
        }
        // What changes the service is asked for under the ledger that there was when it was intended; that of a journal is
        // the one that there was when the rollback was created.
        let generation = match origin {
            Origin::Journal if self.subject(key).asked(key.step).action.changes_service() => 0,
            Origin::Journal | Origin::Now => w.agents[host].registered,
        };
        w.wire.insert(Message::Execute { term, key, generation });
    }

    /// A step that leaves the service alone is asked for under whatever ledger there is.
    pub(crate) fn ask_under_present_ledger(&self, w: &mut World, who: usize, key: Key) {
        let Some(term) = w.coordinators[who].standing.term() else {
            return;
        };
        if self.subject(key).asked(key.step).action.changes_service() {
            return;
        }
        let generation = w.agents[self.subject(key).host(key.step)].registered;
        w.wire.insert(Message::Execute { term, key, generation });
    }

    pub(crate) fn give_up(&self, w: &mut World, who: usize, key: Key, notes: &mut Notes) {
        w.left.give_ups = w.left.give_ups.saturating_sub(1);
        notes.note(Met::GaveUp);
        let said = if self.subject(key).asked(key.step).action.changes_service() {
            Said::Unknown(Cause::Step)
        } else {
            Said::Failed
        };
        self.tick(w, who, key.rollback, &[Stimulus::Ended(key.step, said)], notes);
    }

    /// An answer arrives on the connection of the term that asked; one whose term is over is gone.
    pub(crate) fn hear(&self, w: &mut World, serial: u8, key: Key, reply: Reply, notes: &mut Notes) {
        let who = w
            .coordinators
            .iter()
            .position(|c| c.standing.term().is_some_and(|t| t.serial == serial));
        let Some(who) = who else { return };
        let ended = |said| [Stimulus::Ended(key.step, said)];
        match reply {
            Reply::Said(said) => self.tick(w, who, key.rollback, &ended(said), notes),
            Reply::LedgerLost => {
                if self.subject(key).asked(key.step).action.changes_service() {
                    self.tick(w, who, key.rollback, &ended(Said::Unknown(Cause::Step)), notes);
                }
            }
            Reply::Stale(known) => self.outdone(w, who, known, notes),
        }
    }

    /// An agent obeys another leader. Renewing the lease tells whether it is ours, and only by its epoch.
    fn outdone(&self, w: &mut World, who: usize, known: u8, notes: &mut Notes) {
        let coordinator = &mut w.coordinators[who];
        let Some(term) = coordinator.standing.term() else {
            return;
        };
        coordinator.standing = Standing::Following;
        let identity = coordinator.identity;
        // A campaign is lost where the lease is somebody else's.
        if self.holds_lease(w, term) && w.store.now.lease.fence.leader == identity && known >= term.fence.epoch {
            notes.note(Met::Outdone);
            self.campaign(w, who, known + 1, notes);
        }
    }

    /// Does the store have a rollback running that does not run at this leader, whose lease holds?
    pub(crate) fn runs_elsewhere(&self, w: &World, who: usize) -> bool {
        match &w.coordinators[who].standing {
            Standing::Leading { term, running } if self.holds_lease(w, *term) => {
                let mut journals = w.store.now.journals.iter().zip(running);
                journals.any(|(journal, local)| local.is_none() && self.machine.node(*journal).is_running())
            }
            Standing::Leading { .. } | Standing::TakingOver { .. } | Standing::Following => false,
        }
    }

    /// A leader whose store has lost the end of a rollback begins a new term, and takes it up as any other.
    pub(crate) fn compare(&self, w: &mut World, who: usize, notes: &mut Notes) {
        if self.runs_elsewhere(w, who) {
            self.campaign(w, who, 0, notes);
        }
    }

    pub(crate) fn fail_over(&self, w: &mut World, lost: usize, notes: &mut Notes) {
        notes.note(Met::CommitsLost);
        w.left.failovers = w.left.failovers.saturating_sub(1);
        let kept = w.store.past.len() - lost;
        w.store.now = w.store.past[kept].clone();
        w.store.past.truncate(if w.left.failovers > 0 { kept } else { 0 });
    }
}

/// Where a dispatch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// From events that were written a moment ago.
    Now,
    /// From a journal that was read.
    Journal,
}
