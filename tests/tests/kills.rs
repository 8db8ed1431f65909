//! kill -9 in every phase of a rollback, on one fleet that swings between two releases. More rounds:
//! `scenario run kill-sweep --rounds 32`.

use fleet_tests::scenario::{Options, Scenario};

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_any_phase_changes_nothing() {
    let sweep = Scenario::find("kill-sweep").expect("the scenario exists");
    let options = Options {
        quiet: true,
        ..Options::default()
    };
    let report = sweep.run(options).await;
    if let Some(error) = report.error {
        panic!("{error}");
    }
    assert_eq!(report.json["rounds"], 8);
    assert_eq!(report.json["verified"], 8);
    assert_eq!(report.json["duplicate_effects"], 0);
}
