use std::path::Path;
use std::time::Duration;

use rollback_engine::ids::Epoch;

use super::*;
use crate::store::sqlite::SqliteStore;
use crate::store::{Campaign, Candidate};

/// A store as a coordinator has it, and its lead.
async fn store(path: &Path) -> (SqliteStore, Fence) {
    let store = SqliteStore::open(path, "coord-1").await.expect("open the store");
    let candidate = Candidate {
        id: "coord-1/1".to_owned(),
        endpoint: String::new(),
    };
    let won = store.campaign(&candidate, Duration::from_secs(60), Epoch(0)).await;
    let Campaign::Won(epoch) = won.expect("campaign") else {
        panic!("somebody else leads")
    };
    let leader = candidate.id;
    (store, Fence { epoch, leader })
}

fn text(name: &str, about: &str) -> String {
    let default = Runbook::builtin_text("default").expect("a built-in");
    let mine = default.replacen("name = \"default\"", &format!("name = \"{name}\""), 1);
    format!("# {about}\n#\n{mine}")
}

#[tokio::test]
async fn each_text_is_the_next_version_of_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, fence) = store(&dir.path().join("store.db")).await;
    let apply = async |name: &str, about: &str| {
        let text = text(name, about);
        let (kept, new) = keep(&store, &fence, name, &text, "ana").await.expect("keep");
        (kept.version, new)
    };
    assert_eq!(apply("web", "one").await, (1, true));
    assert_eq!(apply("web", "one").await, (1, false));
    assert_eq!(apply("web", "two").await, (2, true));
    // Back to what was before is a decision of today.
    assert_eq!(apply("web", "one").await, (3, true));
    assert_eq!(apply("web-2", "other").await, (1, true));
    for version in 4..=11 {
        assert_eq!(apply("web", &format!("text {version}")).await, (version, true));
    }

    let newest = called(&store, "web").await.expect("the newest");
    assert_eq!((newest.version, about(&newest.text).as_str()), (11, "text 11"));
    assert_eq!(newest.applied.as_ref().map(|a| a.by.as_str()), Some("ana"));
    assert_eq!(newest.runbook().expect("a sound one").label(), "web@11");
    let second = called(&store, "web@2").await.expect("an older one");
    assert_eq!(about(&second.text), "two");
    let all: Vec<u32> = versions(&store, "web")
        .await
        .expect("list")
        .iter()
        .map(|k| k.version)
        .collect();
    assert_eq!(all, (1..=11).collect::<Vec<_>>());
    let names: Vec<String> = super::newest(&store)
        .await
        .expect("list")
        .into_iter()
        .map(|k| k.name)
        .collect();
    assert_eq!(
        names,
        [
            "default",
            "emergency",
            "schema-only",
            "app-only",
            "restore",
            "web",
            "web-2"
        ]
    );
}

#[tokio::test]
async fn two_who_apply_at_once_get_two_versions() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, fence) = store(&dir.path().join("store.db")).await;
    let (one, two) = (text("web", "one"), text("web", "two"));
    let (a, b) = tokio::join!(
        keep(&store, &fence, "web", &one, "ana"),
        keep(&store, &fence, "web", &two, "ben")
    );
    let mut versions = [a.expect("keep").0.version, b.expect("keep").0.version];
    versions.sort_unstable();
    assert_eq!(versions, [1, 2]);
    let late = Fence {
        epoch: Epoch(fence.epoch.0 + 1),
        ..fence
    };
    let refused = keep(&store, &late, "web", &text("web", "three"), "eve").await;
    assert_eq!(refused.expect_err("not the leader").code, Code::NotLeader);
}

#[tokio::test]
async fn what_is_not_there_is_refused_with_what_there_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, fence) = store(&dir.path().join("store.db")).await;
    keep(&store, &fence, "web", &text("web", "one"), "ana")
        .await
        .expect("keep");
    let refused = async |asked: &str| {
        let problem = called(&store, asked).await.expect_err("a refusal");
        (problem.code, problem.message)
    };
    let (code, message) = refused("wbe").await;
    assert_eq!(code, Code::UnknownRunbook);
    assert!(
        message.ends_with("default, emergency, schema-only, app-only, restore, web"),
        "{message}"
    );
    assert_eq!(
        refused("web@2").await.1,
        "runbook web has no such version; there are: 1"
    );
    // A plan of another program's built-in must not be made by that of this one.
    assert_eq!(
        refused("default@2").await.1,
        "runbook default has no such version; there are: 3"
    );
    for bad in ["web@", "web@0", "web@x", "../web", ""] {
        assert_eq!(refused(bad).await.0, Code::BadName, "{bad}");
    }
}

#[test]
fn the_names_of_built_in_runbooks_are_taken() {
    let reading = lint(&text("web", "mine"));
    assert!(reading.runbook.is_some() && reading.findings.is_empty());
    let mine = text("emergency", "mine");
    let reading = lint(&mine);
    assert!(reading.runbook.is_none());
    let [finding] = &reading.findings[..] else {
        panic!("{:?}", reading.findings)
    };
    let line = mine.lines().position(|l| l.starts_with("name = ")).expect("a name") + 1;
    assert_eq!(usize::try_from(finding.line).ok(), Some(line));
    assert_eq!(finding.hint, "give your copy another name");
}

#[test]
fn about_is_the_first_sentence_of_the_comment() {
    for (text, expected) in [
        (
            "\n#  Web servers, v2.9\n#gently. More.\nname = 1\n",
            "Web servers, v2.9 gently.",
        ),
        ("# Web servers\n#\n# Not that.\n", "Web servers"),
        ("name = \"web\"\n# later\n", ""),
    ] {
        assert_eq!(about(text), expected);
    }
    for name in Runbook::builtin_names() {
        let said = about(Runbook::builtin_text(name).expect("a built-in"));
        assert!(said.len() < 160 && said.ends_with(['.', '!']), "{name}: {said}");
    }
}
