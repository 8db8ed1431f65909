//! Everything that `-o json` writes is as docs/schema/v1.json says, and `rollbackctl schema` prints that.

mod fake;
mod strict;

use fake::{Ended, Fake, bare};
use rollback_proto::v1::RollbackState;
use serde_json::json;

#[test]
fn every_verb_writes_what_is_documented() {
    let fake = Fake::start(RollbackState::Verified, false);
    for args in [
        &["fleet", "status"][..],
        &["fleet", "plan", "--to", "previous"],
        &["fleet", "readiness"],
        &["fleet", "rollback", "--to", "v2.9.0", "--yes"],
        &["fleet", "rollback", "--to", "v2.9.0", "--yes", "--detach"],
        &["rollback", "list"],
        &["rollback", "show"],
        &["rollback", "show", "nope"],
        &["rollback", "trace"],
        &["rollback", "watch"],
        &["release", "record", "v2.9.0"],
        &["release", "import", "v2.9.0"],
        &["release", "list"],
        &["release", "show", "v2.9.0"],
        &["release", "diff", "v2.9.0"],
        &["release", "preflight"],
        &["release", "prune", "--dry-run"],
        &["release", "mark", "v2.9.0", "--stable", "--reason", "ran for a week"],
        &["runbook", "list"],
        &["runbook", "show", "default"],
        &["fleet", "status", "--gate", "v2.9.0"],
        &["fleet", "hold", "v3.0.0", "--reason", "it leaks"],
        &["fleet", "unhold", "v3.0.0", "--reason", "it is mended"],
        &["rollback", "pause", "latest", "--reason", "looking"],
        &["agent", "list"],
        &["doctor"],
        &["version"],
    ] {
        let ended = fake.run(&[args, &["-o", "json"]].concat());
        strict::check(&ended.json());
    }
}

#[test]
fn what_is_not_documented_is_noticed() {
    let fake = Fake::start(RollbackState::Verified, false);
    let mut document = fake.run(&["rollback", "list", "-o", "json"]).json();
    strict::check(&document);
    document["more"] = json!(1);
    let noticed = std::panic::catch_unwind(|| strict::check(&document));
    assert!(noticed.is_err());
    document.as_object_mut().expect("an object").remove("rollbacks");
    let noticed = std::panic::catch_unwind(|| strict::check(&document));
    assert!(noticed.is_err());
}

#[test]
fn schema_is_printed_whole_and_by_kind() {
    let run = |args: &[&str]| Ended::of(bare(args).output().expect("run"));
    let kinds = run(&["schema", "--kinds"]).stdout;
    assert!(kinds.lines().any(|kind| kind == "fleet_plan"), "{kinds}");
    let all: serde_json::Value = serde_json::from_str(&run(&["schema"]).stdout).expect("JSON");
    assert_eq!(all["oneOf"].as_array().map(Vec::len), Some(kinds.lines().count()));
    let one: serde_json::Value = serde_json::from_str(&run(&["schema", "fleet_plan"]).stdout).expect("JSON");
    assert_eq!(one["$ref"], "#/$defs/document_fleet_plan");
    let none = run(&["schema", "fleet_plans"]);
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("fleet_readiness"), "{none:?}");
}
