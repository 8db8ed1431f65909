//! Rollbacks: their events, and the scope that they hold.

use std::sync::Arc;

use rollback_coordinator::store::{Closing, Created, StoreError};
use rollback_engine::event::{Event, Problem};
use rollback_engine::ids::Target;

use super::cases;
use crate::material::{at, events, id, lead, release, rollback};
use crate::world::World;

cases![
    an_append_after_the_wrong_event_is_a_conflict_and_writes_nothing,
    a_rollback_comes_back_as_it_was_written,
    whoever_watches_reads_every_event_once,
    of_two_that_append_after_the_same_event_one_does,
    one_request_starts_one_rollback,
    overlapping_scopes_exclude_each_other_until_the_end,
    of_many_at_once_exactly_one_gets_the_scope,
    scopes_that_cross_do_not_wait_for_each_other,
    what_an_end_says_of_releases_is_written_with_it,
    a_request_and_a_holder_can_be_looked_up,
    lists_are_newest_first,
    a_journal_that_was_changed_by_hand_is_refused,
];

async fn an_append_after_the_wrong_event_is_a_conflict_and_writes_nothing(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    let new = rollback("r1", "q1", &["app-1"]);
    store.create(&epoch, &new).await.expect("create");
    for wrong in [0, 1, 3] {
        let refused = store
            .append(&epoch, &id("r1"), wrong, &events(7), "{}", Some(&Closing::default()))
            .await;
        assert!(
            matches!(refused, Err(StoreError::Conflict)),
            "after {wrong}: {refused:?}"
        );
    }
    assert_eq!(store.events(&id("r1"), 0).await.expect("events").len(), 2);
    assert_eq!(
        store.running().await.expect("running"),
        [id("r1")],
        "it did not end either"
    );
    assert_eq!(store.summary(&id("r1")).await.expect("summary"), Some(new.summary));
}

async fn a_rollback_comes_back_as_it_was_written(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    store
        .create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    let cause = Problem {
        code: "RB0500".into(),
        message: "ä „quoted“ \\ ' \u{0} \n".into(),
        remedy: String::new(),
    };
    let mut more = vec![Event::UndoStarted { at: at(9), cause }];
    more.extend(events(300));
    store
        .append(&epoch, &id("r1"), 2, &more, "{\"n\":3}", None)
        .await
        .expect("append");
    drop(store);
    let store = world.replica().await;
    let read = store.events(&id("r1"), 0).await.expect("events");
    assert!(read.iter().map(|r| r.seq).eq(1..=303), "{read:?}");
    assert!(read[2..].iter().map(|r| &r.event).eq(&more));
    let summary = store.summary(&id("r1")).await.expect("summary");
    assert_eq!(summary.as_deref(), Some("{\"n\":3}"));
}

/// From its cursor on, however the appends fall.
async fn whoever_watches_reads_every_event_once(world: &World) {
    let (writer, reader) = (world.replica().await, world.replica().await);
    let epoch = lead(&*writer, "a").await;
    writer
        .create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    let appends = tokio::spawn(async move {
        let mut after = 2;
        while after < 102 {
            let group = 1 + after % 3;
            let new = events(i64::try_from(group).expect("small"));
            writer
                .append(&epoch, &id("r1"), after, &new, "{}", None)
                .await
                .expect("append");
            after += group;
        }
        after
    });
    let mut seen = Vec::new();
    while seen.len() < 102 {
        let cursor = seen.last().copied().unwrap_or(0);
        let news = reader.events(&id("r1"), cursor).await.expect("events");
        seen.extend(news.iter().map(|r| r.seq));
        tokio::task::yield_now().await;
    }
    let last = appends.await.expect("appends");
    let rest = reader.events(&id("r1"), seen.len() as u64).await.expect("events");
    seen.extend(rest.iter().map(|r| r.seq));
    assert!(seen.iter().copied().eq(1..=last), "{seen:?}");
    assert!(reader.events(&id("r1"), last).await.expect("events").is_empty());
}

/// The same leader, twice: an append whose answer was lost may still be under way when it is made again.
async fn of_two_that_append_after_the_same_event_one_does(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let epoch = lead(&*a, "a").await;
    a.create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    for round in 0..10 {
        let after = 2 + 3 * round;
        let (r1, new) = (id("r1"), events(3));
        let (one, other) = tokio::join!(
            a.append(&epoch, &r1, after, &new, "{}", None),
            b.append(&epoch, &r1, after, &new, "{}", None)
        );
        let refused = match (one, other) {
            (Ok(()), refused) | (refused, Ok(())) => refused,
            neither => panic!("{neither:?}"),
        };
        assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
        let read = a.events(&id("r1"), 0).await.expect("events");
        assert_eq!(read.len() as u64, after + 3);
    }
}

async fn one_request_starts_one_rollback(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    let tries = (0..8).map(|i| {
        let (store, epoch) = (Arc::clone(&store), epoch.clone());
        let new = rollback(&format!("r{i}"), "q1", &["app-1"]);
        tokio::spawn(async move { store.create(&epoch, &new).await.expect("create") })
    });
    let results = futures::future::join_all(tries).await;
    let begun = store.running().await.expect("running");
    let [begun] = begun.as_slice() else { panic!("{begun:?}") };
    let (mut new, mut existing) = (0, 0);
    for result in results {
        match result.expect("create") {
            Created::New => new += 1,
            Created::Existing(id) if id == *begun => existing += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((new, existing), (1, 7));
}

async fn overlapping_scopes_exclude_each_other_until_the_end(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    store
        .create(&epoch, &rollback("r1", "q1", &["app-1", "app-2"]))
        .await
        .expect("create");
    let held = store
        .create(&epoch, &rollback("r2", "q2", &["app-0", "app-2", "app-1"]))
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
        .create(&epoch, &rollback("r3", "q3", &["app-0"]))
        .await
        .expect("create");
    assert_eq!(disjoint, Created::New, "the refused one has left nothing behind");
    store
        .append(&epoch, &id("r1"), 2, &events(1), "{}", Some(&Closing::default()))
        .await
        .expect("end");
    assert_eq!(store.running().await.expect("running"), [id("r3")]);
    let free = store
        .create(&epoch, &rollback("r4", "q4", &["app-2"]))
        .await
        .expect("create");
    assert_eq!(free, Created::New);
}

async fn of_many_at_once_exactly_one_gets_the_scope(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    let tries = (0..16).map(|i| {
        let (store, epoch) = (Arc::clone(&store), epoch.clone());
        tokio::spawn(async move {
            store
                .create(&epoch, &rollback(&format!("r{i}"), &format!("q{i}"), &["app-1"]))
                .await
                .expect("create")
        })
    });
    let results = futures::future::join_all(tries).await;
    let new = results.iter().filter(|r| matches!(r, Ok(Created::New))).count();
    assert_eq!(new, 1);
    assert_eq!(store.running().await.expect("running").len(), 1);
}

/// Both want the same hosts and name them the other way round.
async fn scopes_that_cross_do_not_wait_for_each_other(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let epoch = lead(&*a, "a").await;
    let hosts: Vec<String> = (0..200).map(|n| format!("host-{n:03}")).collect();
    let there: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let back: Vec<&str> = there.iter().copied().rev().collect();
    for round in 0..5_u64 {
        let (x, y) = (format!("x{round}"), format!("y{round}"));
        let (there, back) = (rollback(&x, &x, &there), rollback(&y, &y, &back));
        let (one, other) = tokio::join!(a.create(&epoch, &there), b.create(&epoch, &back));
        let (one, other) = (one.expect("create"), other.expect("create"));
        let begun = match (&one, &other) {
            (Created::New, Created::ScopeHeld { holder, .. }) => holder.clone(),
            (Created::ScopeHeld { holder, .. }, Created::New) => holder.clone(),
            neither => panic!("{neither:?}"),
        };
        assert_eq!(a.running().await.expect("running"), std::slice::from_ref(&begun));
        a.append(&epoch, &begun, 2, &events(1), "{}", Some(&Closing::default()))
            .await
            .expect("end");
    }
}

async fn what_an_end_says_of_releases_is_written_with_it(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    for (name, stable) in [("v1", true), ("v2", false), ("v3", true)] {
        assert!(store.add_release(&release(name, stable)).await.expect("add"));
    }
    store
        .create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    let closing = Closing {
        works: Some("v2".into()),
        abandoned: vec!["v3".into()],
        documents: Vec::new(),
    };
    let refused = store
        .append(&epoch, &id("r1"), 9, &events(1), "{}", Some(&closing))
        .await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    let stable = async || {
        let releases = store.releases().await.expect("read");
        releases.iter().map(|r| r.stable).collect::<Vec<bool>>()
    };
    assert_eq!(stable().await, [true, false, true], "not without its events");
    store
        .append(&epoch, &id("r1"), 2, &events(1), "{}", Some(&closing))
        .await
        .expect("end");
    assert_eq!(stable().await, [false, true, true]);
    let one = store.release(&"v2".into()).await.expect("read").expect("there");
    assert!(one.stable);
}

async fn a_request_and_a_holder_can_be_looked_up(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    store
        .create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    assert_eq!(store.requested("q1").await.expect("look"), Some(id("r1")));
    assert_eq!(store.requested("q2").await.expect("look"), None);
    let (held, free) = (Target::new("app-1", "api"), Target::new("app-2", "api"));
    let found = store.holder(&[free.clone(), held.clone()]).await.expect("look");
    assert_eq!(found, Some((held, id("r1"))));
    assert_eq!(store.holder(&[free]).await.expect("look"), None);
    let all = store.scopes().await.expect("look");
    assert_eq!(all, [(Target::new("app-1", "api"), id("r1"))].into());
}

async fn lists_are_newest_first(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    // As bytes: a database that sorts as a language does would put "B" behind "a".
    for name in ["a", "B", "c"] {
        store
            .create(&epoch, &rollback(name, name, &[name]))
            .await
            .expect("create");
    }
    let summaries = store.summaries(2).await.expect("list");
    assert_eq!(summaries, ["{\"id\":\"c\"}", "{\"id\":\"a\"}"]);
    assert_eq!(store.running().await.expect("running"), [id("B"), id("a"), id("c")]);
}

async fn a_journal_that_was_changed_by_hand_is_refused(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    let changes = [
        "UPDATE events SET payload = replace(payload, 'stage', 'proxy') WHERE rollback_id = 'r0' AND seq = 2",
        "DELETE FROM events WHERE rollback_id = 'r1' AND seq = 2",
        "UPDATE events SET prev_hash = 'x' WHERE rollback_id = 'r2' AND seq = 3",
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let name = format!("r{n}");
        store
            .create(&epoch, &rollback(&name, &name, &[&name]))
            .await
            .expect("create");
        store
            .append(&epoch, &id(&name), 2, &events(2), "{}", None)
            .await
            .expect("append");
        if !world.by_hand(change).await {
            return;
        }
        let read = store.events(&id(&name), 0).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "{change}: {read:?}");
    }
}
