//! The invariants of execution, on random fleets with random outcomes in random order, and crashes at any point.
//!
//! A case is a fleet, a runbook and a tape of numbers. The tape decides which answer arrives next, what it says, when
//! the coordinator dies and which answers come twice, so a failing case shrinks to a short story.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rollback_engine::event::{AbortThen, Act, Command, Direction, Effect, Ending, Event, Outcome, StepResult};
use rollback_engine::ids::{HostName, StepId, Target};
use rollback_engine::lint::lint;
use rollback_engine::machine::judge::{Judgement, judge};
use rollback_engine::machine::{Rejected, State, decide, effects_of, outstanding, transition};
use rollback_engine::plan::{ApprovalRule, DatabaseChoice, OnFailure, Plan, Step};
use rollback_engine::planner::{Request, plan};
use rollback_engine::release::{Action, Role, Serving};
use rollback_engine::runbook::{BatchSize, Runbook, Unreachable};

use crate::fleets::{Fleet, at, create, default_runbook, failed, outcome, revision, unknown};
use crate::world::World;

/// How often things go wrong.
#[derive(Clone, Copy, Debug)]
struct Weather {
    failures_in_100: u8,
    unknowns_in_100: u8,
    lies_in_100: u8,
    /// How often an operator acts beside the answers.
    acts_in_100: u8,
}

#[derive(Clone, Debug)]
struct Case {
    fleet: Fleet,
    runbook: Runbook,
    weather: Weather,
    to_be_approved: bool,
    tape: Vec<u8>,
}

/// The tape; past its end everything is ordinary: first come, first answered, and well.
struct Tape<'a>(std::slice::Iter<'a, u8>);

impl Tape<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.0.next().map_or(0, |b| usize::from(*b) * n / 256)
    }

    fn percent(&mut self, percent: u8) -> bool {
        self.0
            .next()
            .is_some_and(|b| usize::from(*b) * 100 / 256 >= 100 - usize::from(percent.min(100)))
    }
}

/// Was it stopped or drained before anybody planned?
fn down() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.3)
}

/// Which of its backends does a proxy hand no requests to, a bit for each of the fleet's apps? Mostly none.
fn out() -> impl Strategy<Value = u16> {
    prop_oneof![2 => Just(0), 1 => any::<u16>()]
}

/// Which of the fleet's apps a proxy can take out of one or two upstreams, a bit for each: none, all, or some.
fn backends() -> impl Strategy<Value = Vec<u16>> {
    let upstream = prop_oneof![1 => Just(0), 2 => Just(u16::MAX), 2 => any::<u16>()];
    prop::collection::vec(upstream, 1..3)
}

prop_compose! {
    fn host()(apps in prop::collection::vec((any::<bool>(), any::<bool>(), any::<[bool; 2]>(), down()), 0..3),
              configs in prop::collection::vec(any::<bool>(), 0..3),
              database in prop::option::weighted(0.2, any::<bool>()),
              proxy in prop::option::weighted(0.5, (any::<bool>(), any::<bool>(), down(), backends(), out())),
              unreachable in prop::bool::weighted(0.1))
             -> (Vec<(bool, bool, [bool; 2], bool)>, Vec<bool>, Option<bool>, Option<(bool, bool, bool, Vec<u16>, u16)>, bool) {
        (apps, configs, database, proxy, unreachable)
    }
}

pub fn fleet() -> impl Strategy<Value = Fleet> {
    prop::collection::vec(host(), 1..5).prop_map(|hosts| {
        let mut fleet = Fleet::empty();
        let mut all_apps = Vec::new();
        let mut proxies = Vec::new();
        let mut away = Vec::new();
        for (h, (apps, configs, database, proxy, unreachable)) in hosts.into_iter().enumerate() {
            let host = format!("host-{h}");
            for (i, changes) in configs.iter().enumerate() {
                fleet = fleet.with(&host, &format!("env-{i}"), Role::Config, *changes, &[]);
            }
            for (i, (changes, pausable, reads, down)) in apps.into_iter().enumerate() {
                let names = ["env-0", "env-1"];
                let reads: Vec<&str> = names
                    .into_iter()
                    .zip(reads)
                    .filter_map(|(name, reads)| reads.then_some(name))
                    .collect();
                let name = format!("app-{i}");
                fleet = fleet.with(&host, &name, Role::App, changes, &reads);
                if !pausable && reads.is_empty() {
                    fleet.component(&host, &name).capabilities.remove(&Action::Stop);
                }
                if down {
                    fleet = fleet.down(&host, &name);
                }
                all_apps.push(Target::new(host.as_str(), name.as_str()));
            }
            if let Some(changes) = database {
                fleet = fleet.with(&host, "db", Role::Database, changes, &[]);
            }
            if let Some((changes, pausable, down, backends, out)) = proxy {
                fleet = fleet.with(&host, "proxy", Role::Proxy, changes, &[]);
                if !pausable {
                    fleet.component(&host, "proxy").capabilities.remove(&Action::Drain);
                }
                if down {
                    fleet = fleet.down(&host, "proxy");
                }
                proxies.push((host.clone(), backends, out));
            }
            if unreachable {
                away.push(host);
            }
        }
        for (host, backends, out) in proxies {
            let chosen = |bits: u16| -> BTreeSet<Target> {
                let chosen = (0..16).zip(&all_apps).filter(|(bit, _)| bits >> bit & 1 == 1);
                chosen.map(|(_, app)| app.clone()).collect()
            };
            let proxy = fleet.component(&host, "proxy");
            proxy.backends = backends.into_iter().map(chosen).collect();
            // Of a proxy in maintenance nobody asks which of its backends are out.
            if proxy.serving == Serving::Yes {
                proxy.out = proxy.backends.iter().flatten().cloned().collect();
                proxy.out.retain(|backend| chosen(out).contains(backend));
                if !proxy.out.is_empty() {
                    proxy.serving = Serving::Drained;
                }
            }
        }
        away.iter().fold(fleet, |fleet, host| fleet.unreachable(host))
    })
}

pub fn runbook() -> impl Strategy<Value = Runbook> {
    let size = prop_oneof![
        (1usize..3).prop_map(BatchSize::Count),
        (1u8..=100).prop_map(BatchSize::Percent)
    ];
    let sizes = || prop::collection::vec(size.clone(), 1..4);
    let strict = || prop_oneof![4 => Just(OnFailure::Undo), 1 => Just(OnFailure::Hold), 2 => Just(OnFailure::Pause)];
    let any = || {
        prop_oneof![
            2 => Just(OnFailure::Undo),
            1 => Just(OnFailure::Hold),
            2 => Just(OnFailure::Pause),
            2 => Just(OnFailure::Continue)
        ]
    };
    let roles = [Role::Database, Role::Config, Role::App, Role::Proxy];
    let roles = prop_oneof![2 => Just(roles.to_vec()), 1 => prop::sample::subsequence(roles.to_vec(), 1..=4)];
    let choice = prop::sample::select(vec![
        DatabaseChoice::Auto,
        DatabaseChoice::Keep,
        DatabaseChoice::Migrate,
        DatabaseChoice::Restore,
    ]);
    let scope = (roles, choice);
    (
        sizes(),
        sizes(),
        [strict(), strict(), strict()],
        [any(), any(), any()],
        scope,
    )
        .prop_map(
            |(batches, batches_when_quiesced, [stage, protect, database], [app, proxy, verify], (roles, choice))| {
                let mut runbook = Runbook {
                    batches,
                    batches_when_quiesced,
                    unreachable: Unreachable::Skip(9),
                    roles: roles.into_iter().collect(),
                    ..default_runbook()
                }
                .with_database(choice);
                // That alone would take nothing back, and is refused.
                if runbook.roles.iter().all(|role| !runbook.changes(*role)) {
                    runbook.roles.insert(Role::App);
                }
                runbook.on_failure.stage = stage;
                runbook.on_failure.protect = protect;
                runbook.on_failure.database = database;
                runbook.on_failure.app = app;
                runbook.on_failure.proxy = proxy;
                runbook.on_failure.verify = verify;
                runbook
            },
        )
}

fn case() -> impl Strategy<Value = Case> {
    let weather = |failures_in_100, unknowns_in_100, lies_in_100, acts_in_100| Weather {
        failures_in_100,
        unknowns_in_100,
        lies_in_100,
        acts_in_100,
    };
    let weather = prop::sample::select(vec![
        weather(0, 0, 0, 0),
        weather(4, 0, 2, 0),
        weather(4, 2, 2, 0),
        weather(30, 5, 10, 0),
        weather(0, 0, 0, 20),
        weather(10, 0, 2, 20),
        weather(10, 2, 2, 20),
        weather(30, 5, 10, 20),
    ]);
    let tape = prop::collection::vec(any::<u8>(), 0..400);
    (fleet(), runbook(), weather, prop::bool::weighted(0.2), tape).prop_map(
        |(fleet, runbook, weather, to_be_approved, tape)| Case {
            fleet,
            runbook,
            weather,
            to_be_approved,
            tape,
        },
    )
}

/// One step at its agent: what it does to the world, and what the agent says.
fn execute(
    world: &mut World,
    weather: Weather,
    tape: &mut Tape<'_>,
    step: &Step,
    direction: Direction,
) -> Result<Outcome, String> {
    let asked = step
        .in_direction(direction)
        .ok_or("dispatched a step in a direction that it does not have")?;
    if asked.action == Action::Switch {
        world.may_switch(&step.target)?;
    }
    let seen = |world: &World| Some(revision_with(world.revision(&step.target)));
    let refused = asked.action == Action::Drain
        && asked
            .backend
            .is_some_and(|backend| world.would_be_last(&step.target, backend));
    if tape.percent(weather.unknowns_in_100) {
        // What an agent refuses, it refuses whoever hears of it.
        if tape.percent(50) && !refused {
            world.carry_out(&step.target, asked)?;
        }
        return Ok(unknown());
    }
    if asked.action == Action::Verify && !world.serves(&step.target) {
        return Ok(failed());
    }
    if refused {
        return Ok(failed());
    }
    if tape.percent(weather.failures_in_100) {
        // A start that fails may leave the process running all the same.
        if asked.action == Action::Start && tape.percent(50) {
            world.carry_out(&step.target, asked)?;
        }
        return Ok(failed());
    }
    if tape.percent(weather.lies_in_100) && matches!(asked.action, Action::Switch | Action::Verify) {
        // "Succeeded", and nothing happened, or nothing was looked at.
        let observed = if tape.percent(50) {
            Some(revision("elsewhere", "x"))
        } else {
            None
        };
        return Ok(outcome(StepResult::Succeeded, observed));
    }
    world.carry_out(&step.target, asked)?;
    Ok(outcome(StepResult::Succeeded, seen(world)))
}

fn revision_with(digest: &rollback_engine::ids::Digest) -> rollback_engine::release::Revision {
    rollback_engine::release::Revision {
        version: String::new(),
        digest: digest.clone(),
    }
}

/// What came of a case.
struct Story {
    state: State,
    journal: Vec<Event>,
    closes: usize,
}

fn play(case: &Case, plan: &Plan, world: &mut World) -> Result<Story, TestCaseError> {
    let never_dark = never_dark(case, plan, world);
    let mut tape = Tape(case.tape.iter());
    let mut state = State::New;
    let mut journal = Vec::new();
    let mut pending: Vec<(StepId, Direction, u32)> = Vec::new();
    let mut closes = 0;
    let mut command = create(plan);
    let mut second = 0;
    loop {
        let events = transition(&mut state, command.clone()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        journal.extend(events.iter().cloned());
        for effect in effects_of(&state, &events) {
            match effect {
                Effect::Dispatch {
                    step,
                    direction,
                    attempt,
                } => pending.push((step, direction, attempt)),
                Effect::Close => closes += 1,
            }
        }
        if tape.percent(5) {
            // The same answer or act again: refused, and nothing has changed.
            let before = state.clone();
            prop_assert!(transition(&mut state, command.clone()).is_err());
            prop_assert_eq!(&state, &before);
        }
        if tape.percent(8) {
            state = crash(&journal, &events, &state, &pending, &mut tape, second)?;
        }
        if let Some(steer) = operator_acts(&state, case.weather, pending.is_empty(), &mut tape, second)? {
            command = steer;
            continue;
        }
        if pending.is_empty() {
            return Ok(Story { state, journal, closes });
        }
        let (step, direction, attempt) = pending.remove(tape.below(pending.len()));
        let planned = state.step(step).expect("a step of the plan").clone();
        let outcome = execute(world, case.weather, &mut tape, &planned, direction).map_err(TestCaseError::fail)?;
        for proxy in &never_dark {
            let (proxy, upstream) = proxy;
            let serves = world.has_backend(proxy, upstream);
            prop_assert!(serves, "{} has nobody of {:?} after {:?}", proxy, upstream, planned);
        }
        second += 1;
        if tape.percent(3) {
            let other = Command::StepEnded {
                at: at(second),
                step,
                direction,
                attempt: attempt + 1,
                outcome: outcome.clone(),
            };
            let refused = matches!(transition(&mut state, other), Err(Rejected::NotInFlight { .. }));
            prop_assert!(refused, "an answer to another attempt");
        }
        command = Command::StepEnded {
            at: at(second),
            step,
            direction,
            attempt,
            outcome,
        };
    }
}

/// An operator acts now and then, and always where nothing goes on without one. What does not fit is refused and changes
/// nothing.
fn operator_acts(
    state: &State,
    weather: Weather,
    is_still: bool,
    tape: &mut Tape<'_>,
    second: i64,
) -> Result<Option<Command>, TestCaseError> {
    let waits = is_still && state.ending().is_none();
    let Some(run) = state.run().filter(|_| waits || tape.percent(weather.acts_in_100)) else {
        return Ok(None);
    };
    if waits {
        prop_assert!(run.stands_still(), "nothing is in flight, and nobody paused it");
    }
    let of_one = |tape: &mut Tape<'_>| -> BTreeSet<HostName> {
        let mut hosts: Vec<&HostName> = run.failed_hosts().iter().collect();
        let chosen = (!hosts.is_empty() && tape.percent(50)).then(|| hosts.remove(tape.below(hosts.len())).clone());
        chosen.into_iter().collect()
    };
    let digest = run.plan().digest.clone();
    let first = match tape.below(20) {
        0..4 => Act::Resume,
        4..9 => Act::Retry { hosts: of_one(tape) },
        9..14 => Act::Skip { hosts: of_one(tape) },
        14..18 => Act::Pause,
        18 => Act::Approve { digest: digest.clone() },
        _ if tape.percent(50) => Act::Abort { then: AbortThen::Hold },
        _ => Act::Abort { then: AbortThen::Undo },
    };
    // Where nothing else helps, these do.
    let last = [
        Act::Approve { digest },
        Act::Resume,
        Act::Abort { then: AbortThen::Undo },
        Act::Abort { then: AbortThen::Hold },
    ];
    let acts = std::iter::once(first).chain(last.into_iter().filter(|_| waits));
    for act in acts {
        let command = Command::Steer {
            at: at(second),
            by: "bob".to_owned(),
            reason: "a reason".to_owned(),
            act,
        };
        match decide(state, &command) {
            Ok(_) => return Ok(Some(command)),
            Err(Rejected::Unfit(text)) => prop_assert!(!text.is_empty()),
            Err(other) => prop_assert!(false, "{:?}: {}", command, other),
        }
    }
    prop_assert!(!waits, "nothing fits: {:?}", state.name());
    Ok(None)
}

/// The upstreams of proxies in which somebody serves from the first step to the last, whatever goes wrong: backends of several
/// hosts serve, the runbook does not want everything at once, and the schema stays. A runbook that goes on after a failure
/// cannot promise it where a backend was down or away before: the proxy was never told, and counts on it. Nor where one was
/// out: the proxy is resumed as a whole in the end, and counts on those that failed, too.
fn never_dark(case: &Case, plan: &Plan, world: &World) -> Vec<(Target, BTreeSet<Target>)> {
    if plan.body.schema_changes || case.runbook.all_at_once() {
        return Vec::new();
    }
    let several = |proxy: &Target, backends: &BTreeSet<Target>| {
        let up = backends.iter().filter(|b| world.serves(b) && world.is_in(proxy, b));
        up.map(|b| &b.host).collect::<BTreeSet<_>>().len() > 1
    };
    // Operators who leave hosts out do what that policy does.
    let may_skip = [OnFailure::Continue, OnFailure::Pause].contains(&case.runbook.on_failure.app);
    let stops = !may_skip && case.weather.acts_in_100 == 0;
    let proxies = plan.body.changes.iter();
    let proxies = proxies.filter(|c| stops || (c.out.is_empty() && world.all_backends_run(&c.target)));
    let upstreams = proxies.flat_map(|c| c.backends.iter().map(|upstream| (c.target.clone(), upstream.clone())));
    upstreams.filter(|(proxy, upstream)| several(proxy, upstream)).collect()
}

/// The coordinator dies and another one reads the journal, whole or torn inside the last transition.
fn crash(
    journal: &[Event],
    last: &[Event],
    state: &State,
    pending: &[(StepId, Direction, u32)],
    tape: &mut Tape<'_>,
    second: i64,
) -> Result<State, TestCaseError> {
    let torn = tape.below(last.len());
    let mut again = State::replay(journal[..journal.len() - torn].iter().cloned())
        .map_err(|e| TestCaseError::fail(e.to_string()))?;
    let missing =
        transition(&mut again, Command::TakeUp { at: at(second) }).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(
        &missing[..],
        &journal[journal.len() - torn..],
        "what was torn off is decided again, the same way"
    );
    prop_assert_eq!(&again, state, "replay is the state");
    let dispatches: BTreeSet<(StepId, Direction, u32)> = outstanding(&again)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Dispatch {
                step,
                direction,
                attempt,
            } => Some((step, direction, attempt)),
            Effect::Close => None,
        })
        .collect();
    prop_assert_eq!(
        dispatches,
        pending.iter().copied().collect(),
        "outstanding is what is in flight"
    );
    Ok(again)
}

/// The invariants that a journal shows by itself.
fn check_journal(plan: &Plan, journal: &[Event]) -> Result<(), TestCaseError> {
    let steps: BTreeMap<StepId, &Step> = plan.body.steps().map(|s| (s.id, s)).collect();
    let stages: BTreeSet<StepId> = steps
        .values()
        .filter(|s| s.action == Action::Stage)
        .map(|s| s.id)
        .collect();
    let databases: BTreeSet<_> = plan
        .body
        .changes
        .iter()
        .filter(|c| c.role == Role::Database)
        .map(|c| &c.target)
        .collect();
    let mut in_flight = BTreeMap::new();
    let mut attempts: BTreeMap<(StepId, Direction), Vec<Judgement>> = BTreeMap::new();
    let mut staged = BTreeSet::new();
    let mut snapshots = BTreeSet::new();
    let mut standing_still = plan.body.approval.is_some();
    let mut aborted = None;
    for (i, event) in journal.iter().enumerate() {
        match event {
            Event::StepIntended {
                step,
                direction,
                attempt,
                ..
            } => {
                let planned = steps[step];
                prop_assert!(!standing_still, "intended while it stands still: {:?}", planned);
                prop_assert_eq!(
                    in_flight.insert(*step, (*direction, *attempt)),
                    None,
                    "in flight twice: {:?}",
                    planned
                );
                let before = attempts.entry((*step, *direction)).or_default();
                prop_assert_eq!(before.len() + 1, usize::try_from(*attempt).expect("a small number"));
                let all_failed = before.iter().all(|j| matches!(j, Judgement::Bad { .. }));
                prop_assert!(all_failed, "may take effect twice: {:?}", planned);
                match direction {
                    Direction::Forward => prop_assert_eq!(aborted, None, "{:?} after the abort", planned),
                    Direction::Undo => {
                        prop_assert_eq!(*attempt, 1, "the way back is gone once: {:?}", planned);
                        prop_assert_ne!(aborted, Some(AbortThen::Hold), "{:?} after the abort", planned);
                    }
                }
                if *direction == Direction::Forward && planned.action.changes_service() {
                    prop_assert_eq!(&staged, &stages, "{:?} before everything is staged", planned);
                }
                if *direction == Direction::Forward
                    && planned.action == Action::Switch
                    && databases.contains(&planned.target)
                {
                    prop_assert!(snapshots.contains(&planned.target), "{:?} without a snapshot", planned);
                }
            }
            Event::StepEnded {
                step,
                direction,
                attempt,
                outcome,
                ..
            } => {
                let planned = steps[step];
                prop_assert_eq!(
                    in_flight.remove(step),
                    Some((*direction, *attempt)),
                    "ended, and was not in flight"
                );
                let judgement = judge(planned, *direction, outcome);
                let is_good = judgement == Judgement::Good;
                attempts.entry((*step, *direction)).or_default().push(judgement);
                if *direction == Direction::Forward && is_good {
                    match planned.action {
                        Action::Stage => _ = staged.insert(*step),
                        Action::Snapshot => _ = snapshots.insert(planned.target.clone()),
                        Action::Prepare
                        | Action::Discard
                        | Action::Drain
                        | Action::Resume
                        | Action::Stop
                        | Action::Start
                        | Action::Switch
                        | Action::Verify
                        | Action::Finish => {}
                    }
                }
            }
            Event::Ended { ending, .. } => {
                prop_assert_eq!(i, journal.len() - 1, "the ending is the last event");
                let arrived = matches!(ending, Ending::Verified | Ending::Partial { .. });
                prop_assert!(!arrived || (aborted.is_none() && !standing_still), "{:?}", ending);
            }
            Event::Created { .. } => prop_assert_eq!(i, 0),
            Event::PhaseStarted { .. }
            | Event::BatchStarted { .. }
            | Event::PhaseEnded { .. }
            | Event::UndoStarted { .. } => prop_assert!(!standing_still, "{:?} while it stands still", event),
            Event::Paused { .. } => {
                prop_assert!(!standing_still && in_flight.is_empty(), "it awaits what is in flight");
                standing_still = true;
            }
            Event::Steered { act, .. } => match act {
                Act::Pause => standing_still = true,
                Act::Resume | Act::Retry { .. } | Act::Approve { .. } => standing_still = false,
                // What else failed may still wait; then the next event is another act, or an answer.
                Act::Skip { .. } => standing_still = false,
                Act::Abort { then } => (standing_still, aborted) = (false, Some(*then)),
            },
        }
    }
    prop_assert!(in_flight.is_empty(), "every intent has its end");
    Ok(())
}

/// What was observed at its target by a verification that went well.
fn verified(state: &State) -> BTreeSet<&Target> {
    let verifications = state.reports().filter(|r| r.step.action == Action::Verify);
    let good = verifications.filter(|r| {
        r.outcome
            .is_some_and(|o| o.result == StepResult::Succeeded && o.observed.as_ref() == Some(&r.step.to))
    });
    good.map(|r| &r.step.target).collect()
}

/// Did a forward step that matters end with nobody knowing how?
fn something_is_unknown(state: &State) -> bool {
    state.reports().filter(|r| r.direction == Direction::Forward).any(|r| {
        r.outcome
            .is_some_and(|o| matches!(judge(r.step, r.direction, o), Judgement::Unknown(_)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold(case in case()) {
        let Ok(plan) = plan(&case.fleet.observed, &case.fleet.release, &case.runbook, &Request::default()) else {
            // Only a fleet without a single reachable component has no plan here.
            prop_assume!(false);
            unreachable!("the case was rejected");
        };
        prop_assert_eq!(lint(&plan), vec![]);
        let plan = if case.to_be_approved {
            let mut body = plan.body;
            body.approval = Some(ApprovalRule { within_ms: 900_000 });
            Plan::seal(body)
        } else {
            plan
        };

        let origin = World::of(&case.fleet.observed, plan.body.schema_changes);
        let mut world = origin.clone();
        let story = play(&case, &plan, &mut world)?;

        prop_assert_eq!(story.closes, 1, "the scope is given back once");
        check_journal(&plan, &story.journal)?;
        prop_assert_eq!(outstanding(&story.state), vec![Effect::Close]);
        match story.state.ending() {
            None => prop_assert!(false, "all answers are in and it has not ended: {:?}", story.journal.last()),
            Some(Ending::Verified) => {
                prop_assert_eq!(verified(&story.state).len(), plan.body.changes.len());
                prop_assert!(plan.body.excused.is_empty());
                prop_assert_eq!(&world, &origin.at_target(&case.fleet.release, &case.runbook));
            }
            Some(Ending::Undone { blocked: true, .. }) => prop_assert_eq!(&world, &origin),
            Some(Ending::Undone { blocked: false, .. }) => {
                prop_assert!(world.is_back_at(&origin), "{:#?} instead of {:#?}", world, origin);
            }
            Some(Ending::Partial { hosts, cause }) => {
                prop_assert!(!hosts.is_empty() && hosts.is_sorted());
                prop_assert!(!cause.remedy.is_empty());
                let verified = verified(&story.state);
                let listed = |target: &Target| hosts.contains(&target.host);
                let rest: Vec<&Target> = plan.body.changes.iter().map(|c| &c.target).filter(|t| !listed(t)).collect();
                prop_assert!(rest.iter().all(|t| verified.contains(t)), "who is not listed was verified");
            }
            Some(Ending::Held { cause }) => prop_assert!(!cause.message.is_empty() && !cause.remedy.is_empty()),
        }
        if something_is_unknown(&story.state) {
            prop_assert!(matches!(story.state.ending(), Some(Ending::Held { .. })), "what nobody knows is held");
            prop_assert_eq!(story.state.run().and_then(|r| r.undo_start()), None, "and not undone blindly");
        }
        let acts = story.journal.iter().filter_map(|event| match event {
            Event::Steered { act, .. } => Some(act),
            Event::Created { .. }
            | Event::PhaseStarted { .. }
            | Event::BatchStarted { .. }
            | Event::StepIntended { .. }
            | Event::StepEnded { .. }
            | Event::PhaseEnded { .. }
            | Event::UndoStarted { .. }
            | Event::Paused { .. }
            | Event::Ended { .. } => None,
        });
        let (mut skipped, mut aborted) = (false, false);
        for act in acts {
            skipped |= matches!(act, Act::Skip { .. });
            aborted |= matches!(act, Act::Abort { .. });
        }
        if skipped {
            prop_assert_ne!(story.state.ending(), Some(&Ending::Verified), "not without those that were skipped");
        }
        if case.weather.failures_in_100 == 0 && !aborted {
            let verified = matches!(story.state.ending(), Some(Ending::Verified));
            prop_assert_eq!(verified, plan.body.excused.is_empty(), "in fair weather it arrives");
        }
    }
}
