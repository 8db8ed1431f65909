//! What is on one host: which version of each component runs, and which ones are still there to go back to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rollback_agent::driver::{
    Action, Done, Driver, DriverInfo, Failure, Finding, Health, Observation, Probe, Retained, Revision, Role,
};
use rollback_agent::step::StepContext;
use rollback_proto::problem::{Code, Problem};
use sha2::{Digest as _, Sha256};

/// What runs before anything was deployed.
const FIRST: &str = "v0";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Env,
    Api,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Env => "env",
            Kind::Api => "api",
        }
    }

    /// What a version of it is known by, on every host.
    fn revision(self, version: &str) -> Revision {
        let digest = Sha256::digest(format!("{} {version}", self.name()));
        Revision {
            version: version.to_owned(),
            digest: format!("sha256:{}", hex::encode(digest)),
        }
    }
}

#[derive(Debug)]
struct Host {
    live: BTreeMap<Kind, Revision>,
    /// Digests of what can be gone back to.
    there: BTreeSet<String>,
    stopped: bool,
}

/// A cheap handle to a host's components.
#[derive(Clone, Debug)]
pub struct Ground(Arc<Mutex<Host>>);

impl Default for Ground {
    fn default() -> Self {
        let ground = Self(Arc::new(Mutex::new(Host {
            live: BTreeMap::new(),
            there: BTreeSet::new(),
            stopped: false,
        })));
        ground.deploy(FIRST);
        ground
    }
}

impl Ground {
    pub fn deploy(&self, version: &str) {
        let mut host = self.host();
        for kind in [Kind::Env, Kind::Api] {
            let revision = kind.revision(version);
            host.there.insert(revision.digest.clone());
            host.live.insert(kind, revision);
        }
    }

    /// The application of this version is gone, as after `docker image prune`.
    pub fn prune(&self, version: &str) {
        self.host().there.remove(&Kind::Api.revision(version).digest);
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub struct InMemory {
    kind: Kind,
    ground: Ground,
}

impl InMemory {
    pub fn new(kind: Kind, ground: Ground) -> Self {
        Self { kind, ground }
    }

    fn live(&self) -> Revision {
        let host = self.ground.host();
        host.live
            .get(&self.kind)
            .cloned()
            .unwrap_or_else(|| self.kind.revision(FIRST))
    }

    fn done(&self, what: &str) -> Result<Done, Failure> {
        Ok(Done::at(self.live(), what))
    }

    fn missing(&self, to: &Revision) -> Option<Problem> {
        let there = self.ground.host().there.contains(&to.digest);
        (!there).then(|| {
            let message = format!("the image of {} {} is gone", self.kind.name(), to.version);
            Problem::new(Code::RevisionMissing, message).remedy("load it again")
        })
    }
}

#[async_trait]
impl Driver for InMemory {
    fn info(&self) -> DriverInfo {
        use Action::{Discard, Finish, Prepare, Snapshot, Stage, Start, Stop, Switch, Verify};
        let every = [Prepare, Stage, Discard, Switch, Verify, Finish];
        let (role, own, reads): (Role, &[Action], BTreeSet<String>) = match self.kind {
            Kind::Env => (Role::Config, &[Snapshot], BTreeSet::new()),
            Kind::Api => (Role::App, &[Stop, Start], BTreeSet::from([Kind::Env.name().to_owned()])),
        };
        DriverInfo {
            kind: match self.kind {
                Kind::Env => "env-file",
                Kind::Api => "container",
            },
            role,
            capabilities: every.into_iter().chain(own.iter().copied()).collect(),
            reads,
            backends: BTreeSet::new(),
            restores: false,
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        let stopped = self.ground.host().stopped && self.kind == Kind::Api;
        Ok(Observation {
            revision: self.live(),
            health: if stopped { Health::Stopped } else { Health::Healthy },
            detail: "200 in 2 ms".to_owned(),
            out: BTreeSet::new(),
        })
    }

    async fn retain(&self, _release: &str) -> Result<Retained, Problem> {
        let (revision, summary) = (self.live(), "in memory".to_owned());
        self.ground.host().there.insert(revision.digest.clone());
        Ok(Retained { revision, summary })
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        self.missing(&step.to).map(Finding::blocker).into_iter().collect()
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        match self.missing(&step.to) {
            Some(problem) => Err(problem.into()),
            None => self.done("it is there"),
        }
    }

    async fn discard(&self, _step: &StepContext) -> Result<Done, Failure> {
        self.done("nothing was beside the live one")
    }

    async fn snapshot(&self, _step: &StepContext) -> Result<Done, Failure> {
        self.done("kept")
    }

    async fn stop(&self, _step: &StepContext) -> Result<Done, Failure> {
        self.ground.host().stopped = true;
        self.done("stopped")
    }

    async fn start(&self, _step: &StepContext) -> Result<Done, Failure> {
        self.ground.host().stopped = false;
        self.done("started")
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        self.ground.host().live.insert(self.kind, step.to.clone());
        self.done("switched")
    }

    async fn verify(&self, _step: &StepContext) -> Result<Done, Failure> {
        self.done("serves")
    }

    async fn finish(&self, _step: &StepContext) -> Result<Done, Failure> {
        self.done("nothing to remove")
    }

    async fn probe(&self, _step: &StepContext) -> Probe {
        Probe::Repeatable("every move is one assignment".to_owned())
    }
}
