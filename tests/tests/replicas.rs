//! Several coordinators, and every place at which one process can be killed. A few rounds each; the whole of it is told by
//! `make soak`.

use fleet_tests::scenario::replicas::ALL;
use fleet_tests::scenario::{Options, Scenario};
use serde_json::Value;

async fn told(name: &str, rounds: usize) -> Value {
    let scenario = Scenario::find(name).expect("the scenario exists");
    let options = Options {
        quiet: true,
        rounds: Some(rounds),
        ..Options::default()
    };
    let report = scenario.run(options).await;
    if let Some(error) = report.error {
        panic!("{name}: {error}");
    }
    report.json
}

#[tokio::test(flavor = "multi_thread")]
async fn another_coordinator_goes_on_when_the_leader_is_killed() {
    let found = told("ha-failover", 3).await;
    assert_eq!(found["verified"], 3);
    assert_eq!(found["duplicate_effects"], 0);
    assert!(found["resume_ms_max"].as_u64().is_some_and(|ms| ms <= 8_000), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_asked_to_end_hands_over_at_once() {
    let found = told("handover", 2).await;
    assert_eq!(found["verified"], 2);
    assert!(
        found["handover_ms_max"].as_u64().is_some_and(|ms| ms <= 1_000),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_does_nothing_when_it_wakes_up() {
    let found = told("stale-leader", 3).await;
    assert_eq!(found["stepped_down"], 3);
    assert_eq!(found["stale_appends"], 0);
    assert_eq!(found["stale_steps"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_process_is_killed_the_rollback_ends_as_it_says() {
    let found = told("crash-matrix", 40).await;
    assert_eq!(found["wrong"], 0);
    assert!(found["cases"].as_u64().is_some_and(|cases| cases >= 40), "{found}");
}

#[test]
fn no_scenario_is_forgotten() {
    let told = ["ha-failover", "handover", "stale-leader", "crash-matrix"];
    let forgotten: Vec<_> = ALL.iter().map(|s| s.name).filter(|name| !told.contains(name)).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
}
