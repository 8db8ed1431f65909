//! Small documents, and what is said of a release after it was recorded.

use std::sync::Arc;

use rollback_coordinator::store::{Closing, Document, DocumentKind, Store, StoreError};
use rollback_engine::ids::{Epoch, Target};
use rollback_engine::release::{Release, ReleaseEntry, Revision, Role};

use super::cases;
use crate::material::{at, events, fence, id, lead, release, rollback};
use crate::world::World;

cases![
    documents_come_back_by_kind_and_key,
    documents_are_put_all_together,
    a_document_is_added_once_whoever_asks,
    who_does_not_lead_writes_no_document_and_no_release,
    documents_of_an_end_are_written_with_it_or_not_at_all,
    what_is_said_of_a_release_later_leaves_its_content_alone,
    a_release_that_was_removed_is_gone,
];

fn hold(key: &str, body: &str) -> Document {
    Document {
        kind: DocumentKind::Hold,
        key: key.to_owned(),
        body: Some(body.to_owned()),
    }
}

fn gone(key: &str) -> Document {
    Document {
        body: None,
        ..hold(key, "")
    }
}

async fn holds(store: &dyn Store) -> Vec<Document> {
    store.documents(DocumentKind::Hold).await.expect("list")
}

async fn documents_come_back_by_kind_and_key(world: &World) {
    let store = world.replica().await;
    let fence = lead(&*store, "a").await;
    let runbook = Document {
        kind: DocumentKind::Runbook,
        key: "v1".to_owned(),
        body: Some("ä „quoted“ \\ ' \n $1".to_owned()),
    };
    let new = [hold("v2", "{}"), runbook.clone(), hold("B", "{}"), hold("a", "{}")];
    store.put_documents(&fence, &new).await.expect("put");
    store.put_documents(&fence, &[]).await.expect("put nothing");
    drop(store);
    let store = world.replica().await;
    // As bytes: a database that sorts as a language does would put "B" behind "a".
    assert_eq!(
        holds(&*store).await,
        [hold("B", "{}"), hold("a", "{}"), hold("v2", "{}")]
    );
    let read = async |kind, key| store.document(kind, key).await.expect("read");
    assert_eq!(read(DocumentKind::Runbook, "v1").await, Some(runbook));
    assert_eq!(read(DocumentKind::Hold, "v1").await, None, "that is a runbook");
    assert_eq!(read(DocumentKind::Objective, "v2").await, None);
    let fence = lead(&*store, "a").await;
    let more = ["app-1/api", "app-1/env", "app-10/api", "app-1", "app-10"].map(|key| hold(key, "{}"));
    store.put_documents(&fence, &more).await.expect("put");
    let under = store.documents_under(DocumentKind::Hold, "app-1/").await.expect("list");
    assert_eq!(under, [hold("app-1/api", "{}"), hold("app-1/env", "{}")]);
}

/// Also when one of them was there, one is removed, and one is said twice.
async fn documents_are_put_all_together(world: &World) {
    let store = world.replica().await;
    let fence = lead(&*store, "a").await;
    let before = [hold("v1", "1"), hold("v2", "1"), hold("v4", "1")];
    store.put_documents(&fence, &before).await.expect("put");
    let changes = [
        hold("v1", "2"),
        gone("v2"),
        gone("v9"),
        hold("v3", "1"),
        hold("v3", "2"),
        hold("v4", "2"),
        gone("v4"),
    ];
    store.put_documents(&fence, &changes).await.expect("put");
    assert_eq!(holds(&*store).await, [hold("v1", "2"), hold("v3", "2")]);
}

async fn a_document_is_added_once_whoever_asks(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let fence = lead(&*a, "a").await;
    let tries = (0..8).map(|i| {
        let (store, fence) = (Arc::clone(if i % 2 == 0 { &a } else { &b }), fence.clone());
        tokio::spawn(async move {
            let mine = hold("v1", &i.to_string());
            store.add_document(&fence, &mine).await.expect("add").then_some(mine)
        })
    });
    let added = futures::future::join_all(tries).await;
    let added: Vec<Document> = added.into_iter().filter_map(|a| a.expect("add")).collect();
    assert_eq!(added.len(), 1);
    assert_eq!(holds(&*a).await, added);
    assert!(
        !a.add_document(&fence, &gone("v7")).await.expect("add"),
        "nothing to add"
    );
    a.put_documents(&fence, &[gone("v1")]).await.expect("put");
    assert!(
        a.add_document(&fence, &hold("v1", "again")).await.expect("add"),
        "it is free"
    );
}

async fn who_does_not_lead_writes_no_document_and_no_release(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let old = lead(&*a, "a").await;
    assert!(a.add_release(&release("v1", false)).await.expect("add"));
    a.put_documents(&old, &[hold("v1", "{}")]).await.expect("put");
    a.give_back(&old).await.expect("give back");
    let newer = lead(&*b, "b").await;
    for stale in [old, fence(newer.epoch, "a"), fence(Epoch(newer.epoch.0 + 1), "b")] {
        let refused = [
            a.put_documents(&stale, &[hold("v1", "2"), hold("v2", "{}")]).await,
            a.add_document(&stale, &hold("v3", "{}")).await.map(drop),
            a.update_release(&stale, &release("v1", true)).await.map(drop),
            a.remove_release(&stale, &"v1".into()).await.map(drop),
        ];
        for refused in refused {
            assert!(
                matches!(refused, Err(StoreError::Fenced(e)) if e == newer.epoch),
                "{refused:?}"
            );
        }
    }
    assert_eq!(holds(&*b).await, [hold("v1", "{}")]);
    assert_eq!(b.releases().await.expect("read"), [release("v1", false)]);
}

async fn documents_of_an_end_are_written_with_it_or_not_at_all(world: &World) {
    let store = world.replica().await;
    let fence = lead(&*store, "a").await;
    let new = rollback("r1", "q1", &["app-1"]);
    store.create(&fence, &new).await.expect("create");
    store.put_documents(&fence, &[hold("v1", "{}")]).await.expect("put");
    let objective = Document {
        kind: DocumentKind::Objective,
        key: "app-1".to_owned(),
        body: Some("{}".to_owned()),
    };
    let closing = Closing {
        documents: vec![hold("v3", "{}"), gone("v1"), objective.clone()],
        ..Closing::default()
    };
    let refused = store
        .append(&fence, &id("r1"), 9, &events(1), "{}", Some(&closing))
        .await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    assert_eq!(holds(&*store).await, [hold("v1", "{}")], "not without its events");
    store
        .append(&fence, &id("r1"), 2, &events(1), "{}", Some(&closing))
        .await
        .expect("end");
    assert_eq!(holds(&*store).await, [hold("v3", "{}")]);
    let objectives = store.documents(DocumentKind::Objective).await.expect("list");
    assert_eq!(objectives, [objective]);
}

async fn what_is_said_of_a_release_later_leaves_its_content_alone(world: &World) {
    let store = world.replica().await;
    let fence = lead(&*store, "a").await;
    let recorded = Release {
        entries: vec![ReleaseEntry {
            target: Target::new("app-1", "api"),
            role: Role::App,
            revision: Revision {
                version: "1".to_owned(),
                digest: "d1".into(),
            },
            summary: String::new(),
        }],
        ..release("v1", false)
    };
    assert!(store.add_release(&recorded).await.expect("add"));
    let said = Release {
        notes: "it loses sessions".to_owned(),
        commit: "c0ffee".to_owned(),
        stable: true,
        recorded_at: at(99),
        recorded_by: "somebody else".to_owned(),
        ranks_at: Some(at(1)),
        ..release("v1", true)
    };
    assert!(store.update_release(&fence, &said).await.expect("update"));
    let wanted = Release {
        notes: said.notes.clone(),
        commit: said.commit.clone(),
        stable: true,
        ..recorded
    };
    let read = store.release(&"v1".into()).await.expect("read");
    assert_eq!(read.as_ref(), Some(&wanted));
    assert_eq!(store.releases().await.expect("read"), [wanted]);
    assert!(
        !store
            .update_release(&fence, &release("v2", true))
            .await
            .expect("update")
    );
    assert_eq!(store.release(&"v2".into()).await.expect("read"), None);
}

async fn a_release_that_was_removed_is_gone(world: &World) {
    let store = world.replica().await;
    let fence = lead(&*store, "a").await;
    for name in ["v1", "v2"] {
        assert!(store.add_release(&release(name, true)).await.expect("add"));
    }
    assert!(store.remove_release(&fence, &"v1".into()).await.expect("remove"));
    assert!(!store.remove_release(&fence, &"v1".into()).await.expect("remove"));
    assert_eq!(store.releases().await.expect("read"), [release("v2", true)]);
    assert!(
        store.add_release(&release("v1", false)).await.expect("add"),
        "its name is free"
    );
}
