//! The agent is killed inside a step. Each life has a runtime of its own; dropping it stops every task where it stands.

use tokio::runtime::Runtime;

use super::fake::Script;
use super::*;
use crate::driver::{Done, Probe, Revision};

/// Runs until `work` returns, then nothing more.
fn life<T>(work: impl Future<Output = T>) -> T {
    let runtime = Runtime::new().expect("runtime");
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

fn killed_inside(state: &Path, request: ExecuteRequest) {
    life(async {
        let host = Host::start(state).await;
        host.api.will(Script::Hang);
        host.execute(request).await.expect("accepted");
        host.api.wait_entered(1).await;
    });
}

/// The next life, with what the driver finds: what the same question is answered with, and how often the driver acted.
fn afterwards(state: &Path, probe: Probe, request: ExecuteRequest) -> (How, Outcome, usize) {
    life(async {
        let host = Host::start_with(state, Fake::probing(probe)).await;
        let told = host.run(request).await;
        (told.how, told.outcome, host.api.entered())
    })
}

#[test]
fn a_step_that_took_effect_is_not_done_again() {
    let place = tempfile::tempdir().expect("temporary directory");
    killed_inside(place.path(), switch("api", "1"));
    let seen = Revision {
        version: "v2.9.0".into(),
        digest: "sha256:290".into(),
    };
    let applied = Probe::Applied(Done::at(seen, "it runs"));
    let (how, outcome, acted) = afterwards(place.path(), applied, switch("api", "1"));
    assert_eq!((how, outcome.status(), acted), (How::FromLedger, Status::Succeeded, 0));
    assert_eq!(outcome.observed.map(|r| r.version).as_deref(), Some("v2.9.0"));
    assert!(outcome.summary.starts_with("recovered"), "{}", outcome.summary);
}

#[test]
fn a_step_that_did_not_take_effect_runs_again_when_it_is_asked_for() {
    let place = tempfile::tempdir().expect("temporary directory");
    killed_inside(place.path(), switch("api", "1"));
    let untouched = || Probe::Repeatable("untouched".into());
    let idle = life(async {
        let host = Host::start_with(place.path(), Fake::probing(untouched())).await;
        host.executor.recovered().await;
        host.api.entered()
    });
    assert_eq!(idle, 0, "nobody asked for it");
    let mut other = switch("api", "1");
    other.to = Some(revision("v2.8.0"));
    let reused = life(async { Host::start(place.path()).await.execute(other).await.err() });
    assert_eq!(reused.map(|problem| problem.code), Some(Code::KeyReused));
    let (how, outcome, acted) = afterwards(place.path(), untouched(), switch("api", "1"));
    assert_eq!((how, outcome.status(), acted), (How::Started, Status::Succeeded, 1));
}

#[test]
fn a_step_that_nobody_can_judge_waits_for_a_person() {
    let place = tempfile::tempdir().expect("temporary directory");
    killed_inside(place.path(), switch("api", "1"));
    let unclear = Probe::Indeterminate(Problem::new(Code::StepIndeterminate, "two processes run"));
    let (how, outcome, acted) = afterwards(place.path(), unclear, switch("api", "1"));
    assert_eq!(
        (how, outcome.status(), acted),
        (How::FromLedger, Status::Indeterminate, 0)
    );
    assert_eq!(code(&outcome), Some(Code::StepIndeterminate));
    let (_, again, _) = afterwards(place.path(), Probe::Repeatable("fine now".into()), switch("api", "1"));
    assert_eq!(again, outcome, "the answer stays what it was");
}

#[test]
fn a_step_that_only_read_runs_again_without_asking_the_driver() {
    let place = tempfile::tempdir().expect("temporary directory");
    killed_inside(place.path(), request("api", "1", Action::Verify));
    let never_asked = Probe::Indeterminate(Problem::new(Code::Internal, "the driver was asked"));
    let (how, outcome, acted) = afterwards(place.path(), never_asked, request("api", "1", Action::Verify));
    assert_eq!((how, outcome.status(), acted), (How::Started, Status::Succeeded, 1));
}

#[test]
fn a_caller_that_is_connected_learns_that_the_agent_stops() {
    let place = tempfile::tempdir().expect("temporary directory");
    let runtime = Runtime::new().expect("runtime");
    let mut events = runtime.block_on(async {
        let host = Host::start(place.path()).await;
        host.api.will(Script::Hang);
        let events = host.execute(switch("api", "1")).await.expect("accepted");
        host.api.wait_entered(1).await;
        events
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    let last = life(async { events.outcome().await });
    assert_eq!(last.expect_err("no outcome").code, Code::HostUnreachable);
}
