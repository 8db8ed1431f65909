//! Replicas over one store in memory, on a clock that only the tests move: who leads when, and who says so.

mod members;

use std::time::Duration;

use rollback_coordinator::config::LeadershipConfig;
use rollback_coordinator::leader::Start;
use rollback_coordinator::replica::Standing;
use rollback_coordinator::store::memory::MemoryDisk;
use rollback_coordinator::store::{NewRollback, Store as _};
use rollback_engine::ids::Epoch;
use rollback_proto::problem::{Code, Hint};
use tokio::time::Instant;

use members::{Member, created, demo, epoch, member, until_leading};

#[tokio::test(start_paused = true)]
async fn follower_points_to_the_leader_and_leads_when_its_lease_has_run_out_not_before() {
    let disk = MemoryDisk::new();
    let (first, second) = (member(&disk, "a").await, member(&disk, "b").await);
    let refused = second.replica.leader().expect_err("follows");
    assert_eq!(refused.code, Code::NotLeader);
    assert_eq!(refused.hint, Some(Hint::Leader("a.example:7443".to_owned())));

    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(epoch(&first), Epoch(1), "a lease that is renewed stays");
    let before = first.replica.leader().expect("leads");
    first.store.set_unreachable(true);
    // Cut off from the store the leader ends its term by itself, while nobody else may win yet.
    let cut = Instant::now();
    before.shared().term.ended().await;
    assert!(
        cut.elapsed() <= LeadershipConfig::default().step_down,
        "{:?}",
        cut.elapsed()
    );
    assert!(second.replica.leader().is_err(), "the lease holds still");
    until_leading(&second).await;
    let LeadershipConfig { ttl, renew, .. } = LeadershipConfig::default();
    assert!(cut.elapsed() <= ttl + renew, "{:?}", cut.elapsed());
    assert_eq!(epoch(&second), Epoch(2));
    let note = first.replica.standing().note();
    assert!(note.contains("stepped down at"), "{note}");

    first.store.set_unreachable(false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = first.replica.leader().expect_err("follows now");
    assert_eq!(refused.hint, Some(Hint::Leader("b.example:7443".to_owned())));
    let note = first.replica.standing().note();
    assert!(note.contains("stepped down at"), "it goes on saying so: {note}");
}

#[tokio::test(start_paused = true)]
async fn stop_gives_the_lease_back_and_another_one_leads_within_a_second() {
    let disk = MemoryDisk::new();
    let (first, second) = (member(&disk, "a").await, member(&disk, "b").await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.stop.cancel();
    let took = until_leading(&second).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    first.tasks.close();
    first.tasks.wait().await;
    assert!(matches!(first.replica.standing(), Standing::Stopping));
}

/// As with a store that was restored from an older copy: it gives out epochs that agents have seen.
#[tokio::test(start_paused = true)]
async fn leader_that_agents_outdo_leads_again_above_their_epoch_and_never_at_the_word_of_a_liar() {
    let disk = MemoryDisk::new();
    let leader = member(&disk, "a").await;
    let term = leader.replica.leader().expect("leads").shared().term.clone();
    term.outdone(Epoch(u64::MAX));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(term.holds(), "an epoch that cannot be is not believed");

    let disk = MemoryDisk::new();
    let leader = member(&disk, "a").await;
    let term = leader.replica.leader().expect("leads").shared().term.clone();
    term.outdone(Epoch(41));
    term.ended().await;
    until_leading(&leader).await;
    assert_eq!(epoch(&leader), Epoch(42));
}

/// The process was stopped past its lease: what it does first when it goes on is not what a timer says.
#[tokio::test(start_paused = true)]
async fn term_is_over_by_the_clock_before_any_task_of_it_runs_again() {
    let disk = MemoryDisk::new();
    let (first, second) = (member(&disk, "a").await, member(&disk, "b").await);
    let term = first.replica.leader().expect("leads").shared().term.clone();
    first.store.set_unreachable(true);
    until_leading(&second).await;
    assert!(!term.holds());
    let fenced = first.store.renew(term.fence(), Duration::from_secs(6));
    first.store.set_unreachable(false);
    assert!(fenced.await.is_err(), "what was lost is not renewed");
}

/// Two that begin at once: one leads. Whoever loses its process is followed by the other, again and again, and no epoch is
/// given out twice.
#[tokio::test(start_paused = true)]
async fn of_many_campaigns_each_is_won_by_one() {
    let disk = MemoryDisk::new();
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        members.push(member(&disk, name).await);
    }
    let mut last = Epoch(0);
    for _ in 0..20 {
        let leading: Vec<usize> = (0..members.len())
            .filter(|i| members[*i].replica.leader().is_ok())
            .collect();
        let [one] = leading[..] else {
            panic!("{leading:?} lead");
        };
        assert!(epoch(&members[one]) > last);
        last = epoch(&members[one]);
        members[one].store.set_unreachable(true);
        tokio::time::sleep(Duration::from_secs(9)).await;
        members[one].store.set_unreachable(false);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// One that obeys whatever is higher than we are, again and again.
#[tokio::test(start_paused = true)]
async fn a_liar_ends_a_few_terms_and_then_no_more() {
    let disk = MemoryDisk::new();
    let leader = member(&disk, "a").await;
    let mut terms = 0;
    loop {
        until_leading(&leader).await;
        let term = leader.replica.leader().expect("leads").shared().term.clone();
        term.outdone(Epoch(term.epoch().0 + 1));
        let lasts = tokio::time::timeout(Duration::from_secs(30), term.ended())
            .await
            .is_err();
        if lasts {
            break;
        }
        terms += 1;
        assert!(terms < 10, "nobody leads any more");
    }
    assert!(terms >= 2, "an epoch that was seen is believed: {terms}");
}

async fn until_running(member: &Member) {
    let begun = Instant::now();
    while member.replica.leader().is_ok_and(|leader| leader.running_count() != 1) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it stands still");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_read_at_a_takeover_is_asked_for_until_it_can_be() {
    let disk = MemoryDisk::new();
    let first = member(&disk, "a").await;
    let new = NewRollback {
        id: "r1".into(),
        request_id: "q1".to_owned(),
        scope: Vec::new(),
        events: vec![created()],
        summary: "{}".to_owned(),
    };
    let term = first.replica.leader().expect("leads").shared().term.clone();
    first.store.create(term.fence(), &new).await.expect("create");
    let second = member(&disk, "b").await;
    second.store.refuse_journals(3);
    first.stop.cancel();
    until_leading(&second).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let note = second.replica.standing().note();
    assert!(note.contains("rollback r1: stands still"), "{note}");
    until_running(&second).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(epoch(&second), Epoch(2), "one term");
    let leader = second.replica.leader().expect("leads");
    assert_eq!(
        (leader.running_count(), second.replica.standing().note()),
        (1, String::new())
    );
}

/// The commit was made, its answer was lost, and whoever asked does not ask again.
#[tokio::test(start_paused = true)]
async fn a_rollback_whose_beginning_was_not_confirmed_runs_and_ends_no_term() {
    let disk = MemoryDisk::new();
    let member = member(&disk, "a").await;
    let leader = member.replica.leader().expect("leads");
    tokio::time::sleep(Duration::from_secs(1)).await;
    member.store.lose_replies(1);
    let start = Start {
        plan: demo(),
        request_id: "q1".to_owned(),
        started_by: "ana".to_owned(),
        reason: String::new(),
        incident: String::new(),
        trace_id: "0".repeat(32),
        parent_span_id: String::new(),
        consent: None,
    };
    let refused = leader.start(start).await.expect_err("nobody knows");
    assert_eq!(refused.code, Code::StoreUnavailable);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((epoch(&member), leader.running_count()), (Epoch(1), 1));
}
