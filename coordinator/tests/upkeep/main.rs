//! What becomes of releases, through the API: recorded as expected or not at all, marked, kept, forgotten on their hosts, and
//! asked about before a deployment.

mod converging;
mod fleet;
mod readiness;

use std::sync::Arc;
use std::time::Duration;

use rollback_coordinator::store::{DocumentKind, Store as _};
use rollback_proto::problem::Code;
use rollback_proto::v1;
use tokio::sync::Semaphore;

use fleet::{Fleet, by_ana, fleet};

fn expected(component: &str, version: &str, digest: &str) -> v1::ExpectedRevision {
    v1::ExpectedRevision {
        component: component.to_owned(),
        version: version.to_owned(),
        digest: digest.to_owned(),
        ..v1::ExpectedRevision::default()
    }
}

#[tokio::test]
async fn what_is_live_is_recorded_when_it_is_what_the_deployment_expects() {
    let f = fleet().await;
    let wrong = vec![
        expected("api", "v2", ""),
        expected("db", "", "sha256:dbv9"),
        expected("web", "v1", ""),
    ];
    let refused = f.record("v1", wrong).await.expect_err("nothing of that is live");
    assert_eq!(refused.code, Code::NotAsExpected);
    for part in [
        "app-1/api is v1, expected v2",
        "db-1/db is v1 (sha256:dbv1)",
        "nothing is seen of any/web",
    ] {
        assert!(refused.message.contains(part), "{refused}");
    }
    assert_eq!(
        (f.names().await.len(), f.app.said().retained),
        (0, 0),
        "nothing was touched"
    );
    assert!(objectives(&f).await.is_empty());

    let right = vec![expected("api", "v1", "sha256:apiv1"), expected("", "v1", "")];
    f.record("v1", right).await.expect("as expected");
    assert_eq!(objectives(&f).await, ["app-1/api", "app-1/env", "db-1/db"]);
}

async fn objectives(f: &Fleet) -> Vec<String> {
    let documents = f.store.documents(DocumentKind::Objective).await.expect("read");
    documents.into_iter().map(|document| document.key).collect()
}

#[tokio::test]
async fn what_is_held_is_recorded_under_no_name() {
    let f = fleet().await;
    f.release("v1").await.expect("recorded");
    let hold = v1::HoldReleaseRequest {
        release: "v1".to_owned(),
        reason: "loses sessions".to_owned(),
    };
    f.api.hold(by_ana(hold)).await.expect("held");
    let retained = f.app.said().retained;
    for (name, hosts_asked) in [("v1", false), ("v1-again", true)] {
        let refused = f.record(name, Vec::new()).await.expect_err("held");
        assert_eq!(refused.code, Code::ReleaseHeld, "{name}");
        assert!(refused.message.contains("loses sessions"), "{refused}");
        assert_eq!(f.app.said().retained > retained, hosts_asked, "{name}");
    }
    assert_eq!(f.names().await, ["v1"]);
    let listed = f.api.all_releases().await.expect("list").releases;
    assert_eq!(listed[0].hold.as_ref().map(|hold| hold.by.as_str()), Some("ana"));
    f.release("v2").await.expect("another one");
}

#[tokio::test]
async fn what_nothing_needs_is_forgotten_on_its_hosts_and_what_others_need_is_not() {
    let f = fleet().await;
    for version in ["v1", "v2", "v3", "v4", "v5"] {
        f.release(version).await.expect("recorded");
    }
    f.mark("v4", false, "leaks").await.expect("marked");
    // Live is v5; previous is v3; the newest two are v5 and v4.
    let names = |removed: Vec<v1::RemovedRelease>| removed.into_iter().map(|r| r.name).collect::<Vec<_>>();
    assert_eq!(names(f.remove(&[], true).await.expect("look")), ["v2", "v1"]);
    assert_eq!(f.names().await.len(), 5);
    assert!(f.app.said().forgotten.is_empty() && f.db.said().forgotten.is_empty());

    f.db.said().is_old = true;
    let removed = f.remove(&[], false).await.expect("removed");
    for release in &removed {
        assert_eq!(release.leftovers.len(), 1, "{release:?}");
        assert!(
            release.leftovers[0].starts_with("db-1/db: the agent is too old"),
            "{release:?}"
        );
    }
    assert_eq!(names(removed), ["v2", "v1"]);
    assert_eq!(f.names().await, ["v5", "v4", "v3"]);
    let kept = ["v3", "v4", "v5"].map(str::to_owned).to_vec();
    let forgot = |release: &str| ("api".to_owned(), release.to_owned(), kept.clone());
    assert_eq!(
        f.app.said().forgotten,
        [forgot("v2"), forgot("v1")],
        "env is the same in all of them"
    );

    // By name: what is only new may go, what is needed may not, and then nothing goes.
    let refused = f.remove(&["v4", "v3"], false).await.expect_err("v3 is previous");
    assert_eq!(refused.code, Code::ReleasePinned);
    assert!(refused.message.contains("v3: it is what `previous` means"), "{refused}");
    let refused = f
        .remove(&["v5"], false)
        .await
        .expect_err("it is where the fleet shall be");
    assert!(refused.message.contains("v5: 3 components shall be there"), "{refused}");
    assert_eq!(
        f.remove(&["v9"], true).await.expect_err("none").code,
        Code::UnknownRelease
    );
    assert_eq!(f.names().await.len(), 3);
    assert_eq!(names(f.remove(&["v4"], false).await.expect("removed")), ["v4"]);
}

#[tokio::test]
async fn a_mark_says_who_and_why_and_changes_what_previous_means() {
    let f = fleet().await;
    f.release("v1").await.expect("recorded");
    f.release("v2").await.expect("recorded");
    assert_eq!(
        f.mark("v1", false, " ").await.expect_err("no reason").code,
        Code::BadRequest
    );
    assert_eq!(
        f.mark("v9", false, "x").await.expect_err("none").code,
        Code::UnknownRelease
    );
    let marked = f.mark("v1", false, "loses sessions").await.expect("marked");
    assert_eq!((marked.stable, marked.marked_by.as_str()), (false, "ana"));
    assert_eq!(marked.mark_reason, "loses sessions");
    assert!(marked.marked_at.is_some());
    let note = v1::UpdateReleaseRequest {
        name: "v1".to_owned(),
        notes: Some("the old checkout".to_owned()),
        ..v1::UpdateReleaseRequest::default()
    };
    let noted = f.api.update_release_mark(by_ana(note)).await.expect("noted");
    let noted = noted.release.expect("a release");
    assert_eq!((noted.notes.as_str(), noted.stable), ("the old checkout", false));
    assert_eq!(noted.mark_reason, "loses sessions", "a note takes nothing away");
    let items = preflight(&f, false).await;
    assert_eq!(
        item(&items, "plan").severity(),
        v1::Severity::Warning,
        "there is no previous one"
    );
    f.mark("v1", true, "it was the network").await.expect("marked");
    let items = preflight(&f, false).await;
    assert!(
        item(&items, "plan").evidence.contains("would go back to v1"),
        "{items:?}"
    );
}

/// In the worst moment nobody remembers what was held, and `previous` is what is typed then.
#[tokio::test]
async fn previous_is_never_a_release_that_is_held() {
    let f = fleet().await;
    for version in ["v1", "v2", "v3"] {
        f.release(version).await.expect("recorded");
    }
    let previous = async || {
        let items = preflight(&f, false).await;
        item(&items, "plan").evidence.clone()
    };
    assert!(previous().await.contains("would go back to v2"));
    let hold = v1::HoldReleaseRequest {
        release: "v2".to_owned(),
        reason: "loses sessions".to_owned(),
    };
    f.api.hold(by_ana(hold)).await.expect("held");
    assert!(previous().await.contains("would go back to v1"), "{}", previous().await);
    let refused = f.remove(&["v1"], false).await.expect_err("it is previous now");
    assert_eq!(refused.code, Code::ReleasePinned);
}

async fn preflight(f: &Fleet, rehearse: bool) -> Vec<v1::ChecklistItem> {
    let answer = f.api.preflight(by_ana(v1::PreflightReleaseRequest { rehearse })).await;
    answer.expect("a checklist").items
}

fn item<'a>(items: &'a [v1::ChecklistItem], name: &str) -> &'a v1::ChecklistItem {
    items.iter().find(|item| item.name == name).expect(name)
}

fn severities(items: &[v1::ChecklistItem]) -> Vec<(&str, v1::Severity)> {
    items.iter().map(|item| (item.name.as_str(), item.severity())).collect()
}

#[tokio::test]
async fn the_checklist_asks_everything_and_touches_nothing_that_serves() {
    use v1::Severity::{Blocker, Ok, Warning};
    let f = fleet().await;
    f.release("v1").await.expect("recorded");
    f.release("v2").await.expect("recorded");
    let fine = [
        ("recorded", Ok),
        ("health", Ok),
        ("backup", Ok),
        ("plan", Ok),
        ("artifacts", Ok),
        ("migration", Warning),
    ];
    assert_eq!(severities(&preflight(&f, false).await), fine);
    assert!(
        f.app.said().steps.is_empty() && f.db.said().steps.is_empty(),
        "it only looks"
    );
    let rehearsed = preflight(&f, true).await;
    assert_eq!(item(&rehearsed, "migration").severity(), Ok, "{rehearsed:?}");
    assert!(
        item(&rehearsed, "migration")
            .evidence
            .contains("db-1/db: rehearsed on a copy")
    );
    let steps = [v1::Action::Stage, v1::Action::Discard].map(|action| ("db".to_owned(), action));
    assert_eq!(f.db.said().steps, steps, "staged, and thrown away");
    assert!(f.app.said().steps.is_empty());

    // Somebody deployed something that nobody recorded, it is not well, and a host has lost what leads back.
    f.app.deploy("api", "v3");
    f.app.said().unhealthy.push("api".to_owned());
    for (host, message) in [(&f.db, "the backup is gone"), (&f.app, "the image is gone")] {
        host.said().findings.push(v1::Finding {
            severity: Blocker.into(),
            code: Code::RevisionMissing.id().to_owned(),
            message: message.to_owned(),
            ..v1::Finding::default()
        });
    }
    let items = preflight(&f, false).await;
    let wrong = [
        ("recorded", Blocker),
        ("health", Blocker),
        ("backup", Blocker),
        ("plan", Ok),
        ("artifacts", Blocker),
    ];
    assert_eq!(severities(&items)[..5], wrong, "{items:?}");
    assert!(item(&items, "health").evidence.contains("app-1/api: unhealthy"));
    assert!(
        item(&items, "artifacts")
            .evidence
            .contains("app-1/api: the image is gone")
    );
    assert!(
        items
            .iter()
            .filter(|i| i.severity() == Blocker)
            .all(|i| !i.remedy.is_empty())
    );
}

/// An operator who has seen enough presses Ctrl-C; the copy must not lie about for ever.
#[tokio::test]
async fn a_rehearsal_that_nobody_waits_for_is_thrown_away_all_the_same() {
    let f = fleet().await;
    f.release("v1").await.expect("recorded");
    f.release("v2").await.expect("recorded");
    let may_stage = Arc::new(Semaphore::new(0));
    f.db.said().may_stage = Some(Arc::clone(&may_stage));
    let steps = |count: usize| {
        let db = &f.db;
        async move {
            while db.said().steps.len() < count {
                tokio::task::yield_now().await;
            }
        }
    };
    {
        let mut asking = std::pin::pin!(preflight(&f, true));
        tokio::select! {
            items = &mut asking => panic!("it is being staged: {items:?}"),
            () = steps(1) => {}
        }
    }
    may_stage.add_permits(1);
    tokio::time::timeout(Duration::from_secs(10), steps(2))
        .await
        .expect("it is thrown away");
    assert_eq!(f.db.said().steps[1].1, v1::Action::Discard);
}
