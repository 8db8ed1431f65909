//! What the leader finds in the background: kept, answered, replaced by what it finds next; and when it holds still.

use std::time::Duration;

use rollback_coordinator::config::ReadinessConfig;
use rollback_coordinator::leader::Start;
use rollback_coordinator::readiness;
use rollback_coordinator::store::{DocumentKind, Store as _};
use rollback_engine::event::Event;
use rollback_proto::problem::Code;
use rollback_proto::v1;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::Request;

use super::fleet::{Fleet, Host, fleet};

const EVERY: Duration = Duration::from_secs(1);

fn keep(f: &Fleet, releases: usize) {
    let config = ReadinessConfig {
        releases,
        every: EVERY,
        hosts_at_once: 1,
    };
    TaskTracker::new().spawn(readiness::keep(f.replica.clone(), config));
}

async fn known(f: &Fleet, release: &str) -> Result<Vec<v1::Readiness>, rollback_proto::problem::Problem> {
    let request = v1::GetReadinessRequest {
        release: release.to_owned(),
    };
    Ok(f.api.readiness(Request::new(request)).await?.releases)
}

/// Waits for a condition, which becomes true in another task.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn names(known: &[v1::Readiness]) -> Vec<(&str, bool)> {
    known.iter().map(|r| (r.release.as_str(), r.ready)).collect()
}

fn gone() -> v1::Finding {
    v1::Finding {
        severity: v1::Severity::Blocker.into(),
        code: Code::RevisionMissing.id().to_owned(),
        message: "the image is gone".to_owned(),
        remedy: "load it".to_owned(),
        ..v1::Finding::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_the_way_is_known_by_host_until_it_does_not_any_more() {
    let f = fleet().await;
    for version in ["v1", "v2", "v3"] {
        f.release(version).await.expect("recorded");
    }
    f.app.said().findings = vec![gone()];
    keep(&f, 2);
    until("both are checked", async || {
        known(&f, "").await.is_ok_and(|k| k.len() == 2)
    })
    .await;
    let found = known(&f, "").await.expect("known");
    assert_eq!(names(&found), [("v2", false), ("v1", false)]);
    let places: Vec<(&str, &str)> = found[0]
        .findings
        .iter()
        .map(|f| (f.host.as_str(), f.component.as_str()))
        .collect();
    // env is where it shall be, and is asked all the same: whoever restarts the application reads it.
    assert!(
        places.contains(&("app-1", "api")) && places.iter().all(|p| p.0 == "app-1"),
        "{places:?}"
    );
    assert_eq!((found[0].hosts, found[0].components, found[0].stale), (2, 3, false));
    assert_eq!(names(&known(&f, "previous").await.expect("known")), [("v2", false)]);
    // What runs now is none to go back to, and what nobody knows is another mistake.
    assert_eq!(known(&f, "v3").await.expect_err("not checked").code, Code::NotFound);
    assert_eq!(known(&f, "v9").await.expect_err("unknown").code, Code::UnknownRelease);

    f.app.said().findings.clear();
    until("they are ready", async || {
        known(&f, "").await.is_ok_and(|k| k.iter().all(|r| r.ready))
    })
    .await;
    // What was recorded just now moves the window on, without waiting for the next round.
    f.release("v4").await.expect("recorded");
    until("v3 is checked, v1 no more", async || {
        known(&f, "")
            .await
            .is_ok_and(|k| names(&k) == [("v3", true), ("v2", true)])
    })
    .await;
    let text = f.replica.parts().metrics.encode().expect("metrics");
    assert!(text.contains("rollback_readiness{release=\"v3\"} 1"), "{text}");
    assert!(!text.contains("\"v1\""), "{text}");

    // A host that is away is a blocker; what runs is the same release as before.
    f.app.said().is_away = true;
    until("the host is missed", async || {
        known(&f, "")
            .await
            .is_ok_and(|k| names(&k) == [("v3", false), ("v2", false)])
    })
    .await;
    let found = known(&f, "v3").await.expect("known");
    let [missed] = &found[0].findings[..] else {
        panic!("{:?}", found[0].findings);
    };
    assert_eq!(
        (missed.host.as_str(), missed.code.as_str()),
        ("app-1", Code::HostUnreachable.id())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gives_way_to_a_rollback_at_once_and_does_not_come_back_before_its_end() {
    let f = fleet().await;
    for version in ["v1", "v2"] {
        f.release(version).await.expect("recorded");
    }
    f.app.said().stuck = true;
    keep(&f, 1);
    let asked = |host: &Host| {
        let said = host.said();
        (said.prepares, said.open)
    };
    until("a host looks, and looks", async || asked(&f.app) == (1, 1)).await;
    let leader = f.replica.leader().expect("leads");
    leader.start(a_rollback_of_other_hosts()).await.expect("started");
    until("the question is dropped", async || f.app.said().open == 0).await;
    tokio::time::sleep(EVERY * 2).await;
    assert_eq!(leader.running_count(), 1, "it runs");
    assert_eq!(asked(&f.app), (1, 0), "nobody is asked meanwhile");
    let documents = f.store.documents(DocumentKind::Readiness).await.expect("read");
    assert!(documents.is_empty(), "half a check says nothing: {documents:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_off_it_forgets_what_it_found() {
    let f = fleet().await;
    for version in ["v1", "v2"] {
        f.release(version).await.expect("recorded");
    }
    keep(&f, 1);
    until("v1 is checked", async || {
        known(&f, "").await.is_ok_and(|k| k.len() == 1)
    })
    .await;
    keep(&f, 0);
    // The one that is on may find it once more.
    until("it is forgotten", async || {
        known(&f, "").await.is_ok_and(|k| k.is_empty())
    })
    .await;
}

/// Nobody answers for its hosts, so it runs for as long as its first steps may take.
fn a_rollback_of_other_hosts() -> Start {
    const JOURNAL: &str = include_str!("../../engine/tests/journals/v1-demo.jsonl");
    let created = serde_json::from_str(JOURNAL.lines().next().expect("a line")).expect("an event");
    let Event::Created { plan, .. } = created else {
        panic!("a journal begins otherwise");
    };
    Start {
        plan: *plan,
        request_id: "q1".to_owned(),
        started_by: "ana".to_owned(),
        reason: String::new(),
        incident: String::new(),
        trace_id: "0".repeat(32),
        parent_span_id: String::new(),
        consent: None,
    }
}
