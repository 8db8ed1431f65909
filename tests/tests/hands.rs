//! The operator's hands: each scenario as a test, on a fleet of its own.

use fleet_tests::scenario::Scenario;
use fleet_tests::scenario::hands::ALL;

macro_rules! scenarios {
    ($($test:ident = $name:literal,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            Scenario::expect($name).await;
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
    plan_stale = "plan-stale",
    pause_resume = "pause-resume",
    pause_failover = "pause-failover",
    abort_undo = "abort-undo",
    retry_failed_hosts = "retry-failed-hosts",
    skip_a_host = "skip-a-host",
    host_away_converges = "host-away-converges",
    disjoint_scopes = "disjoint-scopes",
    two_person_consent = "two-person-consent",
    hold_blocks_redeploy = "hold-blocks-redeploy",
    readiness_finds_lost_release = "readiness-finds-lost-release",
    readiness_finds_pruned_image = "readiness-finds-pruned-image",
    emergency = "emergency",
    undo_finished = "undo-finished",
    release_preflight = "release-preflight",
}
