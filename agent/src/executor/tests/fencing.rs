//! A new leader takes over while the old one still asks.

use rollback_proto::problem::Hint;
use rollback_proto::v1::{RecallRequest, RecallResponse};

use super::fake::Script;
use super::*;
use crate::ledger::memory::Memory;

fn question(epoch: u64) -> RecallRequest {
    RecallRequest {
        epoch,
        leader_id: format!("coord-{epoch}/0a1b"),
        rollback_ids: vec!["r1".into()],
    }
}

fn steps(recalled: &RecallResponse) -> Vec<&str> {
    let keys = recalled.steps.iter().filter_map(|step| step.key.as_ref());
    keys.map(|key| key.step_id.as_str()).collect()
}

fn stale(problem: &Problem) {
    assert_eq!(
        (problem.code, &problem.hint),
        (Code::StaleLeader, &Some(Hint::Epoch(2))),
        "{problem}"
    );
}

/// The two meet at so many different moments.
const MEETINGS: usize = 30;

/// A question of the old leader and the recall of the new one, at the same time.
struct Met {
    host: Host,
    step: Result<Events, Problem>,
    recalled: RecallResponse,
    /// How often the driver had been entered when the new leader had its answer.
    entered: usize,
    _place: tempfile::TempDir,
}

/// The new leader comes so many turns of the scheduler later.
async fn meet(asked: ExecuteRequest, turns: usize) -> Met {
    let place = tempfile::tempdir().expect("temporary directory");
    let ledger = Memory::new("app-1").open();
    let host = Host::start_over(place.path(), ledger, Fake::default(), LIMITS);
    host.executor.recovered().await;
    let takeover = async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let recalled = host.executor.recall(question(2)).await.expect("recalled");
        (recalled, host.api.entered())
    };
    let (step, (recalled, entered)) = tokio::join!(host.execute(asked), takeover);
    Met {
        host,
        step,
        recalled,
        entered,
        _place: place,
    }
}

/// However the two meet, a step that changes something is refused, or its intent is in the answer.
#[tokio::test]
async fn no_step_of_the_old_leader_begins_behind_the_answer_to_the_new_one() {
    let (mut begun, mut refused) = (0, 0);
    for turns in 0..MEETINGS {
        let Met {
            host, step, recalled, ..
        } = meet(switch("api", "1"), turns).await;
        match step {
            Ok(events) => {
                assert_eq!(steps(&recalled), ["1"], "after {turns} turns");
                told(events).await;
                begun += 1;
            }
            Err(problem) => {
                stale(&problem);
                assert!(steps(&recalled).is_empty(), "after {turns} turns");
                assert_eq!(host.api.entered(), 0);
                refused += 1;
            }
        }
        stale(&host.execute(switch("api", "2")).await.expect_err("refused"));
        stale(
            &host
                .execute(request("api", "3", Action::Verify))
                .await
                .expect_err("refused"),
        );
    }
    assert!(
        begun > 1 && refused > 1,
        "{begun} begun, {refused} refused: the two did not meet"
    );
}

/// What only reads leaves nothing in the ledger: it is refused, or was begun when the answer was given.
#[tokio::test]
async fn nothing_is_looked_at_for_the_old_leader_behind_the_answer_to_the_new_one() {
    let (mut begun, mut refused) = (0, 0);
    for turns in 0..MEETINGS {
        let Met {
            host, step, entered, ..
        } = meet(request("api", "1", Action::Verify), turns).await;
        match step {
            Ok(events) => {
                told(events).await;
                begun += 1;
            }
            Err(problem) => {
                stale(&problem);
                refused += 1;
            }
        }
        assert_eq!(host.api.entered(), entered, "after {turns} turns");
    }
    assert!(
        begun > 1 && refused > 1,
        "{begun} begun, {refused} refused: the two did not meet"
    );
}

#[tokio::test]
async fn a_step_that_waits_for_its_turn_is_refused_when_the_lead_has_moved_on() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.api.will(Script::Wait);
    let first = host.execute(switch("api", "1")).await.expect("accepted");
    let waiting = host.execute(switch("api", "2"));
    let takeover = async {
        while host.executor.0.running().len() < 2 {
            tokio::task::yield_now().await;
        }
        let recalled = host.executor.recall(question(2)).await.expect("recalled");
        host.api.release(2);
        recalled
    };
    let (waiting, recalled) = tokio::join!(waiting, takeover);
    stale(&waiting.expect_err("refused"));
    assert_eq!(steps(&recalled), ["1"]);
    assert_eq!(
        told(first).await.outcome.status(),
        Status::Succeeded,
        "what had begun goes on"
    );
    assert_eq!(host.api.entered(), 1);
}

#[tokio::test]
async fn a_leader_that_asks_does_not_wait_for_what_is_being_resolved() {
    let place = tempfile::tempdir().expect("temporary directory");
    let disk = Memory::new("app-1");
    let before = Host::start_over(place.path(), disk.open(), Fake::default(), LIMITS);
    before.api.will(Script::Hang);
    before.execute(switch("api", "1")).await.expect("accepted");
    // The next process finds the intent, and its probe takes as long as the test.
    let patient = Limits {
        probe: Duration::from_secs(3600),
        ..LIMITS
    };
    let host = Host::start_over(place.path(), disk.open(), Fake::silent(), patient);
    let recalled = host.executor.recall(question(2)).await.expect("recalled");
    assert_eq!(recalled.steps[0].state(), v1::recalled_step::State::Unfinished);
    assert!(!host.executor.0.recovered.initialized());
    // The intent of another leader stays what it is, and the component is not touched before that is known.
    let in_time = within(switch("api", "1"), Duration::from_millis(50));
    let as_new = ExecuteRequest {
        epoch: 2,
        leader_id: question(2).leader_id,
        ..in_time
    };
    assert_eq!(host.execute(as_new).await.expect_err("busy").code, Code::ComponentBusy);
}
