//! What must hold in every reachable state: the invariants of execution by their numbers, and what the fences promise. And
//! what must be possible, so that an exploration that shows nothing is noticed.

use stateright::{Expectation, Property};

use crate::configuration::{Configuration, Ending};
use crate::engine::End;
use crate::model::Fleetwide;
use crate::world::{Component, Fault, Revised, World};

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
        Property::always(STAGED, |_, w: &World| !w.faults.has(Fault::SwitchedUnstaged)),
        Property::always(PROTECTED, |_, w: &World| !w.faults.has(Fault::ChangedUnprotected)),
        Property::always(INTENT, |_, w: &World| !w.faults.has(Fault::IntentNotDurable)),
        Property::always(OUTCOME, |_, w: &World| !w.faults.has(Fault::OutcomeNotDurable)),
        Property::always(ONCE, |_, w: &World| !w.faults.has(Fault::TookEffectTwice)),
        Property::always(TRUE_END, ending_is_true),
        Property::always(ONE_END, |_, w: &World| !w.faults.has(Fault::EndedTwice)),
        Property::always(SCOPE, |m: &Fleetwide, w: &World| {
            (0..m.rollbacks()).filter(|r| m.journal(w, *r).is_running()).count() <= 1
        }),
        Property::always(VERIFIED, |m: &Fleetwide, w: &World| {
            let verified = (0..m.rollbacks()).any(|r| m.journal(w, r).end == Some(End::Verified));
            !verified || w.agents.iter().all(|a| serves(&a.component, Revised::Target))
        }),
        Property::always(STALE_APPEND, |_, w: &World| !w.faults.has(Fault::StaleAppend)),
        Property::always(STALE_STEP, |_, w: &World| !w.faults.has(Fault::ObeyedStale)),
        Property::always(READABLE, |m: &Fleetwide, w: &World| {
            (0..m.rollbacks()).all(|r| !m.journal(w, r).is_damaged())
        }),
        Property::always(ENDS, |m: &Fleetwide, w: &World| {
            // A state that is wrong already is told by what is wrong with it.
            w.faults != crate::world::Faults::default() || m.ends_once_failures_stop(w)
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
        Some(End::Partial(named)) => hosts().all(|(host, (agent, _))| {
            named & (1 << host) != 0 || serves(&agent.component, Revised::Target)
        }),
        Some(End::Held { reason, .. }) => reason,
    })
}
