//! What must hold in every reachable state: the invariants of execution by their numbers, and what the fences promise. And
//! what must be possible, so that an exploration that shows nothing is noticed.

use std::sync::PoisonError;

use stateright::{Expectation, Property};

use crate::configuration::{Configuration, Ending};
use crate::engine::End;
use crate::model::Fleetwide;
use crate::world::{Component, Fault, Faults, Revised, World};

pub const STAGED: &str = "1 no switch before every host in scope is staged";
pub const PROTECTED: &str = "2 no database change before its backup";
pub const INTENT: &str = "3 an intent is durable before its step is dispatched";
pub const OUTCOME: &str = "3 an outcome is durable before anything depends on it";
pub const ONCE: &str = "4 no step takes effect twice";
pub const TRUE_END: &str = "5 an ending says what is true of the hosts";
pub const ONE_END: &str = "5 a rollback ends once";
pub const SCOPE: &str = "6 one running rollback for a component";
pub const VERIFIED: &str = "7 verified means that the target runs everywhere in scope";
pub const STALE_APPEND: &str = "a leader whose term is over appends nothing";
pub const STALE_STEP: &str = "no agent obeys an epoch lower than it has seen, or another leader of the same";
pub const READABLE: &str = "the journal can be read";
pub const ENDS: &str = "the rollback ends once failures stop";

pub fn of(configuration: &Configuration) -> Vec<Property<Fleetwide>> {
    let mut properties = vec![
        Property::always(STAGED, |m: &Fleetwide, w: &World| {
            m.holds(STAGED, !w.faults.has(Fault::SwitchedUnstaged))
        }),
        Property::always(PROTECTED, |m: &Fleetwide, w: &World| {
            m.holds(PROTECTED, !w.faults.has(Fault::ChangedUnprotected))
        }),
        Property::always(INTENT, |m: &Fleetwide, w: &World| {
            m.holds(INTENT, !w.faults.has(Fault::IntentNotDurable))
        }),
        Property::always(OUTCOME, |m: &Fleetwide, w: &World| {
            m.holds(OUTCOME, !w.faults.has(Fault::OutcomeNotDurable))
        }),
        Property::always(ONCE, |m: &Fleetwide, w: &World| {
            m.holds(ONCE, !w.faults.has(Fault::TookEffectTwice))
        }),
        Property::always(TRUE_END, |m: &Fleetwide, w: &World| {
            m.holds(TRUE_END, ending_is_true(m, w))
        }),
        Property::always(ONE_END, |m: &Fleetwide, w: &World| {
            m.holds(ONE_END, !w.faults.has(Fault::EndedTwice))
        }),
        Property::always(SCOPE, |m: &Fleetwide, w: &World| {
            let running = (0..m.rollbacks()).filter(|r| m.journal(w, *r).is_running());
            m.holds(SCOPE, running.count() <= 1)
        }),
        Property::always(VERIFIED, |m: &Fleetwide, w: &World| {
            let verified = (0..m.rollbacks()).any(|r| m.journal(w, r).end == Some(End::Verified));
            let at_target = || w.agents.iter().all(|a| serves(&a.component, Revised::Target));
            m.holds(VERIFIED, !verified || at_target())
        }),
        Property::always(STALE_APPEND, |m: &Fleetwide, w: &World| {
            m.holds(STALE_APPEND, !w.faults.has(Fault::StaleAppend))
        }),
        Property::always(STALE_STEP, |m: &Fleetwide, w: &World| {
            m.holds(STALE_STEP, !w.faults.has(Fault::ObeyedStale))
        }),
        Property::always(READABLE, |m: &Fleetwide, w: &World| {
            m.holds(READABLE, (0..m.rollbacks()).all(|r| !m.journal(w, r).is_damaged()))
        }),
        Property::always(ENDS, |m: &Fleetwide, w: &World| {
            // A state that is wrong already is told by what is wrong with it.
            m.holds(ENDS, w.faults != Faults::default() || m.ends_once_failures_stop(w))
        }),
    ];
    for ending in &configuration.endings {
        properties.push(match ending {
            Ending::Verified => Property::sometimes("a rollback is verified", |m: &Fleetwide, w: &World| {
                some_end(m, w, |end| *end == End::Verified)
            }),
            Ending::Undone => Property::sometimes("a rollback is undone", |m: &Fleetwide, w: &World| {
                some_end(m, w, |end| *end == End::Undone)
            }),
            Ending::Held => Property::sometimes("a rollback is held", |m: &Fleetwide, w: &World| {
                some_end(m, w, |end| matches!(end, End::Held { .. }))
            }),
            Ending::Partial => Property::sometimes("a rollback is partial", |m: &Fleetwide, w: &World| {
                some_end(m, w, |end| matches!(end, End::Partial(_)))
            }),
        });
    }
    if configuration.lag > 0 {
        properties.push(Property::sometimes(
            "a rollback is held because the journal was lost",
            |m: &Fleetwide, w: &World| some_end(m, w, |end| matches!(end, End::Held { journal_lost: true, .. })),
        ));
    }
    properties
}

impl Fleetwide {
    /// The checker looks at states in blocks and keeps the last violation of a block. Only the first one is told to it, since
    /// that has the shortest path.
    fn holds(&self, property: &'static str, ok: bool) -> bool {
        ok || !self
            .violated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(property)
    }
}

/// Is a discovery of it good news?
pub fn is_wanted(property: &Property<Fleetwide>) -> bool {
    property.expectation == Expectation::Sometimes
}

fn some_end(m: &Fleetwide, w: &World, fits: impl Fn(&End) -> bool) -> bool {
    (0..m.rollbacks()).any(|r| m.journal(w, r).end.as_ref().is_some_and(&fits))
}

fn serves(component: &Component, revision: Revised) -> bool {
    component.revision == revision && component.running && !component.drained
}

fn ending_is_true(m: &Fleetwide, w: &World) -> bool {
    let hosts = || w.agents.iter().zip(&m.machine.subjects[0].hosts).enumerate();
    (0..m.rollbacks()).all(|r| match m.journal(w, r).end {
        None | Some(End::Verified) => true,
        Some(End::Undone) => hosts().all(|(_, (agent, facts))| {
            let origin = if facts.moves { Revised::Origin } else { Revised::Target };
            serves(&agent.component, origin)
        }),
        Some(End::Partial(named)) => {
            hosts().all(|(host, (agent, _))| named & (1 << host) != 0 || serves(&agent.component, Revised::Target))
        }
        Some(End::Held { reason, .. }) => reason,
    })
}
