//! Hosts that are brought home by the leader: not while somebody else is at it, and not away from where the others have gone.

use std::sync::Arc;
use std::time::Duration;

use rollback_coordinator::converge;
use rollback_coordinator::store::{Closing, Document, DocumentKind, Fence, NewRollback, Store as _};
use rollback_engine::ids::RollbackId;
use rollback_proto::v1;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::fleet::{Fleet, by_ana, fleet};
use super::readiness::until;

const MISSED_BY: &str = "0198";

/// v2 is live, and app-1 has missed a rollback that took the others to it; it is at v1.
async fn app_1_is_awaited(f: &Fleet) {
    f.release("v2").await.expect("recorded");
    let leader = f.replica.leader().expect("nobody else leads");
    let fence: &Fence = leader.shared().term.fence();
    let new = NewRollback {
        id: MISSED_BY.into(),
        request_id: "q0".to_owned(),
        scope: Vec::new(),
        events: Vec::new(),
        summary: String::new(),
    };
    let summary = serde_json::json!({
        "id": MISSED_BY, "release": "v2", "runbook": "default", "state": "partial", "blocked": false, "phase": "",
        "started_by": "ana", "reason": "", "incident": "", "started_at": "2026-01-01T00:00:00Z", "trace_id": "",
        "ended_at": "2026-01-01T00:01:00Z", "steps_total": 0, "steps_done": 0, "failed_hosts": ["app-1"], "problem": null,
    });
    let objective = serde_json::json!({
        "role": "app", "revision": {"version": "v2", "digest": "sha256:apiv2"}, "release": "v2",
        "rollback_id": MISSED_BY, "since": "2026-01-01T00:01:00Z", "missed": true, "automatic": true,
    });
    let closing = Closing {
        documents: vec![Document {
            kind: DocumentKind::Objective,
            key: "app-1/api".to_owned(),
            body: Some(objective.to_string()),
        }],
        ..Closing::default()
    };
    f.store.create(fence, &new).await.expect("create");
    f.store
        .append(fence, &new.id, 0, &[], &summary.to_string(), Some(&closing))
        .await
        .expect("end");
    f.app.deploy("api", "v1");
}

async fn attempt(f: &Fleet) -> Option<RollbackId> {
    let first = format!("converge.{MISSED_BY}.app-1.1");
    f.store.requested(&first).await.expect("read")
}

/// The database was taken to v4, which nobody could record while app-1 was away: only a person knows what app-1 shall be now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_is_not_taken_away_from_where_the_others_have_gone() {
    let f = fleet().await;
    app_1_is_awaited(&f).await;
    f.db.deploy("db", "v4");
    let seen = f.app.said().observed;
    TaskTracker::new().spawn(converge::keep(f.replica.clone()));
    // The second look comes after everything that followed from the first one.
    until("it was looked at twice", async || f.app.said().observed >= seen + 2).await;
    assert_eq!(attempt(&f).await, None);
    f.db.deploy("db", "v2");
    until("it is brought home", async || attempt(&f).await.is_some()).await;
}

/// Wherever somebody takes the fleet just now, app-1 may not be where it is known to be awaited. Their rollback is about another
/// host, so no lock stands in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_else_is_at_it_goes_first() {
    let f = fleet().await;
    f.release("v1").await.expect("recorded");
    app_1_is_awaited(&f).await;
    let may_stage = Arc::new(Semaphore::new(0));
    f.db.said().may_stage = Some(Arc::clone(&may_stage));
    let start = v1::StartRollbackRequest {
        target: Some(v1::RollbackTarget {
            release: "v1".to_owned(),
            scope: Some(v1::Scope {
                hosts: vec!["db-1".to_owned()],
                ..v1::Scope::default()
            }),
            ..v1::RollbackTarget::default()
        }),
        request_id: "q1".to_owned(),
        ..v1::StartRollbackRequest::default()
    };
    let other = f.api.start(by_ana(start)).await.expect("started").rollback_id;
    until("it is under way", async || !f.db.said().steps.is_empty()).await;
    let seen = f.app.said().observed;
    TaskTracker::new().spawn(converge::keep(f.replica.clone()));
    // It looks once a second, and is then to be seen at the hosts.
    let looked = async {
        while f.app.said().observed == seen {
            tokio::time::sleep(Duration::from_millis(20)).await
        }
    };
    let looked = tokio::time::timeout(Duration::from_millis(1500), looked).await;
    assert!(looked.is_err(), "nothing is looked at while {other} runs");
    assert_eq!(attempt(&f).await, None);
    may_stage.add_permits(1);
    until("it is brought home", async || attempt(&f).await.is_some()).await;
}
