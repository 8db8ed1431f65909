//! A driver that does what the test says, and says what it was asked.

use std::collections::BTreeSet;
use std::sync::Mutex;

use async_trait::async_trait;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{Action, Health, Role};
use tokio::sync::{Semaphore, watch};

use crate::driver::{Done, Driver, DriverInfo, Failure, Finding, Observation, Probe, Retained, Revision, unsupported};
use crate::step::StepContext;

/// What a move does once it was entered.
#[derive(Clone, Copy, Debug, Default)]
pub enum Script {
    #[default]
    Succeed,
    /// Until [`Fake::release`], then succeeds.
    Wait,
    Hang,
    Panic,
    Fail,
}

#[derive(Debug)]
pub struct Fake {
    script: Mutex<Script>,
    /// `None`: no answer.
    probe: Mutex<Option<Probe>>,
    /// Moves entered so far.
    entered: watch::Sender<usize>,
    released: Semaphore,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            script: Mutex::default(),
            probe: Mutex::new(Some(Probe::Repeatable("nothing was changed".into()))),
            entered: watch::Sender::new(0),
            released: Semaphore::new(0),
        }
    }
}

impl Fake {
    pub fn probing(answer: Probe) -> Self {
        let fake = Self::default();
        fake.will_probe(answer);
        fake
    }

    /// Its probe does not answer.
    pub fn silent() -> Self {
        Self {
            probe: Mutex::new(None),
            ..Self::default()
        }
    }

    pub fn will(&self, script: Script) {
        *self.script.lock().expect("script") = script;
    }

    pub fn will_probe(&self, answer: Probe) {
        *self.probe.lock().expect("probe") = Some(answer);
    }

    pub fn release(&self, moves: usize) {
        self.released.add_permits(moves);
    }

    pub fn entered(&self) -> usize {
        *self.entered.borrow()
    }

    /// Returns once so many moves were entered in all.
    pub async fn wait_entered(&self, moves: usize) {
        self.entered
            .subscribe()
            .wait_for(|entered| *entered >= moves)
            .await
            .expect("the fake lives");
    }

    async fn act(&self, step: &StepContext) -> Result<Done, Failure> {
        let script = *self.script.lock().expect("script");
        step.progress(format!("{:?} of {}", step.action, step.component));
        self.entered.send_modify(|entered| *entered += 1);
        match script {
            Script::Succeed => {}
            Script::Wait => self.released.acquire().await.expect("open").forget(),
            Script::Hang => std::future::pending().await,
            Script::Panic => panic!("as the test says"),
            Script::Fail => return Err(Problem::new(Code::DiskFull, "as the test says").into()),
        }
        step.operation("act", async {}).await;
        Ok(Done::at(step.to.clone(), "acted"))
    }
}

#[async_trait]
impl Driver for Fake {
    fn info(&self) -> DriverInfo {
        use Action::{Discard, Finish, Prepare, Stage, Switch, Verify};
        DriverInfo {
            kind: "fake",
            role: Role::App,
            capabilities: vec![Prepare, Stage, Discard, Switch, Verify, Finish],
            reads: BTreeSet::new(),
            backends: BTreeSet::new(),
            restores: false,
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        let script = *self.script.lock().expect("script");
        match script {
            Script::Hang | Script::Wait => std::future::pending().await,
            Script::Panic => panic!("as the test says"),
            Script::Fail => return Err(Problem::new(Code::DatabaseDown, "as the test says")),
            Script::Succeed => {}
        }
        Ok(Observation {
            revision: Revision {
                version: "v3.0.0".into(),
                digest: "sha256:300".into(),
            },
            health: Health::Healthy,
            detail: "as the test says".into(),
            out: BTreeSet::new(),
        })
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        let revision = Revision {
            version: release.into(),
            digest: "sha256:300".into(),
        };
        Ok(Retained {
            revision,
            summary: "kept".into(),
        })
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        self.retain(release).await
    }

    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        Ok(format!("fake forgot {}", revision.digest))
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        match self.act(step).await {
            Ok(_) => vec![Finding::warning(Problem::new(Code::DiskFull, "little room"))],
            Err(Failure::Failed(problem) | Failure::Indeterminate(problem)) => vec![Finding::blocker(problem)],
        }
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

    async fn drain(&self, step: &StepContext) -> Result<Done, Failure> {
        Err(unsupported("fake", step))
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        self.act(step).await
    }

    async fn probe(&self, _step: &StepContext) -> Probe {
        let answer = self.probe.lock().expect("probe").clone();
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}
