//! Releases from the outside: what pipelines say and get, what is asked before something is forgotten, and the exit codes
//! that deployments go by.

mod fake;
mod strict;

use std::process::Stdio;

use fake::{Ended, Fake};
use rollback_proto::v1::RollbackState;

fn fake() -> Fake {
    Fake::start(RollbackState::Verified, false)
}

/// With this on stdin.
fn say(fake: &Fake, text: &str, args: &[&str]) -> Ended {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("write");
    let stdin = std::fs::File::open(file.path()).expect("open");
    let mut command = fake.command(args);
    Ended::of(command.stdin(Stdio::from(stdin)).output().expect("run"))
}

#[test]
fn a_pipeline_says_what_it_deployed_on_stdin() {
    let fake = fake();
    let record = ["release", "record", "--from-stdin", "-o", "json"];
    let done = say(&fake, r#"{"name": "v3.1.0", "commit": "c0ffee"}"#, &record);
    assert_eq!(
        (done.code, done.json()["name"].as_str()),
        (0, Some("v3.1.0")),
        "{done:?}"
    );
    let other = r#"{"name": "v3.1.0", "expected": [{"component": "api", "version": "v3.1.0"}]}"#;
    let refused = say(&fake, other, &record[..3]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("RB0217"), "{refused:?}");
    assert!(refused.stderr.contains("api is not v3.1.0"), "{refused:?}");
    let misspelt = say(&fake, r#"{"nmae": "v3.1.0"}"#, &record[..3]);
    assert_eq!(misspelt.code, 1);
    assert!(misspelt.stderr.contains("unknown field `nmae`"), "{misspelt:?}");
    let nothing = fake.run(&["release", "record"]);
    assert_eq!(nothing.code, 1, "{nothing:?}");
}

#[test]
fn nothing_is_forgotten_without_being_asked_and_what_is_needed_is_an_answer() {
    let fake = fake();
    for args in [&["release", "prune"][..], &["release", "remove", "v2.7.0"]] {
        let ended = fake.run(args);
        assert_eq!(ended.code, 1, "{args:?}");
        assert!(ended.stderr.contains("--yes"), "{ended:?}");
        for looking in [&["--dry-run"][..], &["--dry-run", "--yes"]] {
            let would = fake.run(&[args, looking].concat());
            assert_eq!(
                (would.code, would.stdout.as_str()),
                (0, "would forget v2.7.0\n"),
                "{args:?} {looking:?}"
            );
        }
        let done = fake.run(&[args, &["--yes"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        assert!(
            done.stdout.starts_with("forgot v2.7.0\n  still there: app-2/api"),
            "{done:?}"
        );
        let json = fake.run(&[args, &["--yes", "-o", "json"]].concat()).json();
        strict::check(&json);
        assert_eq!(json["releases"][0]["removed"], true);
    }
    let looked = fake.run(&["release", "remove", "v2.9.0", "--dry-run"]);
    assert_eq!(looked.code, 3, "{looked:?}");
    assert!(looked.stdout.starts_with("needed v2.9.0: 3 components"), "{looked:?}");
    let refused = fake.run(&["release", "remove", "v2.9.0", "--yes"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("RB0216"), "{refused:?}");
}

#[test]
fn the_checklist_ends_with_what_a_deployment_goes_by() {
    let fake = fake();
    let blocked = fake.run(&["release", "preflight"]);
    assert_eq!(blocked.code, 3, "{blocked:?}");
    assert!(blocked.stdout.contains("BLOCKER  migration"), "{blocked:?}");
    let json = fake.run(&["release", "preflight", "-o", "json"]);
    strict::check(&json.json());
    assert_eq!((json.code, json.json()["blocked"].as_bool()), (3, Some(true)));
    assert_eq!(fake.run(&["release", "preflight", "--rehearse"]).code, 0);
}

#[test]
fn marks_and_notes_show_the_release_as_it_is_then() {
    let fake = fake();
    let marked = fake.run(&[
        "release",
        "mark",
        "v3.0.0",
        "--stable",
        "--reason",
        "six weeks",
        "-o",
        "json",
    ]);
    strict::check(&marked.json());
    assert_eq!(marked.json()["mark"]["reason"], "six weeks");
    let unstable = fake.run(&["release", "mark", "v3.0.0", "--unstable", "--reason", "leaks"]);
    assert!(unstable.stdout.contains("stable    no, by ana"), "{unstable:?}");
    let noted = fake.run(&["release", "note", "v3.0.0", "the new checkout", "-o", "json"]);
    assert_eq!(noted.json()["notes"], "the new checkout");
    for wrong in [
        &["release", "mark", "v3.0.0", "--reason", "x"][..],
        &["release", "mark", "v3.0.0", "--stable"],
        &["release", "mark", "v3.0.0", "--stable", "--unstable", "--reason", "x"],
        &["release", "note", "-v3", "x"],
    ] {
        assert_eq!(fake.run(wrong).code, 1, "{wrong:?}");
    }
}
