//! Steps that run: joined, watched, side by side, cut off, and not heard of before they are durable.

use sqlx::{ConnectOptions, Connection, Executor as _};

use super::fake::Script;
use super::*;
use crate::driver::{Done, Probe, Revision};
use crate::ledger::memory::Memory;

#[tokio::test]
async fn everybody_who_asks_for_a_running_step_gets_its_one_outcome() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.api.will(Script::Wait);
    let first = host.execute(switch("api", "1")).await.expect("accepted");
    host.api.wait_entered(1).await;
    let second = host.execute(switch("api", "1")).await.expect("joined");
    // The caller that started it goes away.
    drop(first);
    let mut other = switch("api", "1");
    other.to = Some(revision("v2.8.0"));
    assert_eq!(
        host.execute(other.clone()).await.expect_err("refused").code,
        Code::KeyReused
    );
    host.api.release(1);
    let second = told(second).await;
    assert_eq!((second.how, second.outcome.status()), (How::Joined, Status::Succeeded));
    assert_eq!(second.outcome.observed, Some(revision("v2.9.0")));
    assert_eq!(second.outcome.operations.len(), 1);
    let third = host.run(switch("api", "1")).await;
    assert_eq!((third.how, &third.outcome), (How::FromLedger, &second.outcome));
    assert_eq!(host.execute(other).await.expect_err("refused").code, Code::KeyReused);
    assert_eq!(host.api.entered(), 1);
}

#[tokio::test]
async fn asking_again_may_change_the_time_and_the_leader_but_not_the_work() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    assert_eq!(host.run(switch("api", "1")).await.how, How::Started);
    let again = ExecuteRequest {
        epoch: 9,
        leader_id: "coord-2".into(),
        ..within(switch("api", "1"), Duration::from_secs(1))
    };
    assert_eq!(host.run(again).await.how, How::FromLedger);
    assert_eq!(host.api.entered(), 1);
}

#[tokio::test]
async fn progress_comes_before_the_outcome_and_none_is_lost_to_a_watcher_that_keeps_up() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let watched = host.run(switch("api", "1")).await;
    assert_eq!(watched.progress, ["Switch of api"]);
}

#[tokio::test]
async fn findings_are_the_outcome_of_prepare() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let ready = host.run(request("api", "1", Action::Prepare)).await.outcome;
    assert_eq!((ready.status(), ready.findings.len()), (Status::Succeeded, 1));
    host.api.will(Script::Fail);
    let blocked = host.run(request("api", "2", Action::Prepare)).await.outcome;
    assert_eq!(blocked.status(), Status::Succeeded, "looking went well");
    assert_eq!(blocked.findings[0].severity(), v1::Severity::Blocker);
}

#[tokio::test]
async fn components_run_side_by_side_and_one_component_runs_step_by_step() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.api.will(Script::Wait);
    host.db.will(Script::Wait);
    let api = host.execute(switch("api", "1")).await.expect("accepted");
    let db = host.execute(switch("db", "2")).await.expect("accepted");
    host.api.wait_entered(1).await;
    host.db.wait_entered(1).await;

    let impatient = within(switch("api", "3"), Duration::from_millis(30));
    assert_eq!(
        host.execute(impatient).await.expect_err("refused").code,
        Code::ComponentBusy
    );
    assert_eq!(host.api.entered(), 1, "the second step waited outside");

    let queued = tokio::spawn({
        let executor = host.executor.clone();
        async move {
            told(
                executor
                    .execute(switch("api", "4"), Context::new())
                    .await
                    .expect("accepted"),
            )
            .await
        }
    });
    let verify = host
        .execute(request("api", "5", Action::Verify))
        .await
        .expect("reading takes no turn");
    host.api.wait_entered(2).await;
    host.api.release(2);
    assert_eq!(told(api).await.outcome.status(), Status::Succeeded);
    assert_eq!(told(verify).await.outcome.status(), Status::Succeeded);
    host.api.release(1);
    assert_eq!(queued.await.expect("no panic").outcome.status(), Status::Succeeded);
    host.db.release(1);
    assert_eq!(told(db).await.outcome.status(), Status::Succeeded);

    // The one that was refused for lack of time was never begun: it may come again.
    host.api.release(1);
    assert_eq!(host.run(switch("api", "3")).await.how, How::Started);
}

#[tokio::test]
async fn a_successor_gets_the_step_that_its_predecessor_may_not_begin_any_more() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.api.will(Script::Wait);
    let first = host.execute(switch("api", "1")).await.expect("accepted");
    host.api.wait_entered(1).await;
    let ask = |epoch, leader: &str| {
        let executor = host.executor.clone();
        let request = ExecuteRequest {
            epoch,
            leader_id: leader.into(),
            ..switch("api", "2")
        };
        async move {
            told(executor.execute(request, Context::new()).await?)
                .await
                .into_outcome()
        }
    };
    let predecessor = tokio::spawn(ask(1, "coord-1"));
    while host.executor.0.running().len() < 2 {
        tokio::task::yield_now().await;
    }
    let successor = tokio::spawn(ask(2, "coord-2"));
    let old = crate::ledger::Fence {
        epoch: 1,
        leader: "coord-1".into(),
    };
    while host.executor.0.ledger.observe_epoch(old.clone()).await.is_ok() {}
    host.api.release(2);
    assert_eq!(told(first).await.outcome.status(), Status::Succeeded);
    assert_eq!(
        predecessor.await.expect("no panic").expect_err("refused").code,
        Code::StaleLeader
    );
    assert_eq!(
        successor.await.expect("no panic").expect("accepted").status(),
        Status::Succeeded
    );
    assert_eq!(host.api.entered(), 2);
}

#[tokio::test]
async fn a_step_that_overruns_is_cut_off_and_the_driver_says_what_became_of_it() {
    let place = tempfile::tempdir().expect("temporary directory");
    // The steps' time is short: a disk that is busy would use it up.
    let ledger = Memory::new("app-1").open();
    let host = Host::start_over(place.path(), ledger, Fake::default(), LIMITS);
    host.api.will(Script::Hang);
    let revision = Revision {
        version: "v2.9.0".into(),
        digest: "sha256:290".into(),
    };
    let unclear = Problem::new(Code::DatabaseUnclear, "half a database");
    let cases = [
        (Probe::Applied(Done::at(revision, "it runs")), Status::Succeeded, None),
        (
            Probe::Repeatable("untouched".into()),
            Status::Failed,
            Some(Code::StepTimeout),
        ),
        (
            Probe::Indeterminate(unclear),
            Status::Indeterminate,
            Some(Code::DatabaseUnclear),
        ),
    ];
    for (n, (probe, status, problem)) in cases.into_iter().enumerate() {
        host.api.will_probe(probe);
        let outcome = host
            .run(within(switch("api", &n.to_string()), Duration::from_millis(30)))
            .await
            .outcome;
        assert_eq!((outcome.status(), code(&outcome)), (status, problem), "{outcome:?}");
    }
    let verify = within(request("api", "v", Action::Verify), Duration::from_millis(30));
    let outcome = host.run(verify).await.outcome;
    assert_eq!(
        (outcome.status(), code(&outcome)),
        (Status::Failed, Some(Code::StepTimeout))
    );
}

#[tokio::test]
async fn a_panic_ends_as_an_outcome_and_the_agent_lives_on() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.api.will(Script::Panic);
    let outcome = host.run(switch("api", "1")).await.outcome;
    assert_eq!(
        (outcome.status(), code(&outcome)),
        (Status::Indeterminate, Some(Code::StepIndeterminate))
    );
    assert!(outcome.summary.contains("as the test says"), "{}", outcome.summary);
    let outcome = host.run(request("api", "2", Action::Prepare)).await.outcome;
    assert_eq!(
        (outcome.status(), code(&outcome)),
        (Status::Failed, Some(Code::Internal))
    );
    host.api.will(Script::Succeed);
    assert_eq!(
        host.run(switch("api", "3")).await.outcome.status(),
        Status::Succeeded,
        "the turn was given back"
    );
}

#[tokio::test]
async fn nobody_hears_of_an_outcome_that_is_not_on_the_disk() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let mut disk = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(place.path().join("ledger.db"))
        .connect()
        .await
        .expect("connect");
    disk.execute("CREATE TRIGGER full BEFORE UPDATE ON steps BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        .await
        .expect("create trigger");
    let mut events = host.execute(switch("api", "1")).await.expect("accepted");
    host.api.wait_entered(1).await;
    let early = tokio::time::timeout(Duration::from_millis(50), events.outcome()).await;
    assert!(early.is_err(), "told {early:?}");
    disk.execute("DROP TRIGGER full").await.expect("drop trigger");
    disk.close().await.expect("close");
    assert_eq!(events.outcome().await.expect("outcome").status(), Status::Succeeded);
    assert_eq!(host.run(switch("api", "1")).await.how, How::FromLedger);
}

#[tokio::test]
async fn a_step_whose_intent_cannot_be_written_is_refused_before_anything_is_done() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let mut disk = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(place.path().join("ledger.db"))
        .connect()
        .await
        .expect("connect");
    disk.execute("CREATE TRIGGER full BEFORE INSERT ON steps BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        .await
        .expect("create trigger");
    let problem = host.execute(switch("api", "1")).await.expect_err("refused");
    assert_eq!((problem.code, host.api.entered()), (Code::StoreUnavailable, 0));
    disk.close().await.expect("close");
}

#[tokio::test]
async fn stopping_waits_for_what_runs_and_accepts_nothing_more() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.api.will(Script::Wait);
    let step = host.execute(switch("api", "1")).await.expect("accepted");
    host.api.wait_entered(1).await;
    assert!(!host.executor.stop(Duration::from_millis(10)).await, "a step runs");
    assert_eq!(
        host.execute(switch("api", "2")).await.expect_err("refused").code,
        Code::HostUnreachable
    );
    host.api.release(1);
    assert!(host.executor.stop(Duration::from_secs(10)).await);
    assert_eq!(told(step).await.outcome.status(), Status::Succeeded);
}
