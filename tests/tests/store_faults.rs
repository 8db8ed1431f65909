//! What happens around the coordinators in the middle of rollbacks. More of it: `scenario run store-restart --rounds 10`.

use fleet_tests::scenario::{Options, Scenario};
use serde_json::Value;

/// Tells it, panics with the whole story when it fails, and hands out what it found. All of its rollbacks were verified.
async fn told(name: &str) -> Value {
    let scenario = Scenario::find(name).expect("the scenario exists");
    let options = Options {
        quiet: true,
        ..Options::default()
    };
    let report = scenario.run(options).await;
    if let Some(error) = report.error {
        panic!("{name}: {error}");
    }
    let found = report.json;
    assert!(found["rollbacks"].as_u64() > Some(0), "{found}");
    assert_eq!(found["verified"], found["rollbacks"], "{found}");
    assert_eq!(found["duplicate_effects"], 0, "{found}");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_is_as_good_as_the_server() {
    let found = told("pgbouncer").await;
    assert_eq!(found["pooler_restarts"], 1, "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_in_any_way_loses_nothing() {
    let found = told("store-restart").await;
    assert!(found["replies_to_commit_lost"].as_u64() > Some(0), "{found}");
    assert!(found["commits_not_made"].as_u64() > Some(0), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for_and_said() {
    told("store-disk-full").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_moved_by_an_hour_change_nothing() {
    let found = told("clock-moved").await;
    assert_eq!(found["leader_changes"], 0, "{found}");
    assert!(found["events_out_of_time"].as_u64() > Some(0), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_is_healed_or_taken_over_or_named() {
    let found = told("network-cut").await;
    assert!(found["packets_dropped"].as_u64() > Some(0), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_freezes_inside_a_transaction_is_replaced_in_time() {
    let found = told("leader-frozen-in-commit").await;
    assert_eq!(found["stale_appends"], 0, "{found}");
}
