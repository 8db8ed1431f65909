//! Databases that go back: each scenario as a test, on a fleet of its own.

use fleet_tests::scenario::database::ALL;
use fleet_tests::scenario::{Options, Scenario};

/// Enough that reads and restores take time, and little enough for every run of all tests. Targets are for a database of
/// full size: `scenario run db-downtime`.
const SIZE_MIB: u64 = 25;

macro_rules! scenarios {
    ($($test:ident = $name:literal,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            let scenario = Scenario::find($name).expect("the scenario exists");
            let options = Options {
                quiet: true,
                size_mib: Some(SIZE_MIB),
                ..Options::default()
            };
            if let Some(error) = scenario.run(options).await.error {
                panic!("{}: {error}", $name);
            }
        })*

        #[test]
        fn no_scenario_is_forgotten() {
            let told = [$($name,)* "db-corrupt-backups", "db-kill-matrix"];
            let forgotten: Vec<_> = ALL.iter().map(|s| s.name).filter(|name| !told.contains(name)).collect();
            assert!(forgotten.is_empty(), "{forgotten:?}");
        }
    };
}

scenarios! {
    db_downtime = "db-downtime",
    db_restore = "db-restore",
    db_restore_undo = "db-restore-undo",
    db_migrate = "db-migrate",
    db_command_migrations = "db-command-migrations",
    db_manual_sql = "db-manual-sql",
    db_runbooks = "db-runbooks",
}

/// What a scenario found, quietly.
async fn found(name: &str, rounds: Option<usize>) -> serde_json::Value {
    let options = Options {
        quiet: true,
        rounds,
        ..Options::default()
    };
    let report = Scenario::find(name).expect("the scenario exists").run(options).await;
    match report.error {
        Some(error) => panic!("{name}: {error}"),
        None => report.json,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_corruption_of_a_backup_is_noticed() {
    let json = found("db-corrupt-backups", None).await;
    assert!(json["corruptions"].as_u64().is_some_and(|cases| cases >= 300), "{json}");
    assert_eq!(json["detected"], json["corruptions"], "{json}");
}

/// A sample of the places, another one in every run. `make soak` takes all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_any_two_sub_steps_changes_nothing() {
    let json = found("db-kill-matrix", Some(2)).await;
    assert!(json["points"].as_u64().is_some_and(|points| points > 200), "{json}");
    assert_eq!((&json["killed"], &json["wrong"]), (&12.into(), &0.into()), "{json}");
}
