//! The fleets whose rollbacks are explored: a few hosts with one component each, planned by the real planner.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rollback_engine::event::{Command, Direction};
use rollback_engine::ids::StepId;
use rollback_engine::ids::Target;
use rollback_engine::plan::{OnFailure, Plan, Step};
use rollback_engine::planner;
use rollback_engine::release::{
    Action, ObservedComponent, ObservedFleet, ObservedHost, Release, ReleaseEntry, Revision, Role, Serving,
};
use rollback_engine::runbook::{BatchSize, Runbook};

use crate::world::{Move, Revised};

/// One component, alone on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes its revision up by itself, without a stop and a start.
    App,
    /// Is stopped, switched and started.
    Restarted,
    Database,
    /// Is at its target already: only verified.
    AtTarget,
}

/// What a failed step of the app and verify phases leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Undo,
    Continue,
}

/// The description of a fleet; [`Subject`] is what comes of it.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    pub hosts: &'static [Kind],
    pub policy: Policy,
    /// All hosts at once in the app phase, instead of one first.
    pub at_once: bool,
    /// With the last phase, which clears away; it doubles what is to be explored and decides nothing.
    pub finish: bool,
}

/// A rollback to explore: its plan, and what the model has to know of each step.
#[derive(Debug)]
pub struct Subject {
    pub plan: Plan,
    pub hosts: Vec<HostFacts>,
    steps: Vec<StepFacts>,
}

#[derive(Debug)]
pub struct HostFacts {
    pub role: Role,
    /// It has another revision to go to.
    pub moves: bool,
    /// The plan stages something here.
    pub staged: bool,
}

#[derive(Debug)]
struct StepFacts {
    host: usize,
    forward: Asked,
    back: Option<Asked>,
}

/// What an agent is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub action: Action,
    pub to: Revised,
}

impl Asked {
    /// As the agent sees it: does the step go through the ledger?
    pub fn mutates(self) -> bool {
        match self.action {
            Action::Prepare | Action::Verify => false,
            Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Drain
            | Action::Resume
            | Action::Stop
            | Action::Start
            | Action::Switch
            | Action::Finish => true,
        }
    }
}

fn at() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn revision(version: &str) -> Revision {
    Revision {
        version: version.to_owned(),
        digest: format!("sha256:{version}").into(),
    }
}

fn host_name(host: usize) -> String {
    format!("host-{host}")
}

fn capabilities(kind: Kind, finish: bool) -> BTreeSet<Action> {
    let mut capabilities = BTreeSet::from([
        Action::Prepare,
        Action::Stage,
        Action::Discard,
        Action::Switch,
        Action::Verify,
    ]);
    match kind {
        Kind::App | Kind::AtTarget => {}
        Kind::Restarted => capabilities.extend([Action::Stop, Action::Start]),
        Kind::Database => _ = capabilities.insert(Action::Snapshot),
    }
    if finish {
        capabilities.insert(Action::Finish);
    }
    capabilities
}

impl Fleet {
    pub fn subject(&self) -> Subject {
        let mut observed = ObservedFleet::new();
        let mut entries = Vec::new();
        for (number, kind) in self.hosts.iter().enumerate() {
            let role = match kind {
                Kind::App | Kind::Restarted | Kind::AtTarget => Role::App,
                Kind::Database => Role::Database,
            };
            let live = if *kind == Kind::AtTarget { "target" } else { "origin" };
            let component = ObservedComponent {
                role,
                capabilities: capabilities(*kind, self.finish),
                reads: BTreeSet::new(),
                backends: BTreeSet::new(),
                out: BTreeSet::new(),
                revision: Ok(revision(live)),
                serving: Serving::Yes,
                restores: false,
            };
            let components = BTreeMap::from([("component".into(), component)]);
            observed.insert(host_name(number).into(), ObservedHost::Reachable(components));
            entries.push(ReleaseEntry {
                target: Target::new(host_name(number), "component"),
                role,
                revision: revision("target"),
                summary: String::new(),
            });
        }
        let release = Release {
            name: "target".into(),
            commit: String::new(),
            notes: String::new(),
            recorded_at: at(),
            recorded_by: "model".to_owned(),
            entries,
            stable: true,
            ranks_at: None,
            mark: None,
        };
        let mut runbook = Runbook::builtin("default").expect("the built-in runbook is sound");
        // One more step that only looks would multiply what is to be explored, and decides nothing that `verify` does not.
        runbook.checks.after_batch = false;
        if self.at_once {
            runbook.batches = vec![BatchSize::Percent(100)];
        }
        match self.policy {
            Policy::Undo => {}
            Policy::Continue => {
                runbook.on_failure.app = OnFailure::Continue;
                runbook.on_failure.verify = OnFailure::Continue;
            }
        }
        let plan = planner::plan(&observed, &release, &runbook, &planner::Request::default())
            .expect("such a fleet can be planned for");
        Subject::of(plan)
    }
}

impl Subject {
    fn of(plan: Plan) -> Self {
        let host_of = |target: &Target| {
            let found = plan.body.changes.iter().position(|c| &c.target == target);
            found.expect("every step's component is in scope")
        };
        let asked = |step: &Step, direction| {
            let change = &plan.body.changes[host_of(&step.target)];
            step.in_direction(direction).map(|asked| Asked {
                action: asked.action,
                to: if asked.to == &change.to {
                    Revised::Target
                } else {
                    Revised::Origin
                },
            })
        };
        let steps = plan.body.steps().map(|step| StepFacts {
            host: host_of(&step.target),
            forward: asked(step, Direction::Forward).expect("every step goes forward"),
            back: asked(step, Direction::Undo),
        });
        let steps = steps.collect();
        let hosts = plan.body.changes.iter().map(|change| HostFacts {
            role: change.role,
            moves: change.moves(),
            staged: plan
                .body
                .steps()
                .any(|s| s.target == change.target && s.action == Action::Stage),
        });
        let hosts = hosts.collect();
        Self { hosts, steps, plan }
    }

    pub fn host(&self, step: Move) -> usize {
        self.steps[usize::from(step.step)].host
    }

    /// What is asked of the agent.
    pub fn asked(&self, step: Move) -> Asked {
        let facts = &self.steps[usize::from(step.step)];
        if step.back {
            facts.back.unwrap_or(facts.forward)
        } else {
            facts.forward
        }
    }

    /// "switch host-0", or "switch host-0 back".
    pub fn name(&self, step: Move) -> String {
        let asked = self.asked(step);
        let back = if step.back { " (on the way back)" } else { "" };
        let again = if step.attempt > 1 { ", again" } else { "" };
        format!("{} {}{back}{again}", asked.action, host_name(self.host(step)))
    }

    pub fn revision(&self, host: usize, revised: Revised) -> &Revision {
        let change = &self.plan.body.changes[host];
        match revised {
            Revised::Origin => &change.from,
            Revised::Target => &change.to,
        }
    }

    /// The host of this name.
    pub fn host_called(&self, name: &str) -> Option<usize> {
        let hosts = self.plan.body.changes.iter();
        hosts.map(|c| c.target.host.as_str()).position(|host| host == name)
    }

    pub fn create(&self) -> Command {
        Command::Create {
            at: at(),
            plan: Box::new(self.plan.clone()),
            started_by: "model".to_owned(),
            reason: String::new(),
            incident: String::new(),
            trace_id: String::new(),
            parent_span_id: String::new(),
            consent: None,
            ledgers: BTreeMap::new(),
        }
    }

    pub fn step_id(step: Move) -> StepId {
        StepId(u32::from(step.step))
    }
}
