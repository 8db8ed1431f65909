//! Operators' acts on their way through the leader to the runner and into the journal: what is answered is durable, what is
//! asked twice is done once, and what people let pass is noticed, also by the next leader.
//!
//! There are no agents: every step of preflight is in flight until its time is over, which a test waits for on its own clock.

mod members;

use std::sync::Arc;
use std::time::Duration;

use rollback_coordinator::leader::Start;
use rollback_coordinator::projection::{Summary, SummaryState};
use rollback_coordinator::store::Store as _;
use rollback_coordinator::store::memory::MemoryDisk;
use rollback_engine::event::{AbortThen, Act, Event};
use rollback_engine::ids::RollbackId;
use rollback_engine::plan::{ApprovalRule, Plan};
use rollback_proto::problem::{Code, Problem};

use members::{Member, demo, member, until_leading};

const HOLD: Act = Act::Abort { then: AbortThen::Hold };
const UNDO: Act = Act::Abort { then: AbortThen::Undo };

/// The demo's rollback, to be approved within this time.
fn approved_within(ms: u64) -> Plan {
    let mut body = demo().body;
    body.approval = Some(ApprovalRule { within_ms: ms });
    Plan::seal(body)
}

async fn leading(disk: &Arc<MemoryDisk>, name: &str) -> Member {
    let member = member(disk, name).await;
    until_leading(&member).await;
    member
}

/// By ana.
async fn start(member: &Member, plan: Plan) -> RollbackId {
    let start = Start {
        plan,
        request_id: "q1".to_owned(),
        started_by: "ana".to_owned(),
        reason: String::new(),
        incident: String::new(),
        trace_id: "0".repeat(32),
        parent_span_id: String::new(),
        consent: None,
    };
    let leader = member.replica.leader().expect("leads");
    leader.start(start).await.expect("it starts")
}

async fn steer(member: &Member, id: &RollbackId, by: &str, act: Act) -> Result<Summary, Problem> {
    let leader = member.replica.leader().expect("leads");
    leader.steer(id, by.to_owned(), "because".to_owned(), act).await
}

/// As lists show it: what is in the store.
async fn stored(member: &Member, id: &RollbackId) -> Summary {
    let summary = member.store.summary(id).await.expect("reads").expect("is there");
    serde_json::from_str(&summary).expect("a summary")
}

/// What it ended with, once it has.
async fn ended(member: &Member, id: &RollbackId) -> Summary {
    let limit = tokio::time::Instant::now() + Duration::from_secs(24 * 3600);
    loop {
        let summary = stored(member, id).await;
        if summary.ended_at.is_some() {
            return summary;
        }
        assert!(tokio::time::Instant::now() < limit, "it never ends: {summary:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn acts(member: &Member, id: &RollbackId) -> Vec<Act> {
    let recorded = member.store.events(id, 0).await.expect("reads");
    let acts = recorded.into_iter().filter_map(|r| match r.event {
        Event::Steered { act, .. } => Some(act),
        _ => None,
    });
    acts.collect()
}

fn approve(plan: &Plan) -> Act {
    Act::Approve {
        digest: plan.digest.clone(),
    }
}

#[tokio::test(start_paused = true)]
async fn pause_is_durable_when_it_is_answered_and_done_once_however_often_it_is_asked_for() {
    let disk = MemoryDisk::new();
    let member = leading(&disk, "a").await;
    let id = start(&member, demo()).await;
    let answered = steer(&member, &id, "ana", Act::Pause).await.expect("paused");
    let still = answered.standstill.clone().expect("it stands still");
    assert_eq!((still.by.as_deref(), still.reason.as_str()), (Some("ana"), "because"));
    assert!(still.in_flight > 0, "what is in flight goes on");
    assert_eq!(stored(&member, &id).await.standstill, answered.standstill);

    // A lost answer, and a colleague with the same thought.
    for by in ["ana", "ben"] {
        let again = steer(&member, &id, by, Act::Pause).await.expect("it is paused already");
        assert_eq!(again.standstill.expect("still").since, still.since);
    }
    assert_eq!(acts(&member, &id).await, [Act::Pause]);

    let resumed = steer(&member, &id, "ben", Act::Resume).await.expect("goes on");
    assert_eq!(resumed.standstill, None);
    steer(&member, &id, "ben", Act::Resume)
        .await
        .expect("whose answer was lost");
    let refused = steer(&member, &id, "ana", Act::Resume)
        .await
        .expect_err("it is not paused");
    assert_eq!(refused.code, Code::ActUnfit);
    assert!(refused.message.contains("not paused"), "{}", refused.message);
    assert_eq!(acts(&member, &id).await, [Act::Pause, Act::Resume]);
}

#[tokio::test(start_paused = true)]
async fn what_is_paused_stays_so_under_the_next_leader_and_goes_on_there() {
    let disk = MemoryDisk::new();
    let first = leading(&disk, "a").await;
    let id = start(&first, demo()).await;
    steer(&first, &id, "ana", Act::Pause).await.expect("paused");
    let second = member(&disk, "b").await;
    first.stop.cancel();
    until_leading(&second).await;
    // Long past the time of every step of preflight: it would have ended, blocked.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let still = stored(&second, &id).await;
    assert_eq!((still.ended_at, still.state), (None, SummaryState::Running));
    let standstill = still.standstill.expect("it stands still");
    assert_eq!(
        standstill.in_flight, 0,
        "what was in flight has ended, and is written down"
    );
    steer(&second, &id, "ana", Act::Pause)
        .await
        .expect("who asks the next leader again is told so, too");
    steer(&second, &id, "ben", Act::Resume).await.expect("goes on");
    let end = ended(&second, &id).await;
    assert_eq!(
        (end.state, end.blocked),
        (SummaryState::Undone, true),
        "no host has answered"
    );
}

#[tokio::test(start_paused = true)]
async fn abort_ends_it_when_all_is_still_and_tells_whoever_asks_again() {
    let disk = MemoryDisk::new();
    let member = leading(&disk, "a").await;
    let id = start(&member, demo()).await;
    let answered = steer(&member, &id, "ana", HOLD).await.expect("is written down");
    assert_eq!(answered.ended_at, None, "steps are in flight");
    let end = ended(&member, &id).await;
    assert_eq!(end.state, SummaryState::Held);
    assert_eq!(end.problem.expect("a cause").code, Code::Aborted.id());

    let again = steer(&member, &id, "ana", HOLD).await.expect("the answer was lost");
    assert_eq!(again.state, SummaryState::Held);
    for (by, act) in [("ben", HOLD), ("ana", UNDO), ("ana", Act::Pause)] {
        let refused = steer(&member, &id, by, act).await.expect_err("it has ended");
        assert_eq!(refused.code, Code::ActUnfit);
        assert!(refused.message.contains("held"), "{}", refused.message);
    }
    let nobody = steer(&member, &"nobody".into(), "ana", Act::Pause).await;
    assert_eq!(nobody.expect_err("there is none").code, Code::NotFound);
    assert_eq!(acts(&member, &id).await, [HOLD]);
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_before_another_operator_has_approved_this_plan() {
    let disk = MemoryDisk::new();
    let member = leading(&disk, "a").await;
    let plan = approved_within(3_600_000);
    let id = start(&member, plan.clone()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let waiting = stored(&member, &id).await;
    let approval = waiting.approval.expect("is asked for");
    assert_eq!((approval.approved, &approval.plan_digest), (None, &plan.digest));
    assert_eq!(waiting.phase, "", "no phase has begun");

    let own = steer(&member, &id, "ana", approve(&plan))
        .await
        .expect_err("she has started it");
    let other = steer(&member, &id, "ben", approve(&demo()))
        .await
        .expect_err("another plan");
    assert_eq!([own.code, other.code], [Code::ApprovalRefused; 2]);
    for _ in 0..2 {
        let approved = steer(&member, &id, "ben", approve(&plan)).await.expect("approved");
        let (by, _) = approved.approval.and_then(|a| a.approved).expect("by somebody");
        assert_eq!((by.as_str(), approved.phase.as_str()), ("ben", "preflight"));
    }
    assert_eq!(acts(&member, &id).await, [approve(&plan)]);
    assert_eq!(ended(&member, &id).await.state, SummaryState::Undone, "no host answers");
}

/// The clock that says so is the wall's: the tests' own runs ahead of it, and the runner must look again until both agree.
#[tokio::test(start_paused = true)]
async fn approval_that_does_not_come_ends_it_also_under_the_next_leader() {
    for takeover in [false, true] {
        let disk = MemoryDisk::new();
        let first = leading(&disk, "a").await;
        let id = start(&first, approved_within(if takeover { 250 } else { 60 })).await;
        let second = member(&disk, "b").await;
        let now = if takeover {
            first.stop.cancel();
            until_leading(&second).await;
            assert_eq!(stored(&second, &id).await.ended_at, None, "it is taken up");
            &second
        } else {
            &first
        };
        let end = ended(now, &id).await;
        assert_eq!((end.state, end.blocked), (SummaryState::Undone, true));
        assert_eq!(end.problem.expect("a cause").code, Code::ApprovalExpired.id());
        assert_eq!(end.steps_done, 0, "nothing was touched");
        assert!(acts(now, &id).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_approval_can_be_ended() {
    let disk = MemoryDisk::new();
    let member = leading(&disk, "a").await;
    let id = start(&member, approved_within(3_600_000)).await;
    let end = steer(&member, &id, "ana", UNDO).await.expect("ends");
    assert_eq!((end.state, end.blocked), (SummaryState::Undone, true));
    let scope_is_free = member.store.running().await.expect("reads");
    assert!(scope_is_free.is_empty());
}

/// Otherwise a rollback would be resumed minutes later by somebody who has long decided otherwise.
#[tokio::test(start_paused = true)]
async fn whoever_has_given_up_waiting_is_not_obeyed() {
    let disk = MemoryDisk::new();
    let member = leading(&disk, "a").await;
    let id = start(&member, demo()).await;
    member.store.set_latency(Duration::from_millis(500));
    let pausing = steer(&member, &id, "ana", Act::Pause);
    let giving_up = async {
        // While the pause is being written.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let resume = steer(&member, &id, "ana", Act::Resume);
        tokio::time::timeout(Duration::from_millis(100), resume).await
    };
    let (paused, gave_up) = tokio::join!(pausing, giving_up);
    paused.expect("paused");
    assert!(gave_up.is_err(), "there was no answer in time");
    member.store.set_latency(Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(acts(&member, &id).await, [Act::Pause]);
    assert!(stored(&member, &id).await.standstill.is_some());
}
