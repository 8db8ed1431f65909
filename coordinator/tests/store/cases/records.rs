//! Releases, agents and join tokens.

use std::sync::Arc;

use jiff::{SignedDuration, ToSpan as _};
use rollback_coordinator::store::{AgentRecord, NewToken};
use rollback_engine::release::Release;

use super::cases;
use crate::material::{at, release};
use crate::world::World;

cases![
    a_token_is_redeemed_once_and_in_time,
    an_imported_release_stands_where_it_ranks,
    a_release_is_never_overwritten,
    an_agent_is_kept_as_it_last_registered,
];

async fn a_token_is_redeemed_once_and_in_time(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let token = |hash: &str, expires_at| NewToken {
        hash: hash.to_owned(),
        name: "app-1".to_owned(),
        created_by: "admin".to_owned(),
        expires_at,
    };
    let now = at(0);
    a.add_token(&token("good", now + 1.minute())).await.expect("add");
    a.add_token(&token("late", now)).await.expect("add");
    assert_eq!(a.redeem_token("late", now).await.expect("redeem"), None, "expired");
    assert_eq!(a.redeem_token("unknown", now).await.expect("redeem"), None);
    let tries = (0..8).map(|i| {
        let store = Arc::clone(if i % 2 == 0 { &a } else { &b });
        tokio::spawn(async move { store.redeem_token("good", now).await.expect("redeem") })
    });
    let redeemed = futures::future::join_all(tries).await;
    let good = redeemed
        .iter()
        .filter(|r| matches!(r, Ok(Some(name)) if name == "app-1"));
    assert_eq!(good.count(), 1);
}

/// It was recorded last, and is what the fleet goes back to from the one that ran then.
async fn an_imported_release_stands_where_it_ranks(world: &World) {
    let store = world.replica().await;
    let recorded = |name: &str, milliseconds, ranks_at: Option<i64>| Release {
        recorded_at: at(0) + SignedDuration::from_millis(milliseconds),
        ranks_at: ranks_at.map(at),
        ..release(name, true)
    };
    for release in [
        recorded("v2.8.0", 10_000, None),
        recorded("v3.0.0", 30_500, None),
        recorded("v2.9.9", 30_000, None),
        recorded("v2.9.0", 40_000, Some(29)),
    ] {
        assert!(store.add_release(&release).await.expect("stored"));
    }
    let releases = store.releases().await.expect("read");
    let names: Vec<&str> = releases.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["v3.0.0", "v2.9.9", "v2.9.0", "v2.8.0"]);
}

async fn a_release_is_never_overwritten(world: &World) {
    let store = world.replica().await;
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

async fn an_agent_is_kept_as_it_last_registered(world: &World) {
    let store = world.replica().await;
    let agent = |name: &str, address: &str| AgentRecord {
        name: name.to_owned(),
        address: address.to_owned(),
        version: "0.1.0".to_owned(),
        ledger_generation: "g1".to_owned(),
        components: Vec::new(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        registered_at: at(0),
        certificate_expires: at(60),
    };
    for agent in [agent("app-2", "h2:1"), agent("app-1", "h1:1"), agent("app-2", "h2:2")] {
        store.save_agent(&agent).await.expect("save");
    }
    drop(store);
    let agents = world.replica().await.agents().await.expect("agents");
    assert_eq!(agents, [agent("app-1", "h1:1"), agent("app-2", "h2:2")]);
}
