//! Databases that go back: each scenario as a test, on a fleet of its own.

use fleet_tests::scenario::database::ALL;
use fleet_tests::scenario::{Options, Scenario};

/// Enough that reads and restores take time, and little enough for every run of all tests. Targets are for a database of
/// full size: `scenario run db-downtime`.
const SIZE_MIB: u64 = 50;

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
            let told = [$($name,)*];
            let forgotten: Vec<_> = ALL.iter().map(|s| s.name).filter(|name| !told.contains(name)).collect();
            assert!(forgotten.is_empty(), "{forgotten:?}");
        }
    };
}

scenarios! {
    db_downtime = "db-downtime",
    db_restore = "db-restore",
    db_restore_undo = "db-restore-undo",
}
