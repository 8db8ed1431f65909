//! Fleets to plan for, and short ways to say what tests say often.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rollback_engine::event::{Command, Direction, Event, Outcome, Problem, StepResult};
use rollback_engine::ids::{HostName, StepId, Target};
use rollback_engine::loss::Consent;
use rollback_engine::machine::{State, transition};
use rollback_engine::plan::{DatabaseChoice, Plan};
use rollback_engine::planner::{Request, plan};
use rollback_engine::release::{
    Action, ObservedComponent, ObservedFleet, ObservedHost, Release, ReleaseEntry, Revision, Role, Serving,
};
use rollback_engine::runbook::Runbook;

/// An observed fleet together with the release that it shall go back to.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub observed: ObservedFleet,
    pub release: Release,
}

pub fn revision(version: &str, component: &str) -> Revision {
    Revision {
        version: version.to_owned(),
        digest: format!("sha256:{component}-{version}").into(),
    }
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_764_000_000 + second).expect("a small offset from a valid instant")
}

impl Fleet {
    pub fn empty() -> Self {
        let release = Release {
            name: "v2.9.0".into(),
            commit: String::new(),
            notes: String::new(),
            recorded_at: at(0),
            recorded_by: "test".to_owned(),
            entries: Vec::new(),
            stable: true,
            ranks_at: None,
            mark: None,
        };
        Self {
            observed: BTreeMap::new(),
            release,
        }
    }

    /// A component that can do all that its role may be asked for, at v3.0.0 when it `changes`.
    pub fn with(mut self, host: &str, name: &str, role: Role, changes: bool, reads: &[&str]) -> Self {
        let live = if changes { "v3.0.0" } else { "v2.9.0" };
        let component = ObservedComponent {
            role,
            capabilities: capabilities(role),
            reads: reads.iter().map(|r| (*r).into()).collect(),
            backends: BTreeSet::new(),
            out: BTreeSet::new(),
            revision: Ok(revision(live, name)),
            serving: Serving::Yes,
            restores: role == Role::Database,
        };
        match self
            .observed
            .entry(host.into())
            .or_insert_with(|| ObservedHost::Reachable(BTreeMap::new()))
        {
            ObservedHost::Reachable(components) => components.insert(name.into(), component),
            ObservedHost::Unreachable { .. } => panic!("{host} is unreachable"),
        };
        self.release.entries.push(ReleaseEntry {
            target: Target::new(host, name),
            role,
            revision: revision("v2.9.0", name),
            summary: String::new(),
        });
        self.release.entries.sort_by(|a, b| a.target.cmp(&b.target));
        self
    }

    pub fn component(&mut self, host: &str, name: &str) -> &mut ObservedComponent {
        match self.observed.get_mut(&HostName::from(host)) {
            Some(ObservedHost::Reachable(components)) => components.get_mut(&name.into()).expect("a component"),
            Some(ObservedHost::Unreachable { .. }) | None => panic!("no such reachable host: {host}"),
        }
    }

    /// A proxy that can take these ("host/component") of an upstream out one by one.
    pub fn behind(mut self, host: &str, proxy: &str, backends: &[&str]) -> Self {
        self.component(host, proxy).backends.insert(targets(backends));
        self
    }

    /// A proxy that serves, while these of its backends ("host/component") get no requests.
    pub fn without(mut self, host: &str, proxy: &str, out: &[&str]) -> Self {
        self = self.down(host, proxy);
        self.component(host, proxy).out = targets(out);
        self
    }

    /// Stopped if it is an app, drained if it is a proxy.
    pub fn down(mut self, host: &str, name: &str) -> Self {
        let component = self.component(host, name);
        component.serving = match component.role {
            Role::App => Serving::Stopped,
            Role::Proxy => Serving::Drained,
            Role::Database | Role::Config => panic!("{host}/{name} cannot be down"),
        };
        self
    }

    pub fn unreachable(mut self, host: &str) -> Self {
        self.observed.insert(
            host.into(),
            ObservedHost::Unreachable {
                reason: "connection refused".to_owned(),
            },
        );
        self
    }

    pub fn plan(&self) -> Plan {
        self.plan_by(&default_runbook())
    }

    pub fn plan_by(&self, runbook: &Runbook) -> Plan {
        plan(&self.observed, &self.release, runbook, &Request::default()).expect("a plan")
    }

    /// By the default runbook, with another way for databases.
    pub fn plan_with(&self, choice: DatabaseChoice) -> Plan {
        self.plan_by(&default_runbook().with_database(choice))
    }
}

fn targets(names: &[&str]) -> BTreeSet<Target> {
    let target = |name: &&str| {
        let (host, component) = name.split_once('/').expect("host/component");
        Target::new(host, component)
    };
    names.iter().map(target).collect()
}

pub fn capabilities(role: Role) -> BTreeSet<Action> {
    let every = [
        Action::Prepare,
        Action::Stage,
        Action::Discard,
        Action::Switch,
        Action::Verify,
        Action::Finish,
    ];
    let own: &[Action] = match role {
        Role::Database | Role::Config => &[Action::Snapshot],
        Role::App => &[Action::Stop, Action::Start],
        Role::Proxy => &[Action::Drain, Action::Resume, Action::Snapshot],
    };
    every.into_iter().chain(own.iter().copied()).collect()
}

pub fn default_runbook() -> Runbook {
    builtin("default")
}

pub fn builtin(name: &str) -> Runbook {
    Runbook::builtin(name).expect("the built-in runbook is sound")
}

/// Two app servers with env files, a database whose schema changes when `schema_changes`, and a proxy.
pub fn demo(schema_changes: bool) -> Fleet {
    Fleet::empty()
        .with("app-1", "api", Role::App, true, &["env"])
        .with("app-1", "env", Role::Config, true, &[])
        .with("app-2", "api", Role::App, true, &["env"])
        .with("app-2", "env", Role::Config, true, &[])
        .with("db-1", "db", Role::Database, schema_changes, &[])
        .with("proxy-1", "proxy", Role::Proxy, true, &[])
}

/// The demo fleet with a proxy that can take both apps out one by one.
pub fn rolling() -> Fleet {
    demo(false).behind("proxy-1", "proxy", &["app-1/api", "app-2/api"])
}

/// What [`create`] agrees to when the plan needs it.
pub const CONSENT: Consent = Consent { max_rows: Some(1132) };

pub fn create(plan: &Plan) -> Command {
    Command::Create {
        at: at(0),
        plan: Box::new(plan.clone()),
        started_by: "alice".to_owned(),
        reason: "errors after the release".to_owned(),
        incident: "INC-7".to_owned(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        parent_span_id: "b7ad6b7169203331".to_owned(),
        consent: plan.body.restored_databases().next().map(|_| CONSENT),
        ledgers: std::collections::BTreeMap::new(),
    }
}

pub fn problem(message: &str) -> Problem {
    Problem {
        code: "RB0504".to_owned(),
        message: message.to_owned(),
        remedy: "look at it".to_owned(),
    }
}

pub fn outcome(result: StepResult, observed: Option<Revision>) -> Outcome {
    Outcome {
        result,
        findings: Vec::new(),
        observed,
        receipt: None,
        operations: Vec::new(),
        summary: String::new(),
        loss: None,
    }
}

pub fn failed() -> Outcome {
    outcome(StepResult::Failed(problem("exit status 1")), None)
}

pub fn unknown() -> Outcome {
    outcome(
        StepResult::Indeterminate(problem("the agent was killed inside it")),
        None,
    )
}

/// What an honest agent says of a step that went well.
pub fn good(state: &State, step: StepId, direction: Direction) -> Outcome {
    let step = state.step(step).expect("a step of the plan");
    let to = step.in_direction(direction).expect("a step that can go this way").to;
    outcome(StepResult::Succeeded, Some(to.clone()))
}

/// Carries a plan out to its end, asking `answer` for every outcome; steps are answered in the order of dispatch.
pub fn carry_out(plan: &Plan, mut answer: impl FnMut(&State, StepId, Direction) -> Outcome) -> (State, Vec<Event>) {
    let mut state = State::New;
    let mut journal = transition(&mut state, create(plan)).expect("a sound plan is accepted");
    let mut seen = 0;
    let mut second = 1;
    while seen < journal.len() {
        if let Event::StepIntended {
            step,
            direction,
            attempt,
            ..
        } = journal[seen]
        {
            let outcome = answer(&state, step, direction);
            let ended = Command::StepEnded {
                at: at(second),
                step,
                direction,
                attempt,
                outcome,
            };
            journal.extend(transition(&mut state, ended).expect("an answer that is awaited"));
            second += 1;
        }
        seen += 1;
    }
    (state, journal)
}

/// Like [`carry_out`], with answers of one kind for these (action, target, direction) and success for all others.
pub fn carry_out_but(plan: &Plan, exceptions: &[(&str, Outcome)]) -> (State, Vec<Event>) {
    carry_out(plan, |state, id, direction| {
        let step = state.step(id).expect("a step of the plan");
        let action = step
            .in_direction(direction)
            .expect("a step that can go this way")
            .action;
        let way = match direction {
            Direction::Forward => "",
            Direction::Undo => "undo: ",
        };
        let name = format!("{way}{action} {}", step.subject());
        let exception = exceptions.iter().find(|(n, _)| *n == name);
        exception.map_or_else(|| good(state, id, direction), |(_, outcome)| outcome.clone())
    })
}

/// "forward: stop app-1/api" for every intent of the journal.
pub fn intents(state: &State, journal: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::StepIntended { step, direction, .. } => {
            let step = state.step(*step)?;
            let action = step.in_direction(*direction)?.action;
            Some(match direction {
                Direction::Forward => format!("{action} {}", step.subject()),
                Direction::Undo => format!("undo: {action} {}", step.subject()),
            })
        }
        Event::Created { .. }
        | Event::PhaseStarted { .. }
        | Event::BatchStarted { .. }
        | Event::StepEnded { .. }
        | Event::PhaseEnded { .. }
        | Event::UndoStarted { .. }
        | Event::Steered { .. }
        | Event::Paused { .. }
        | Event::Ended { .. } => None,
    };
    journal.iter().filter_map(name).collect()
}
