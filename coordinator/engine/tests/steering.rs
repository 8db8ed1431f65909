//! What operators do to a rollback that runs: pause, resume, retry, skip, abort, approve; one test for each promise.

use std::collections::BTreeSet;

use rollback_engine::event::{AbortThen, Act, Command, Direction, Effect, Ending, Event, Outcome};
use rollback_engine::ids::{Digest, HostName};
use rollback_engine::machine::{Rejected, State, StepState, apply, effects_of, outstanding, transition};
use rollback_engine::plan::{ApprovalRule, OnFailure, Phase, PhaseName, Plan, Undo};
use rollback_engine::release::{Action, Role};

use crate::fleets::{Fleet, at, create, demo, failed, good, intents, problem, unknown};

/// A rollback that is carried out as far as a test says.
struct Rollback {
    state: State,
    journal: Vec<Event>,
    second: i64,
}

const UNDO: Act = Act::Abort { then: AbortThen::Undo };
const HOLD: Act = Act::Abort { then: AbortThen::Hold };

fn hosts(names: &[&str]) -> BTreeSet<HostName> {
    names.iter().map(|name| (*name).into()).collect()
}

fn retry(names: &[&str]) -> Act {
    Act::Retry { hosts: hosts(names) }
}

fn skip(names: &[&str]) -> Act {
    Act::Skip { hosts: hosts(names) }
}

impl Rollback {
    fn begin(plan: &Plan) -> Self {
        let mut state = State::New;
        let journal = transition(&mut state, create(plan)).expect("a sound plan is accepted");
        Self {
            state,
            journal,
            second: 1,
        }
    }

    /// As a leader that reads the journal now sees it; the same state, whatever was done to it.
    fn taken_up(&self) -> State {
        let mut state = State::replay(self.journal.iter().cloned()).expect("its own journal");
        let more = transition(&mut state, Command::TakeUp { at: at(self.second) }).expect("nothing is refused");
        assert_eq!(more, [], "nothing is missing");
        assert_eq!(state, self.state);
        state
    }

    fn command(&mut self, command: Command) -> Result<Vec<Event>, Rejected> {
        let events = transition(&mut self.state, command)?;
        self.second += 1;
        self.journal.extend(events.iter().cloned());
        self.taken_up();
        Ok(events)
    }

    fn act(&mut self, act: Act) -> Vec<Event> {
        let found = self.try_act(act.clone());
        found.unwrap_or_else(|e| panic!("{act:?}: {e}"))
    }

    fn try_act(&mut self, act: Act) -> Result<Vec<Event>, Rejected> {
        self.act_of("bob", act)
    }

    fn act_of(&mut self, by: &str, act: Act) -> Result<Vec<Event>, Rejected> {
        let at = at(self.second);
        let (by, reason) = (by.to_owned(), "looks odd".to_owned());
        self.command(Command::Steer { at, by, reason, act })
    }

    /// The act is refused as unfit, with these words, and changes nothing.
    fn refused(&mut self, act: Act, words: &[&str]) {
        let before = self.state.clone();
        let text = match self.try_act(act.clone()) {
            Err(Rejected::Unfit(text)) => text,
            other => panic!("{act:?}: {other:?}"),
        };
        for word in words {
            assert!(text.contains(word), "{act:?}: {text:?} does not say {word:?}");
        }
        assert_eq!(self.state, before);
    }

    /// What is in flight, by name: "undo: switch app-1/env #1".
    fn in_flight(&self) -> Vec<String> {
        self.dispatched(outstanding(&self.state))
    }

    fn dispatched(&self, effects: Vec<Effect>) -> Vec<String> {
        let name = |effect: Effect| match effect {
            Effect::Dispatch {
                step,
                direction,
                attempt,
            } => {
                let step = self.state.step(step).expect("a step of the plan");
                let action = step.in_direction(direction).expect("it goes this way").action;
                let way = if direction == Direction::Undo { "undo: " } else { "" };
                Some(format!("{way}{action} {} #{attempt}", step.subject()))
            }
            Effect::Close => None,
        };
        effects.into_iter().filter_map(name).collect()
    }

    fn answer(&mut self, name: &str, outcome: Option<Outcome>) -> Vec<Event> {
        let found = outstanding(&self.state)
            .into_iter()
            .find(|effect| self.dispatched(vec![effect.clone()]) == [name]);
        let Some(Effect::Dispatch {
            step,
            direction,
            attempt,
        }) = found
        else {
            panic!("{name} is not in flight, but {:?}", self.in_flight())
        };
        let outcome = outcome.unwrap_or_else(|| good(&self.state, step, direction));
        self.command(Command::StepEnded {
            at: at(self.second),
            step,
            direction,
            attempt,
            outcome,
        })
        .expect("an answer that is awaited")
    }

    fn well(&mut self, name: &str) {
        self.answer(name, None);
    }

    fn fails(&mut self, name: &str) {
        self.answer(name, Some(failed()));
    }

    /// Everything goes well until this is in flight.
    fn until(&mut self, name: &str) {
        while !self.in_flight().iter().any(|n| n == name) {
            let next = self.in_flight().into_iter().next();
            self.well(&next.unwrap_or_else(|| panic!("{name} never came: {:?}", self.state.ending())));
        }
    }

    /// Everything goes well until nothing is in flight.
    fn finish(&mut self) {
        while let Some(next) = self.in_flight().into_iter().next() {
            self.well(&next);
        }
    }

    fn ending(&self) -> &Ending {
        self.state.ending().expect("it has ended")
    }

    fn failed_hosts(&self) -> Vec<&str> {
        let summary = self.state.summary().expect("it was created");
        summary.failed_hosts.iter().map(|h| h.as_str()).collect()
    }

    fn is_paused(&self) -> bool {
        self.state.summary().expect("it was created").standstill.is_some()
    }
}

/// With this policy in the phase, and at most so many hosts left behind.
fn changed(mut plan: Plan, name: PhaseName, change: impl Fn(&mut Phase)) -> Plan {
    plan.body
        .phases
        .iter_mut()
        .filter(|phase| phase.name == name)
        .for_each(change);
    Plan::seal(plan.body)
}

fn with_policy(name: PhaseName, policy: OnFailure) -> Plan {
    changed(demo(true).plan(), name, |phase| phase.on_failure = policy)
}

/// Both env files are switched at once in the app phase; the one of app-1 has failed, the other one is in flight.
fn one_failed(plan: &Plan) -> Rollback {
    let mut rollback = Rollback::begin(plan);
    rollback.until("switch app-1/env #1");
    assert_eq!(rollback.in_flight(), ["switch app-1/env #1", "switch app-2/env #1"]);
    rollback.fails("switch app-1/env #1");
    rollback
}

/// As [`one_failed`], and both have: the policy has paused it.
fn both_failed() -> Rollback {
    let mut rollback = one_failed(&with_policy(PhaseName::App, OnFailure::Pause));
    rollback.fails("switch app-2/env #1");
    rollback
}

#[test]
fn pause_lets_what_is_in_flight_end_and_begins_nothing() {
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch app-1/env #1");
    assert!(rollback.try_act(Act::Resume).is_err(), "it is not paused");
    rollback.act(Act::Pause);
    rollback.refused(Act::Pause, &["bob has paused it already", "looks odd"]);
    rollback.well("switch app-1/env #1");
    rollback.well("switch app-2/env #1");
    assert_eq!(rollback.in_flight(), Vec::<String>::new());
    assert_eq!(rollback.state.ending(), None);

    let summary = rollback.state.summary().expect("it was created");
    let standstill = summary.standstill.expect("it is paused");
    assert_eq!((standstill.by, standstill.reason), (Some("bob"), "looks odd"));
    assert_eq!((standstill.cause, standstill.in_flight), (None, 0));

    rollback.refused(retry(&[]), &["no failed step", "rollback resume"]);
    rollback.act(Act::Resume);
    assert_eq!(rollback.in_flight(), ["switch app-1/api #1", "switch app-2/api #1"]);
    rollback.finish();
    assert_eq!(rollback.ending(), &Ending::Verified);
    rollback.refused(Act::Pause, &["has ended (verified)"]);
    rollback.refused(UNDO, &["rollback undo"]);
}

/// A batch that is over, a phase, the way back, the end: none of them while it is paused.
#[test]
fn nothing_follows_by_itself_while_it_is_paused() {
    for last in [
        "prepare proxy-1/proxy #1",
        "switch db-1/db #1",
        "finish proxy-1/proxy #1",
    ] {
        let mut rollback = Rollback::begin(&demo(true).plan());
        rollback.until(last);
        rollback.act(Act::Pause);
        rollback.finish();
        assert_eq!(rollback.state.ending(), None, "{last}");
        assert!(
            matches!(rollback.journal.last(), Some(Event::StepEnded { .. })),
            "{last}"
        );
        rollback.act(Act::Resume);
        rollback.finish();
        assert_eq!(rollback.ending(), &Ending::Verified, "{last}");
    }
}

#[test]
fn pause_holds_the_way_back_too() {
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch db-1/db #1");
    rollback.fails("switch db-1/db #1");
    assert_eq!(rollback.in_flight(), ["undo: switch db-1/db #1"]);
    rollback.act(Act::Pause);
    rollback.refused(retry(&[]), &["is being undone", "switch of db-1/db", "abort --hold"]);
    rollback.refused(UNDO, &["is being undone already", "abort --hold"]);
    rollback.finish();
    assert_eq!(rollback.state.ending(), None);
    assert!(!intents(&rollback.state, &rollback.journal).contains(&"undo: start app-1/api".to_owned()));
    rollback.act(Act::Resume);
    rollback.finish();
    assert!(matches!(rollback.ending(), Ending::Undone { blocked: false, cause } if cause.code == "RB0504"));
}

#[test]
fn after_a_failure_resume_does_what_the_runbook_says() {
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch app-1/env #1");
    rollback.act(Act::Pause);
    rollback.fails("switch app-1/env #1");
    rollback.finish();
    assert!(rollback.is_paused());
    let events = rollback.act(Act::Resume);
    assert!(matches!(events[1], Event::UndoStarted { .. }), "{events:?}");
}

/// Somebody was quick: the failure that would have undone everything is tried again, and nothing has to be undone.
#[test]
fn retry_goes_on_where_it_failed() {
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch app-1/env #1");
    rollback.act(Act::Pause);
    rollback.fails("switch app-1/env #1");
    let summary = rollback.state.summary().expect("it was created");
    let standstill = summary.standstill.expect("it is paused");
    assert_eq!((standstill.in_flight, standstill.failed_hosts), (1, hosts(&["app-1"])));
    let steps_done = summary.steps_done;
    rollback.refused(retry(&["app-2"]), &["concerns app-2", "failed on app-1"]);
    let events = rollback.act(retry(&[]));
    assert!(
        matches!(&events[0], Event::Steered { act: Act::Retry { hosts: h }, .. } if *h == hosts(&["app-1"])),
        "the journal names them"
    );
    assert_eq!(
        rollback.dispatched(effects_of(&rollback.state, &events)),
        ["switch app-1/env #2"]
    );
    assert_eq!(rollback.in_flight(), ["switch app-1/env #2", "switch app-2/env #1"]);
    assert_eq!(rollback.failed_hosts(), ["app-1"], "until it has succeeded");
    assert_eq!(
        rollback.state.summary().expect("created").steps_done,
        steps_done - 1,
        "a step is done once"
    );
    let late = Command::StepEnded {
        at: at(99),
        step: rollback
            .state
            .plan()
            .expect("created")
            .body
            .steps()
            .next()
            .expect("a step")
            .id,
        direction: Direction::Forward,
        attempt: 1,
        outcome: failed(),
    };
    assert!(matches!(rollback.command(late), Err(Rejected::NotInFlight { .. })));
    rollback.finish();
    assert_eq!(rollback.ending(), &Ending::Verified);
    assert_eq!(rollback.failed_hosts(), Vec::<&str>::new());

    let tried: Vec<(u32, bool, bool)> = rollback
        .state
        .reports()
        .filter(|r| r.step.subject() == "app-1/env" && r.step.action == Action::Switch)
        .map(|r| (r.attempt, r.superseded, r.outcome == Some(&failed())))
        .collect();
    assert_eq!(
        tried,
        [(1, true, true), (2, false, false)],
        "every attempt is there to be read"
    );
}

#[test]
fn policy_pause_awaits_what_is_in_flight_and_then_an_operator() {
    let mut rollback = one_failed(&with_policy(PhaseName::App, OnFailure::Pause));
    assert!(!rollback.is_paused(), "the other lane is still at it");
    rollback.refused(skip(&[]), &["is not paused (1 in flight)"]);
    let events = rollback.answer("switch app-2/env #1", None);
    let Some(Event::Paused { cause, .. }) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!(cause.message, "switch of app-1/env: exit status 1");
    rollback.refused(Act::Resume, &["app-1", "retry, skip or abort"]);
    rollback.refused(Act::Pause, &["its runbook has paused it", "exit status 1"]);
    let summary = rollback.state.summary().expect("it was created");
    let standstill = summary.standstill.expect("it is paused");
    assert_eq!(standstill.by, None);
    assert_eq!(standstill.cause.as_ref(), Some(cause));

    rollback.act(retry(&["app-1"]));
    assert_eq!(rollback.in_flight(), ["switch app-1/env #2", "switch app-2/api #1"]);
    rollback.fails("switch app-1/env #2");
    rollback.finish();
    assert!(rollback.is_paused(), "it failed again");
    rollback.act(retry(&[]));
    assert_eq!(rollback.in_flight()[0], "switch app-1/env #3");
    rollback.finish();
    assert_eq!(rollback.ending(), &Ending::Verified);
}

/// In preflight nothing can be left out, but what was mended can be looked at again.
#[test]
fn blockers_can_be_mended_and_looked_at_again() {
    let mut rollback = Rollback::begin(&with_policy(PhaseName::Preflight, OnFailure::Pause));
    rollback.fails("prepare db-1/db #1");
    rollback.finish();
    rollback.refused(Act::Resume, &["db-1", "rollback retry or abort"]);
    rollback.refused(
        skip(&["db-1"]),
        &["in preflight no host can be left out", "--exclude-host"],
    );
    rollback.act(retry(&[]));
    assert_eq!(rollback.in_flight(), ["prepare db-1/db #2"]);
    rollback.finish();
    assert_eq!(rollback.ending(), &Ending::Verified);
}

#[test]
fn retry_of_some_leaves_the_others_waiting() {
    let mut rollback = both_failed();
    rollback.act(retry(&["app-2"]));
    assert_eq!(rollback.in_flight(), ["switch app-2/env #2"]);
    rollback.act(Act::Pause);
    rollback.act(Act::Resume);
    rollback.finish();
    assert!(rollback.is_paused());
    let intents = intents(&rollback.state, &rollback.journal);
    assert!(
        intents.contains(&"start app-2/api".to_owned()),
        "its lane went to its end"
    );
    let summary = rollback.state.summary().expect("it was created");
    let standstill = summary.standstill.expect("it is paused again");
    assert_eq!(standstill.failed_hosts, hosts(&["app-1"]));
    rollback.act(retry(&["app-1"]));
    rollback.finish();
    assert_eq!(rollback.ending(), &Ending::Verified);
}

/// A failure that is new stops also what had been sent on, and does what the runbook says.
#[test]
fn retried_lane_stops_with_the_next_failure() {
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch app-1/env #1");
    rollback.act(Act::Pause);
    rollback.fails("switch app-1/env #1");
    rollback.fails("switch app-2/env #1");
    rollback.act(retry(&["app-1"]));
    assert_eq!(rollback.in_flight(), ["switch app-1/env #2"]);
    rollback.well("switch app-1/env #2");
    rollback.fails("switch app-1/api #1");
    rollback.finish();
    let Ending::Undone { blocked: false, cause } = rollback.ending() else {
        panic!("{:?}", rollback.ending())
    };
    assert_eq!(cause.message, "switch of app-1/api: exit status 1");
    let undone: Vec<u32> = rollback
        .state
        .reports()
        .filter(|r| {
            r.direction == Direction::Undo && r.step.subject() == "app-1/env" && r.step.action == Action::Switch
        })
        .map(|r| r.attempt)
        .collect();
    assert_eq!(undone, [1], "a step is taken back once, however often it was tried");
}

#[test]
fn what_nobody_knows_is_never_tried_again() {
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch app-1/env #1");
    rollback.act(Act::Pause);
    rollback.fails("switch app-1/env #1");
    rollback.answer("switch app-2/env #1", Some(unknown()));
    let summary = rollback.state.summary().expect("it was created");
    assert_eq!(summary.standstill.expect("it is paused").failed_hosts, hosts(&[]));
    for act in [retry(&[]), retry(&["app-1"]), skip(&["app-1"])] {
        rollback.refused(
            act,
            &["nobody can tell whether switch of app-2/env took effect", "resume"],
        );
    }
    let by_hand = Event::Steered {
        at: at(50),
        by: "bob".to_owned(),
        reason: "looks odd".to_owned(),
        act: retry(&["app-2"]),
    };
    assert!(
        apply(&mut rollback.state.clone(), &by_hand).is_err(),
        "nor by a journal"
    );
    for act in [Act::Resume, UNDO, HOLD] {
        let mut rollback = Rollback {
            state: rollback.state.clone(),
            journal: rollback.journal.clone(),
            second: 50,
        };
        rollback.act(act.clone());
        let Ending::Held { cause } = rollback.ending() else {
            panic!("{act:?}: {:?}", rollback.ending())
        };
        assert!(cause.message.contains("nobody can tell"), "{act:?}: {}", cause.message);
    }
    // The same under the policy "pause": it is held without asking anybody.
    let mut rollback = one_failed(&with_policy(PhaseName::App, OnFailure::Pause));
    rollback.answer("switch app-2/env #1", Some(unknown()));
    assert!(matches!(rollback.ending(), Ending::Held { .. }));
}

#[test]
fn skip_goes_on_without_the_host_and_never_verifies() {
    let mut rollback = both_failed();
    rollback.act(skip(&["app-1"]));
    assert!(rollback.is_paused(), "app-2 still waits");
    rollback.act(retry(&[]));
    assert_eq!(rollback.in_flight(), ["switch app-2/env #2"]);
    rollback.until("verify app-1/api #1");
    rollback.fails("verify app-1/api #1");
    rollback.finish();
    let Ending::Partial { hosts: left, cause } = rollback.ending() else {
        panic!("{:?}", rollback.ending())
    };
    assert_eq!(left, &["app-1".into()]);
    assert!(cause.message.contains("switch of app-1/env"), "{}", cause.message);
    let summary = rollback.state.summary().expect("it was created");
    assert_eq!(summary.skipped_hosts, &hosts(&["app-1"]));
    assert!(!intents(&rollback.state, &rollback.journal).contains(&"start app-1/api".to_owned()));
    assert_eq!(rollback.failed_hosts(), ["app-1"]);
}

#[test]
fn skip_of_all_that_failed_resumes() {
    let mut rollback = both_failed();
    rollback.act(skip(&[]));
    assert!(!rollback.is_paused());
    rollback.finish();
    assert!(matches!(rollback.ending(), Ending::Partial { hosts, .. } if hosts.len() == 2));
}

#[test]
fn hosts_are_left_out_only_where_that_is_safe() {
    let mut rollback = Rollback::begin(&with_policy(PhaseName::Stage, OnFailure::Pause));
    rollback.until("stage app-1/api #1");
    rollback.fails("stage app-1/api #1");
    rollback.finish();
    rollback.refused(
        skip(&["app-1"]),
        &["in stage no host can be left out", "--exclude-host"],
    );
}

/// For the policy "continue" and for operators alike.
#[test]
fn no_more_hosts_are_left_behind_than_the_plan_allows() {
    let at_most = |policy, most| {
        changed(demo(true).plan(), PhaseName::App, |phase| {
            phase.on_failure = policy;
            phase.max_unavailable = Some(most);
        })
    };
    let mut rollback = one_failed(&at_most(OnFailure::Continue, 1));
    rollback.fails("switch app-2/env #1");
    let Ending::Held { cause } = rollback.ending() else {
        panic!("{:?}", rollback.ending())
    };
    assert!(
        cause
            .message
            .contains("2 hosts would be left behind, and the runbook allows 1"),
        "{}",
        cause.message
    );
    let mut rollback = one_failed(&at_most(OnFailure::Continue, 1));
    rollback.finish();
    assert!(matches!(rollback.ending(), Ending::Partial { .. }), "one is allowed");

    let mut rollback = one_failed(&at_most(OnFailure::Pause, 1));
    rollback.fails("switch app-2/env #1");
    rollback.refused(skip(&[]), &["2 hosts would be left behind", "retry"]);
    rollback.act(skip(&["app-2"]));
    rollback.refused(skip(&[]), &["2 hosts would be left behind"]);
    rollback.act(retry(&[]));
    rollback.finish();
    assert!(matches!(rollback.ending(), Ending::Partial { .. }));
}

#[test]
fn abort_awaits_what_is_in_flight_and_undoes() {
    for paused in [false, true] {
        let mut rollback = Rollback::begin(&demo(true).plan());
        rollback.until("switch app-1/env #1");
        if paused {
            rollback.act(Act::Pause);
        }
        rollback.act(UNDO);
        rollback.refused(UNDO, &["bob ends it already", "2 in flight", "abort --hold"]);
        rollback.refused(Act::Pause, &["bob ends it already"]);
        rollback.well("switch app-1/env #1");
        assert_eq!(rollback.in_flight(), ["switch app-2/env #1"], "nothing new");
        rollback.well("switch app-2/env #1");
        rollback.finish();
        let Ending::Undone { blocked: false, cause } = rollback.ending() else {
            panic!("{:?}", rollback.ending())
        };
        assert_eq!(
            (cause.code.as_str(), cause.message.as_str()),
            ("RB0218", "bob ended it: looks odd")
        );
        assert!(intents(&rollback.state, &rollback.journal).contains(&"undo: switch db-1/db".to_owned()));
    }
}

#[test]
fn abort_that_holds_leaves_everything_as_it_is() {
    let mut rollback = both_failed();
    rollback.act(HOLD);
    let Ending::Held { cause } = rollback.ending() else {
        panic!("{:?}", rollback.ending())
    };
    assert_eq!(cause.code, "RB0218");
    assert!(
        cause.message.contains("switch of app-1/env: exit status 1"),
        "{}",
        cause.message
    );
    assert!(
        cause.remedy.contains("rollbackctl fleet rollback --to v2.9.0"),
        "{}",
        cause.remedy
    );
    assert!(
        !intents(&rollback.state, &rollback.journal)
            .iter()
            .any(|i| i.starts_with("undo"))
    );

    for (release, undo_of, way_on) in [
        ("objectives", None, "`rollbackctl fleet converge`"),
        ("before-4711", Some("4711".into()), "`rollbackctl rollback undo 4711`"),
    ] {
        let mut body = demo(true).plan().body;
        (body.release, body.undo_of) = (release.into(), undo_of);
        let mut rollback = Rollback::begin(&Plan::seal(body));
        rollback.act(HOLD);
        rollback.finish();
        assert!(matches!(rollback.ending(), Ending::Held { cause } if cause.remedy.contains(way_on)));
    }

    // Also instead of an undo that somebody else asked for, and of one that is under way.
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch app-1/env #1");
    rollback.act(UNDO);
    rollback.act(HOLD);
    rollback.finish();
    assert!(matches!(rollback.ending(), Ending::Held { .. }));

    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.until("switch db-1/db #1");
    rollback.fails("switch db-1/db #1");
    rollback.act(HOLD);
    rollback.finish();
    let Ending::Held { cause } = rollback.ending() else {
        panic!("{:?}", rollback.ending())
    };
    assert!(
        cause.message.contains("it was being undone because: switch of db-1/db"),
        "{}",
        cause.message
    );
}

#[test]
fn abort_undoes_nothing_after_a_step_that_cannot_be_reversed() {
    let proxy = Fleet::empty().with("proxy-1", "proxy", Role::Proxy, true, &[]);
    let plan = changed(proxy.plan(), PhaseName::Proxy, |phase| {
        let steps = phase.batches.iter_mut().flat_map(|b| &mut b.lanes);
        let switches = steps.flat_map(|l| &mut l.steps).filter(|s| s.action == Action::Switch);
        switches.for_each(|s| s.undo = Undo::Impossible);
    });
    let mut rollback = Rollback::begin(&plan);
    rollback.until("verify proxy-1/proxy #1");
    rollback.act(UNDO);
    rollback.finish();
    let Ending::Held { cause } = rollback.ending() else {
        panic!("{:?}", rollback.ending())
    };
    assert!(cause.message.contains("cannot be reversed"), "{}", cause.message);
}

/// What the way back needs is being thrown away: it would stop everything, and then find nothing to go back to.
#[test]
fn abort_undoes_nothing_that_is_being_tidied_up() {
    for paused in [false, true] {
        let mut rollback = Rollback::begin(&demo(true).plan());
        rollback.until("finish db-1/db #1");
        if paused {
            rollback.act(Act::Pause);
            rollback.well("finish db-1/db #1");
        }
        rollback.refused(UNDO, &["tidying up", "rollback undo"]);
        if paused {
            rollback.act(Act::Resume);
        }
        rollback.finish();
        assert_eq!(rollback.ending(), &Ending::Verified);
    }
}

#[test]
fn abort_in_preflight_has_touched_nothing() {
    let mut rollback = Rollback::begin(&demo(true).plan());
    rollback.act(UNDO);
    rollback.finish();
    assert!(matches!(rollback.ending(), Ending::Undone { blocked: true, cause } if cause.code == "RB0218"));
    assert!(
        intents(&rollback.state, &rollback.journal)
            .iter()
            .all(|i| i.starts_with("prepare "))
    );
}

fn to_be_approved() -> Rollback {
    let mut body = demo(true).plan().body;
    body.approval = Some(ApprovalRule { within_ms: 90_000 });
    Rollback::begin(&Plan::seal(body))
}

#[test]
fn nothing_begins_before_a_second_operator_approved() {
    let mut rollback = to_be_approved();
    assert_eq!(rollback.journal.len(), 1);
    rollback.refused(
        Act::Pause,
        &["nothing has begun", "another operator than alice", "rollback approve"],
    );
    let digest = rollback.state.plan().expect("it was created").digest.clone();
    let not_approved = |found: Result<Vec<Event>, Rejected>| match found {
        Err(Rejected::NotApproved(text)) => text,
        other => panic!("{other:?}"),
    };
    let own = Act::Approve { digest: digest.clone() };
    assert!(not_approved(rollback.act_of("alice", own.clone())).contains("alice has started it"));
    let other = Act::Approve {
        digest: Digest("another plan".to_owned()),
    };
    assert!(not_approved(rollback.act_of("bob", other)).contains("carries out"));

    rollback.act(own.clone());
    rollback.refused(own, &["bob has approved it already"]);
    rollback.finish();
    assert_eq!(rollback.ending(), &Ending::Verified);
    let approval = rollback
        .state
        .summary()
        .expect("created")
        .approval
        .expect("it was asked for");
    assert_eq!(approval.approved.map(|a| a.by.as_str()), Some("bob"));
    assert_eq!(approval.expires_at, at(90));

    let mut unasked = Rollback::begin(&demo(true).plan());
    unasked.refused(Act::Approve { digest }, &["nobody has to approve it"]);
}

#[test]
fn approval_expires_only_when_its_time_is_over_and_nobody_approved() {
    let expire = |rollback: &mut Rollback, second| rollback.command(Command::Expire { at: at(second) });
    let mut rollback = to_be_approved();
    assert_eq!(expire(&mut rollback, 89).expect("not refused"), []);
    let digest = rollback.state.plan().expect("it was created").digest.clone();
    let mut approved = to_be_approved();
    approved.act(Act::Approve { digest: digest.clone() });
    assert_eq!(expire(&mut approved, 999).expect("not refused"), []);

    rollback.second = 90;
    assert!(matches!(
        rollback.try_act(Act::Approve { digest }),
        Err(Rejected::NotApproved(_))
    ));
    expire(&mut rollback, 90).expect("not refused");
    let Ending::Undone { blocked: true, cause } = rollback.ending() else {
        panic!("{:?}", rollback.ending())
    };
    assert_eq!(cause.code, "RB0212");
    assert_eq!(cause.message, "no second operator approved it within 90 s");
    assert_eq!(expire(&mut rollback, 91).expect("not refused"), []);
}

#[test]
fn what_awaits_approval_can_be_ended() {
    for act in [UNDO, HOLD] {
        let mut rollback = to_be_approved();
        rollback.act(act);
        assert!(matches!(rollback.ending(), Ending::Undone { blocked: true, cause } if cause.code == "RB0218"));
        assert_eq!(intents(&rollback.state, &rollback.journal), Vec::<String>::new());
    }
}

/// The journal has lost something: then nothing that anybody wanted counts any more.
#[test]
fn lost_journal_is_held_from_every_standstill() {
    let paused = {
        let mut rollback = Rollback::begin(&demo(true).plan());
        rollback.until("switch app-1/env #1");
        rollback.act(Act::Pause);
        rollback
    };
    let aborting = {
        let mut rollback = Rollback::begin(&demo(true).plan());
        rollback.act(UNDO);
        rollback
    };
    let tried_again = {
        let mut rollback = both_failed();
        rollback.act(retry(&[]));
        rollback
    };
    for mut rollback in [paused, aborting, tried_again, both_failed(), to_be_approved()] {
        let (at, cause) = (at(50), problem("lost"));
        rollback.command(Command::Hold { at, cause }).expect("from everywhere");
        assert!(matches!(rollback.ending(), Ending::Held { cause } if cause.message == "lost"));
        let steps = rollback.state.plan().expect("created").body.steps();
        let open =
            |state: Option<&StepState>| matches!(state, Some(StepState::InFlight { .. } | StepState::Undoing { .. }));
        assert!(!steps.map(|s| rollback.state.step_state(s.id)).any(open));
    }
}
