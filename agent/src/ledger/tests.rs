//! What the ledger promises, each promise across a reopening where it is one.

use rollback_proto::v1::outcome::Status;
use sqlx::{ConnectOptions, Connection, Executor};
use tempfile::TempDir;

use super::*;

const DIGEST: ArgsDigest = [7; 32];

fn place() -> TempDir {
    tempfile::tempdir().expect("temporary directory")
}

/// Opens the ledger, works with it, and closes it completely.
async fn with<T>(place: &TempDir, work: impl AsyncFnOnce(&Ledger) -> T) -> T {
    let tasks = TaskTracker::new();
    let ledger = Ledger::open(&place.path().join("state"), &tasks).await.expect("open");
    let result = work(&ledger).await;
    drop(ledger);
    tasks.close();
    tasks.wait().await;
    result
}

fn fence(epoch: u64, leader: &str) -> Fence {
    Fence {
        epoch,
        leader: leader.to_owned(),
    }
}

fn key(step: &str) -> StepKey {
    StepKey {
        rollback_id: "r1".into(),
        step_id: step.into(),
        attempt: 1,
    }
}

fn outcome(summary: &str) -> Outcome {
    Outcome {
        status: Status::Succeeded.into(),
        summary: summary.into(),
        ..Outcome::default()
    }
}

async fn begin(ledger: &Ledger, step: &str, digest: ArgsDigest) -> Begin {
    let request = ExecuteRequest {
        component: step.into(),
        ..ExecuteRequest::default()
    };
    ledger
        .begin(fence(1, "a"), key(step), digest, request)
        .await
        .expect("begin")
}

#[tokio::test]
async fn a_key_gets_one_outcome_for_one_set_of_arguments() {
    let place = place();
    with(&place, async |ledger| {
        assert_eq!(begin(ledger, "1", DIGEST).await, Begin::New);
        assert_eq!(begin(ledger, "1", DIGEST).await, Begin::Unfinished);
        ledger.finish(key("1"), outcome("first")).await.expect("finish");
        ledger.finish(key("1"), outcome("second")).await.expect("finish again");
    })
    .await;
    with(&place, async |ledger| {
        assert_eq!(
            begin(ledger, "1", DIGEST).await,
            Begin::Known(Box::new(outcome("first")))
        );
        assert_eq!(begin(ledger, "1", [8; 32]).await, Begin::ArgsDiffer);
        assert_eq!(
            begin(ledger, "2", DIGEST).await,
            Begin::New,
            "another step is another key"
        );
    })
    .await;
}

#[tokio::test]
async fn an_intent_without_a_result_is_found_after_a_restart() {
    let place = place();
    with(&place, async |ledger| {
        begin(ledger, "1", DIGEST).await;
        begin(ledger, "2", DIGEST).await;
        ledger.finish(key("2"), outcome("done")).await.expect("finish");
    })
    .await;
    with(&place, async |ledger| {
        let unfinished = ledger.unfinished().await.expect("unfinished");
        assert_eq!(unfinished.len(), 1);
        assert_eq!(
            (&unfinished[0].key, unfinished[0].request.component.as_str()),
            (&key("1"), "1")
        );
        ledger.interrupt(key("1")).await.expect("interrupt");
        assert!(ledger.unfinished().await.expect("unfinished").is_empty());
    })
    .await;
    with(&place, async |ledger| {
        assert_eq!(
            begin(ledger, "1", [8; 32]).await,
            Begin::ArgsDiffer,
            "an interrupted key keeps its arguments"
        );
        assert_eq!(
            begin(ledger, "1", DIGEST).await,
            Begin::New,
            "an interrupted step runs again"
        );
        assert_eq!(ledger.unfinished().await.expect("unfinished").len(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_epoch_never_goes_back_and_belongs_to_one_leader() {
    let place = place();
    let stale = async |ledger: &Ledger, fence: Fence| {
        matches!(ledger.observe_epoch(fence).await, Err(LedgerError::Stale { .. }))
    };
    with(&place, async |ledger| {
        ledger.observe_epoch(fence(3, "a")).await.expect("the first leader");
        ledger.observe_epoch(fence(3, "a")).await.expect("the same leader");
        assert!(stale(ledger, fence(2, "a")).await, "a lower epoch");
        assert!(stale(ledger, fence(3, "b")).await, "the same epoch of another leader");
        ledger.observe_epoch(fence(5, "b")).await.expect("a higher epoch");
    })
    .await;
    with(&place, async |ledger| {
        assert!(stale(ledger, fence(4, "a")).await, "a lower epoch, after a restart");
        assert!(
            stale(ledger, fence(5, "a")).await,
            "the same epoch of another leader, after a restart"
        );
        let begun = ledger
            .begin(fence(4, "a"), key("1"), DIGEST, ExecuteRequest::default())
            .await;
        assert!(matches!(begun, Err(LedgerError::Stale { .. })));
        ledger.observe_epoch(fence(5, "b")).await.expect("the leader");
        assert!(
            ledger.unfinished().await.expect("unfinished").is_empty(),
            "a refused intent was not recorded"
        );
    })
    .await;
}

#[tokio::test]
async fn the_generation_lives_as_long_as_the_file() {
    let place = place();
    let first = with(&place, async |ledger| ledger.generation().to_owned()).await;
    let reopened = with(&place, async |ledger| ledger.generation().to_owned()).await;
    assert_eq!(first, reopened);
    std::fs::remove_dir_all(place.path().join("state")).expect("wipe");
    let wiped = with(&place, async |ledger| ledger.generation().to_owned()).await;
    assert_ne!(first, wiped);
}

#[tokio::test]
async fn many_at_once_are_all_answered_and_all_durable() {
    let place = place();
    with(&place, async |ledger| {
        let steps: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let begun = futures::future::join_all(steps.iter().map(|step| begin(ledger, step, DIGEST))).await;
        assert!(begun.iter().all(|b| *b == Begin::New));
        let twice = futures::future::join_all([begin(ledger, "x", DIGEST), begin(ledger, "x", DIGEST)]).await;
        assert_eq!(twice, [Begin::New, Begin::Unfinished], "of two at once, one begins");
    })
    .await;
    let unfinished = with(&place, async |ledger| ledger.unfinished().await.expect("unfinished")).await;
    assert_eq!(unfinished.len(), 201);
}

#[tokio::test]
async fn a_second_agent_on_the_same_state_is_refused() {
    let place = place();
    with(&place, async |_| {
        let second = Ledger::open(&place.path().join("state"), &TaskTracker::new()).await;
        assert!(matches!(second, Err(OpenError::InUse { .. })));
    })
    .await;
}

#[tokio::test]
async fn nobody_else_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let place = place();
    with(&place, async |ledger| {
        begin(ledger, "1", DIGEST).await;
        let state = place.path().join("state");
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        for file in std::fs::read_dir(&state).expect("list") {
            let path = file.expect("entry").path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    })
    .await;
}

#[tokio::test]
async fn a_write_that_fails_refuses_the_step_and_the_ledger_recovers() {
    let place = place();
    with(&place, async |ledger| {
        begin(ledger, "1", DIGEST).await;
        let path = place.path().join("state").join("ledger.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut other = options.connect().await.expect("connect");
        // A trigger is the shortest way to a write that SQLite refuses, as it does on a full disk.
        other
            .execute("CREATE TRIGGER refuse BEFORE INSERT ON steps BEGIN SELECT RAISE(ABORT, 'disk full'); END")
            .await
            .expect("create trigger");
        let refused = ledger
            .begin(fence(2, "b"), key("2"), DIGEST, ExecuteRequest::default())
            .await;
        assert!(matches!(refused, Err(LedgerError::Disk(_))), "{refused:?}");
        let problem = Problem::from(refused.expect_err("refused"));
        assert_eq!(problem.code, Code::StoreUnavailable);
        assert!(problem.message.contains("disk full"), "{problem}");
        other.execute("DROP TRIGGER refuse").await.expect("drop trigger");
        other.close().await.expect("close");
        assert_eq!(
            begin(ledger, "2", DIGEST).await,
            Begin::New,
            "the epoch of the refused batch was not kept"
        );
    })
    .await;
}
