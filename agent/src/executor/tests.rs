//! The executor's promises, with a driver that does what the test says.

mod asking;
pub(crate) mod fake;
mod fencing;
mod killed;
mod running;

use std::path::Path;
use std::time::Duration;

use rollback_proto::v1::accepted::How;
use rollback_proto::v1::execute_event::Event;
use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::{Action, ExecuteRequest, Outcome, StepKey as WireKey};

use self::fake::Fake;
use super::*;

const LIMITS: Limits = Limits {
    grace: Duration::from_millis(20),
    probe: Duration::from_millis(200),
    observe: Duration::from_millis(50),
    retain_turn: Duration::from_millis(50),
    retain: Duration::from_secs(5),
    ledger_backoff: Duration::from_millis(100),
};

/// An agent without a server: components `api` and `db`.
struct Host {
    executor: Executor,
    api: Arc<Fake>,
    db: Arc<Fake>,
}

impl Host {
    async fn start(state: &Path) -> Self {
        Self::start_with(state, Fake::default()).await
    }

    async fn start_with(state: &Path, api: Fake) -> Self {
        let ledger = Ledger::open(state, &TaskTracker::new()).await.expect("open ledger");
        Self::start_over(state, ledger, api, LIMITS)
    }

    fn start_over(state: &Path, ledger: Ledger, api: Fake, limits: Limits) -> Self {
        let (api, db) = (Arc::new(api), Arc::new(Fake::default()));
        let executor = Executor::start(Parts {
            host: "app-1".into(),
            components: vec![
                ("api".into(), Arc::clone(&api) as _),
                ("db".into(), Arc::clone(&db) as _),
            ],
            vault: Arc::new(Vault::open(state.join("vault")).expect("open vault")),
            ledger,
            limits,
        });
        Self { executor, api, db }
    }

    async fn execute(&self, request: ExecuteRequest) -> Result<Events, Problem> {
        self.executor.execute(request, Context::new()).await
    }

    /// Runs a step to its end.
    async fn run(&self, request: ExecuteRequest) -> Told {
        told(self.execute(request).await.expect("accepted")).await
    }
}

/// Everything that one caller was told.
struct Told {
    how: How,
    progress: Vec<String>,
    outcome: Outcome,
}

impl Told {
    fn into_outcome(self) -> Result<Outcome, Problem> {
        Ok(self.outcome)
    }
}

async fn told(mut events: Events) -> Told {
    let (mut how, mut progress) = (How::Unspecified, Vec::new());
    while let Some(event) = events.next().await {
        match event.expect("no error after acceptance").event.expect("an event") {
            Event::Accepted(accepted) => how = accepted.how(),
            Event::Progress(line) => progress.push(line.message),
            Event::Outcome(outcome) => {
                assert!(events.next().await.is_none(), "nothing follows the outcome");
                return Told { how, progress, outcome };
            }
        }
    }
    panic!("the stream ended without an outcome")
}

fn revision(version: &str) -> v1::Revision {
    v1::Revision {
        version: version.into(),
        digest: format!("sha256:{:x<64}", version.replace(['.', 'v'], "")),
    }
}

fn request(component: &str, step: &str, action: Action) -> ExecuteRequest {
    ExecuteRequest {
        key: Some(WireKey {
            rollback_id: "r1".into(),
            step_id: step.into(),
            attempt: 1,
        }),
        epoch: 1,
        leader_id: "coord-1".into(),
        component: component.into(),
        action: action.into(),
        from: Some(revision("v3.0.0")),
        to: Some(revision("v2.9.0")),
        timeout: prost_types::Duration::try_from(Duration::from_secs(20)).ok(),
        ledger_generation: String::new(),
        backend: String::new(),
        ..ExecuteRequest::default()
    }
}

fn switch(component: &str, step: &str) -> ExecuteRequest {
    request(component, step, Action::Switch)
}

fn within(request: ExecuteRequest, timeout: Duration) -> ExecuteRequest {
    ExecuteRequest {
        timeout: prost_types::Duration::try_from(timeout).ok(),
        ..request
    }
}

fn code(outcome: &Outcome) -> Option<Code> {
    outcome.problem.clone().map(|problem| Problem::from(problem).code)
}
