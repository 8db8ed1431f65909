//! The driver of the simulated components: moves take time, fail when the seed says so, and take effect at one instant.
//! What it says of a move that was cut off is true.

use std::collections::BTreeSet;

use async_trait::async_trait;
use rollback_agent::driver::{
    Action, Done, Driver, DriverInfo, Failure, Finding, Health, Observation, Probe, Retained, Revision,
};
use rollback_agent::step::StepContext;
use rollback_engine::ids::Target;
use rollback_engine::release::{Revision as EngineRevision, Role};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::Receipt;

use crate::ground::{Ground, Machine};
use crate::recorder::{Deed, Seen};
use crate::seed::Component;

#[derive(Debug)]
pub struct Simulated {
    ground: Ground,
    component: Component,
}

impl Simulated {
    pub fn new(ground: Ground, component: Component) -> Self {
        Self { ground, component }
    }

    fn target(&self) -> &Target {
        &self.component.target
    }

    fn deed(&self, step: &StepContext) -> Deed {
        Deed {
            rollback: step.rollback_id.clone(),
            target: self.target().clone(),
            action: step.action,
            undo: step.undo,
            backend: step.backend.clone(),
        }
    }

    fn seen(&self) -> Revision {
        self.ground.with(self.target(), |machine| revision(&machine.revision))
    }

    /// A move that changes something.
    async fn act(&self, step: &StepContext) -> Result<Done, Failure> {
        let deed = self.deed(step);
        self.ground.recorder().note(Seen::Entered { deed: deed.clone() });
        let script = self.ground.script(&deed);
        let _busy = self.ground.begin(self.target());
        tokio::time::sleep(script.before).await;
        if script.fails {
            return Err(as_the_seed_says(&deed).into());
        }
        if let Some(time) = script.tears {
            self.ground.with(self.target(), |machine| machine.torn = true);
            // Cut off in here, nobody can tell any more.
            tokio::time::sleep(time).await;
        }
        let to = EngineRevision {
            version: step.to.version.clone(),
            digest: step.to.digest.clone().into(),
        };
        self.ground.effect(&deed, &to);
        step.progress(deed.to_string());
        tokio::time::sleep(script.after).await;
        let receipt = (step.action == Action::Snapshot).then(receipt);
        let done = Done::at(self.seen(), deed.to_string());
        Ok(Done { receipt, ..done })
    }

    /// A move that only reads.
    async fn look(&self, step: &StepContext) -> Result<(), Problem> {
        let deed = self.deed(step);
        let script = self.ground.script(&deed);
        tokio::time::sleep(script.before).await;
        if script.fails {
            Err(as_the_seed_says(&deed))
        } else {
            Ok(())
        }
    }
}

fn as_the_seed_says(deed: &Deed) -> Problem {
    Problem::new(Code::ProgramFailed, format!("{deed}: failed, as the seed says"))
}

fn revision(revision: &EngineRevision) -> Revision {
    Revision {
        version: revision.version.clone(),
        digest: revision.digest.0.clone(),
    }
}

fn receipt() -> Receipt {
    Receipt {
        path: "backup".to_owned(),
        sha256: "00".repeat(32),
        bytes: 1,
        verified: "restore".to_owned(),
        taken_at: "2026-01-01T00:00:00Z".to_owned(),
        ..Receipt::default()
    }
}

fn health(machine: &Machine) -> Health {
    if machine.torn {
        Health::Unhealthy
    } else if !machine.running {
        Health::Stopped
    } else if machine.serves() {
        Health::Healthy
    } else {
        Health::Drained
    }
}

/// Does the component look as it does after this move?
fn applied(machine: &Machine, step: &StepContext) -> bool {
    match step.action {
        Action::Unspecified | Action::Prepare | Action::Verify => false,
        Action::Stage => machine.staged.contains(&step.to.digest),
        Action::Discard | Action::Finish => machine.staged.is_empty(),
        Action::Snapshot => machine.backed_up,
        Action::Drain => match &step.backend {
            Some(backend) => machine.out.contains(backend),
            None => machine.drained,
        },
        Action::Resume => match &step.backend {
            Some(backend) => !machine.out.contains(backend),
            None => !machine.drained && machine.out.is_empty(),
        },
        Action::Stop => !machine.running,
        Action::Start => machine.running,
        Action::Switch => machine.revision.digest.0 == step.to.digest,
    }
}

#[async_trait]
impl Driver for Simulated {
    fn info(&self) -> DriverInfo {
        self.component.info()
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        Ok(self.ground.with(self.target(), |machine| Observation {
            revision: revision(&machine.revision),
            health: health(machine),
            detail: String::new(),
            out: if machine.drained {
                BTreeSet::new()
            } else {
                machine.out.clone()
            },
        }))
    }

    async fn retain(&self, _release: &str) -> Result<Retained, Problem> {
        let (revision, summary) = (self.seen(), String::new());
        Ok(Retained { revision, summary })
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        self.look(step).await.err().map(Finding::blocker).into_iter().collect()
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn drain(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn resume(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        self.look(step).await?;
        if self.ground.with(self.target(), |machine| machine.serves()) {
            Ok(Done::at(self.seen(), "serves"))
        } else {
            Err(Problem::new(Code::Unhealthy, format!("{} does not serve", self.target())).into())
        }
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        let (torn, applied) = self.ground.with(self.target(), |m| (m.torn, applied(m, step)));
        if torn {
            let target = self.target().clone();
            let problem = Problem::new(Code::StepIndeterminate, format!("{target}: half of it is there"));
            self.ground.recorder().note(Seen::Torn { target });
            return Probe::Indeterminate(problem);
        }
        if applied {
            let receipt = (step.action == Action::Snapshot).then(receipt);
            let done = Done::at(self.seen(), "found done");
            Probe::Applied(Done { receipt, ..done })
        } else {
            Probe::Repeatable("nothing of it is there".to_owned())
        }
    }
}

/// What a component of this role can be asked for.
pub fn capabilities(role: Role) -> Vec<Action> {
    use Action::{Discard, Drain, Finish, Prepare, Resume, Snapshot, Stage, Start, Stop, Switch, Verify};
    let own: &[Action] = match role {
        Role::Database | Role::Config => &[Snapshot],
        Role::App => &[Stop, Start],
        Role::Proxy => &[Drain, Resume, Snapshot],
    };
    let every = [Prepare, Stage, Discard, Switch, Verify, Finish];
    every.into_iter().chain(own.iter().copied()).collect()
}
