//! One conformance suite for stores. Every implementation of [`Store`] runs all of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, ToSpan as _};
use rollback_coordinator::store::sqlite::SqliteStore;
use rollback_coordinator::store::{Campaign, Candidate, Closing, Created, NewRollback, NewToken, Store, StoreError};
use rollback_engine::event::{Event, Problem};
use rollback_engine::ids::{Epoch, RollbackId, Target};
use rollback_engine::plan::PhaseName;
use rollback_engine::release::Release;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("a time")
}

fn events(n: i64) -> Vec<Event> {
    (0..n)
        .map(|i| Event::PhaseStarted {
            at: at(i),
            phase: PhaseName::Stage,
        })
        .collect()
}

fn rollback(id: &str, request: &str, hosts: &[&str]) -> NewRollback {
    NewRollback {
        id: id.into(),
        request_id: request.to_owned(),
        scope: hosts.iter().map(|h| Target::new(*h, "api")).collect(),
        events: events(2),
        summary: format!("{{\"id\":\"{id}\"}}"),
    }
}

fn release(name: &str, stable: bool) -> Release {
    Release {
        name: name.into(),
        commit: String::new(),
        notes: String::new(),
        recorded_at: at(0),
        recorded_by: "admin".to_owned(),
        entries: Vec::new(),
        stable,
        ranks_at: None,
    }
}

fn id(text: &str) -> RollbackId {
    text.into()
}

/// A store in a directory of its own, and a way to open the same one again.
struct Opened {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
}

async fn open() -> Opened {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = reopen(&dir).await;
    Opened { dir, store }
}

async fn reopen(dir: &tempfile::TempDir) -> Arc<dyn Store> {
    Arc::new(
        SqliteStore::open(&dir.path().join("coordinator.db"))
            .await
            .expect("open"),
    )
}

async fn lead(store: &Arc<dyn Store>, id: &str) -> Epoch {
    let candidate = Candidate {
        id: id.to_owned(),
        endpoint: "127.0.0.1:7443".to_owned(),
    };
    match store
        .campaign(&candidate, Duration::from_secs(6), Epoch(0))
        .await
        .expect("campaign")
    {
        Campaign::Won(epoch) => epoch,
        Campaign::Held(lease) => panic!("held: {lease:?}"),
    }
}

#[tokio::test]
async fn epochs_grow_and_fence_every_write_of_an_older_leader() {
    let Opened { dir, store } = open().await;
    let old = lead(&store, "a").await;
    assert_eq!(
        store
            .create(old, &rollback("r1", "q1", &["app-1"]))
            .await
            .expect("create"),
        Created::New
    );
    let newer = lead(&reopen(&dir).await, "b").await;
    assert!(newer > old);
    let refused = store.append(old, &id("r1"), 2, &events(1), "{}", None).await;
    assert!(
        matches!(refused, Err(StoreError::Fenced(e)) if e == newer),
        "{refused:?}"
    );
    let refused = store.create(old, &rollback("r2", "q2", &["app-2"])).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    assert_eq!(
        store.events(&id("r1"), 0).await.expect("events").len(),
        2,
        "nothing was appended"
    );
    store
        .append(newer, &id("r1"), 2, &events(1), "{}", None)
        .await
        .expect("the new leader appends");
}

#[tokio::test]
async fn an_append_after_the_wrong_event_is_a_conflict_and_writes_nothing() {
    let Opened { dir: _dir, store } = open().await;
    let epoch = lead(&store, "a").await;
    store
        .create(epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    for wrong in [0, 1, 3] {
        let refused = store
            .append(epoch, &id("r1"), wrong, &events(1), "{}", Some(&Closing::default()))
            .await;
        assert!(
            matches!(refused, Err(StoreError::Conflict)),
            "after {wrong}: {refused:?}"
        );
    }
    assert_eq!(
        store.running().await.expect("running"),
        [id("r1")],
        "it did not end either"
    );
}

#[tokio::test]
async fn a_rollback_comes_back_as_it_was_written() {
    let Opened { dir, store } = open().await;
    let epoch = lead(&store, "a").await;
    store
        .create(epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    let cause = Problem {
        code: "RB0500".into(),
        message: "ä „quoted“".into(),
        remedy: String::new(),
    };
    let more = vec![Event::UndoStarted { at: at(9), cause }];
    store
        .append(epoch, &id("r1"), 2, &more, "{\"n\":3}", None)
        .await
        .expect("append");
    drop(store);
    let store = reopen(&dir).await;
    let read = store.events(&id("r1"), 0).await.expect("events");
    assert_eq!(read.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(read[2].event, more[0]);
    assert_eq!(
        store.events(&id("r1"), 2).await.expect("events").len(),
        1,
        "from a cursor"
    );
    assert_eq!(
        store.summary(&id("r1")).await.expect("summary").as_deref(),
        Some("{\"n\":3}")
    );
}

#[tokio::test]
async fn one_request_starts_one_rollback() {
    let Opened { dir: _dir, store } = open().await;
    let epoch = lead(&store, "a").await;
    assert_eq!(
        store
            .create(epoch, &rollback("r1", "q1", &["app-1"]))
            .await
            .expect("create"),
        Created::New
    );
    let again = store
        .create(epoch, &rollback("r2", "q1", &["app-1"]))
        .await
        .expect("create");
    assert_eq!(again, Created::Existing(id("r1")));
    assert!(store.events(&id("r2"), 0).await.expect("events").is_empty());
}

#[tokio::test]
async fn overlapping_scopes_exclude_each_other_until_the_end() {
    let Opened { dir: _dir, store } = open().await;
    let epoch = lead(&store, "a").await;
    store
        .create(epoch, &rollback("r1", "q1", &["app-1", "app-2"]))
        .await
        .expect("create");
    let held = store
        .create(epoch, &rollback("r2", "q2", &["app-0", "app-2"]))
        .await
        .expect("create");
    assert_eq!(
        held,
        Created::ScopeHeld {
            target: Target::new("app-2", "api"),
            holder: id("r1")
        }
    );
    let disjoint = store
        .create(epoch, &rollback("r3", "q3", &["app-0"]))
        .await
        .expect("create");
    assert_eq!(disjoint, Created::New, "the refused one has left nothing behind");
    store
        .append(epoch, &id("r1"), 2, &events(1), "{}", Some(&Closing::default()))
        .await
        .expect("end");
    assert_eq!(store.running().await.expect("running"), [id("r3")]);
    let free = store
        .create(epoch, &rollback("r4", "q4", &["app-2"]))
        .await
        .expect("create");
    assert_eq!(free, Created::New);
}

#[tokio::test]
async fn of_many_at_once_exactly_one_gets_the_scope() {
    let Opened { dir: _dir, store } = open().await;
    let epoch = lead(&store, "a").await;
    let tries = (0..16).map(|i| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            store
                .create(epoch, &rollback(&format!("r{i}"), &format!("q{i}"), &["app-1"]))
                .await
                .expect("create")
        })
    });
    let results = futures::future::join_all(tries).await;
    let new = results.iter().filter(|r| matches!(r, Ok(Created::New))).count();
    assert_eq!(new, 1);
    assert_eq!(store.running().await.expect("running").len(), 1);
}

#[tokio::test]
async fn a_token_is_redeemed_once_and_in_time() {
    let Opened { dir: _dir, store } = open().await;
    let token = |hash: &str, expires_at| NewToken {
        hash: hash.to_owned(),
        name: "app-1".to_owned(),
        created_by: "admin".to_owned(),
        expires_at,
    };
    let now = at(0);
    store.add_token(&token("good", now + 1.minute())).await.expect("add");
    store.add_token(&token("late", now)).await.expect("add");
    assert_eq!(store.redeem_token("late", now).await.expect("redeem"), None, "expired");
    assert_eq!(store.redeem_token("unknown", now).await.expect("redeem"), None);
    let tries = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.redeem_token("good", now).await.expect("redeem") })
    });
    let redeemed = futures::future::join_all(tries).await;
    assert_eq!(
        redeemed
            .iter()
            .filter(|r| matches!(r, Ok(Some(name)) if name == "app-1"))
            .count(),
        1
    );
}

/// It was recorded last, and is what the fleet goes back to from the one that ran then.
#[tokio::test]
async fn an_imported_release_stands_where_it_ranks() {
    let Opened { dir: _dir, store } = open().await;
    let recorded = |name: &str, second, ranks_at: Option<i64>| Release {
        recorded_at: at(second),
        ranks_at: ranks_at.map(at),
        ..release(name, true)
    };
    for release in [
        recorded("v2.8.0", 10, None),
        recorded("v3.0.0", 30, None),
        recorded("v2.9.0", 40, Some(29)),
    ] {
        assert!(store.add_release(&release).await.expect("stored"));
    }
    let releases = store.releases().await.expect("read");
    let names: Vec<&str> = releases.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["v3.0.0", "v2.9.0", "v2.8.0"]);
}

#[tokio::test]
async fn a_release_is_never_overwritten() {
    let Opened { dir: _dir, store } = open().await;
    let of = |commit: &str| Release {
        commit: commit.to_owned(),
        ..release("v1", false)
    };
    assert!(store.add_release(&of("aaa")).await.expect("add"));
    assert!(!store.add_release(&of("bbb")).await.expect("add"));
    let read = store.release(&"v1".into()).await.expect("read").expect("there");
    assert_eq!(read.commit, "aaa");
    assert_eq!(store.release(&"v2".into()).await.expect("read"), None);
}

#[tokio::test]
async fn what_an_end_says_of_releases_is_written_with_it() {
    let Opened { dir: _dir, store } = open().await;
    let epoch = lead(&store, "a").await;
    for (name, stable) in [("v2", false), ("v3", true)] {
        assert!(store.add_release(&release(name, stable)).await.expect("add"));
    }
    store
        .create(epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    let closing = Closing {
        works: Some("v2".into()),
        abandoned: vec!["v3".into()],
    };
    let refused = store
        .append(epoch, &id("r1"), 9, &events(1), "{}", Some(&closing))
        .await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    let stable = async |name: &str| store.release(&name.into()).await.expect("read").expect("there").stable;
    assert_eq!(
        (stable("v2").await, stable("v3").await),
        (false, true),
        "not without its events"
    );
    store
        .append(epoch, &id("r1"), 2, &events(1), "{}", Some(&closing))
        .await
        .expect("end");
    assert_eq!((stable("v2").await, stable("v3").await), (true, false));
}

#[tokio::test]
async fn a_request_and_a_holder_can_be_looked_up() {
    let Opened { dir: _dir, store } = open().await;
    let epoch = lead(&store, "a").await;
    store
        .create(epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    assert_eq!(store.requested("q1").await.expect("look"), Some(id("r1")));
    assert_eq!(store.requested("q2").await.expect("look"), None);
    let (held, free) = (Target::new("app-1", "api"), Target::new("app-2", "api"));
    let found = store.holder(&[free.clone(), held.clone()]).await.expect("look");
    assert_eq!(found, Some((held, id("r1"))));
    assert_eq!(store.holder(&[free]).await.expect("look"), None);
}

/// Only for stores whose file a person can edit: SQLite.
#[tokio::test]
async fn a_journal_that_was_tampered_with_is_refused() {
    for tamper in [
        "UPDATE events SET payload = replace(payload, 'stage', 'proxy') WHERE seq = 2",
        "DELETE FROM events WHERE seq = 2",
        "UPDATE events SET prev_hash = 'x' WHERE seq = 3",
    ] {
        let Opened { dir, store } = open().await;
        let epoch = lead(&store, "a").await;
        store
            .create(epoch, &rollback("r1", "q1", &["app-1"]))
            .await
            .expect("create");
        store
            .append(epoch, &id("r1"), 2, &events(2), "{}", None)
            .await
            .expect("append");
        drop(store);
        let path = format!("sqlite://{}", dir.path().join("coordinator.db").display());
        let pool = sqlx::SqlitePool::connect(&path).await.expect("open by hand");
        sqlx::query(tamper).execute(&pool).await.expect("tamper");
        pool.close().await;
        let read = reopen(&dir).await.events(&id("r1"), 0).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "{tamper}: {read:?}");
    }
}

#[tokio::test]
async fn nobody_leads_before_somebody_has_taken_the_lead() {
    let Opened { dir: _dir, store } = open().await;
    let refused = store.create(Epoch(1), &rollback("r1", "q1", &["app-1"])).await;
    assert!(matches!(refused, Err(StoreError::Fenced(Epoch(0)))), "{refused:?}");
}
